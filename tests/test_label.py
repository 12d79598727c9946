"""A labelling run: a row for every input, nothing twice, nothing lost."""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

import harec_deploy
from harec_deploy import Window
from harec_deploy.decode.pyav import PyAVDecoder
from harec_deploy.errors import OutputError, UsageError
from harec_deploy.label.child import Limits
from harec_deploy.label.engine import Stages
from harec_deploy.label.journal import Row, read_rows
from harec_deploy.label.options import Options
from harec_deploy.label.run import label
from harec_deploy.label.summary import Summary
from tests.media import cut, make_audio, make_video


@pytest.fixture
def folder(tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Good videos with bad ones between them, in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(videos, "in")
    Path("in/a_text.mp4").write_text("no video")
    Path("in/climb/empty.mp4").touch()
    make_audio(Path("in/jump/sound.mp4"))
    Path("in/jump/zz_list.mp4").write_text(f"ffconcat version 1.0\nfile {videos}/climb/v_climb_g01_c01.mp4\n")
    cut(make_video(Path("in/swim/cut.mp4"), frames=40), 0.7)
    os.mkfifo("in/swim/fifo.mp4")
    return tmp_path


EXPECTED_FAILURES = {
    "in/a_text.mp4": "not_video",
    "in/climb/empty.mp4": "empty",
    "in/jump/sound.mp4": "no_video_stream",
    "in/jump/zz_list.mp4": "forbidden_container",
    "in/swim/fifo.mp4": "not_regular",
}


def run(bundle: Path, *inputs: str, **options: Any) -> Summary:
    options = {"out": Path("out.jsonl"), "runner": "openvino", "precision": "fp32"} | options
    return label(bundle, inputs or ("in",), Options(**options))


def lines(path: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_every_input_has_one_row_and_bad_files_change_no_other(folder: Path, exported: Path, videos: Path) -> None:
    summary = run(exported)
    header, *rows = lines()
    assert header["variant"] == "onnx-fp32"
    assert sorted(row["path"] for row in rows) == sorted({row["path"] for row in rows})
    assert {row["path"]: row["error"]["code"] for row in rows if row["error"]} == EXPECTED_FAILURES
    assert all(row["label"] is None and row["top"] == [] for row in rows if row["error"])
    (partial,) = (row for row in rows if row["status"] == "partial")
    assert partial["path"] == "in/swim/cut.mp4"
    assert partial["frames_decoded"] < partial["frames_expected"] == 40
    assert summary.statuses == {"ok": 6, "partial": 1, "failed": 5}

    shutil.rmtree("in")
    shutil.copytree(videos, "in")
    run(exported, out=Path("clean.jsonl"))
    clean = {row["path"]: row for row in lines("clean.jsonl")[1:]}
    for row in rows:
        if row["status"] == "ok":
            assert row["label"] == clean[row["path"]]["label"]
            assert row["score"] == pytest.approx(clean[row["path"]]["score"], abs=1e-5)


def test_a_row_says_what_was_decoded(folder: Path, exported: Path) -> None:
    run(exported, "in/climb/v_climb_g02_c01.avi", top_k=2)
    row = lines()[1]
    assert row["codec"] == "mpeg4"
    assert (row["width"], row["height"], row["fps"]) == (160, 120, 25.0)
    assert row["duration_s"] == 1.0
    assert (row["decoder"], row["variant"], row["status"]) == ("pyav", "onnx-fp32", "ok")
    assert row["top"][0][0] == row["label"]
    assert len(row["top"]) == 2


def test_the_same_run_again_does_nothing(folder: Path, exported: Path) -> None:
    run(exported)
    before = Path("out.jsonl").read_bytes()
    again = run(exported)
    assert again.done == 0
    assert len(again.rows) == 12
    assert Path("out.jsonl").read_bytes() == before


def test_only_new_and_changed_videos_are_done(folder: Path, exported: Path) -> None:
    run(exported)
    make_video(Path("in/new.mp4"), frames=20)
    make_video(Path("in/climb/v_climb_g01_c01.mp4"), frames=50, seed=9)
    again = run(exported)
    assert again.done == 2
    rows = {row.path: row for row in again.rows}
    assert len(rows) == 13
    assert rows["in/climb/v_climb_g01_c01.mp4"].frames_decoded == 50


def test_failed_videos_are_done_again_only_when_asked(folder: Path, exported: Path) -> None:
    run(exported)
    assert run(exported, retry_failed=True).done == 5
    assert run(exported).done == 0
    assert len(lines()) == 1 + 12 + 5


def test_restart_forgets(folder: Path, exported: Path) -> None:
    run(exported)
    assert run(exported, restart=True).done == 12
    assert len(lines()) == 13


@pytest.mark.parametrize("keep", [0, 1, 3, 7])
def test_a_torn_journal_is_mended_at_every_cut(folder: Path, exported: Path, keep: int) -> None:
    run(exported)
    whole = Path("out.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    start = 0 if keep == 0 else ends[keep - 1]
    for cut_at in range(start, ends[keep], max((ends[keep] - start) // 7, 1)):
        Path("out.jsonl").write_bytes(whole[:cut_at])
        again = run(exported)
        assert again.done == 12 - max(keep - 1, 0)
        assert sorted(map(comparable, lines()[1:])) == sorted(map(comparable, map(json.loads, whole.splitlines()[1:])))


def comparable(row: dict[str, Any]) -> tuple[str, str, str | None, float]:
    return row["path"], row["status"], row["label"], round(row["score"] or 0, 4)


def test_a_damaged_line_in_the_middle_stops_the_run(folder: Path, exported: Path) -> None:
    run(exported)
    text = Path("out.jsonl").read_text().splitlines(keepends=True)
    text[4] = text[4].replace('"path"', '"pat')
    Path("out.jsonl").write_text("".join(text))
    with pytest.raises(OutputError, match=r"out\.jsonl, line 5 is damaged"):
        run(exported)
    assert Path("out.jsonl").read_text() == "".join(text)


@pytest.mark.parametrize("content", ["my notes\n", "one line without an end", '{"json": 1}', "\n"])
def test_another_files_content_is_never_overwritten(folder: Path, exported: Path, content: str) -> None:
    Path("out.jsonl").write_text(content)
    with pytest.raises(OutputError, match="is no journal of harec-deploy: nothing was written"):
        run(exported)
    assert Path("out.jsonl").read_text() == content


def test_a_journal_is_a_regular_file(folder: Path, exported: Path) -> None:
    os.mkfifo("out.jsonl")
    for restart in (False, True):
        with pytest.raises(OutputError, match="is no regular file: a journal is read again; name another --out"):
            run(exported, restart=restart)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_no_row(folder: Path, exported: Path, closed: str) -> None:
    command = [sys.executable, "-m", "harec_deploy", "label", "in", "--bundle", str(exported), "--out", "out.jsonl"]
    command += ["--runner", "openvino", "--precision", "fp32", "--table"]
    done = subprocess.run(["sh", "-c", f"{shlex.join(command)} {closed}"], timeout=120, check=False, cwd=Path.cwd())
    assert done.returncode == 3
    assert Counter(row["status"] for row in lines()[1:]) == {"ok": 6, "partial": 1, "failed": 5}
    assert all(row["error"]["code"] != "decoder_crashed" for row in lines()[1:] if row["error"])


def test_letters_that_a_terminal_has_not_are_shown_another_way(folder: Path, exported: Path) -> None:
    shutil.copy("in/climb/v_climb_g01_c01.mp4", "日.mp4")
    command = [sys.executable, "-m", "harec_deploy", "label", "日.mp4", "--bundle", str(exported), "--out", "o.jsonl"]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*command, "--table"], capture_output=True, timeout=120, check=False, env=ascii_only)
    assert done.returncode == 0, done.stderr
    assert rb"\u65e5.mp4" in done.stdout


def test_rows_of_other_settings_are_not_mixed(folder: Path, exported: Path) -> None:
    run(exported)
    with pytest.raises(OutputError, match=r"of another run: top_k 2 \(the journal has 5\); use --restart"):
        run(exported, top_k=2)
    with pytest.raises(OutputError, match=r"runner onnx \(the journal has openvino\)"):
        run(exported, runner="onnx")


def test_auto_goes_on_with_what_the_journal_was_begun_with(folder: Path, exported: Path) -> None:
    run(exported, runner="onnx")
    make_video(Path("in/new.mp4"), frames=20)
    assert run(exported, runner="auto", precision="auto").done == 1


def test_workers_and_order_do_not_change_rows(folder: Path, exported: Path) -> None:
    run(exported, out=Path("one.jsonl"), workers=1)
    run(exported, out=Path("four.jsonl"), workers=4)
    one, four = (sorted(map(comparable, lines(name)[1:])) for name in ("one.jsonl", "four.jsonl"))
    assert one == four


class TestCsv:
    def test_is_written_from_the_journal(self, folder: Path, exported: Path) -> None:
        run(exported, out=Path("out.csv"))
        with Path("out.csv").open(newline="") as stream:
            table = list(csv.DictReader(stream))
        rows = {row["path"]: row for row in lines()[1:]}
        assert len(table) == len(rows) == 12
        for cells in table:
            row = rows[cells["path"]]
            assert cells["label"] == (row["label"] or "")
            assert cells["error_code"] == (row["error"]["code"] if row["error"] else "")

    def test_formulas_are_defused(self, folder: Path, exported: Path) -> None:
        shutil.copy("in/climb/v_climb_g01_c01.mp4", "=HYPERLINK(1).mp4")
        run(exported, "=HYPERLINK(1).mp4", out=Path("out.csv"))
        assert "'=HYPERLINK(1).mp4" in Path("out.csv").read_text()
        assert lines()[1]["path"] == "=HYPERLINK(1).mp4"


def test_a_name_that_is_no_text_survives(folder: Path, exported: Path) -> None:
    name = os.fsdecode(b"\xff\xfe.mp4")
    shutil.copy("in/climb/v_climb_g01_c01.mp4", name)
    run(exported, name)
    assert lines()[1]["status"] == "ok"
    rows = read_rows(Path("out.jsonl"))
    assert list(rows) == [name]
    assert run(exported, name).done == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": Path("out.xls")}, r"allowed are \.jsonl, \.csv"),
        ({"out": Path("nowhere/out.jsonl")}, "there is no folder nowhere"),
        ({"workers": 0}, "--workers 0: allowed are 1 and more"),
        (
            {"workers": 10**8},
            "100000000 decoding children need 400000256 open files, and the system",
        ),
        ({"limits": Limits(seconds=1e300)}, "--timeout 1e.300: allowed are 1 and more, below 1e.09"),
        (
            {"window_s": 1.0, "smooth": 10**20 + 1},
            "smoothing over 100000000000000000001 windows: allowed are",
        ),
    ],
)
def test_bad_options_are_told_before_any_work(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(Path("no_bundle_is_read"), **options)


def test_no_videos_is_an_error_that_says_what_was_there(folder: Path) -> None:
    Path("docs").mkdir()
    Path("docs/a.txt").write_text("x")
    with pytest.raises(UsageError, match=r"no videos in docs \(1 other files passed over; --all-files"):
        run(Path("no_bundle_is_read"), "docs")


def test_what_bounded_a_run() -> None:
    assert Stages(2, decode_s=6.2, engine_s=9.8, wall_s=10).bound_by() == "bound by engine (98% busy; decode 31%)"
    assert Stages(2, decode_s=19, engine_s=2, wall_s=10).bound_by() == "bound by decode (95% busy; engine 20%)"


def test_stages_are_told_apart(exported: Path, videos: Path, tmp_path: Path) -> None:
    options = Options(out=tmp_path / "out.jsonl", runner="openvino", variant="onnx-fp32", workers=1)
    stages = label(exported, [str(videos)], options).stages
    assert 0 < stages.scale_s < stages.decode_s < stages.wall_s
    assert 0 < stages.gather_s < stages.wall_s
    assert 0 < stages.write_s < stages.wall_s
    assert stages.engine_s < stages.wall_s


def test_a_variant_that_is_not_there_is_refused(exported: Path, videos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the bundle has no variant 'onnx-int8'; it has onnx-fp32"):
        label(exported, [str(videos)], Options(out=tmp_path / "out.jsonl", variant="onnx-int8"))


class TestProcess:
    """The command as a user starts it, killed as users and machines kill."""

    def start(self, exported: Path, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "harec_deploy", "label", "in", "--bundle", str(exported), "-o", "out.jsonl"]
        return subprocess.Popen(
            [*command, "--runner", "openvino", *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def test_exit_status_and_summary(self, folder: Path, exported: Path) -> None:
        out, err = (process := self.start(exported, "--json")).communicate(timeout=120)
        assert process.returncode == 3
        facts = json.loads(out)
        assert facts["statuses"] == {"ok": 6, "partial": 1, "failed": 5}
        assert "6 ok, 1 partial, 5 failed" in err
        assert "not_video: 1, e.g. in/a_text.mp4" in err
        assert "passed over" not in err
        assert "bound by" in err
        assert "Traceback" not in err

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
    def test_a_killed_run_goes_on(self, folder: Path, exported: Path, number: int, status: int) -> None:
        for copy in range(600):
            shutil.copy("in/climb/v_climb_g01_c01.mp4", f"in/copy{copy}.mp4")
        process = self.start(exported, "--workers", "1")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (not Path("out.jsonl").exists() or len(lines_so_far()) < 5):
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == status
        assert "Traceback" not in err
        killed_at = len(lines_so_far()) - 1
        assert 0 < killed_at < 612
        out, _ = self.start(exported, "--json").communicate(timeout=120)
        assert json.loads(out)["done"] == 612 - killed_at
        paths = [row["path"] for row in lines()[1:]]
        assert len(paths) == len(set(paths)) == 612

    def test_a_full_disk_loses_no_row(self, folder: Path, exported: Path) -> None:
        """A limit on the size of files stands for the full disk: the same error, in the middle of a row."""
        run(exported, "in/climb/v_climb_g01_c01.mp4")
        header, row = Path("out.jsonl").read_text().splitlines()
        earlier = [row.replace('"mtime_ns":', f'"mtime_ns":{n}') for n in range(1, 800)]  # of files that are gone
        Path("out.jsonl").write_text("\n".join([header, row, *earlier, ""]))
        limit = Path("out.jsonl").stat().st_size + 1500
        code = f"""
            import resource, signal
            from harec_deploy.__main__ import main
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
            main()
        """
        command = [sys.executable, "-c", textwrap.dedent(code), "label", "in", "-b", str(exported), "-o", "out.jsonl"]
        full = subprocess.run([*command, "--runner", "openvino"], capture_output=True, text=True, timeout=120)
        assert full.returncode == 1
        assert "out.jsonl cannot be written: File too large; the rows before are whole. Make room" in full.stderr
        assert "Traceback" not in full.stderr
        assert Path("out.jsonl").stat().st_size == limit
        rows = len(lines_so_far()) - 1 - len(earlier)
        assert 1 < rows < 12
        out, _ = self.start(exported, "--json").communicate(timeout=120)
        assert json.loads(out)["done"] == 12 - rows


def lines_so_far() -> list[bytes]:
    return [line for line in Path("out.jsonl").read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def test_rows_keep_the_designs_fields() -> None:
    expected = (
        "path size mtime_ns status label score top segments duration_s fps width height codec "
        "frames_expected frames_decoded decoder variant error"
    )
    assert [name for name in Row.__struct_fields__ if name not in ("path_b64", "features")] == expected.split()


def test_a_damaged_name_in_the_middle_is_a_damaged_line(folder: Path, exported: Path) -> None:
    run(exported, "in/climb")
    text = Path("out.jsonl").read_text().splitlines(keepends=True)
    text[1] = text[1].replace('"path_b64":null', '"path_b64":"x"')
    Path("out.jsonl").write_text("".join(text))
    with pytest.raises(OutputError, match=r"out\.jsonl, line 2 is damaged"):
        run(exported, "in/climb")


class TestOutputs:
    """What is written beside the journal when a run ends, through the command line."""

    def label(self, exported: Path, *more: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "harec_deploy", "label", "in", "--bundle", str(exported)]
        command += ["--runner", "openvino", "--precision", "fp32", *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    def test_everything_at_once(self, folder: Path, exported: Path) -> None:
        options = [
            "--window",
            "500ms",
            "--stride",
            "250ms",
            "--features",
            "f.npz",
            "--vtt",
            "vtt",
            "--annotate",
            "drawn",
        ]
        status, _ = self.label(exported, *options, "-o", "out.parquet")
        assert status == 3  # the bad ones of the folder
        assert pyarrow.parquet.read_table("out.parquet")["path"].to_pylist() == [row["path"] for row in ordered()]
        labelled = [row for row in ordered() if row["label"]]
        assert len(labelled) == 7
        for row in labelled:
            stem = Path(row["path"]).with_suffix("")
            assert Path(f"vtt/{stem}.vtt").read_text().count("-->") == len(row["segments"])
            assert PyAVDecoder().probe(Path(f"drawn/{stem}.mp4")).frames_found == row["frames_decoded"]
        assert len([path for path in Path("drawn").rglob("*") if path.is_file()]) == 7
        drawn = {path: path.stat().st_mtime_ns for path in Path("drawn").rglob("*.mp4")}
        gone = next(iter(drawn))
        gone.unlink()
        make_video(Path("in/new.mp4"), frames=20)
        assert self.label(exported, *options, "-o", "out.parquet")[0] == 3
        after = {path: path.stat().st_mtime_ns for path in Path("drawn").rglob("*.mp4")}
        assert sorted(path for path in after if after[path] != drawn.get(path)) == sorted(
            [gone, Path("drawn/in/new.mp4")]
        )

    @pytest.mark.parametrize("suffix", [".npz", ".parquet"])
    def test_features_are_the_means_of_the_clips(self, folder: Path, exported: Path, suffix: str) -> None:
        out = Path(f"f{suffix}")
        run(exported, features=out, window_s=0.5, stride_s=0.25)
        recognizer = harec_deploy.load(exported, runner="openvino", precision="fp32")
        if suffix == ".npz":
            with np.load(out, allow_pickle=False) as arrays:
                facts = dict(arrays)
            paths = facts["paths"][facts["video"]].tolist()
            vectors, start_s, end_s = facts["features"], facts["start_s"], facts["end_s"]
            assert facts["labels"].tolist() == [row["label"] for row in ordered() if row["label"]]
        else:
            table = pyarrow.parquet.read_table(out)
            paths = table["path"].to_pylist()
            vectors = np.array(table["features"].to_pylist())
            start_s, end_s = (table[name].to_numpy() for name in ("start_s", "end_s"))
        assert set(paths) == {row["path"] for row in ordered() if row["label"]}
        chosen = paths.index("in/swim/v_swim_g02_c01.avi")
        window = Window(start_s[chosen + 1], end_s[chosen + 1])
        assert window == (0.25, 0.75)
        times = recognizer.spec.sampling.timestamps_s(window)
        frames = PyAVDecoder().frames(Path(paths[chosen]), times, recognizer.spec.size).pixels
        np.testing.assert_allclose(vectors[chosen + 1], recognizer.encode(frames).mean(0), rtol=1e-6, atol=1e-6)

    def test_features_survive_what_interrupts_a_run(self, folder: Path, exported: Path) -> None:
        run(exported, features=Path("f.npz"))
        with np.load("f.npz") as arrays:
            wanted = dict(arrays)
        journal, store = Path("out.jsonl").read_bytes(), Path("out.features").read_bytes()
        lines_ = journal.splitlines(keepends=True)
        record = len(store) // 7
        for rows, kept in ((5, len(store)), (len(lines_), 3 * record + 11), (len(lines_), 0), (4, record)):
            Path("out.jsonl").write_bytes(b"".join(lines_[:rows]) + b'{"torn')
            Path("out.features").write_bytes(store[:kept])
            run(exported, features=Path("f.npz"))
            with np.load("f.npz") as arrays:
                assert arrays["paths"].tolist() == wanted["paths"].tolist()
                np.testing.assert_allclose(arrays["features"], wanted["features"], atol=1e-6)

    def test_a_run_without_features_cannot_get_them_later(self, folder: Path, exported: Path) -> None:
        run(exported)
        with pytest.raises(OutputError, match=r"of another run: features True \(the journal has False\)"):
            run(exported, features=Path("f.npz"))

    def test_an_annotated_copy_may_not_lie_among_the_videos(self, folder: Path, exported: Path) -> None:
        status, err = self.label(exported, "--annotate", ".")
        assert status == 2
        assert "name another folder for the annotated ones" in err


def ordered() -> list[dict[str, Any]]:
    return sorted(last_rows().values(), key=lambda row: row["path"])


def last_rows() -> dict[str, dict[str, Any]]:
    return {row["path"]: row for row in lines()[1:]}
