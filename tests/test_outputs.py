"""Tables and subtitles of a run: what is read back is what the journal says, whatever its names and labels are."""

import base64
import html
import itertools
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harec_deploy.errors import MissingDependency, OutputError, UsageError
from harec_deploy.label import outputs
from harec_deploy.label.journal import Row
from harec_deploy.label.outputs import WRITERS, check, sidecars, write_parquet, write_vtt
from tests.media import make_video
from tests.test_report import browse

HOSTILE = "a --> b\n\n00:00.000 --> 09:00.000\n<c.x>&amp;\r跑步"


def make_row(path: str | bytes = "in/a.mp4", **fields: Any) -> Row:
    """Return a row as a run writes it for a labelled video; ``fields`` say what is different."""
    raw = os.fsencode(path)
    text = raw.decode("utf-8", "replace")
    usual: dict[str, Any] = {
        "path": text,
        "path_b64": None if text.encode() == raw else base64.b64encode(raw).decode(),
        "size": 7,
        "mtime_ns": 1_700_000_000_123_456_789,
        "status": "ok",
        "label": "Biking",
        "score": 0.93,
        "top": [("Biking", 0.93), ("HorseRiding", 0.04)],
        "segments": [],
        "duration_s": 7.2,
        "fps": 25.0,
        "width": 320,
        "height": 240,
        "codec": "h264",
        "frames_expected": 180,
        "frames_decoded": 179,
        "decoder": "pyav",
        "variant": "onnx-int8",
        "error": None,
    }
    return Row(**usual | fields)


def failed_row(path: str | bytes) -> Row:
    nothing = dict.fromkeys("label score duration_s fps width height codec frames_expected frames_decoded".split())
    error = {"code": "not_video", "message": "no video container: Invalid data 跑"}
    return make_row(path, status="failed", top=[], error=error, **nothing)


ROWS = [
    make_row(segments=[(0.0, 4.0, "Biking", 0.91), (4.0, 7.2, HOSTILE, 1 / 3)]),
    make_row("in/跑步 'q\".mkv", label=HOSTILE, size=1 << 40),
    make_row(b"in/latin\xe9.avi", status="partial", frames_expected=None),
    failed_row("in/bad.mp4"),
    make_row("=cmd().mp4", top=[], score=0.1 + 0.2),
]


class TestParquet:
    def read(self, path: Path) -> list[Row]:
        """Return the rows that a table holds, put together again."""
        from pyarrow import parquet

        rows = []
        for record in parquet.read_table(path).to_pylist():
            code, message = record.pop("error_code"), record.pop("error_message")
            record["error"] = {"code": code, "message": message} if code else None
            record["top"] = [(item["label"], item["score"]) for item in record["top"]]
            names = ("start_s", "end_s", "label", "score")
            record["segments"] = [tuple(item[name] for name in names) for item in record["segments"]]
            rows.append(Row(**record))
        return rows

    def test_what_is_read_back_is_what_the_journal_says(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "out.parquet", ROWS)
        assert self.read(tmp_path / "out.parquet") == ROWS
        assert list(tmp_path.iterdir()) == [tmp_path / "out.parquet"]

    def test_columns_have_types_also_without_rows(self, tmp_path: Path) -> None:
        from pyarrow import parquet

        write_parquet(tmp_path / "out.parquet", [])
        schema = parquet.read_schema(tmp_path / "out.parquet")
        kinds = {field.name: str(field.type) for field in schema}
        assert kinds["path"] == kinds["label"] == kinds["error_code"] == "string"
        assert kinds["size"] == kinds["mtime_ns"] == kinds["width"] == kinds["frames_decoded"] == "int64"
        assert kinds["score"] == kinds["duration_s"] == "double"
        assert kinds["top"] == "list<element: struct<label: string, score: double>>"
        assert (
            kinds["segments"] == "list<element: struct<start_s: double, end_s: double, label: string, score: double>>"
        )
        assert "error" not in kinds

    def test_rows_are_taken_a_group_at_a_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from pyarrow import parquet

        monkeypatch.setattr(outputs, "ROW_GROUP", 100)
        alive: list[int] = []

        class Counted(Row):
            def __del__(self) -> None:
                alive.remove(self.size)

        def many() -> Iterator[Row]:
            for size in range(1050):
                alive.append(size)
                assert len(alive) <= 2 * 100 + 1
                yield Counted(**{name: getattr(ROWS[0], name) for name in Row.__struct_fields__} | {"size": size})

        write_parquet(tmp_path / "out.parquet", many())
        found = parquet.ParquetFile(tmp_path / "out.parquet")
        assert found.num_row_groups == 11
        assert found.read(["size"]).column(0).to_pylist() == list(range(1050))

    def test_rows_that_break_off_leave_the_old_table(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "out.parquet", ROWS)

        def torn() -> Iterator[Row]:
            yield ROWS[0]
            raise OutputError("line 3 is damaged")

        with pytest.raises(OutputError, match="line 3"):
            write_parquet(tmp_path / "out.parquet", torn())
        assert self.read(tmp_path / "out.parquet") == ROWS
        assert list(tmp_path.iterdir()) == [tmp_path / "out.parquet"]


