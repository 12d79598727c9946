"""Features of an earlier frame: taken over where hardly anything changed, never across videos, never by drifting."""

import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from av.video.frame import VideoFrame
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import harec_deploy
from harec_deploy import Windowing
from harec_deploy.__main__ import app
from harec_deploy.bundle import load
from harec_deploy.decode import Frames
from harec_deploy.decode.pyav import PyAVDecoder
from harec_deploy.discover import VideoFile
from harec_deploy.errors import OutputError, ProofError, UsageError, VideoError
from harec_deploy.export.reuse import _Measured, prove_reuse, store
from harec_deploy.intervals import wilson
from harec_deploy.label.options import Options
from harec_deploy.label.run import label
from harec_deploy.label.summary import Summary
from harec_deploy.recognizer import Recognizer
from harec_deploy.reuse import BLOCK, Reuse, difference
from harec_deploy.spec import ReuseProof
from tests.media import Clip, picture, write_frames
from tests.test_cli import run
from tests.test_windows import clipwise, info

HOW = Windowing(window_s=4.0, stride_s=1.0)


def frame(*levels: int) -> np.ndarray:
    """Return a frame of blocks side by side, each of one level: uint8 (BLOCK, BLOCK * N, 3)."""
    return np.tile(np.array(levels, dtype=np.uint8).repeat(BLOCK)[None, :, None], (BLOCK, 1, 3))


class TestDifference:
    def test_is_that_of_the_block_that_differs_most(self) -> None:
        assert difference(frame(9, 9, 9, 9), frame(9, 9, 30, 10)) == 21
        assert difference(frame(0, 255), frame(255, 255)) == 255  # levels do not wrap round

    def test_in_a_block_it_is_the_mean(self) -> None:
        one, other = frame(50, 50), frame(50, 50)
        other[: BLOCK // 2, BLOCK:, 0] += 12  # half of a block, one colour of three
        assert difference(one, other) == difference(other, one) == pytest.approx(2)

    def test_blocks_at_the_edge_are_smaller(self) -> None:
        one = np.zeros((2 * BLOCK + 3, 4 * BLOCK + 5, 3), dtype=np.uint8)
        other = one.copy()
        other[2 * BLOCK :, 4 * BLOCK :] = 40
        assert difference(one, other) == 40

    def test_one_block_is_the_mean_of_the_frame(self) -> None:
        one, other = np.random.default_rng(0).integers(0, 256, (2, 24, 40, 3), dtype=np.uint8)
        assert difference(one, other, 40) == pytest.approx(np.abs(one.astype(float) - other).mean())


def part(levels: np.ndarray, start: int, last: bool = False) -> Frames:
    pixels = np.tile(levels.astype(np.uint8)[:, None, None, None], (1, 8, 8, 3))
    return Frames(info(99.0), pixels, np.arange(start, start + len(levels), dtype=np.float64), 0, last)


def fed(reuse: Reuse, levels: np.ndarray, count: int) -> np.ndarray:
    """Return the features that frames of these levels get, ``count`` at a time; a fresh frame's are its level."""
    got = []
    for start in range(0, len(levels), count):
        own = levels[start : start + count]
        fresh = reuse.fresh(part(own, start))
        got.append(reuse.filled(fresh, own[fresh, None].astype(np.float32)))
    return np.concatenate(got)[:, 0]


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=40), st.integers(0, 60), st.integers(1, 9))
def test_every_frame_has_the_features_of_one_that_is_near_it(levels: list[int], threshold: int, count: int) -> None:
    wanted: list[int] = []
    for level in levels:
        wanted.append(wanted[-1] if wanted and abs(level - wanted[-1]) <= threshold else level)
    reuse = Reuse(threshold)
    assert fed(reuse, np.array(levels), count).tolist() == wanted
    assert reuse.compared == len(levels)


def test_slow_changes_add_up() -> None:
    """Each frame is 3 levels from the one before, so each of them alone would pass."""
    assert fed(Reuse(7), np.arange(0, 30, 3), 4).tolist() == [0, 0, 0, 9, 9, 9, 18, 18, 18, 27]


def test_a_video_that_begins_anew_takes_nothing_from_before() -> None:
    reuse = Reuse(5)
    fed(reuse, np.array([10, 10, 10]), 3)
    fresh = reuse.fresh(part(np.array([11, 11]), 0))
    assert fresh.tolist() == [True, False]
    assert reuse.filled(fresh, np.array([[11.0]], dtype=np.float32)).ravel().tolist() == [11, 11]


def test_frames_whose_memory_is_used_again_do_not_change_what_was_seen() -> None:
    reuse, shown = Reuse(5), part(np.array([10]), 0)
    reuse.filled(reuse.fresh(shown), np.array([[10.0]], dtype=np.float32))
    shown.pixels[:] = 200
    assert reuse.fresh(part(np.array([10]), 1)).tolist() == [False]


