"""bench pick: what it stores is what `auto` takes on this machine, as long as it holds."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import harec_deploy
from harec_deploy import picks
from harec_deploy.bench.engine import Settings, pick
from harec_deploy.bench.measure import Budget
from harec_deploy.bundle import load
from harec_deploy.errors import BundleError, OutputError, UsageError
from harec_deploy.picks import Pick
from harec_deploy.runners import executions
from tests.test_bundle import edit
from tests.test_cli import run

QUICK = Budget(seconds=0.05, warm_up_s=0.001, turn_s=0.001)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "harec-deploy" / "picks.json"


def made_up(bundle: Path, place: int) -> Pick:
    """Store one of the bundle's ways as the choice."""
    checked = load(bundle)
    chosen = Pick.of(checked, executions(checked.spec)[place], {"this": 2.0, "that": 1.0})
    picks.store(chosen)
    return chosen


def change(file: Path, do: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    do(content)
    file.write_text(json.dumps(content))


def test_auto_takes_what_is_stored_whichever_it_is(exported: Path) -> None:
    ways = executions(load(exported).spec)
    assert len(ways) >= 2
    for place, way in enumerate(ways):
        chosen = made_up(exported, place)
        recognizer = harec_deploy.load(exported)
        assert chosen.is_of(recognizer.execution)
        assert str(recognizer.execution) == str(way)
        told = f"picked for this machine by harec-deploy bench pick on {chosen.measured[:10]}, in clips/s: "
        assert recognizer.reason.startswith(f"{told}this 2.0, that 1.0")


def test_without_a_home_nothing_is_stored(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # whom the system does not know
    assert "home" not in harec_deploy.load(exported).reason
    with pytest.raises(OutputError, match="there is no home folder: set XDG_STATE_HOME to an absolute path"):
        made_up(exported, 0)


def test_what_is_asked_for_by_name_counts_more(exported: Path) -> None:
    ways = executions(load(exported).spec)
    made_up(exported, next(place for place, way in enumerate(ways) if way.runner.name == "openvino"))
    recognizer = harec_deploy.load(exported, runner="onnx")
    assert recognizer.execution.runner.name == "onnx"
    assert "picked" not in recognizer.reason


def test_a_choice_outside_of_what_is_allowed_is_left_alone(exported: Path) -> None:
    ways = executions(load(exported).spec)
    place = next((place for place, way in enumerate(ways) if way.precision == "bf16"), None)
    if place is None:
        pytest.skip("this CPU does not compute in bf16")
    made_up(exported, place)
    recognizer = harec_deploy.load(exported, precision="fp32")
    assert recognizer.execution.precision == "fp32"
    assert recognizer.reason.startswith("the fastest here")


def test_what_is_picked_is_stored_and_obeyed(exported: Path, videos: Path, home: Path) -> None:
    result = pick(exported, Settings(clips=[str(videos)], budget=QUICK))
    assert home == Path(result.about["stored_in"])
    assert [row["picked"] for row in result.rows] == [True, *[False] * (len(result.rows) - 1)]
    assert {row["way"] for row in result.rows} == {str(way) for way in executions(load(exported).spec)}
    speeds = [row["per_s"] for row in result.rows]
    assert speeds == sorted(speeds, reverse=True)
    assert all(row["accuracy"]["clips"] == 6 for row in result.rows)
    recognizer = harec_deploy.load(exported)
    assert str(recognizer.execution) == result.rows[0]["way"] == result.about["picked"]
    assert "picked for this machine" in recognizer.reason


def test_the_command_tells_its_choice(exported: Path, videos: Path, home: Path) -> None:
    done = run("bench", "pick", str(exported), str(videos), "--seconds", "0.05")
    assert done.returncode == 0, done.stderr
    (stored,) = json.loads(home.read_text())["picks"]
    way = f"{stored['variant']} on {stored['runner']} in {stored['precision']}"
    assert f"{way} is what --runner auto takes from now on; in {home}" in done.stderr


def test_only_what_passed_its_proof_is_measured(bundle: Path, home: Path) -> None:
    def fail(spec: dict[str, Any]) -> None:
        for proof in spec["variants"]["onnx-fp32"]["proofs"]:
            proof["passed"] = proof["runner"] == "onnx"

    edit(bundle, fail)
    result = pick(bundle, Settings(budget=QUICK))
    assert [row["way"] for row in result.rows] == ["onnx-fp32 on onnx in fp32"]
    edit(bundle, lambda spec: spec["variants"]["onnx-fp32"].update(proofs=[]))
    home.unlink()
    with pytest.raises(UsageError, match="is proved on this kind of machine: harec-deploy export proves"):
        pick(bundle, Settings(budget=QUICK))
    assert not home.exists()


def test_what_auto_never_takes_is_not_picked(exported: Path, home: Path) -> None:
    with pytest.raises(UsageError, match="is proved on this kind of machine"):
        pick(exported, Settings(compare=["torch"], budget=QUICK))
    assert not home.exists()


def test_a_choice_for_each_device_is_kept(exported: Path, home: Path) -> None:
    chosen = made_up(exported, 0)
    picks.store(msgspec.structs.replace(chosen, device="cuda:0"))
    assert [each["device"] for each in json.loads(home.read_text())["picks"]] == ["cpu", "cuda:0"]
    assert harec_deploy.load(exported).reason.startswith("picked")


def test_one_of_another_machine_is_ignored_with_a_word(exported: Path, home: Path) -> None:
    made_up(exported, 0)
    change(home, lambda content: content["picks"][0]["machine"].update(runtimes={"openvino": "1.0"}))
    reason = harec_deploy.load(exported).reason
    assert reason.startswith("the fastest here")
    assert "the stored pick is of a machine with other runtimes: give harec-deploy bench pick again" in reason


def test_two_machines_share_a_home(exported: Path, home: Path) -> None:
    chosen = made_up(exported, 0)
    change(home, lambda content: content["picks"][0]["machine"].update(cpu="another"))
    picks.store(chosen)
    made_up(exported, 1)  # takes the place of its own machine's only
    stored = json.loads(home.read_text())["picks"]
    assert [each["machine"]["cpu"] == "another" for each in stored] == [True, False]
    assert harec_deploy.load(exported).reason.startswith("picked")


def test_a_bundle_that_was_exported_again_is_another(bundle: Path, home: Path) -> None:
    made_up(bundle, 0)
    before = picks.identity(load(bundle))
    edit(bundle, lambda spec: spec["training"].update(note="nothing that matters"))
    assert picks.identity(load(bundle)) == before
    edit(bundle, lambda spec: spec["variants"]["onnx-fp32"]["proofs"][0].update(max_abs_dp=0.5))
    assert picks.identity(load(bundle)) != before
    reason = harec_deploy.load(bundle).reason
    assert reason.startswith("the fastest here")
    assert "pick" not in reason


def test_a_damaged_file_is_ignored_with_a_word_and_replaced(exported: Path, home: Path) -> None:
    made_up(exported, 0)
    home.write_text("{")
    recognizer = harec_deploy.load(exported)
    assert recognizer.reason.startswith("the fastest here")
    assert f"{home} cannot be read and is passed over" in recognizer.reason
    made_up(exported, 1)
    assert harec_deploy.load(exported).reason.startswith("picked")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cannot be read and is passed over: Input data was truncated"),
        (b'{"schema": 1}', "missing required field `picks`"),
        (b'{"schema": 1, "picks": [{}]}', "missing required field `bundle`"),
        (b"[" * 10_000, "cannot be read and is passed over"),
        (b"\xff", "cannot be read and is passed over"),
        (b'{"schema": 2, "picks": []}', "is of schema version 2 and is passed over: this harec-deploy reads 1"),
    ],
)
def test_whatever_lies_there_is_no_error(exported: Path, home: Path, content: bytes, told: str) -> None:
    home.parent.mkdir(parents=True)
    home.write_bytes(content)
    bundle = load(exported)
    found, note = picks.find(bundle, executions(bundle.spec))
    assert found is None
    assert str(home) in note
    assert told in note


def test_where_the_choice_does_not_run_the_others_are_measured(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = executions(load(exported).spec)
    place = next(place for place, way in enumerate(ways) if way.runner.name == "onnx")

    def refuse(*_: object, **__: object) -> None:
        raise BundleError("the runtime has gone mad")

    made_up(exported, place)
    monkeypatch.setattr("harec_deploy.runners.onnx.OnnxRunner.load", refuse)
    recognizer = harec_deploy.load(exported)
    assert recognizer.execution.runner.name == "openvino"
    assert "not used: the runtime has gone mad" in recognizer.reason


def test_a_folder_that_cannot_be_written_is_one_line(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"picks\.json cannot be written: Not a directory; set XDG_STATE_HOME"):
        made_up(exported, 0)
