"""The comparison with peers: what is counted and compared, and that the page says what was measured."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import charts, page, standing
from benchmarks.measured import code_lines, compare, middle, ratio
from benchmarks.roster import PEERS, PROGRAMS, ROOT
from benchmarks.watching import lines_of

CLASSES = ["climb", "jump", "swim"]
WANTED = np.array([[0.9, 0.05, 0.05], [0.1, 0.2, 0.7]], np.float32)
NAMES = ["a.avi", "b.avi"]
RIGHT = [{"path": "x/a.avi", "label": "climb", "score": 0.88}, {"path": "x/b.avi", "label": "swim", "score": 0.71}]

CODE = '''"""Docstring

of a module."""

# a comment
import os  # counts


def work(a):
    """Docstring."""
    text = """two
lines"""
    return (
        a + text
    )


class Empty:
    """Docstring only: its head counts."""
'''


def outputs(**changes: Any) -> dict[str, Any]:
    kept = {"videos": 2, "other_labels": [], "missing": [], "doubled": 0, "max_abs_dp": 0.01, "right": True}
    return {**kept, **changes}


def program(precision: str, speeds: list[float], *, right: bool = True, ready_s: float = 2.0) -> dict[str, Any]:
    """Return what peers.json says of a program whose rounds had these speeds."""
    checked = outputs() if right else outputs(other_labels=["a.avi"], right=False)
    rounds = [
        {
            "round": number,
            "outputs": checked,
            "whole_s": 9.0,
            "cpu_s": 10.0,
            "peak_mib": 500.0,
            "ready_s": ready_s,
            "first_label_s": ready_s + 1,
            "videos_per_s": speed,
            "frames_per_s": 16 * speed,
            "whole_videos_per_s": speed / 2,
            "cpu_s_per_video": 1.5,
        }
        for number, speed in enumerate(speeds)
    ]
    about = {"about": "made up", "precision": precision, "program": "notebook_opencv", "options": [], "lines": 20}
    return {**about, "frames": {"right": 32, "of": 32}, "check": checked, "rounds": rounds}


def results(**peers: dict[str, Any]) -> dict[str, Any]:
    about = {"cpu": {"model": "CPU", "cores_allowed": 2.0}, "python": "3.11.7", "load": 0.1, "versions": {"torch": "2"}}
    found = {"harec-deploy fp32": program("fp32", [2.0, 2.2, 1.8]), **peers}
    return {"machine": about, "videos": NAMES, "frames": 16, "not_run": {"Gone": "it is gone"}, "peers": found}


def test_code_lines_are_those_with_code(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(CODE)
    assert code_lines(tmp_path / "program.py") == 8  # import, def, text over two, return over three, class


def test_every_peer_is_a_program_that_exists() -> None:
    named = {peer.program for peer in PEERS if not peer.own}
    assert named == {path.stem for path in PROGRAMS.glob("*.py")} - {"trained"}
    assert all(peer.lines > 5 for peer in PEERS if not peer.own)
    assert len({peer.name for peer in PEERS}) == len(PEERS)


def test_right_labels_pass_and_their_difference_is_told() -> None:
    found = compare(RIGHT, NAMES, CLASSES, WANTED)
    assert found["right"]
    assert found["max_abs_dp"] == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("rows", "field"),
    [
        ([RIGHT[0], {**RIGHT[1], "label": "jump"}], "other_labels"),
        (RIGHT[:1], "missing"),
        ([*RIGHT, RIGHT[0]], "doubled"),
    ],
)
def test_wrong_outputs_are_flagged(rows: list[dict[str, Any]], field: str) -> None:
    found = compare(rows, NAMES, CLASSES, WANTED)
    assert not found["right"]
    assert found[field]


def test_ratios_are_taken_round_by_round() -> None:
    assert ratio([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == {"median": 2.0, "lowest": 1.0, "highest": 3.0}
    assert middle([3.0, 1.0, 2.0]) == {"median": 2.0, "lowest": 1.0, "highest": 3.0}


def test_the_page_tells_wins_losses_and_wrong_labels() -> None:
    facts = results(
        slow=program("fp32", [1.0, 1.1, 0.9]),
        quick=program("fp32", [4.0, 4.4, 3.6], ready_s=9.0),
        wrong=program("fp32", [3.0, 3.0, 3.0], right=False),
    )
    decode = {"results": [], "not_installed": {"decord": "not here"}}
    text = page.page(facts, decode, None)
    lost, won = text.split("## Where harec-deploy loses")[1].split("## Where it wins")
    assert "**quick** beats it in videos/s with the model loaded: 2.00 times better (2.00 to 2.00)" in lost
    assert "seconds until" not in lost.split("**quick**")[1].splitlines()[0]
    assert "**slow**" not in lost
    assert "ahead of 1 of 2 peers in every round; 0.50 to 2.00 times as good" in won
    (row,) = (line for line in text.splitlines() if line.startswith("| wrong | fp32 | 3.00"))
    assert "| other labels |" in row
    assert "Labels differ from the reference's: wrong." in text
    assert "- Gone: it is gone" in text


def test_only_rounds_that_both_ended_are_compared() -> None:
    facts = results(other=program("fp32", [1.0, 1.0, 1.0]))
    facts["peers"]["other"]["rounds"][1] = {"round": 1, "outputs": outputs(), "failed": "it broke"}
    own, other = (standing.Program(name, each) for name, each in facts["peers"].items())
    assert own.ratio(other, "videos_per_s") == {"median": 1.9, "lowest": 1.8, "highest": 2.0}


def test_wrong_labels_of_our_own_are_no_measure_for_others() -> None:
    facts = results(other=program("fp32", [1.0]))
    facts["peers"]["harec-deploy fp32"] = program("fp32", [2.0], right=False)
    assert standing.duels(standing.programs(facts)) == []
    assert standing.fastest_own(standing.programs(facts)) is None


def test_lines_are_found_behind_what_ray_puts_before_them() -> None:
    prefixed = '\x1b[36m(Recogniser pid=7)\x1b[0m {"ready": true}\x1b[32m [repeated]'
    text = prefixed + '\nnoise\n{"path": "a", "label": "b"}\n{"cut'
    assert lines_of(text) == [{"ready": True}, {"path": "a", "label": "b"}]


def test_a_program_is_measured_from_outside_with_its_children() -> None:
    burn = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
    code = (
        "import subprocess, sys, time\n"
        "print('{\"ready\": true}', flush=True)\n"
        f"subprocess.run([sys.executable, '-c', {burn!r}])\n"
        f"subprocess.Popen([sys.executable, '-c', {burn!r}])\n"  # left behind
        'print(\'{"path": "a", "label": "b"}\', flush=True)\n'
    )
    watched = (
        "import json, os; from benchmarks.watching import watch\n"
        f"seen = watch([{sys.executable!r}, '-c', {code!r}], env=os.environ)\n"
        "print(json.dumps([seen.status, seen.cpu_s, seen.peak_mib, seen.lines]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # In a process of its own, for all children are reaped.
    command = [sys.executable, "-c", watched]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    status, cpu_s, peak_mib, lines = json.loads(done.stdout)
    assert status == 0
    assert cpu_s > 0.6
    assert peak_mib > 1
    (ready_s, ready), (label_s, label) = lines
    assert (ready, label) == ({"ready": True}, {"path": "a", "label": "b"})
    assert label_s - ready_s > 0.25


def growth() -> dict[str, Any]:
    """Return what growth.py writes: the peer left out of the greatest length, and of windows."""
    at = {"videos": [100, 1000], "lengths_s": [5, 60], "classes": [2, 101], "frames": [8, 16], "windows_s": [5]}
    found: dict[str, Any] = {}
    for kind, values in at.items():
        rows = [
            {"value": value, "ms_a_video": middle([12.0, 10.0, 11.0]), "whole_s": middle([2.5]), "peak_mib": 345.6}
            for value in values
        ]
        rows = [{**row, "every_round_ms": [12.0, 10.0, 11.0]} for row in rows]
        found[kind] = {"harec-deploy fp32": rows, "PyTorchVideo": [{**rows[0], "peak_mib": 12.0}]}
    found["windows_s"].pop("PyTorchVideo")
    return found


def test_growth_is_shown_for_every_program() -> None:
    told = page.growth_section(growth())
    assert "| **harec-deploy fp32** | 11.0 (346) | 11.0 (346) |\n| PyTorchVideo | 11.0 (12.0) | - |" in told
    assert "s from the program's start to the label (peak memory, MiB)\n\n|  | 5 | 60 |" in told
    assert told.count("PyTorchVideo |") == 4
    assert told.count("Ahead of harec-deploy: PyTorchVideo is smaller at ") == 4
    assert "is quicker" not in told
    assert "growth.py --rounds 3`" in told


def test_charts_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "peers.json").write_text(json.dumps(results(slow=program("fp32", [1.0, 1.1]))))
    monkeypatch.setattr(charts, "RESULTS", tmp_path)
    (tmp_path / "growth.json").write_text(json.dumps(growth()))
    pictures = charts.draw()
    assert [picture.name for picture in pictures] == ["peers.png", "growth.png"]
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_the_page_is_what_the_results_say() -> None:
    if not (page.RESULTS / "peers.json").exists():
        pytest.skip("make bench has not been run yet")
    assert (page.HERE / "README.md").read_text() == page.from_results()
