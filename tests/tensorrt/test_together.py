"""Both halves of the fake: plans that are built by the exporter run in the runner, through --rebuild."""

import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

import harec_deploy
from harec_deploy.__main__ import app
from harec_deploy.bundle import file_ref, load, save
from tests.attacks.tiny import FRAMES, SIDE
from tests.tensorrt.fake_cuda import GPU, Machine
from tests.tensorrt.plans import engine_bundle, reference

fake_builder = pytest.importorskip("tests.tensorrt.fake_builder", reason="the building half of the fake is not here")


@pytest.fixture
def both(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """The fake GPU, and a fake TensorRT that builds too."""
    vars(sys.modules["tensorrt"]).update({name: each for name, each in vars(fake_builder).items() if name[0] != "_"})
    monkeypatch.setattr(fake_builder, "_machine", fake_builder._Machine(gpu=GPU.name))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delitem(sys.modules, "harec_deploy.export.plan", raising=False)
    return machine


@pytest.mark.parametrize(
    "old",
    [{"tensorrt": "10.13.3.9"}, {"capability": "8.0", "gpu": "A100"}],
    ids=["another TensorRT", "another GPU"],
)
def test_what_is_built_again_runs(both: Machine, tmp_path: Path, videos: Path, old: dict[str, object]) -> None:
    bundle = engine_bundle(tmp_path / "bundle", variant="tensorrt-fp32-sm90", **old)
    clips = np.random.default_rng(0).integers(0, 256, (2, FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    features = reference("encoder", clips.reshape(-1, SIDE, SIDE, 3)).reshape(2, FRAMES, 3)
    np.savez(bundle.folder / "check.npz", clips=clips, logits=reference("head", features))
    check = file_ref(bundle.folder, bundle.folder / "check.npz")
    save(bundle.folder, msgspec.structs.replace(bundle.spec, check=check))
    command = ["label", str(videos), "-b", str(bundle.folder), "-o", str(tmp_path / "o.jsonl"), "--rebuild"]
    done = CliRunner().invoke(app, command)
    assert (done.exit_code, done.exception) == (0, None), done.stderr
    assert "building TensorRT plans again: tensorrt-fp32-sm90 was built " in done.stderr
    engine = load(bundle.folder).spec.variants["tensorrt-fp32-sm90"].engine
    assert engine is not None
    assert (engine.tensorrt, engine.gpu, engine.capability) == ("11.4.0.106", GPU.name, "9.0")
    assert both.launches > 0
    recognizer = harec_deploy.load(bundle.folder, runner="tensorrt")
    assert recognizer.reason == "the only way that was asked for and is proved"
