"""Shards: every video in exactly one of them, wherever a machine finds the archive; each with a journal of its own."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harec_deploy.discover import discover
from harec_deploy.errors import OutputError, UsageError
from harec_deploy.label.journal import read_header, read_rows
from harec_deploy.label.options import Options
from harec_deploy.label.run import label
from harec_deploy.label.summary import Summary
from harec_deploy.shard import Shard


@given(st.lists(st.binary(max_size=20).map(os.fsdecode)), st.integers(1, 50))  # a name may be any bytes
def test_every_place_is_in_one_shard(places: list[str], total: int) -> None:
    shards = [Shard(number, total) for number in range(1, total + 1)]
    for place in places:
        assert [shard.has(place) for shard in shards].count(True) == 1


def test_shards_are_of_like_size_and_stay_what_they_are() -> None:
    places = [f"{n // 100}/video{n}.mp4" for n in range(4000)]
    sizes = Counter(number for number in range(1, 5) for place in places if Shard(number, 4).has(place))
    assert all(900 < sizes[number] < 1100 for number in range(1, 5))
    # Written into journals: a version that shares out otherwise would lose videos and do others twice.
    assert [n for n in range(12) if Shard(2, 3).has(f"video{n}.mp4")] == [6, 7]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1/0", "2", "a/b", "1/2/3", "", "-1/2", "1.0/2", "²/3"])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(UsageError, match=r"--shard .*: allowed are i/n with 1 <= i <= n, such as 2/4"):
        Shard.read(text)


def test_a_shard_is_written_in_one_way() -> None:
    assert str(Shard.read(" 02/4 ")) == "2/4"


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of 60 files in the working directory, and the same one mounted elsewhere."""
    monkeypatch.chdir(tmp_path)
    for place in range(60):
        path = Path(f"archive/{place % 7}/deep/{place}.mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    shutil.copytree("archive", "mnt/other")
    return tmp_path


def shards(total: int, *inputs: str) -> list[list[str]]:
    """Return the names in each shard."""
    found = [discover(inputs, shard=Shard(number, total)) for number in range(1, total + 1)]
    everything = len(discover(inputs).videos)
    assert all(len(each.videos) + each.elsewhere == everything for each in found)
    return [[video.name for video in each.videos] for each in found]


@pytest.mark.parametrize("total", [1, 2, 5, 100])
def test_shards_have_each_video_once(archive: Path, total: int) -> None:
    Path("list.txt").write_text("archive/3/deep/10.mp4\nmnt/other/3/deep/10.mp4\n")
    # Some are reached by two or three inputs.
    for inputs in (
        ["archive"],
        ["archive/1/deep/1.mp4", "archive", "mnt", "archive/2"],
        ["archive/*/*/1*", "@list.txt"],
    ):
        names = [name for shard in shards(total, *inputs) for name in shard]
        assert sorted(names) == sorted({video.name for video in discover(inputs).videos})


def test_a_mount_elsewhere_is_shared_out_alike(archive: Path) -> None:
    here = [[name.removeprefix("archive/") for name in shard] for shard in shards(3, "archive")]
    there = [[name.removeprefix("mnt/other/") for name in shard] for shard in shards(3, "mnt/other/")]
    absolute = [[name.removeprefix(f"{archive}/archive/") for name in s] for s in shards(3, str(archive / "archive"))]
    assert here == there == absolute


def test_a_new_video_moves_no_other(archive: Path) -> None:
    before = shards(3, "archive")
    Path("archive/new.mp4").write_text("x")
    after = shards(3, "archive")
    assert [[name for name in shard if name != "archive/new.mp4"] for shard in after] == before


class TestRun:
    @pytest.fixture(autouse=True)
    def workplace(self, tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        shutil.copytree(videos, "in")

    def run(self, bundle: Path, shard: str | None, out: str) -> Summary:
        part = Shard.read(shard) if shard else None
        return label(bundle, ["in"], Options(out=Path(out), runner="openvino", precision="fp32", shard=part))

    def test_shards_together_are_the_run(self, exported: Path) -> None:
        self.run(exported, None, "all.jsonl")
        names: list[str] = []
        for number in (1, 2):
            summary = self.run(exported, f"{number}/2", f"{number}.jsonl")
            assert (summary.todo, summary.stopped) == (0, "")
            assert self.run(exported, f"{number}/2", f"{number}.jsonl").done == 0
            header = read_header(Path(f"{number}.jsonl"))
            assert header is not None
            assert header.shard == f"{number}/2"
            names += [row.path for row in summary.rows]
        assert sorted(names) == sorted(row.path for row in read_rows(Path("all.jsonl")).values())

    def test_another_shard_is_another_run(self, exported: Path) -> None:
        self.run(exported, "1/2", "out.jsonl")
        with pytest.raises(OutputError, match=r"of another run: shard 2/2 \(the journal has 1/2\); use --restart"):
            self.run(exported, "2/2", "out.jsonl")
        with pytest.raises(OutputError, match=r"shard none \(the journal has 1/2\)"):
            self.run(exported, None, "out.jsonl")

    def test_an_empty_shard_is_no_error(self, exported: Path) -> None:
        empty = next(n for n in range(1, 10) if not discover(["in"], shard=Shard(n, 9)).videos)
        said: list[str] = []
        options = Options(out=Path("out.csv"), runner="openvino", shard=Shard(empty, 9), announce=said.append)
        summary = label(exported, ["in"], options)
        assert (len(summary.rows), summary.todo, summary.stopped) == (0, 0, "")
        assert said[0].startswith(f"0 videos of 6, shard {empty}/9; ")
        assert len(Path("out.csv").read_text().splitlines()) == 1
        assert read_header(Path("out.jsonl")) is not None

    def test_inputs_without_videos_are_an_error_in_every_shard(self, exported: Path) -> None:
        Path("docs").mkdir()
        with pytest.raises(UsageError, match="no videos in docs"):
            label(exported, ["docs"], Options(out=Path("out.jsonl"), shard=Shard(1, 2)))
