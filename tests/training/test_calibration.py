"""Scores that mean what they say: the temperature, from the fit to the exported model, and how it is measured."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from harec_deploy.bundle import load
from harec_deploy.export import export
from harec_deploy.export.verify import ProofClips, read_clips, reference_logits
from harec_deploy.loading import load as load_recognizer
from harec_deploy.models import from_bundle
from harec_deploy.recognizer import softmax
from tests.conftest import CLASSES
from tests.media import make_video
from training import plots
from training.__main__ import app
from training.calibration import BINS, HIGH, LOW, MIN_CLIPS, calibrate, fit_temperature, reliability
from training.datasets import Sample, write_manifest
from training.evaluate import predict, write
from training.fit import Report, fit
from training.metrics import FAILED, Prediction, summed_up
from training.settings import recipe_for

VAL_VIDEOS, WRONG = 36, 4


def drawn(count: int, temperature: float, *, scale: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return logits (count, 6) that are right when divided by ``temperature``, and labels drawn by them."""
    generator = torch.Generator().manual_seed(seed)
    right = scale * torch.randn(count, 6, generator=generator)
    labels = torch.multinomial(right.softmax(1), 1, generator=generator)[:, 0]
    return right * temperature, labels


def nll(logits: Tensor, labels: Tensor, temperature: float) -> float:
    return float(torch.nn.functional.cross_entropy(logits.double() / temperature, labels))


class TestFit:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
    def test_finds_the_temperature_that_labels_were_drawn_with(self, temperature: float) -> None:
        logits, labels = drawn(4000, temperature)
        found = fit_temperature(logits, labels)
        assert found.temperature == pytest.approx(temperature, rel=0.08)  # 3 standard errors of 4000 clips

    @pytest.mark.parametrize("seed", range(5))
    def test_no_other_temperature_is_better(self, seed: int) -> None:
        logits, labels = drawn(200, 1.7, seed=seed)
        found = fit_temperature(logits, labels)
        best = min(nll(logits, labels, float(t)) for t in np.geomspace(LOW, HIGH, 400))
        assert found.nll_after == pytest.approx(nll(logits, labels, found.temperature))
        assert found.nll_after is not None
        assert found.nll_after <= best + 1e-9

    @pytest.mark.parametrize("seed", range(20))
    def test_is_never_worse_than_none(self, seed: int) -> None:
        logits, labels = drawn(MIN_CLIPS, (0.3, 0.8, 1.0, 3.0)[seed % 4], scale=1 + seed % 5, seed=seed)
        found = fit_temperature(logits, labels)
        assert nll(logits, labels, found.temperature) <= nll(logits, labels, 1.0)

    @pytest.mark.parametrize("scale", [1e-3, 0.5, 3.0, 1e4])
    def test_a_split_that_is_all_right_does_not_drive_scores_to_one(self, scale: float) -> None:
        logits, _ = drawn(50, 1.0, scale=scale)
        found = fit_temperature(logits, logits.argmax(1))
        scores = (logits.double() / found.temperature).softmax(1).amax(1)
        untouched = logits.double().softmax(1).amax(1).mean()
        assert LOW <= found.temperature <= 1
        assert np.isfinite([found.nll_before, found.nll_after, found.ece_before, found.ece_after]).all()  # type: ignore[arg-type]
        assert scores.mean() <= max(51 / 52 + 1e-6, untouched)
        assert "50 of them right; they ask for" in found.note

    def test_fifty_of_fifty_are_as_sure_as_fifty_can_show(self) -> None:
        logits, labels = drawn(50, 1.0, scale=0.3)
        logits += 2.5 * torch.nn.functional.one_hot(labels, 6)  # what label smoothing leaves: right, but not sure
        found = fit_temperature(logits, logits.argmax(1))
        scores = (logits.double() / found.temperature).softmax(1).amax(1)
        assert LOW < found.temperature < 1
        assert scores.mean() == pytest.approx(51 / 52, abs=1e-6)

    def test_labels_that_logits_know_nothing_of_stop_at_the_end_of_the_range(self) -> None:
        logits, _ = drawn(300, 1.0, scale=100.0)
        found = fit_temperature(logits, logits.argmin(1))
        assert found.temperature == HIGH
        assert "they ask for more than is allowed" in found.note

    def test_ties_stay_one(self) -> None:
        assert fit_temperature(torch.zeros(40, 3), torch.arange(40) % 3).temperature == 1

    @pytest.mark.parametrize("count", [1, MIN_CLIPS - 1])
    def test_too_few_clips_stay_one(self, count: int) -> None:
        found = fit_temperature(*drawn(count, 5.0))
        assert (found.temperature, found.videos, found.nll_after) == (1.0, count, None)
        assert f"{count} validation videos, {MIN_CLIPS} are needed" in found.note

    def test_a_diverged_model_stays_one(self) -> None:
        logits, labels = drawn(50, 5.0)
        logits[3, 1] = torch.nan
        assert "not finite" in fit_temperature(logits, labels).note

    def test_no_validation_split_stays_one(self) -> None:
        found = calibrate(torch.nn.Identity(), None)
        assert (found.temperature, found.videos) == (1.0, 0)
        assert "no validation split" in found.note


