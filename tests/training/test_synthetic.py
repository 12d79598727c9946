"""The rendered data set: real files that open, the same for a seed, and labels that a single frame does not give."""

import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from harec_deploy.errors import UsageError
from training.synthetic import ACTIONS, PAIRS, pose, render, synthesize


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], list[tuple[int, int]]]:
    """Return the folder, the paths and the progress of two actors with one clip of each action."""
    out = tmp_path_factory.mktemp("synthetic") / "new" / "clips"
    calls: list[tuple[int, int]] = []
    paths = synthesize(out, actors=2, clips_per_action=1, progress=lambda done, total: calls.append((done, total)))
    return out, paths, calls


def clip(action: str, actor: int = 0, number: int = 0, seed: int = 0) -> NDArray[np.uint8]:
    return np.stack(list(render(action, actor, number, seed)))


def test_files_are_named_after_action_actor_and_clip(rendered: tuple[Path, list[Path], list[tuple[int, int]]]) -> None:
    out, paths, calls = rendered
    expected = [out / action / f"v_{action}_g00_c00.mp4" for action in ACTIONS]
    expected += [out / action / f"v_{action}_g01_c00.avi" for action in ACTIONS]
    assert paths == sorted(expected)
    assert sorted(path for path in out.rglob("*") if path.is_file()) == paths, "nothing else is left behind"
    assert calls == [(done, 16) for done in range(17)]


def test_files_are_real_videos(rendered: tuple[Path, list[Path], list[tuple[int, int]]]) -> None:
    for path in rendered[1]:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            context = stream.codec_context
            assert (context.name, context.codec_tag) == (
                ("mpeg4", "XVID") if path.suffix == ".avi" else ("h264", "avc1")
            )
            assert (context.width, context.height, context.pix_fmt) == (320, 240, "yuv420p")
            assert stream.average_rate == 25
            frames = list(container.decode(stream))
        assert 1.6 <= len(frames) / 25 <= 2.8
        if path.parent.name == "walk_left":
            drawn = clip("walk_left", actor=1 if path.suffix == ".avi" else 0)
            assert len(frames) == len(drawn)
            seen = np.stack([frame.to_ndarray(format="rgb24") for frame in frames[::5]])
            error = np.abs(seen.astype(np.int16) - drawn[::5])
            assert error.mean() < 6, "the file shows its clip, from the first frame to the last"


@pytest.mark.parametrize("action", ["walk_left", "stand_up"])
def test_render_is_deterministic(action: str) -> None:
    first = clip(action, actor=3, number=1, seed=7)
    assert first.dtype == np.uint8
    assert first.shape[1:] == (240, 320, 3)
    assert 40 <= len(first) <= 70
    np.testing.assert_array_equal(first, clip(action, actor=3, number=1, seed=7))
    for other in (clip(action, 3, 1, 8), clip(action, 4, 1, 7), clip(action, 3, 2, 7)):
        assert first.shape != other.shape or (first != other).any()


def test_every_action_belongs_to_one_pair() -> None:
    assert len(ACTIONS) == 8
    assert sorted(ACTIONS) == sorted({action for pair in PAIRS for action in pair})


@pytest.mark.parametrize(("forwards", "backwards"), PAIRS)
def test_partners_are_each_other_played_backwards(forwards: str, backwards: str) -> None:
    phases = np.linspace(0, 1, 11)
    there = np.array([pose(forwards, phase) for phase in phases])
    back = np.array([pose(backwards, phase) for phase in phases])
    np.testing.assert_allclose(there, back[::-1], atol=1e-9)
    assert np.abs(there - back).max() > 0.5, "the two can be told apart by their order"


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("actor", [0, 1])
def test_figure_is_large_and_whole(action: str, actor: int) -> None:
    frames = clip(action, actor)[::3].astype(np.int16)
    moved = np.abs(frames - np.median(frames, axis=0)).sum(axis=-1).max(axis=0) > 120
    rows, columns = np.flatnonzero(moved.any(axis=1)), np.flatnonzero(moved.any(axis=0))
    assert moved.mean() > 0.01, "the motion can be seen"
    assert rows[0] > 0
    assert rows[-1] < 239
    assert columns[0] > 0
    assert columns[-1] < 319


def test_resume_renders_only_what_is_missing(
    rendered: tuple[Path, list[Path], list[tuple[int, int]]], tmp_path: Path
) -> None:
    out, paths, _ = rendered
    copy = tmp_path / "clips"
    shutil.copytree(out, copy)
    lost = copy / paths[3].relative_to(out)
    lost.unlink()
    lost.with_name(f".{lost.name}.part").write_bytes(b"left by a run that was killed")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("v_*")}
    calls: list[tuple[int, int]] = []
    again = synthesize(copy, actors=2, clips_per_action=1, progress=lambda done, total: calls.append((done, total)))
    assert [path.relative_to(copy) for path in again] == [path.relative_to(out) for path in paths]
    assert {path for path in again if before.get(path) != path.stat().st_mtime_ns} == {lost}
    assert lost.read_bytes() == paths[3].read_bytes()
    assert not list(copy.rglob(".*"))
    assert calls == [(15, 16), (16, 16)]


def test_actions_may_have_actors_of_their_own(tmp_path: Path) -> None:
    """The third action's first actor of two is number 4; what is in the file is what is drawn of that one."""
    lost = tmp_path / "sit_down/v_sit_down_g00_c00.mp4"
    for action in ACTIONS:  # what is there is not rendered again: all but one
        (tmp_path / action).mkdir()
        for actor, kind in enumerate(("mp4", "avi")):
            (tmp_path / action / f"v_{action}_g{actor:02d}_c00.{kind}").touch()
    lost.unlink()
    assert lost in synthesize(tmp_path, actors=2, clips_per_action=1, own_actors=True, workers=1)
    with av.open(str(lost)) as container:
        (first, *_) = container.decode(video=0)
    seen = first.to_ndarray(format="rgb24").astype(np.int16)
    errors = [np.abs(seen - clip("sit_down", actor)[0]).mean() for actor in (0, 4)]
    assert errors[1] < 6 < errors[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"actors": 1}, "actors is 1; allowed are 2 and above"),
        ({"clips_per_action": 0}, "clips_per_action is 0; allowed are 1 and above"),
        ({"seed": -1}, "seed is -1; allowed are 0 and above"),
    ],
)
def test_wrong_numbers_are_refused_before_anything_is_written(
    tmp_path: Path, wrong: dict[str, int], message: str
) -> None:
    with pytest.raises(UsageError) as refused:
        synthesize(tmp_path / "clips", **wrong)  # type: ignore[arg-type]
    assert str(refused.value) == message
    assert not (tmp_path / "clips").exists()