def test_a_writer_for_each_suffix(tmp_path: Path) -> None:
    for suffix, write in WRITERS.items():
        path = tmp_path / f"out{suffix}"
        check(path, "--out", list(WRITERS))
        write(path, ROWS)
        assert path.stat().st_size > 500
    with pytest.raises(UsageError, match=r"out\.xls: the suffix gives the form; allowed are \.csv, \.parquet"):
        check(Path("out.xls"), "--out", list(WRITERS))


def test_a_missing_package_is_told_with_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for ask in (lambda path: check(path, "--out", list(WRITERS)), lambda path: write_parquet(path, ROWS)):
        with pytest.raises(MissingDependency, match=re.escape("pyarrow: pip install 'harec-deploy[parquet]'")):
            ask(tmp_path / "out.parquet")
    assert list(tmp_path.iterdir()) == []


def places(names: list[str | bytes], suffix: str = ".vtt") -> list[str]:
    return [str(path) for path in sidecars(Path("out"), [make_row(name) for name in names], suffix)]


class TestSidecars:
    @pytest.mark.parametrize(
        ("names", "wanted"),
        [
            (["in/a.mp4"], ["out/in/a.vtt"]),
            (["a.b.mp4", "c", ".mp4"], ["out/a.b.vtt", "out/c.vtt", "out/.mp4.vtt"]),
            (["a.mp4", "a.avi", "b.avi"], ["out/a.mp4.vtt", "out/a.avi.vtt", "out/b.vtt"]),
            (["a.mp4", "a.avi", "a.mp4.mkv"], ["out/a.mp4.vtt", "out/a.avi.vtt", "out/a.mp4.mkv.vtt"]),
            (["a.mp4", "b/a.mp4"], ["out/a.vtt", "out/b/a.vtt"]),
            (["/data/a.mp4"], ["out/data/a.vtt"]),
            (["../../etc/a.mp4", "b/../c.mp4"], ["out/etc/a.vtt", "out/b/c.vtt"]),
            (["..", "/"], None),
            (["a.mp4", "/a.mp4", "../a.mp4"], None),
            (["a.mp4", "a.vtt/b.mp4"], ["out/a.mp4.vtt", "out/a.vtt/b.vtt"]),
            (["nul\0byte.mp4"], ["out/nul_byte.vtt"]),
            ([b"latin\xe9/\xff.avi"], ["out/latin\udce9/\udcff.vtt"]),
        ],
        ids=str,
    )
    def test_names(self, names: list[str | bytes], wanted: list[str] | None) -> None:
        found = places(names)
        assert len(set(found)) == len(names)
        assert all(".." not in Path(path).parts and path.startswith("out/") for path in found)
        assert wanted is None or found == wanted

    @pytest.mark.parametrize("letter", ["x", "é", "跑", "\U0001f3c3"])
    def test_long_names_are_cut_and_stay_apart(self, tmp_path: Path, letter: str) -> None:
        stem = letter * (250 // len(letter.encode()))
        folder = letter * (255 // len(letter.encode()))
        rows = [make_row(f"{folder}/{stem}{place}.mp4") for place in range(3)]
        assert write_vtt(tmp_path, rows) == 3
        written = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.vtt")]
        assert len(written) == 3
        assert all(path.name.startswith(letter * 20) for path in written)
        assert all(len(os.fsencode(part)) <= 255 for path in written for part in path.parts)

    def test_the_same_name_of_two_rows_is_no_clash(self) -> None:
        first, second = sidecars(Path("out"), [make_row(), make_row(size=8)], ".mp4")
        assert first != second
        assert sidecars(Path("out"), [make_row(), make_row(size=8)], ".mp4") == [first, second]

    @given(st.lists(st.text(st.sampled_from("ab./\0é"), max_size=8), max_size=8, unique=True))
    def test_no_two_are_the_same_and_none_is_the_folder_of_another(self, names: list[str]) -> None:
        found = sidecars(Path("out"), [make_row(name) for name in names], ".vtt")
        assert len(set(found)) == len(names)
        for one, other in itertools.permutations(found, 2):
            assert one not in other.parents
        for path in found:
            assert os.path.normpath(path) == str(path)
            assert path.parts[0] == "out"
            assert len(path.parts) > 1


def cues(path: Path) -> list[tuple[float, float, str]]:
    """Take a WebVTT file apart as its standard says: blocks between empty lines, a line of times, lines of text."""
    head, *blocks = path.read_text("utf-8").split("\n\n")
    assert head == "WEBVTT"
    found = []
    for block in blocks:
        times, *lines = block.rstrip("\n").split("\n")
        match = re.fullmatch(r"(\d{2,}):([0-5]\d):([0-5]\d\.\d{3}) --> (\d{2,}):([0-5]\d):([0-5]\d\.\d{3})", times)
        assert match, times
        hours, minutes, seconds, *end = map(float, match.groups())
        (text,) = lines
        assert "-->" not in text
        assert not re.search("<|&(?!amp;|lt;|gt;)", text)
        start_s, end_s = hours * 3600 + minutes * 60 + seconds, end[0] * 3600 + end[1] * 60 + end[2]
        assert start_s < end_s
        found.append((start_s, end_s, html.unescape(text)))
    return found


class TestVtt:
    def test_a_cue_for_each_segment_or_one_for_the_whole(self, tmp_path: Path) -> None:
        segments = [(61.5, 3700.0, "Horse Riding", 0.456), (0.0, 61.5, "Biking", 0.914)]
        rows = [
            make_row("a.mp4", segments=segments, duration_s=3700.0),
            make_row("b.mp4"),
            make_row("c.mp4", duration_s=None, score=None),
            failed_row("d.mp4"),
        ]
        assert write_vtt(tmp_path, rows) == 3
        assert cues(tmp_path / "a.vtt") == [(0.0, 61.5, "Biking 91%"), (61.5, 3700.0, "Horse Riding 46%")]
        assert cues(tmp_path / "b.vtt") == [(0.0, 7.2, "Biking 93%")]
        assert cues(tmp_path / "c.vtt") == [(0.0, 86400.0, "Biking")]
        assert {path.name for path in tmp_path.iterdir()} == {"a.vtt", "b.vtt", "c.vtt"}

    def test_labels_are_only_text(self, tmp_path: Path) -> None:
        write_vtt(tmp_path, [make_row("a.mp4", segments=[(0.0, 1.0, HOSTILE, 0.5), (1.0, 2.0, "\n", 0.5)])])
        assert [text for _, _, text in cues(tmp_path / "a.vtt")] == [
            "a --> b 00:00.000 --> 09:00.000 <c.x>&amp; 跑步 50%",
            "? 50%",
        ]

    @pytest.mark.parametrize(
        "segment", [(1.0, 1.0), (5.0, -1e308), (0.0, 1e308), (1e300, 0.0), (0.9999, 0.9999)], ids=str
    )
    def test_no_time_of_a_journal_breaks_the_file(self, tmp_path: Path, segment: tuple[float, float]) -> None:
        write_vtt(tmp_path, [make_row("a.mp4", segments=[(*segment, "Biking", 1e6)])])
        assert len(cues(tmp_path / "a.vtt")) == 1

    def test_names_keep_their_bytes(self, tmp_path: Path) -> None:
        write_vtt(tmp_path, [make_row(b"in/latin\xe9.avi")])
        assert [os.fsencode(path.name) for path in (tmp_path / "in").iterdir()] == [b"latin\xe9.vtt"]

    @pytest.mark.parametrize("place", ["in", "in/deep"])
    def test_nothing_is_written_through_a_link(self, tmp_path: Path, place: str) -> None:
        (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
        out = tmp_path / "out"
        (out / place).parent.mkdir(parents=True)
        (out / place).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OutputError, match=r"in(/deep)? is a link, and nothing is written through it"):
            write_vtt(out, [make_row("in/deep/a.mp4")])
        assert list((tmp_path / "elsewhere").rglob("*.vtt")) == []

    def test_a_link_in_the_files_place_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "precious").write_text("kept")
        (tmp_path / "a.vtt").symlink_to(tmp_path / "precious")
        write_vtt(tmp_path, [make_row("a.mp4")])
        assert (tmp_path / "precious").read_text() == "kept"
        assert len(cues(tmp_path / "a.vtt")) == 1

    def test_what_cannot_be_written_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "in").write_text("a file")
        with pytest.raises(OutputError, match="in cannot be made: File exists"):
            write_vtt(tmp_path, [make_row("in/a.mp4")])
        (tmp_path / "b.vtt").mkdir()
        with pytest.raises(OutputError, match=r"b\.vtt cannot be written: Is a directory"):
            write_vtt(tmp_path, [make_row("b.mp4")])
        assert {path.name for path in tmp_path.iterdir()} == {"b.vtt", "in"}

    def test_a_browser_shows_the_cues(self, tmp_path: Path) -> None:
        make_video(tmp_path / "clip.webm", codec="libvpx", frames=50, width=160, height=120)
        segments = [(0.0, 0.8, "Horse & <b>Riding</b> -->", 0.914), (0.8, 2.0, "跑步", 0.5)]
        write_vtt(tmp_path, [make_row("clip.webm", segments=segments)])
        page = tmp_path / "page.html"
        page.write_text(
            """<!doctype html><meta charset="utf-8"><title>cues</title>
            <video muted preload="auto" src="clip.webm"><track default kind="subtitles" src="clip.vtt"></video><ol></ol>
            <script>
                const video = document.querySelector("video"), track = document.querySelector("track");
                const list = document.querySelector("ol");
                function say(kind, cue) {
                    const shown = cue.getCueAsHTML().textContent;
                    const item = list.appendChild(document.createElement("li"));
                    item.textContent = `${kind}|${cue.startTime}|${cue.endTime}|${shown}`;
                }
                const loaded = new Promise(done => track.addEventListener("load", done));
                const ready = new Promise(done => video.addEventListener("loadeddata", done));
                Promise.all([loaded, ready]).then(() => {
                    for (const cue of track.track.cues) say("has", cue);
                    track.track.addEventListener("cuechange", () => {
                        for (const cue of track.track.activeCues) say("shows", cue);
                    });
                    video.currentTime = 1.2;
                });
            </script>"""
        )
        items: list[str] = []
        for _ in range(10):  # the browser's virtual time may be over before its media thread has found the frame
            shown = browse(page, tmp_path, "--allow-file-access-from-files", "--virtual-time-budget=20000")
            items = [html.unescape(item) for item in re.findall("<li>(.*?)</li>", shown)]
            assert items[:2] == ["has|0|0.8|Horse & <b>Riding</b> --> 91%", "has|0.8|2|跑步 50%"]
            if items[-1].startswith("shows|0.8"):
                break
        assert items[-1] == "shows|0.8|2|跑步 50%"