class TestError:
    def test_of_a_hand_computed_example(self) -> None:
        # Bins of 1/15: 0.50 and 0.52 in the 8th, 0.9 in the 14th, 0.95 and 1.0 in the 15th.
        facts = reliability([0.5, 0.52, 0.9, 0.95, 1.0], [True, False, False, True, True])
        assert np.flatnonzero(facts.count).tolist() == [7, 13, 14]
        assert facts.count.tolist()[7:] == [2, 0, 0, 0, 0, 0, 1, 2]
        assert facts.score[[7, 13, 14]] == pytest.approx([0.51, 0.9, 0.975])
        assert facts.accuracy[[7, 13, 14]] == pytest.approx([0.5, 0.0, 1.0])
        assert facts.ece == pytest.approx((2 * 0.01 + 0.9 + 2 * 0.025) / 5)

    def test_bins_are_closed_above(self) -> None:
        edges = np.arange(BINS + 1) / BINS
        counts = [int(np.flatnonzero(reliability([edge], [True]).count)[0]) for edge in edges]
        assert counts == [0, *range(BINS)]

    def test_falls_when_an_overconfident_model_is_calibrated(self) -> None:
        logits, labels = drawn(4000, 3.0)
        temperature = fit_temperature(logits[:2000], labels[:2000]).temperature

        def ece(at: float) -> float:
            scores, found = (logits[2000:] / at).softmax(1).max(1)
            return reliability(scores, found == labels[2000:]).ece

        assert ece(1.0) > 0.1
        assert ece(temperature) < 0.04

    def test_failed_videos_have_no_score(self, tmp_path: Path) -> None:
        known = Prediction(Path("/v/0.mp4"), "a", "a", 0.75)
        failed = Prediction(Path("/v/1.mp4"), "a", FAILED, 0.0)
        write(summed_up(["a", "b"], [known, failed]), tmp_path / "some")
        facts = json.loads((tmp_path / "some/metrics.json").read_text())
        assert (facts["accuracy"], facts["ece"], facts["ece_uncalibrated"]) == (0.5, 0.25, None)
        none = summed_up(["a", "b"], [failed])
        write(none, tmp_path / "none")
        assert json.loads((tmp_path / "none/metrics.json").read_text())["ece"] is None
        plots.reliability(none, tmp_path / "r.png")
        assert not (tmp_path / "r.png").exists()


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, said: list[str]) -> Path:
    """A run on videos that are easy to tell apart, of which WRONG validation videos carry another's label."""
    root = tmp_path_factory.mktemp("calibrated")
    samples = []
    for number in range(VAL_VIDEOS):
        seed = number % len(CLASSES)
        path = make_video(root / f"{number}.mp4", codec="mpeg4", frames=6, seed=seed)
        truth = CLASSES[(seed + (number < WRONG)) % len(CLASSES)]
        samples.append(Sample(path, truth, split="val"))
    for number in range(2 * len(CLASSES)):
        seed = number % len(CLASSES)
        path = make_video(root / f"train-{number}.mp4", codec="mpeg4", frames=6, seed=seed)
        samples.append(Sample(path, CLASSES[seed], split="train" if number < len(CLASSES) else "test"))
    recipe = recipe_for(
        "lrcn",
        sampling={"frames": 4},
        size={},
        head={"hidden": 8},
        optimisation={"epochs": 25, "batch": 4, "learning_rate": 0.02},
        flip=False,
        seed=1,
    )
    report = Report(say=said.append, step=lambda done, total: None, epoch=lambda number, total, facts: None)
    fit(samples, recipe, root / "run", report, cache=root / "cache")
    return root / "run"


@pytest.fixture(scope="module")
def val_clips(run: Path) -> ProofClips:
    spec = load(run / "bundle").spec
    return read_clips(spec, [str(run.parent / f"{number}.mp4") for number in range(VAL_VIDEOS)], limit=VAL_VIDEOS)


def test_a_bundle_has_the_best_temperature_of_its_weights(run: Path, val_clips: ProofClips, said: list[str]) -> None:
    bundle = load(run / "bundle")
    temperature, told = bundle.spec.temperature, bundle.spec.training["calibration"]
    logits = torch.from_numpy(reference_logits(from_bundle(bundle), val_clips))
    numbers = [int(Path(name).stem) for name in val_clips.names]
    labels = torch.tensor([(n % 3 + (n < WRONG)) % 3 for n in numbers])
    assert sorted(numbers) == list(range(VAL_VIDEOS))
    assert temperature != 1
    assert (told["temperature"], told["videos"]) == (temperature, VAL_VIDEOS)
    assert told["nll_before"] == pytest.approx(nll(logits, labels, 1.0), abs=1e-4)
    assert told["nll_after"] == pytest.approx(nll(logits, labels, temperature), abs=1e-4)
    assert told["nll_after"] < told["nll_before"]
    assert all(nll(logits, labels, temperature) < nll(logits, labels, temperature * by) for by in (0.9, 1.1))
    assert told["note"] in said


