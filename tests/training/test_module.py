"""Optimisers, learning rates over the epochs, class weights, and a loss that is lost."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader

from harec_deploy.errors import HarecError, UsageError
from tests.training.test_fit import report, small
from training.datasets import Sample, scan_folders
from training.fit import fit
from training.module import WARMUP_START, Module, Optimisation, class_weights, read_metrics
from training.splits import split
from training.trainer import ALONE, new_trainer, train

EPOCHS, STEPS_PER_EPOCH = 12, 5


class Net(nn.Module):
    """An encoder and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, 2)
        self.head = nn.Linear(2, 2)


def rates(val_losses: list[float] | None = None, **fields: Any) -> tuple[list[float], torch.optim.Optimizer]:
    """Return the head's learning rate at every step, as Lightning drives the schedules, and the optimiser."""
    how = Optimisation(epochs=EPOCHS, learning_rate=1.0, **fields)
    (optimizer,), schedules = Module(Net(), how, steps=EPOCHS * STEPS_PER_EPOCH).configure_optimizers()
    seen = []
    for epoch in range(EPOCHS):
        for _ in range(STEPS_PER_EPOCH):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            for schedule in schedules:
                if schedule["interval"] == "step":
                    schedule["scheduler"].step()
        for schedule in schedules:
            if schedule["interval"] == "epoch":
                plateau = schedule.get("monitor") is not None
                schedule["scheduler"].step(*([val_losses[epoch]] if plateau and val_losses else []))
    return seen, optimizer


def by_epoch(seen: list[float]) -> list[float]:
    return seen[::STEPS_PER_EPOCH]


class TestSchedules:
    def test_none_stays(self) -> None:
        assert set(rates(schedule="none")[0]) == {1.0}

    def test_cosine_falls_to_nothing(self) -> None:
        seen = rates(schedule="cosine")[0]
        expected = [(1 + np.cos(np.pi * step / 60)) / 2 for step in range(60)]
        assert seen == pytest.approx(expected, abs=1e-6)

    def test_onecycle_rises_and_falls(self) -> None:
        seen = rates(schedule="onecycle")[0]
        assert max(seen) == pytest.approx(1.0, abs=0.01)
        assert 0 < np.argmax(seen) < 30
        assert seen[0] < 0.1
        assert seen[-1] < 0.01

    def test_steps(self) -> None:
        seen = by_epoch(rates(schedule="step", step_epochs=5, step_factor=0.5)[0])
        assert seen == pytest.approx([1.0] * 5 + [0.5] * 5 + [0.25] * 2)

    def test_plateau_waits_for_a_better_loss(self) -> None:
        losses = [3.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
        seen = by_epoch(rates(losses, schedule="plateau", step_epochs=2)[0])
        assert seen == pytest.approx([1.0] * 5 + [0.1] * 4 + [0.01] * 3)

    @pytest.mark.parametrize("schedule", ["none", "cosine", "step", "plateau"])
    def test_warm_up_rises_in_a_line(self, schedule: str) -> None:
        seen = rates([1.0 / epoch for epoch in range(1, 13)], schedule=schedule, warmup_epochs=2)[0]
        assert seen[:10] == pytest.approx(np.linspace(WARMUP_START, 1.0, 11)[:10].tolist())
        assert seen[10] == pytest.approx(1.0)
        if schedule in ("none", "plateau"):
            assert seen[10:] == pytest.approx([1.0] * 50)
        if schedule == "cosine":
            assert seen[-1] < 0.01


def test_the_encoder_has_a_rate_of_its_own() -> None:
    for name, kind in (("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)):
        optimizer = rates(schedule="none", optimizer=name, encoder_rate=0.1, momentum=0.7)[1]
        assert type(optimizer) is kind
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1.0, 0.1])
        if name == "sgd":
            assert optimizer.param_groups[0]["momentum"] == 0.7


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_label_smoothing_is_in_the_loss_that_is_trained(smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Module(nn.Identity(), Optimisation(label_smoothing=smoothing), steps=1)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    monkeypatch.setattr(module, "_trainer", SimpleNamespace(strategy=SimpleNamespace(reduce=lambda loss, **_: loss)))
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    wanted = torch.tensor([1.0, 0, 0]) * (1 - smoothing) + smoothing / 3
    expected = -(wanted * logits.log_softmax(1)).sum()
    assert float(module.training_step((logits, torch.tensor([0])), 0)) == pytest.approx(float(expected))


@pytest.mark.parametrize("longest", [0.0, 0.01])
def test_a_gradient_is_shortened_to_what_is_allowed(longest: float, tmp_path: Path) -> None:
    how = Optimisation(
        epochs=1,
        batch=4,
        optimizer="sgd",
        momentum=0.0,
        learning_rate=1.0,
        weight_decay=0.0,
        schedule="none",
        clip_gradient=longest,
    )
    torch.manual_seed(0)
    net = nn.Linear(2, 2)
    before = parameters_to_vector(net.parameters()).detach().clone()
    clips = DataLoader(list(zip(10 * torch.randn(4, 2), [0, 1, 0, 1], strict=True)), batch_size=4)
    trainer = new_trainer(how, ALONE, tmp_path, lambda epoch, facts: None, val=False, exact=True)
    train(trainer, Module(net, how, steps=1), clips, None, None)
    step = float((parameters_to_vector(net.parameters()).detach().cpu() - before).norm())
    assert step == pytest.approx(longest, rel=1e-3) if longest else step > 0.1


def test_class_weights_make_classes_equal() -> None:
    labels = [0] * 6 + [1] * 2
    weights = class_weights(labels, 3)
    assert weights[:2].tolist() == pytest.approx([8 / 18, 8 / 6])
    assert 6 * weights[0] == pytest.approx(float(2 * weights[1]))
    assert torch.isfinite(weights).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "optimisation.epochs is 0; allowed are 1"),
        ({"warmup_epochs": 50}, "optimisation.warmup_epochs is 50; allowed are 0 to 40"),
        ({"learning_rate": -1.0}, "optimisation.learning_rate is -1.0; allowed are 0 and more"),
        ({"encoder_rate": -0.1}, "optimisation.encoder_rate is -0.1; allowed are 0 and more"),
        ({"encoder_rate": float("nan")}, "optimisation.encoder_rate is nan; allowed are 0 and more"),
        ({"clip_gradient": -1.0}, "optimisation.clip_gradient is -1.0; allowed are 0 and more"),
        ({"momentum": 1.0}, "optimisation.momentum is 1.0; allowed are 0 to 0.9999"),
        ({"momentum": -0.9}, "optimisation.momentum is -0.9; allowed are 0 to 0.9999"),
        ({"patience": -1}, "optimisation.patience is -1; allowed are 0 to 100000"),
        ({"step_factor": 2.0}, "optimisation.step_factor is 2.0; allowed are 0 to 1"),
        ({"schedule": "linear"}, "Invalid enum value 'linear'"),
    ],
)
def test_values_that_are_not_allowed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(fields, Optimisation)


