"""Journals joined into one: every row once, or one line that says why not."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet
import pytest

from harec_deploy.discover import VideoFile
from harec_deploy.errors import MissingDependency, OutputError, OutputLocked, UsageError
from harec_deploy.files import locked
from harec_deploy.label import outputs
from harec_deploy.label.journal import Header, Journal, Row, make_row, read_header, read_rows
from harec_deploy.label.merge import Merged, merge
from harec_deploy.label.options import Options
from harec_deploy.label.report import write_report
from harec_deploy.label.run import label
from harec_deploy.label.summary import Summary
from harec_deploy.recognizer import VideoResult
from harec_deploy.sampling import Windowing
from harec_deploy.shard import Shard

HEADER = Header(
    bundle="b", variant="onnx-fp32", runner="openvino", precision="fp32", decoder="pyav", top_k=5, harec_deploy="1"
)


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def journal(path: str, *names: str, mtime_ns: int = 1, label: str = "jump", **fields: Any) -> Path:
    """Write a journal with a row for each name."""
    header = msgspec.structs.replace(HEADER, **fields)
    with Journal(Path(path), header) as written:
        for name in names:
            result = VideoResult(name, top=((label, 0.5), ("swim", 0.25)))
            written.append(make_row(VideoFile(name, Path(name), 7, mtime_ns), result, header))
    return Path(path)


def lines(path: str = "out.jsonl") -> list[bytes]:
    return Path(path).read_bytes().splitlines()


def merged(*journals: Path, out: str = "out.jsonl", **options: Any) -> Merged:
    return merge(Path(out), journals, **options)


def test_every_row_is_there_once_and_as_it_was() -> None:
    one, two = journal("1.jsonl", "b", "d"), journal("2.jsonl", "c", "a", "\udcff.mp4")
    assert merged(one, two).statuses.total() == 5
    assert lines()[0] == lines("1.jsonl")[0]
    assert sorted(lines()[1:]) == sorted(lines("1.jsonl")[1:] + lines("2.jsonl")[1:])
    assert [row.key[0] for row in read_rows(Path("out.jsonl")).values()] == ["a", "b", "c", "d", "\udcff.mp4"]


def test_the_last_row_of_a_video_counts_and_a_torn_one_does_not() -> None:
    one = journal("1.jsonl", "a", label="climb")
    journal("1.jsonl", "a", mtime_ns=2)
    with one.open("ab") as stream:
        stream.write(b'{"path":"b"')
    assert merged(one).statuses.total() == 1
    (row,) = read_rows(Path("out.jsonl")).values()
    assert (row.label, row.mtime_ns) == ("jump", 2)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_are_those_of_label(suffix: str) -> None:
    merged(journal("1.jsonl", "b"), journal("2.jsonl", "a", "c"), out=f"out{suffix}")
    outputs.WRITERS[suffix](Path(f"wanted{suffix}"), read_rows(Path("out.jsonl")).values())
    assert Path(f"out{suffix}").read_bytes() == Path(f"wanted{suffix}").read_bytes()
    if suffix == ".csv":
        with Path("out.csv").open(newline="") as stream:
            assert [row["path"] for row in csv.DictReader(stream)] == ["a", "b", "c"]
    else:
        assert pyarrow.parquet.read_table("out.parquet")["path"].to_pylist() == ["a", "b", "c"]


def test_a_table_that_cannot_be_written_leaves_no_journal() -> None:
    Path("out.csv").mkdir()
    with pytest.raises(OutputError, match=r"out\.csv cannot be written: Is a directory; make room and merge again"):
        merged(journal("1.jsonl", "a"), out="out.csv")
    assert sorted(map(str, Path().iterdir())) == ["1.jsonl", "out.csv"]


class TestOverlap:
    def test_the_same_row_in_two_journals_is_one(self) -> None:
        assert merged(journal("1.jsonl", "a", "b"), journal("2.jsonl", "b", "c")).statuses.total() == 3

    @pytest.mark.parametrize("other", [{"label": "climb"}, {"mtime_ns": 2}])
    def test_different_rows_of_one_name_are_refused(self, other: dict[str, Any]) -> None:
        one, two = journal("1.jsonl", "a", "b", "x"), journal("2.jsonl", "x", "b", "c", **other)
        with pytest.raises(OutputError, match=r"^b has different rows in 1\.jsonl and 2\.jsonl: leave one out; two"):
            merged(one, two)
        assert not Path("out.jsonl").exists()


class TestShards:
    def test_all_of_them_are_a_run_without_shards(self) -> None:
        paths = [journal(f"{n}.jsonl", f"video{n}", shard=f"{n}/3") for n in (3, 1, 2)]
        merged(*paths)
        header = read_header(Path("out.jsonl"))
        assert header is not None
        assert not HEADER.differences(header)

    def test_missing_ones_are_named(self) -> None:
        paths = [journal(f"{n}.jsonl", shard=f"{n}/4") for n in (1, 3)]
        with pytest.raises(
            OutputError, match="no journal of shards 2/4, 4/4 is named: name all, or do without by --pa"
        ):
            merged(*paths)
        said: list[str] = []
        merged(*paths, partial=True, announce=said.append)
        assert said == ["without the videos of shards 2/4, 4/4"]

    def test_the_same_twice(self) -> None:
        paths = [journal("1.jsonl", "a", shard="1/2"), journal("2.jsonl", "b", shard="1/2")]
        with pytest.raises(OutputError, match=r"1\.jsonl and 2\.jsonl are both shard 1/2: leave one of them out"):
            merged(*paths, partial=True)

    def test_of_different_runs(self) -> None:
        paths = [journal("1.jsonl", "a", shard="1/2"), journal("2.jsonl", "b", shard="2/3")]
        with pytest.raises(OutputError, match=r"1\.jsonl is shard 1/2 and 2\.jsonl is shard 2/3: they are not of one"):
            merged(*paths, partial=True)

    def test_with_another_folder(self) -> None:
        paths = [journal("1.jsonl", "a", shard="1/2"), journal("2.jsonl", "b", shard="2/2"), journal("3.jsonl", "c")]
        assert merged(*paths).statuses.total() == 3


DIFFERENT = {
    "bundle": ("other", "bundle other (1.jsonl has b)"),
    "variant": ("onnx-int8", "variant onnx-int8 (1.jsonl has onnx-fp32)"),
    "top_k": (2, "top_k 2 (1.jsonl has 5)"),
    "min_score": (0.5, "min_score 0.5 (1.jsonl has 0.0)"),
    "windows": (Windowing(window_s=4.0, stride_s=1.0), "(1.jsonl has none)"),
    "features": (True, "features True (1.jsonl has False)"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_journals_of_other_settings_are_refused(name: str) -> None:
    value, told = DIFFERENT[name]
    paths = journal("1.jsonl", "a"), journal("2.jsonl", "b", **{name: value})
    with pytest.raises(OutputError) as caught:
        merged(*paths)
    assert str(caught.value).startswith(f"2.jsonl is of another run than 1.jsonl: {name} ")
    assert told in str(caught.value)
    assert not Path("out.jsonl").exists()


def test_the_version_that_wrote_a_journal_may_differ() -> None:
    assert merged(journal("1.jsonl", "a"), journal("2.jsonl", "b", harec_deploy="2")).statuses.total() == 2


class TestRefusals:
    def test_what_is_no_journal(self) -> None:
        Path("notes.txt").write_text("my notes\n")
        Path("empty.jsonl").touch()
        for name in ("notes.txt", "empty.jsonl"):
            with pytest.raises(OutputError, match=f"{name} is no journal of harec-deploy: name the .jsonl files"):
                merged(journal("1.jsonl", "a"), Path(name))
        with pytest.raises(UsageError, match=r"gone\.jsonl: no such journal; make it with harec-deploy label"):
            merged(Path("gone.jsonl"))

    def test_a_damaged_line(self) -> None:
        one = journal("1.jsonl", "a", "b")
        one.write_bytes(one.read_bytes().replace(b'"path":"a"', b'"path":a'))
        with pytest.raises(OutputError, match=r"1\.jsonl, line 2 is damaged"):
            merged(one)

    def test_one_file_in_two_places(self) -> None:
        one, two = journal("1.jsonl", "a"), journal("2.jsonl", "b")
        Path("link.jsonl").symlink_to("1.jsonl")
        with pytest.raises(UsageError, match=r"link\.jsonl is named twice"):
            merged(one, two, Path("link.jsonl"))
        with pytest.raises(UsageError, match=r"1\.jsonl is read and would be written: name another OUT"):
            merged(one, two, out="1.csv")
        assert lines("1.jsonl")[1:]

    def test_what_is_there_is_not_written_over(self) -> None:
        one = journal("1.jsonl", "a")
        Path("out.jsonl").write_text("mine")
        with pytest.raises(OutputError, match=r"out\.jsonl is there already: remove it, or name another file"):
            merged(one, out="out.csv")
        assert Path("out.jsonl").read_text() == "mine"
        assert not Path("out.csv").exists()

    def test_a_journal_that_a_run_writes(self) -> None:
        one, two = journal("1.jsonl", "a"), journal("2.jsonl", "b")
        with locked(two), pytest.raises(OutputLocked, match=r"2\.jsonl is written by pid"):
            merged(one, two)
        merged(one, two)
        assert sorted(map(str, Path().iterdir())) == ["1.jsonl", "2.jsonl", "out.jsonl"]

    @pytest.mark.parametrize(
        ("out", "message"), [("out.xls", r"OUT out\.xls: the suffix gives the form"), ("no/out.csv", "no folder no")]
    )
    def test_where_nothing_can_be_written(self, out: str, message: str) -> None:
        with pytest.raises((UsageError, MissingDependency), match=message):
            merged(journal("1.jsonl", "a"), out=out)


def test_a_run_that_was_stopped_is_told() -> None:
    one = journal("1.jsonl", "a")
    Path("1.summary.json").write_text('{"todo": 12, "stopped": "interrupted", "done": 1}')
    Path("2.summary.json").write_text("[")
    said: list[str] = []
    merged(one, journal("2.jsonl", "b"), announce=said.append)
    assert said == ["1.jsonl is not complete: its run left 12 videos (interrupted)"]


class TestRuns:
    """Of real runs."""

    @pytest.fixture(autouse=True)
    def folder(self, workplace: None, videos: Path) -> None:
        shutil.copytree(videos, "in")
        Path("in/text.mp4").write_text("no video")

    def run(self, bundle: Path, out: str, *inputs: str, **options: Any) -> Summary:
        fixed: dict[str, Any] = {"runner": "openvino", "precision": "fp32"}
        return label(bundle, inputs or ["in"], Options(out=Path(out), **fixed | options))

    def test_shards_merged_are_the_run_and_it_goes_on(self, exported: Path) -> None:
        whole = self.run(exported, "whole.csv")
        for number in (1, 2):
            self.run(exported, f"{number}.jsonl", shard=Shard(number, 2))
        assert merged(Path("1.jsonl"), Path("2.jsonl"), out="out.csv").statuses == {"ok": 6, "failed": 1}
        made, alone = (read_header(Path(name)) for name in ("out.jsonl", "whole.jsonl"))
        assert made is not None
        assert alone is not None
        assert not made.differences(alone)
        assert [plain(row) for row in read_rows(Path("out.jsonl")).values()] == [plain(row) for row in whole.rows]
        assert [line.split(",")[:3] for line in Path("out.csv").read_text().splitlines()] == [
            line.split(",")[:3] for line in Path("whole.csv").read_text().splitlines()
        ]
        shutil.copy("in/climb/v_climb_g01_c01.mp4", "in/new.mp4")
        assert self.run(exported, "out.csv").done == 1
        assert self.run(exported, "out.csv", retry_failed=True).done == 1
        write_report(Path("out.jsonl"), Path("out.html"), thumbnails=0)
        assert "in/new.mp4" in Path("out.html").read_text()

    def test_features_stay_behind(self, exported: Path) -> None:
        for name in ("climb", "jump"):
            self.run(exported, f"{name}.jsonl", f"in/{name}", features=Path(f"{name}.npz"))
        said: list[str] = []
        merged(Path("climb.jsonl"), Path("jump.jsonl"), announce=said.append)
        assert said == ["feature vectors stay in the tables of the runs: the merged journal has none"]
        assert self.run(exported, "out.jsonl", "in/climb", "in/jump").done == 0

    def test_the_command(self, exported: Path) -> None:
        for name in ("climb", "jump"):
            self.run(exported, f"{name}.jsonl", f"in/{name}")
        status, err = command("out.csv", "climb.jsonl", "jump.jsonl")
        assert (status, err) == (0, "4 videos of 2 journals: 4 ok, 0 partial, 0 failed\nwritten to out.csv\n")
        status, err = command("out.csv", "climb.jsonl", "jump.jsonl")
        assert (status, err) == (
            1,
            "error [bad_output_file]: out.jsonl is there already: remove it, or name another file\n",
        )
        assert command("-q", "other.jsonl", "climb.jsonl") == (0, "")
        assert len(json.loads(lines("other.jsonl")[1])["top"]) == 3


def command(*arguments: str) -> tuple[int, str]:
    line = [sys.executable, "-m", "harec_deploy", "merge", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.stdout == ""
    return done.returncode, done.stderr


def plain(row: Row) -> tuple[Any, ...]:
    return (row.key, row.status, row.label, row.error)