def test_labels_do_not_change(run: Path) -> None:
    samples = [Sample(path, "jump") for path in sorted(run.parent.glob("*.mp4"))]
    for prediction in predict(run / "bundle", samples, progress=lambda done, total: None):
        assert prediction.uncalibrated is not None
        assert prediction.label == prediction.uncalibrated[0]
        assert prediction.score != prediction.uncalibrated[1]


def test_evaluate_writes_and_prints_both_errors(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", str(run), "--split", "val", "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "out/metrics.json").read_text())
    told = load(run / "bundle").spec.training["calibration"]
    assert facts["ece"] == pytest.approx(told["ece_after"], abs=1e-3)
    assert facts["ece_uncalibrated"] == pytest.approx(told["ece_before"], abs=1e-3)
    line = f"expected calibration error {facts['ece']:.1%} (at temperature 1: {facts['ece_uncalibrated']:.1%})"
    assert line in result.output
    assert (tmp_path / "out/reliability.png").read_bytes().startswith(b"\x89PNG")


def test_folds_are_pooled_with_each_ones_temperature(run: Path, tmp_path: Path) -> None:
    """Two runs of one model, one of them at another temperature, are measured as one set of scores."""
    bundle = load(run / "bundle")
    for number, temperature in enumerate((1.0, 8.0)):
        fold = tmp_path / f"runs/fold-{number}"
        (fold / "bundle").mkdir(parents=True)
        (fold / "bundle/weights.safetensors").write_bytes(bundle.path(bundle.spec.weights).read_bytes())
        spec = msgspec.structs.replace(bundle.spec, temperature=temperature)
        (fold / "bundle/bundle.json").write_bytes(msgspec.json.encode(spec))
        samples = [Sample(run.parent / f"{n}.mp4", CLASSES[n % 3], split="test") for n in range(3 + 3 * number)]
        write_manifest(fold / "manifest.csv", samples, "test")
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "runs")])
    assert result.exit_code == 0, result.output
    pooled = [
        prediction
        for number in (0, 1)
        for prediction in predict(
            tmp_path / f"runs/fold-{number}/bundle",
            [Sample(run.parent / f"{n}.mp4", CLASSES[n % 3]) for n in range(3 + 3 * number)],
            progress=lambda done, total: None,
        )
    ]
    right = [p.label == p.truth for p in pooled]
    after = reliability([p.score for p in pooled], right).ece
    before = reliability([p.uncalibrated[1] for p in pooled if p.uncalibrated], right).ece
    assert f"expected calibration error {after:.1%} (at temperature 1: {before:.1%})" in result.output
    assert f"{after:.1%}" != f"{before:.1%}"
    facts = json.loads((tmp_path / "runs/evaluation/metrics.json").read_text())
    assert (facts["videos"], facts["ece"]) == (len(pooled), pytest.approx(after))
    assert facts["measured"] == "split test by the PyTorch weights; 2 runs together"
    first = json.loads((tmp_path / "runs/fold-0/evaluation/metrics.json").read_text())
    assert first["videos"] == 3


def test_deployed_probabilities_are_the_calibrated_ones(run: Path, val_clips: ProofClips, tmp_path: Path) -> None:
    bundle = load(run / "bundle")
    logits = reference_logits(from_bundle(bundle), val_clips)
    shutil.copytree(run / "bundle", tmp_path / "bundle")
    export(tmp_path / "bundle", [str(run.parent)])
    deployed = load_recognizer(tmp_path / "bundle", runner="openvino", precision="fp32")
    got = deployed.predict(val_clips.pixels)
    np.testing.assert_allclose(got, softmax(logits / bundle.spec.temperature), atol=1e-4)
    assert np.abs(got - softmax(logits)).max() > 0.01
    np.testing.assert_array_equal(got.argmax(1), logits.argmax(1))


class TestPicture:
    @pytest.mark.parametrize(("known", "panels"), [(True, 2), (False, 1)])
    def test_has_a_panel_for_what_is_known(self, known: bool, panels: int, tmp_path: Path) -> None:
        one = Prediction(Path("/v/0.mp4"), "a", "a", 0.75, ("a", 0.9) if known else None)
        wrong = replace(one, label="b")
        plots.reliability(summed_up(["a", "b"], [one, wrong]), tmp_path / "r.png")
        data = (tmp_path / "r.png").read_bytes()
        width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
        assert data.startswith(b"\x89PNG")
        assert round((width / 110 - 0.4) / 4) == panels
        assert height > 300