def test_off_means_every_frame() -> None:
    reuse = Reuse()
    assert reuse.fresh(part(np.array([1, 1, 1]), 0)).all()
    assert (reuse.compared, reuse.reused) == (0, 0)


def still(clip: Clip, seconds: int) -> Iterator[VideoFrame]:
    """Yield frames of which each stands still for some seconds."""
    pictures = [picture(clip, index) for index in range(0, clip.frames, seconds * 25)]
    return (VideoFrame.from_ndarray(pictures[n // (seconds * 25)], format="rgb24") for n in range(clip.frames))


@pytest.fixture(scope="module")
def still_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 s, of which every picture stands for 2 s; without loss, so that it is the same picture to the bit."""
    clip = Clip(frames=400, gop=400, b_frames=0, options={"qp": "0"})
    return write_frames(tmp_path_factory.mktemp("still") / "still.mp4", clip, still(clip, 2))


def test_equal_frames_are_encoded_once_and_give_equal_results(
    exported: Path, still_video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer = harec_deploy.load(exported, runner="openvino", precision="fp32")
    wanted = recognizer.label(still_video, windows=HOW)
    encoded: list[int] = []
    encode = Recognizer.encode

    def counted(self: Recognizer, frames: np.ndarray) -> np.ndarray:
        encoded.append(len(frames))
        return encode(self, frames)

    monkeypatch.setattr(Recognizer, "encode", counted)
    assert recognizer.label(still_video, windows=HOW, reuse_threshold=0.0) == wanted
    assert sum(encoded) == 8  # of 80 frames that are sampled, one for each picture


class TestRun:
    def run(self, exported: Path, folder: Path, *inputs: Path, **options: Any) -> tuple[Summary, list[dict[str, Any]]]:
        options = {"out": folder / "out.jsonl", "runner": "openvino", "precision": "fp32", "window_s": 4.0, **options}
        summary = label(exported, [str(path) for path in inputs], Options(**options))
        header, *rows = [json.loads(line) for line in options["out"].read_text().splitlines()]
        assert header["reuse_threshold"] == options.get("reuse_threshold")
        return summary, rows

    @pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
    def test_rows_are_equal_and_no_video_takes_from_another(
        self, exported: Path, tmp_path: Path, still_video: Path, device: str
    ) -> None:
        folder = tmp_path / "in"
        folder.mkdir()
        for name in ("a.mp4", "b.mp4", "c.mp4"):
            shutil.copy(still_video, folder / name)
        _, wanted = self.run(exported, tmp_path, folder, out=tmp_path / "off.jsonl")
        summary, rows = self.run(exported, tmp_path, folder, reuse_threshold=0.0, device=device)
        told = [{row["path"]: (row["top"], row["segments"]) for row in each} for each in (wanted, rows)]
        assert told[0] == told[1]
        assert (summary.stages.compared, summary.stages.reused) == (3 * 80, 3 * 72)
        assert summary.stages.reuse_told() == "90% of 240 frames took over features of an earlier one"

    def test_it_is_told_with_its_proof_and_other_thresholds_are_other_runs(
        self, bundle: Path, tmp_path: Path, still_video: Path
    ) -> None:
        said: list[str] = []
        self.run(bundle, tmp_path, still_video, announce=said.append, out=tmp_path / "off.jsonl")
        self.run(bundle, tmp_path, still_video, announce=said.append, reuse_threshold=4.0)
        assert "features: " not in said[0]
        (told,) = [line for line in said[1:] if "no proof for this bundle" in line]
        assert "at most 4 levels from an earlier one take its features: no proof for this bundle; " in told
        how = "--variant onnx-fp32 --reuse-threshold 4 --window 4s --stride 1s"
        assert told.endswith(f"; harec-deploy verify {bundle} CLIPS {how} makes it")
        recognizer = harec_deploy.load(bundle, runner="openvino", precision="fp32")
        store(recognizer.bundle, prove_reuse(recognizer, [str(still_video)], 4.0, windowing=HOW))
        self.run(bundle, tmp_path, still_video, announce=said.append, reuse_threshold=4.0)
        assert said[2].endswith("take its features: proved up to 4 levels, 100.0% of 13 windows kept their label")
        shown = " ".join(CliRunner().invoke(app, ["inspect", str(bundle)]).output.split())
        assert "reuse of features" in shown
        assert "│ onnx-fp32 │ 4 levels │ 13 of 4 s │ 100.0%" in shown
        with pytest.raises(OutputError, match=r"reuse_threshold 5\.0 \(the journal has 4\.0\)"):
            self.run(bundle, tmp_path, still_video, reuse_threshold=5.0)

    def test_a_clip_wise_model_has_nothing_to_reuse(self, tmp_path: Path, still_video: Path) -> None:
        folder = clipwise(tmp_path / "bundle")
        with pytest.raises(UsageError, match="--reuse-threshold: this model takes whole clips"):
            self.run(folder, tmp_path, still_video, reuse_threshold=4.0)
        recognizer = harec_deploy.load(folder, runner="openvino", precision="fp32")
        with pytest.raises(UsageError, match="reuse_threshold: this model takes whole clips"):
            recognizer.label(still_video, reuse_threshold=4.0)
        with pytest.raises(UsageError, match="takes whole clips and has no features of frames to reuse"):
            prove_reuse(recognizer, [str(still_video)], 4.0)

    @pytest.mark.parametrize("threshold", [-1.0, 255.5, float("nan")])
    def test_thresholds_that_are_no_levels_are_refused(self, tmp_path: Path, threshold: float) -> None:
        with pytest.raises(UsageError, match="allowed are 0 to 255 levels"):
            self.run(Path("no_bundle_is_read"), tmp_path, tmp_path, reuse_threshold=threshold)


class TestProof:
    def test_what_stands_still_keeps_its_labels(self, exported: Path, still_video: Path) -> None:
        recognizer = harec_deploy.load(exported, runner="openvino", precision="fp32")
        proof = prove_reuse(recognizer, [str(still_video)], 0.0, windowing=HOW)
        assert (proof.variant, proof.runner, proof.precision) == ("onnx-fp32", "openvino", "fp32")
        assert (proof.videos, proof.windows) == (1, 13)
        assert proof.share_reused == 0.9
        assert (proof.top1_agreement, proof.max_abs_dp, proof.mean_abs_dp) == (1.0, 0.0, 0.0)
        assert (proof.flipped, proof.flips) == ([], [])
        assert proof.top1_interval == wilson(13 / 4, 13 / 4)  # 4 s every second: a quarter of each is new
        assert (proof.window_s, proof.stride_s) == (4.0, 1.0)
        assert proof.encoder_saved_interval is proof.times_faster_interval is None  # 80 frames in parts of 20: 4 turns
        assert proof.passed

    def test_of_enough_turns_what_is_saved_has_an_interval(
        self, exported: Path, still_video: Path, tmp_path: Path
    ) -> None:
        shutil.copy(still_video, tmp_path / "again.mp4")
        recognizer = harec_deploy.load(exported, runner="openvino", precision="fp32")
        proof = prove_reuse(recognizer, [str(still_video), str(tmp_path)], 0.0, windowing=HOW)
        assert proof.windows == 26
        for value, interval in (
            (proof.encoder_saved, proof.encoder_saved_interval),
            (proof.times_faster, proof.times_faster_interval),
        ):
            low, high = interval or pytest.fail("no interval of 8 turns")
            assert low < value < high
        assert 0 < proof.encoder_saved < 1

    def test_a_threshold_that_takes_all_frames_for_alike_fails(self, exported: Path, videos: Path) -> None:
        recognizer = harec_deploy.load(exported, runner="openvino", precision="fp32")
        proof = prove_reuse(recognizer, [str(videos)], 255.0)
        assert proof.share_reused == pytest.approx(1 - 1 / recognizer.spec.sampling.frames)
        assert not proof.passed
        assert proof.top1_agreement == pytest.approx(1 - len(proof.flipped) / 6)
        assert proof.flipped
        assert all(Path(name).is_relative_to(videos) for name in proof.flipped)
        assert [flip.clip for flip in proof.flips] == proof.flipped  # a video is one window
        assert all(flip.wanted != flip.got for flip in proof.flips)
        assert 0 < proof.mean_abs_dp < proof.max_abs_dp
        with pytest.raises(ProofError, match=r"at least 99% are wanted; flipped: .* -> .*; nothing was stored"):
            store(recognizer.bundle, proof)

    def test_what_cannot_be_decoded_to_its_end_leaves_no_turns(
        self, exported: Path, still_video: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recognizer = harec_deploy.load(exported, runner="openvino", precision="fp32")
        measured = _Measured(recognizer, 4.0, HOW)
        measured.add(VideoFile(still_video.name, still_video))
        turns, stream = len(measured.anew.all_s), PyAVDecoder.stream

        def cut(self: PyAVDecoder, *arguments: Any) -> Iterator[Frames]:
            yield from islice(stream(self, *arguments), 2)
            raise VideoError("corrupt")

        monkeypatch.setattr(PyAVDecoder, "stream", cut)
        measured.add(VideoFile(still_video.name, still_video))
        for way in (measured.anew, measured.reused):
            assert len(way.all_s) == len(way.encoder_s) == turns
            assert len(way.probabilities) == 1
        assert measured.proof(2).videos == 1

    def test_videos_that_cannot_be_decoded_prove_nothing(self, exported: Path, tmp_path: Path) -> None:
        recognizer = harec_deploy.load(exported, runner="openvino", precision="fp32")
        (tmp_path / "text.mp4").write_text("no video")
        with pytest.raises(UsageError, match="none of 1 videos can be decoded: name others"):
            prove_reuse(recognizer, [str(tmp_path)], 4.0)


@pytest.fixture(scope="module")
def fixed_camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 s of one scene with the noise of a sensor."""
    clip, random = Clip(frames=200, options={"crf": "18"}), np.random.default_rng(0)
    scene = picture(clip, 0).astype(np.int16)
    shown = (np.clip(scene + random.integers(-2, 3, scene.shape), 0, 255).astype(np.uint8) for _ in range(200))
    path = tmp_path_factory.mktemp("fixed") / "fixed.mp4"
    return write_frames(path, clip, (VideoFrame.from_ndarray(each, format="rgb24") for each in shown))


class TestCommand:
    """harec-deploy verify --reuse-threshold."""

    def verify(self, bundle: Path, video: Path, *more: str) -> Any:
        return run("verify", str(bundle), str(video), "--runner", "openvino", "--precision", "fp32", *more)

    def test_a_fixed_camera_passes_and_label_knows_it(self, bundle: Path, fixed_camera: Path, tmp_path: Path) -> None:
        done = self.verify(bundle, fixed_camera, "--reuse-threshold", "8", "--window", "2s", "--stride", "1s", "--json")
        assert done.returncode == 0, done.stderr
        (proof,) = load(bundle).spec.reuse
        assert msgspec.json.decode(done.stdout, type=ReuseProof) == proof
        assert (proof.threshold, proof.variant, proof.window_s, proof.stride_s) == (8.0, "onnx-fp32", 2.0, 1.0)
        assert proof.share_reused > 0.9
        assert proof.encoder_saved > 0.3
        assert "100.0% of 7 windows keep their label (95 % interval 47.7% to 100.0%); |dp| " in done.stderr
        assert "of frames take over features, " in done.stderr
        assert "proved and stored: harec-deploy label --reuse-threshold may be up to 8" in done.stderr
        how: dict[str, Any] = {"runner": "openvino", "precision": "fp32", "window_s": 2.0, "restart": True}
        for threshold, told in ((8.0, True), (3.0, True), (9.0, False)):
            said: list[str] = []
            options = Options(out=tmp_path / "o.jsonl", reuse_threshold=threshold, announce=said.append, **how)
            label(bundle, [str(fixed_camera)], options)
            assert ("proved up to 8 levels" in said[0]) is told
            assert ("no proof for this bundle; harec-deploy verify" in said[0]) is not told

    def test_a_moving_camera_fails_and_nothing_is_stored(self, bundle: Path, videos: Path) -> None:
        before = (bundle / "bundle.json").read_bytes()
        done = self.verify(bundle, videos, "--reuse-threshold", "255")
        assert done.returncode == 5
        assert done.stdout.startswith("labels that differ")
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error [proof_failed]: features reused at 255 levels do not leave labels as they are: ")
        assert last.endswith("; nothing was stored: take a lower --reuse-threshold")
        assert (bundle / "bundle.json").read_bytes() == before

    def test_videos_in_which_no_frame_is_reused_prove_nothing(self, bundle: Path, videos: Path) -> None:
        done = self.verify(bundle, videos, "--reuse-threshold", "1")
        assert done.returncode == 5
        told = "at 1 levels no frame of 6 videos takes over features, so they prove nothing of it: name videos of"
        assert done.stderr.splitlines()[-1].startswith(f"error [proof_failed]: {told}")
        assert load(bundle).spec.reuse == []

    def test_a_proof_takes_the_place_of_its_like(self, bundle: Path, fixed_camera: Path) -> None:
        recognizer = harec_deploy.load(bundle, runner="openvino", precision="fp32")
        proof = prove_reuse(recognizer, [str(fixed_camera)], 8.0)
        other = msgspec.structs.replace(proof, variant="onnx-int8")
        for each in (other, msgspec.structs.replace(proof, videos=9), proof):
            store(load(bundle), each)
        assert load(bundle).spec.reuse == [other, proof]

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (["--reuse-threshold", "4", "--decoder", "dali"], "--reuse-threshold is verified on its own"),
            (["--reuse-threshold", "4", "--stride", "1s"], "--stride is between windows: give --window too"),
            (["--window", "4s"], "--window and --stride are for --reuse-threshold: give it, or leave them out"),
            (["--reuse-threshold", "300"], "reuse threshold 300: allowed are 0 to 255 levels"),
        ],
    )
    def test_a_mistake_is_one_line(self, exported: Path, videos: Path, options: list[str], told: str) -> None:
        done = self.verify(exported, videos, *options)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error [usage]: {told}")
        assert done.stderr.count("\n") == 1
