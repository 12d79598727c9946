"""Clip-wise models from training to labels: one graph, the same answers everywhere. ResNet-50 + LSTM as well: two."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from safetensors.torch import load_file
from typer.testing import CliRunner

import harec_deploy
from harec_deploy.__main__ import app as deploy
from harec_deploy.bundle import load
from harec_deploy.errors import UsageError
from harec_deploy.export import export
from harec_deploy.label.options import Options
from harec_deploy.label.run import label
from harec_deploy.models import CLIPWISE, from_bundle
from harec_deploy.runners import installed
from training.datasets import Sample, scan_folders
from training.evaluate import predict
from training.fit import Report, fit
from training.module import read_metrics
from training.settings import Recipe, recipe_for
from training.splits import split


def recipe(architecture: str, **rest: object) -> Recipe:
    return recipe_for(
        architecture,
        sampling={"frames": 4},
        size={"width": 48, "height": 40},
        head={} if architecture == "convlstm" else {"hidden": 6, "dense": 5, "pool": "last"},
        optimisation={"epochs": 2, "batch": 2, "learning_rate": 3e-3},
        seed=1,
        **rest,
    )


@pytest.fixture(scope="module")
def samples(videos: Path) -> list[Sample]:
    done, _ = split(scan_folders(videos), (0, 0.5), seed=0)
    return done


def report(interrupt_after: int = 0, said: list[str] | None = None) -> Report:
    def epoch(number: int, epochs: int, facts: dict[str, float]) -> None:
        if number == interrupt_after:
            raise KeyboardInterrupt

    say = (said if said is not None else []).append
    return Report(say=say, step=lambda done, total: None, epoch=epoch)


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in the layout of ImageNet's, for the encoder that takes some."""
    torch.manual_seed(0)
    state = torchvision.models.resnet50(weights=None).state_dict()
    state["bn1.running_mean"] = torch.rand(64)
    torch.save(state, path := tmp_path_factory.mktemp("weights") / "resnet50.pth")
    return path


