"""Encoder and head in a single file: the same numbers, for any program that runs ONNX, and nobody's choice here."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

import harec_deploy
from harec_deploy.__main__ import app
from harec_deploy.bundle import Bundle, load
from harec_deploy.errors import BundleError, ProofError, UsageError
from harec_deploy.export import export
from harec_deploy.export.fused import write_fused
from harec_deploy.recognizer import Recognizer
from harec_deploy.runners import Execution, executions, get
from tests.test_export import change_one_weight

CLIPS = np.random.default_rng(0).integers(0, 256, (3, 20, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory, exported: Path, videos: Path) -> Path:
    """The exported bundle, with fp16 graphs and both of them in one file. Do not write to it."""
    folder = shutil.copytree(exported, tmp_path_factory.mktemp("fused") / "bundle")
    made = CliRunner().invoke(app, ["export", str(folder), "--clips", str(videos), "--precision", "fp16", "--fused"])
    assert made.exit_code == 0, made.exception
    said = " ".join(made.output.split())
    for runner in ("openvino", "onnx"):
        assert f"onnx-fp16-fused on {runner} in fp16: 100.0% of 6 clips keep their label" in said
    return folder


def pair(bundle: Bundle, variant: str) -> dict[str, Path]:
    return {name: bundle.path(file) for name, file in bundle.spec.variants[variant].graphs.items()}


def test_other_programs_give_it_clips_and_get_logits(exported: Path, tmp_path: Path) -> None:
    """With nothing of this package between, and with the check clips that the reference's logits are known of."""
    bundle = load(exported)
    path = write_fused(pair(bundle, "onnx-fp32"), bundle.spec, tmp_path)["model"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (clips,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (clips.name, clips.type, clips.shape) == ("clips", "tensor(uint8)", ["batch", 20, 64, 64, 3])
    assert (logits.name, logits.type, logits.shape) == ("logits", "tensor(float)", ["batch", 3])
    pixels, wanted = bundle.check_clips() or pytest.fail("no check clips")
    np.testing.assert_allclose(session.run(None, {"clips": pixels})[0], wanted, atol=1e-3)


@pytest.mark.parametrize("runner", ["openvino", "onnx"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_it_equals_the_pair_for_any_number_of_clips(fused: Path, tmp_path: Path, precision: str, runner: str) -> None:
    bundle = load(fused)
    graphs = pair(bundle, f"onnx-{precision}")
    path = write_fused(graphs, bundle.spec, tmp_path)["model"]
    one, encoder, head = (get(runner).load_file(file, precision) for file in (path, graphs["encoder"], graphs["head"]))
    for count in (3, 1, 2):
        features = encoder(CLIPS[:count].reshape(-1, 64, 64, 3))
        wanted = head(features.reshape(count, 20, -1))
        # Half precision where the runtime may fuse across the border of the graphs; logits go up to about 10.
        np.testing.assert_allclose(one(CLIPS[:count]), wanted, atol=1e-4 if precision == "fp32" else 0.05)


def test_it_is_a_variant_that_has_to_be_named(fused: Path) -> None:
    spec = load(fused).spec
    assert set(spec.variants["onnx-fp16-fused"].graphs) == {"model"}
    assert "onnx-fp16-fused" not in {way.variant for way in executions(spec)}
    assert "onnx-fp16-fused" not in {way.variant for way in executions(spec, precision="fp16", device="cpu")}
    assert {way.variant for way in executions(spec, variant="onnx-fp16-fused")} == {"onnx-fp16-fused"}
    named = harec_deploy.load(fused, variant="onnx-fp16-fused", runner="openvino")
    bundle = load(fused)
    by_pair = Recognizer(bundle, Execution("onnx-fp16", get("openvino"), "fp16"))
    np.testing.assert_allclose(named.predict(CLIPS), by_pair.predict(CLIPS), atol=5e-3)
    with pytest.raises(UsageError, match="no way to run onnx-fp16-fused with runner openvino in precision bf16"):
        executions(spec, "openvino", "bf16", variant="onnx-fp16-fused")
    with pytest.raises(UsageError, match=r"no variant 'fused'; it has onnx-fp32, onnx-fp16, onnx-fp16-fused, torch"):
        harec_deploy.load(fused, variant="fused")


def test_inspect_shows_it_and_finds_damage(fused: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(fused), "--json"]).output
    assert "onnx-fp16-fused/model.onnx" in shown
    assert "onnx-fp16-fused" in CliRunner().invoke(app, ["inspect", str(fused)], terminal_width=200).output
    folder = shutil.copytree(fused, tmp_path / "bundle")
    path = folder / "onnx-fp16-fused/model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"onnx-fp16-fused/model.onnx was changed"):
        load(folder)


def test_one_that_is_not_the_pair_fails_and_the_pair_stays(
    bundle: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(graphs: dict[str, Path], spec: object, folder: Path) -> dict[str, Path]:
        shutil.copy(graphs["head"], folder)
        change_one_weight(folder, 50.0)
        return write_fused({**graphs, "head": folder / "head.onnx"}, spec, folder)  # type: ignore[arg-type]

    monkeypatch.setattr("harec_deploy.export.fused.write_fused", write)
    with pytest.raises(ProofError, match="onnx-fp32-fused on openvino in fp32 is not the trained model"):
        export(bundle, [str(videos)], fused=True)
    assert not (bundle / "onnx-fp32-fused").exists()
    assert set(load(bundle).spec.variants) == {"onnx-fp32"}


def test_it_goes_with_the_pair_that_it_is_of(fused: Path, videos: Path, tmp_path: Path) -> None:
    folder, told = shutil.copytree(fused, tmp_path / "bundle"), list[str]()
    spec = export(folder, [str(videos)], precision="fp16", progress=told.append).spec
    assert "onnx-fp16" in spec.variants
    assert "onnx-fp16-fused" not in spec.variants
    assert not (folder / "onnx-fp16-fused").exists()
    assert any("onnx-fp16-fused is removed" in text for text in told)


def test_it_is_self_contained_and_names_no_machine(fused: Path) -> None:
    model = onnx.load(fused / "onnx-fp16-fused/model.onnx", load_external_data=False)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert not any(each.metadata_props for each in (*model.graph.node, *model.graph.initializer))


@pytest.mark.parametrize("other", [["--tensorrt"], ["--runner", "torch"]])
def test_it_is_about_onnx_files(other: list[str]) -> None:
    made = CliRunner().invoke(app, ["export", "nowhere", "--fused", *other])
    with pytest.raises(UsageError, match="--fused is about ONNX files: leave --tensorrt and --runner out"):
        raise made.exception or AssertionError(made.output)
