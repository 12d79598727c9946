"""Table E: the output and the run itself.

E1   tests/test_label.py::TestProcess::test_a_full_disk_loses_no_row
E5   tests/test_label.py::test_a_torn_journal_is_mended_at_every_cut, which is E6 too: what a power cut leaves is a cut
E10  to E14: tests/test_workers.py, each fault in a real child; their rows: test_faults_of_decoders
E17  tests/test_label.py::test_rows_of_other_settings_are_not_mixed
E20  tests/test_label.py::test_failed_videos_are_done_again_only_when_asked
E21  tests/test_label.py::test_a_damaged_line_in_the_middle_stops_the_run
E4, E7 to E9, E23: test_interrupted.py; E27: test_holding.py
"""

import ast
import json
import shutil
from pathlib import Path

import pytest

from tests.matrix.processes import MAIN, ROOT, Start, finish, rows, same, wait_for


class TestOutputs:
    def test_e2_a_table_that_cannot_be_written_leaves_the_old_one_and_the_journal(
        self, workplace: Path, start: Start
    ) -> None:
        Path("out.csv").write_text("old")
        code = (
            "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            "from harec_deploy.label import outputs; write = outputs.WRITERS['.csv'];"
            "limit = lambda *_: (resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)), write(*_));"
            "outputs.WRITERS['.csv'] = limit; "
        )
        status, _, err = finish(start("-o", "out.csv", code=code + MAIN))
        assert status == 1
        assert "error [bad_output_file]: out.csv cannot be written: File too large" in err
        assert Path("out.csv").read_text() == "old"
        assert not list(Path().glob(".out*"))
        assert len(rows()) == 6
        assert finish(start("-o", "out.csv"))[0] == 0
        assert len(Path("out.csv").read_text().splitlines()) == 7

    @pytest.mark.parametrize(
        ("out", "status", "message"),
        [
            ("nowhere/o.jsonl", 2, "--out nowhere/o.jsonl: there is no folder nowhere"),
            ("folder.jsonl", 1, "folder.jsonl is no regular file: a journal is read again"),
            ("/proc/o.jsonl", 1, "/proc/o.jsonl cannot be locked"),
            ("notes.jsonl", 1, "notes.jsonl is no journal of harec-deploy: nothing was written"),
        ],
    )
    def test_e3_an_output_that_cannot_be(
        self, workplace: Path, start: Start, out: str, status: int, message: str
    ) -> None:
        Path("folder.jsonl").mkdir()
        Path("notes.jsonl").write_text("notes\n")
        got, _, err = finish(start("-o", out))
        assert (got, message in err) == (status, True), err
        assert Path("notes.jsonl").read_text() == "notes\n"

    def test_e16_two_runs_never_write_one_journal(self, workplace: Path, start: Start) -> None:
        Path("in/hang.mp4").write_text("HANG")
        first = start()
        wait_for(lambda: Path("out.jsonl.lock").exists() and Path("out.jsonl").exists(), first)
        status, _, err = finish(start())
        assert status == 4
        assert f"out.jsonl is written by pid {first.pid} on host " in err
        assert finish(start("-o", "other.jsonl", "--timeout", "1"))[0] == 3
        first.kill()
        first.communicate()
        assert Path("out.jsonl.lock").exists()  # and no longer holds anybody up
        assert finish(start("--timeout", "1"))[0] == 3
        assert not Path("out.jsonl.lock").exists()
        assert len(rows()) == 7


FAULTS = {"SEGV": "decoder_crashed", "EXIT": "decoder_crashed", "FLOOD": "decoder_crashed", "OOM": "out_of_memory"}
FAULTS |= {"HANG": "timeout", "HOLD": "timeout"}


class TestDecoders:
    def test_faults_of_decoders(self, workplace: Path, start: Start) -> None:
        """E10 to E14: each costs its own row, once, and is not tried again unless asked to."""
        for fault in FAULTS:
            Path(f"in/{fault}.mp4").write_text(fault)
        assert finish(start("--timeout", "3"))[0] == 3
        assert {row["path"]: row["error"]["code"] for row in rows() if row["error"]} == {
            f"in/{fault}.mp4": code for fault, code in FAULTS.items()
        }
        assert len(rows()) == 12
        assert finish(start("--timeout", "3"))[0] == 3
        assert len(rows()) == 12
        assert "SIGSEGV" in next(row["error"]["message"] for row in rows() if "SEGV" in row["path"])

    def test_e15_nothing_forks(self) -> None:
        """Children are started by subprocess; multiprocessing is used nowhere in the package."""
        for path in (ROOT / "harec_deploy").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not any(name.split(".")[0] == "multiprocessing" for name in names), path
                assert not (isinstance(node, ast.Attribute) and node.attr in ("fork", "forkpty")), path

    def test_e25_every_file_is_bad(self, workplace: Path, start: Start) -> None:
        for path in Path("in").iterdir():
            path.write_text("no video")
        status, out, _ = finish(start("--json"))
        assert status == 3
        assert json.loads(out)["statuses"] == {"failed": 6}


