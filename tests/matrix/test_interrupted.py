"""Table E, what ends a run before its time: E4 SIGKILL, E7 to E9 signals and readers that go, E23 --max-errors."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.matrix.processes import Start, finish, many, rows, same, wait_for
from tests.media import cut
from tests.test_workers import children


class TestInterrupted:
    def test_e4_killed_fifty_times(self, workplace: Path, start: Start) -> None:
        """SIGKILL at random rows; the rows in the end are those of a run that nobody disturbed."""
        many(494)
        for place in range(0, 490, 14):
            cut(Path(f"in/copy{place:04d}.mp4"), place / 600)  # the first ones have no frame left
        undisturbed = start("-o", "golden.jsonl")
        assert finish(undisturbed)[0] == 3
        golden = sorted(map(same, rows("golden.jsonl")))
        assert len(golden) == 500
        chance = random.Random(4)
        killed = 0
        while killed < 50:
            process = start()
            before = len(rows())
            target = before + chance.randrange(1, 12)
            while process.poll() is None and len(rows()) < target:
                time.sleep(0.01)
            process.kill()
            process.communicate()
            killed += process.returncode == -signal.SIGKILL  # a machine that is busy elsewhere may be too late
            assert len(rows()) >= before
            if len(rows()) >= 480:  # begin again, for the rest of the kills
                Path("out.jsonl").unlink()
        status, _, _ = finish(start())
        assert status == 3
        assert sorted(map(same, rows())) == golden
        assert len({row["path"] for row in rows()}) == 500

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
    def test_e7_e9_one_signal_ends_in_good_order(self, workplace: Path, start: Start, number: signal.Signals) -> None:
        """What is decoded when it comes is labelled; what hangs is dropped; the same command goes on."""
        Path("in/zz_hang.mp4").write_text("HANG")
        process = start("--workers", "1", "--restart")
        wait_for(lambda: len(rows()) >= 3, process)  # batches of 20 and 40 frames; three videos more wait, or will
        pids = children(process.pid)
        process.send_signal(number)
        status, _, err = finish(process)
        assert status == 128 + number
        assert "stopped: interrupted; " in err
        words = err.split("Resume with: harec-deploy ")[1].split()
        assert words[0] == "label"
        assert "--restart" not in words
        assert all(not Path(f"/proc/{pid}").exists() for pid in pids)
        before = [row["path"] for row in rows()]
        assert 3 <= len(before) <= 6
        Path("in/zz_hang.mp4").unlink()
        assert finish(start("--json"))[0] == 0
        assert sorted(row["path"] for row in rows()) == sorted(map(str, Path("in").iterdir()))

    def test_e8_a_second_signal_ends_at_once(self, workplace: Path, start: Start) -> None:
        many(30)
        Path("in/zz_hang.mp4").write_text("HANG")
        for _ in range(10):  # the first alone may be quicker than we are
            process = start("--workers", "1")
            wait_for(lambda: len(rows()) >= 32, process)
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            assert any("stopping: " in line for line in iter(process.stderr.readline, ""))
            process.send_signal(signal.SIGINT)
            status, _, err = finish(process)
            assert status == 130
            if "Resume with" not in err:
                break
        else:
            pytest.fail("the first signal was always quicker")
        Path("in/zz_hang.mp4").unlink()
        assert finish(start())[0] == 0
        assert len(rows()) == len({row["path"] for row in rows()}) == 36

    def test_e9_a_reader_that_has_gone(self, workplace: Path, start: Start) -> None:
        read, write = os.pipe()
        os.close(read)
        process = start("--json", stdout=write, stderr=subprocess.PIPE)
        os.close(write)
        status, _, err = finish(process)
        assert status == 141
        assert len(rows()) == 6
        assert "Error" not in err

    def test_e23_max_errors(self, workplace: Path, start: Start) -> None:
        many(30)
        for place in range(8):
            Path(f"in/a{place}.mp4").write_text("no video")
        status, _, err = finish(start("--max-errors", "3", "--workers", "1"))
        assert status == 1
        assert "stopped: " in err
        assert "of 44 videos failed (--max-errors 3)" in err
        stopped_at = len(rows())
        assert 3 <= stopped_at < 44
        assert finish(start("--max-errors", "50%"))[0] == 3
        assert len(rows()) == len({row["path"] for row in rows()}) == 44

    @pytest.mark.parametrize("text", ["0", "-1", "many", "nan%", ""])
    def test_e23_max_errors_that_are_no_number(self, workplace: Path, start: Start, text: str) -> None:
        status, _, err = finish(start("--max-errors", text))
        assert status == 2
        assert "allowed are a number of videos or a share: 20 or 5%" in err
