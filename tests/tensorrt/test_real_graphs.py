"""From the weights to labels: the real graphs go through the fake's builder, and its runner proves them."""

from pathlib import Path

import onnx
import pytest

import harec_deploy
from harec_deploy.bundle import load
from harec_deploy.errors import ProofError
from harec_deploy.export.tensorrt import export_tensorrt
from tests.tensorrt.conftest import Site
from tests.test_verify import Brighter, Foreign


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("fp16", 1e-2)])
def test_plans_of_the_real_graphs_keep_the_labels(
    bundle: Path, videos: Path, site: Site, precision: str, limit: float
) -> None:
    variant = f"tensorrt-{precision}-sm90"
    before = load(bundle).spec.check
    exported = export_tensorrt(bundle, [str(videos)], precision=precision)
    made = exported.spec.variants[variant]
    assert made.engine is not None
    assert made.engine.lstm == "unroll"
    kinds = {node.op_type for node in onnx.load(exported.path(made.engine.sources["head"])).graph.node}
    assert not kinds & {"LSTM", "Loop", "If"}
    (proof,) = made.proofs
    assert (proof.decoder, proof.top1_agreement) == ("pyav", 1.0)
    assert proof.max_abs_dp < limit
    assert load(bundle).spec.check == before  # other variants were proved to be near it
    recognizer = harec_deploy.load(bundle, runner="tensorrt", device="cuda:0")
    video = next(videos.rglob("*.mp4"))
    assert recognizer.label(video).label == harec_deploy.load(bundle, runner="onnx", device="cpu").label(video).label


def test_the_labels_of_labellings_decoder_are_proved_too(bundle: Path, videos: Path, site: Site) -> None:
    exported = export_tensorrt(bundle, [str(videos)], precision="fp32", decoder=Brighter())
    variant = exported.spec.variants["tensorrt-fp32-sm90"]
    reference, brighter = variant.proofs
    assert (reference.decoder, brighter.decoder) == ("pyav", "brighter")
    assert reference.max_abs_dp < 1e-4
    assert 1e-3 < brighter.max_abs_dp < 0.2  # other frames: only labels count
    assert variant.proof("tensorrt", "fp32", "cuda:0") == reference
    with pytest.raises(ProofError, match=r"needed are 99% of labels"):
        export_tensorrt(bundle, [str(videos)], precision="fp32", decoder=Foreign())
    assert load(bundle).spec.variants["tensorrt-fp32-sm90"] == variant