class TestResume:
    def test_e18_changed_new_and_removed_inputs(self, workplace: Path, start: Start, videos: Path) -> None:
        assert finish(start())[0] == 0
        Path("in/0.mp4").write_text("no video any more")
        next(Path("in").glob("1.*")).unlink()
        shutil.copy(next(videos.rglob("*.mp4")), "in/new.mp4")
        status, out, _ = finish(start("--json"))
        assert status == 3
        facts = json.loads(out)
        assert facts["done"] == 2
        assert facts["statuses"] == {"ok": 5, "failed": 1}  # of the inputs that are there
        assert len(rows()) == 8  # the journal keeps what was

    def test_e19_all_is_done(self, workplace: Path, start: Start) -> None:
        """Ten thousand rows are taken up without decoding anything, in less than two seconds of the run's own."""
        assert finish(start())[0] == 0
        header, row, *_ = Path("out.jsonl").read_text().splitlines()
        lines = [header]
        for place in range(10_000):
            path = Path(f"in/f{place:05d}.mp4")
            path.touch()
            state = path.stat()
            facts = json.loads(row) | {"path": str(path), "size": 0, "mtime_ns": state.st_mtime_ns}
            lines.append(json.dumps(facts))
        Path("out.jsonl").write_text("\n".join([*lines, *Path("out.jsonl").read_text().splitlines()[1:], ""]))
        before = Path("out.jsonl").read_bytes()
        code = "import time; begun = time.perf_counter(); import atexit, sys; "
        code += "atexit.register(lambda: print('took', time.perf_counter() - begun)); "
        status, out, _ = finish(start("--json", code=code + MAIN))
        assert status == 0
        facts = json.loads(out.splitlines()[0])
        assert (facts["done"], facts["statuses"]) == (0, {"ok": 10_006})
        assert Path("out.jsonl").read_bytes() == before
        assert float(out.split("took ")[1]) < 4  # of which two are for the model and a busy machine


class TestSurroundings:
    @pytest.mark.parametrize(
        "env",
        [
            {"LC_ALL": "C", "TZ": "Pacific/Chatham"},
            {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"},
            {"TERM": "dumb", "COLUMNS": "20", "NO_COLOR": "1"},
            {"TMPDIR": "/nowhere/at/all", "HOME": ""},
        ],
        ids=["E22 C locale", "E22 Turkish", "E24 dumb terminal", "E28 no tmp and no home"],
    )
    def test_other_surroundings_give_the_same_rows(self, workplace: Path, start: Start, env: dict[str, str]) -> None:
        assert finish(start("-o", "plain.jsonl"))[0] == 0
        status, out, err = finish(start("--table", "-o", "other.jsonl", env=env))
        assert status == 0
        assert sorted(map(same, rows("plain.jsonl"))) == sorted(map(same, rows("other.jsonl")))
        assert "\x1b" not in out + err

    def test_e22_a_clock_that_jumps_back(self, workplace: Path, start: Start) -> None:
        code = "import time, itertools; jumps = itertools.count(10**9, -3600); time.time = lambda: next(jumps); "
        assert finish(start(code=code + MAIN))[0] == 0
        assert len(rows()) == 6

    def test_e24_without_any_output(self, workplace: Path, start: Start) -> None:
        code = "import os, sys; os.close(1); os.close(2); sys.stdout = sys.stderr = None; "
        process = start("--table", "--json", code=code + MAIN)
        assert process.wait(timeout=60) == 0
        assert len(rows()) == 6

    def test_e26_workers_and_order_change_nothing(self, workplace: Path, start: Start) -> None:
        shutil.copy("in/0.mp4", "in/z.mp4")
        Path("in/b.mp4").write_text("SEGV")
        found = []
        for number, more in enumerate((["--workers", "1"], ["--workers", "8"])):
            assert finish(start("-o", f"{number}.jsonl", *more))[0] == 3
            found.append(sorted(map(same, rows(f"{number}.jsonl"))))
        assert found[0] == found[1]
        assert len(found[0]) == 8

    def test_e28_umask_and_a_folder_that_is_gone(self, workplace: Path, start: Start) -> None:
        code = "import os; os.umask(0o077); " + MAIN
        assert finish(start("-o", "out.csv", code=code))[0] == 0
        assert {path.name: oct(path.stat().st_mode & 0o777) for path in Path().glob("out.*")} == {
            "out.csv": "0o600",
            "out.jsonl": "0o600",
            "out.summary.json": "0o600",
        }
        code = "import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); " + MAIN
        status, _, err = finish(start(code=code))
        assert (status, "the current folder was removed" in err) == (2, True)
