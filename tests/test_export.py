"""No variant without proof: what export measures, and that a wrong graph never gets its name."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from harec_deploy.bundle import load
from harec_deploy.errors import BundleError, OutputLocked, ProofError, UsageError
from harec_deploy.export import export, export_weights
from harec_deploy.export.decoders import store
from harec_deploy.export.onnx import write_graphs
from harec_deploy.export.verify import read_clips
from harec_deploy.files import locked
from harec_deploy.models import from_bundle
from harec_deploy.runners import installed
from harec_deploy.spec import WEIGHTS_VARIANT, DecoderProof
from tests.conftest import write_bundle


def test_every_runner_and_precision_is_proved_on_real_clips(exported: Path) -> None:
    variant = load(exported).spec.variants["onnx-fp32"]
    tried = {(proof.runner, proof.precision) for proof in variant.proofs}
    assert tried == {(runner.name, precision) for runner in installed() for precision in runner.precisions(variant)}
    for proof in variant.proofs:
        assert proof.clips == 6
        if proof.precision == "fp32":
            assert proof.top1_agreement == 1.0
            assert proof.max_abs_dp <= 1e-4
            assert proof.passed


def test_graphs_are_self_contained_and_take_raw_pixels(exported: Path) -> None:
    encoder = onnx.load(exported / "onnx-fp32/encoder.onnx", load_external_data=False)
    (frames,) = encoder.graph.input
    assert frames.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value or d.dim_param for d in frames.type.tensor_type.shape.dim] == ["batch", 64, 64, 3]
    assert not any(tensor.external_data for tensor in encoder.graph.initializer)
    head = onnx.load(exported / "onnx-fp32/head.onnx")
    assert [node.op_type for node in head.graph.node].count("LSTM") == 1


def change_one_weight(folder: Path, amount: float) -> None:
    path = folder / "head.onnx"
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if "classifier.weight" in t.name)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 0] += amount
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


def with_a_changed_weight(amount: float) -> Callable[..., dict[str, Path]]:
    def write(model: object, spec: object, folder: Path, **types: str) -> dict[str, Path]:
        files = write_graphs(model, spec, folder, **types)  # type: ignore[arg-type]
        change_one_weight(folder, amount)
        return files

    return write


@pytest.mark.parametrize("amount", [50.0, 0.5, float("nan")])
def test_one_changed_weight_fails_the_proof_and_leaves_nothing(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch, amount: float
) -> None:
    folder = tmp_path / "bundle"
    write_bundle(folder)
    before = (folder / "bundle.json").read_bytes()
    monkeypatch.setattr("harec_deploy.export.onnx.write_graphs", with_a_changed_weight(amount))
    with pytest.raises(ProofError, match=r"is not the trained model: .* onnx-fp32 was not written") as caught:
        export(folder, [str(videos)])
    assert caught.value.exit_status == 5
    assert {path.name for path in folder.iterdir()} == {"bundle.json", "weights.safetensors"}
    assert (folder / "bundle.json").read_bytes() == before


def test_a_failed_proof_keeps_the_variant_that_was_there(
    bundle: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harec_deploy.export.onnx.write_graphs", with_a_changed_weight(50.0))
    with pytest.raises(ProofError):
        export(bundle, [str(videos)])
    assert "onnx-fp32" in load(bundle).spec.variants


def test_exporting_again_replaces_the_variant(bundle: Path, videos: Path) -> None:
    export(bundle, [str(videos)], max_clips=3)
    assert {proof.clips for proof in load(bundle).spec.variants["onnx-fp32"].proofs} == {3}


def test_clips_for_the_proof_come_from_training_by_default(tmp_path: Path, videos: Path) -> None:
    write_bundle(tmp_path / "bundle", proof_clips=[str(path) for path in sorted(videos.rglob("*.mp4"))])
    exported = export(tmp_path / "bundle")
    assert {proof.clips for proof in exported.spec.variants["onnx-fp32"].proofs} == {3}


def test_a_proof_needs_clips(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle")
    with pytest.raises(UsageError, match="a proof needs real clips: name videos or folders with --clips"):
        export(tmp_path / "bundle")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UsageError, match="none of 1 videos can be decoded"):
        export(tmp_path / "bundle", [str(tmp_path / "text.mp4")])


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    path = bundle.folder / "bundle.json"
    spec = json.loads(path.read_text())
    path.write_text(json.dumps(spec | {"architecture": "resnet18_lstm"}))
    with pytest.raises(BundleError, match="weights and architecture do not fit") as caught:
        from_bundle(load(bundle.folder))
    assert "\n" not in str(caught.value)


def test_proof_clips_are_spread_over_all(exported: Path, videos: Path) -> None:
    names = read_clips(load(exported).spec, [str(videos)], limit=3).names
    assert [Path(name).parent.name for name in names] == ["climb", "jump", "swim"]


def test_check_clips_hold_the_references_logits(exported: Path) -> None:
    bundle = load(exported)
    check = bundle.check_clips()
    assert check is not None
    clips, logits = check
    with torch.inference_mode():
        np.testing.assert_allclose(from_bundle(bundle)(torch.from_numpy(clips)).numpy(), logits, atol=1e-4)


def test_what_another_process_adds_meanwhile_stays(bundle: Path, videos: Path) -> None:
    export(bundle, [str(videos)])
    read_before = load(bundle)
    with locked(bundle / "bundle.json"):
        with pytest.raises(OutputLocked, match=r"bundle\.json is written by pid \d+ .*: wait until"):
            export(bundle)
        with pytest.raises(OutputLocked):
            export_weights(bundle)
    export_weights(bundle, [str(videos)])
    assert WEIGHTS_VARIANT in load(bundle).spec.variants
    none = {"refused": 0, "mean_level_difference": 0.0, "max_level_difference": 0, "max_abs_dp": 0.0, "flipped": []}
    proof = DecoderProof(
        decoder="dali", decoder_version="2", device="cpu", clips=1, top1_agreement=1.0, passed=True, **none
    )
    store(read_before, proof)
    spec = load(bundle).spec
    assert spec.decoders == [proof]
    assert WEIGHTS_VARIANT in spec.variants