class TestFit:
    @pytest.fixture
    def samples(self, videos: Path) -> list[Sample]:
        done, _ = split(scan_folders(videos), (0, 0.5), seed=0)
        return [replace(sample, split="val" if sample.split == "test" else "train") for sample in done]

    def test_a_lost_loss_stops_with_one_line(self, samples: list[Sample], tmp_path: Path) -> None:
        recipe = small()
        lost = replace(recipe, optimisation=replace(recipe.optimisation, schedule="none", optimizer="sgd"))
        lost = replace(lost, optimisation=replace(lost.optimisation, learning_rate=1e38, clip_gradient=0.0))
        with pytest.raises(HarecError, match=r"the loss is (nan|inf) in epoch \d: try a lower --learning-rate"):
            fit(samples, lost, tmp_path / "run", report(), cache=tmp_path / "cache")
        assert not (tmp_path / "run/bundle").exists()

    def test_plateau_needs_a_val_split(self, samples: list[Sample], tmp_path: Path) -> None:
        recipe = small()
        recipe = replace(recipe, optimisation=replace(recipe.optimisation, schedule="plateau", warmup_epochs=1))
        with pytest.raises(UsageError, match="--schedule plateau watches the val loss, and the manifest has no val"):
            train = [replace(sample, split="train") for sample in samples]
            fit(train, recipe, tmp_path / "a", report(), cache=tmp_path / "cache")
        fit(samples, recipe, tmp_path / "b", report(), cache=tmp_path / "cache")
        assert len(read_metrics(tmp_path / "b/metrics.csv")) == recipe.optimisation.epochs

    def test_class_weights_change_what_is_learned(self, samples: list[Sample], tmp_path: Path) -> None:
        uneven = [s for s in samples if s.label != "swim" or s.split == "val"]
        uneven += [replace(s, split="train") for s in samples if s.label == "swim" and s.split == "val"] * 3
        losses = []
        for weighted in (False, True):
            recipe = small()
            recipe = replace(recipe, optimisation=replace(recipe.optimisation, class_weights=weighted))
            fit(uneven, recipe, tmp_path / str(weighted), report(), cache=tmp_path / "cache")
            losses.append(read_metrics(tmp_path / str(weighted) / "metrics.csv")[-1]["train_loss"])
        assert losses[0] != pytest.approx(losses[1], abs=1e-4)
