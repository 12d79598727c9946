"""What ends a run on several devices, or one of its engine processes, before its time."""

import os
import re
import signal
import time
from pathlib import Path

from tests.faulty import ONCE
from tests.matrix.processes import MAIN, Start, finish, many, rows, wait_for
from tests.test_workers import children

TWO = ("--device", "cpu,cpu", "--workers", "2")


def descendants(pid: int) -> set[int]:
    """Return the engine processes of a run, and their decoding children."""
    engines = children(pid)
    return engines.union(*map(children, engines))


def assert_gone(pids: set[int]) -> None:
    """Wait until these processes have ended."""
    deadline = time.monotonic() + 60
    for pid in pids:
        while (state := state_of(pid)) not in ("", "Z"):
            assert time.monotonic() < deadline, f"{pid} is still there: {state}"
            time.sleep(0.01)


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def hang_both() -> None:
    """Leave two videos, of which each of two engines gets one and hangs."""
    for path in Path("in").iterdir():
        path.unlink()
    for name in ("a", "b"):
        Path(f"in/{name}.mp4").write_text("HANG")


def assert_one_row_each() -> None:
    paths = [row["path"] for row in rows()]
    assert sorted(paths) == sorted(str(path) for path in Path("in").iterdir() if path.is_file())


def failures() -> dict[str, str]:
    return {row["path"]: row["error"]["code"] for row in rows() if row["error"]}


class TestLostEngines:
    def test_what_a_killed_engine_had_is_done_by_another(self, workplace: Path, start: Start) -> None:
        many(20)
        with Path("in/copy0007.mp4").open("ab") as stream:
            stream.write(ONCE)
        status, _, err = finish(start(*TWO))
        assert status == 0
        assert "died of SIGKILL; 1 of 2 engines go on" in err
        assert Path("in/copy0007.mp4.once").is_dir(), "no engine was killed"
        assert_one_row_each()
        assert failures() == {}
        assert {row["status"] for row in rows()} == {"ok"}

    def test_a_video_that_kills_two_engines_has_a_row(self, workplace: Path, start: Start) -> None:
        many(12)
        Path("in/copy0003.mp4").write_text("PARENT")
        status, _, err = finish(start("--device", "cpu,cpu,cpu", "--workers", "3"))
        assert status == 3
        assert "died of SIGKILL; 1 of 3 engines go on" in err
        assert_one_row_each()
        assert failures() == {"in/copy0003.mp4": "engine_crashed"}
        assert "engine_crashed: 1, e.g. in/copy0003.mp4: two processes that label died of it" in err

    def test_without_engines_the_run_ends_and_goes_on_later(self, workplace: Path, start: Start) -> None:
        many(10)
        # Dealt first, to the first engine, which has one decoder: what it was given with it is not done.
        Path("in/0.mp4").write_text("PARENT")
        process = start(*TWO)
        status, _, err = finish(process)
        assert status == 1
        assert "error [engine_lost]: no engine is left: cpu #1 died of SIGKILL, cpu #2 died of SIGKILL; what is" in err
        before = rows()
        assert failures() == {"in/0.mp4": "engine_crashed"}
        assert 0 < len(before) < 16
        assert finish(start("--device", "cpu"))[0] == 3
        assert rows()[: len(before)] == before
        assert_one_row_each()

    def test_an_engine_that_stops_by_itself_says_why(self, workplace: Path, start: Start) -> None:
        """With a limit on the size of files, the memory that it would share with its decoders cannot be had."""
        code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        status, _, err = finish(start(*TWO, code=code + MAIN))
        assert status == 1
        assert re.search(r"no engine is left: (cpu #\d ended: OSError: .*File too large(, |; )){2}what is done", err), (
            err
        )
        assert finish(start(*TWO))[0] == 0
        assert_one_row_each()


class TestEnds:
    def test_nothing_outlives_a_killed_run(self, workplace: Path, start: Start) -> None:
        hang_both()
        process = start(*TWO)
        wait_for(lambda: len(descendants(process.pid)) == 4, process)
        pids = descendants(process.pid)
        process.kill()
        process.communicate()
        assert_gone(pids)

    def test_one_signal_ends_in_good_order(self, workplace: Path, start: Start) -> None:
        many(20)
        Path("in/zz_hang.mp4").write_text("HANG")
        process = start(*TWO, "--restart")
        wait_for(lambda: len(rows()) >= 8, process)
        pids = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        status, _, err = finish(process)
        assert status == 130
        assert "stopped: interrupted; " in err
        assert "died" not in err
        assert_gone(pids)
        before = rows()
        assert 8 <= len(before) < 27
        Path("in/zz_hang.mp4").unlink()
        assert finish(start(*TWO))[0] == 0
        assert rows()[: len(before)] == before
        assert_one_row_each()

    def test_a_second_signal_ends_at_once(self, workplace: Path, start: Start) -> None:
        """An engine that does nothing any more keeps the run from ending in good order."""
        hang_both()
        process = start(*TWO)
        wait_for(lambda: len(descendants(process.pid)) == 4, process)
        pids = descendants(process.pid)
        os.kill(min(children(process.pid)), signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert any("stopping: " in line for line in iter(process.stderr.readline, ""))
        process.send_signal(signal.SIGINT)
        status, _, err = finish(process)
        assert status == 130
        assert "Resume with" not in err
        assert_gone(pids)

    def test_max_errors(self, workplace: Path, start: Start) -> None:
        many(30)
        for place in range(8):
            Path(f"in/a{place}.mp4").write_text("no video")
        status, _, err = finish(start(*TWO, "--max-errors", "3"))
        assert status == 1
        assert "of 44 videos failed (--max-errors 3)" in err
        assert 3 <= len(rows()) < 44
        assert finish(start(*TWO, "--max-errors", "50%"))[0] == 3
        assert_one_row_each()