@pytest.fixture(scope="module", params=CLIPWISE)
def run(
    request: pytest.FixtureRequest, samples: list[Sample], flat: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that was interrupted and went on, its bundle exported."""
    folder = tmp_path_factory.mktemp(request.param)
    run, cache = folder / "run", folder / "cache"
    given = {"encoder_weights": str(flat), "freeze_encoder": True} if request.param == "i3d_r50_lstm" else {}
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        fit(samples, recipe(request.param, **given), run, report(1, said), cache=cache)
    fit(samples, recipe(request.param, **given), run, report(), cache=cache)
    assert [row["epoch"] for row in read_metrics(run / "metrics.csv")] == [1, 2]
    if given:
        assert said[0] == f"encoder: {flat}, a 2D ResNet-50 inflated over time; left out: fc.weight, fc.bias"
        assert said[1].startswith("the frozen encoder sees whole clips")
    export(run / "bundle", [str(sample.path) for sample in samples], fused=True, progress=said.append)
    assert said[-1].startswith("onnx-fp32/model.onnx is a single file already: --fused adds nothing")
    assert "onnx-fp32-fused" not in load(run / "bundle").spec.variants
    return run


def test_every_runner_and_precision_is_proved(run: Path, samples: list[Sample]) -> None:
    variant = load(run / "bundle").spec.variants["onnx-fp32"]
    assert set(variant.graphs) == {"model"}
    tried = {(proof.runner, proof.precision) for proof in variant.proofs}
    assert tried == {(runner.name, precision) for runner in installed() for precision in runner.precisions(variant)}
    for proof in variant.proofs:
        assert proof.clips == len(samples)
        if proof.precision == "fp32":
            assert proof.passed
            assert proof.max_abs_dp <= 1e-4


def test_the_graph_is_one_self_contained_file_of_raw_pixels(run: Path) -> None:
    model = onnx.load(run / "bundle/onnx-fp32/model.onnx", load_external_data=False)
    (clips,), (logits,) = model.graph.input, model.graph.output
    assert clips.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value or d.dim_param for d in clips.type.tensor_type.shape.dim] == ["batch", 4, 40, 48, 3]
    assert [d.dim_value for d in logits.type.tensor_type.shape.dim][1:] == [3]
    assert not any(tensor.external_data for tensor in model.graph.initializer)


@pytest.mark.parametrize("runner", ["openvino", "onnx"])
def test_any_number_of_clips_at_a_time(run: Path, runner: str) -> None:
    bundle = load(run / "bundle")
    recognizer = harec_deploy.load(run / "bundle", runner=runner, precision="fp32")
    clips = np.random.default_rng(0).integers(0, 256, (5, 4, 40, 48, 3), dtype=np.uint8)
    with torch.inference_mode():
        wanted = (from_bundle(bundle)(torch.from_numpy(clips)) / bundle.spec.temperature).softmax(1).numpy()
    for count in (5, 1, 3):
        np.testing.assert_allclose(recognizer.predict(clips[:count]), wanted[:count], atol=1e-5)


@pytest.mark.parametrize("how", [{"freeze_encoder": True}, {"finetune_stages": 1}], ids=["frozen", "fine-tuned"])
def test_resnet50_lstm(samples: list[Sample], flat: Path, videos: Path, tmp_path: Path, how: dict[str, object]) -> None:
    """Interrupted, resumed, exported with proof, labelled: frozen, and with its last stage fine-tuned."""
    run, chosen = tmp_path / "run", recipe("resnet50_lstm", encoder_weights=str(flat), **how)
    with pytest.raises(KeyboardInterrupt):
        fit(samples, chosen, run, report(1), cache=tmp_path / "cache")
    fit(samples, chosen, run, report(), cache=tmp_path / "cache")
    assert [row["epoch"] for row in read_metrics(run / "metrics.csv")] == [1, 2]
    spec = export(run / "bundle", [str(sample.path) for sample in samples]).spec
    assert spec.feature_dim == 2048
    assert set(spec.variants["onnx-fp32"].graphs) == {"encoder", "head"}
    proofs = {proof.runner: proof for proof in spec.variants["onnx-fp32"].proofs if proof.precision == "fp32"}
    assert all(proofs[runner.name].passed for runner in installed())
    trained, given = load_file(run / "bundle/weights.safetensors"), torch.load(flat, weights_only=True)
    for place, name in ((6, "layer3"), (7, "layer4")):
        as_it_was = torch.equal(
            trained[f"encoder.backbone.trunk.{place}.0.conv1.weight"], given[f"{name}.0.conv1.weight"]
        )
        assert as_it_was == ("freeze_encoder" in how or name == "layer3")
    assert_labelled_as_evaluated(run, videos, tmp_path)


def test_labels_of_a_folder_are_those_of_evaluate(run: Path, videos: Path, tmp_path: Path) -> None:
    assert_labelled_as_evaluated(run, videos, tmp_path)


def assert_labelled_as_evaluated(run: Path, videos: Path, tmp_path: Path) -> None:
    options = Options(out=tmp_path / "out.jsonl", runner="openvino", precision="fp32")
    label(run / "bundle", [str(videos)], options)
    _, *rows = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert [row["status"] for row in rows] == ["ok"] * 6
    samples = [Sample(Path(row["path"]), "jump", "", "test") for row in rows]
    wanted = predict(run / "bundle", samples, progress=lambda done, total: None)
    assert [row["label"] for row in rows] == [prediction.label for prediction in wanted]
    assert [row["score"] for row in rows] == pytest.approx([prediction.score for prediction in wanted], abs=1e-4)


def test_the_bundle_tells_what_was_trained(run: Path, flat: Path) -> None:
    """Frames have no features; of a frozen encoder even the statistics of batch normalisation are as they were."""
    spec = load(run / "bundle").spec
    assert spec.feature_dim == 0
    assert spec.training["encoder"] == ("frozen" if spec.architecture == "i3d_r50_lstm" else "trained")
    if spec.architecture == "i3d_r50_lstm":
        trained, given = load_file(run / "bundle/weights.safetensors"), torch.load(flat, weights_only=True)
        blocks = "encoder.backbone.blocks"
        torch.testing.assert_close(trained[f"{blocks}.0.conv.weight"].sum(2), given["conv1.weight"])
        assert torch.equal(trained[f"{blocks}.0.norm.running_mean"], given["bn1.running_mean"])


def test_inspect_names_the_head_that_is_there(run: Path) -> None:
    result = CliRunner().invoke(deploy, ["inspect", str(run / "bundle")])
    row = next(line for line in result.stdout.splitlines() if "head" in line)
    lstm = "1 x LSTM(6), last over time, dense layer of 5, "
    assert ("LSTM" not in row) if load(run / "bundle").spec.architecture == "convlstm" else (lstm in row)
    assert "dropout" in row


def test_convlstm_learns_what_it_is_shown(samples: list[Sample], tmp_path: Path) -> None:
    base = recipe("convlstm", flip=False)
    longer = replace(base, optimisation=replace(base.optimisation, epochs=25, learning_rate=0.02))
    fit(samples, longer, tmp_path / "run", report(), cache=tmp_path / "cache")
    metrics = read_metrics(tmp_path / "run/metrics.csv")
    assert metrics[-1]["train_loss"] < 0.6 * metrics[0]["train_loss"]


def test_options_that_mean_nothing_to_an_architecture_are_refused() -> None:
    for head, name in (({"hidden": 8}, "hidden"), ({"pool": "mean"}, "pool"), ({"dense": 9}, "dense")):
        with pytest.raises(UsageError, match=f"convlstm has no {name}: of the head it takes dropout only"):
            recipe_for("convlstm", sampling={}, size={}, head=head, optimisation={})
    given = {"dropout": 0.4, "bidirectional": False, "hidden": None}
    assert recipe_for("convlstm", sampling={}, size={}, head=given, optimisation={}).head.dropout == 0.4
