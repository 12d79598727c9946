"""Fitting: a bundle that labels as it was trained, whatever interrupted it."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file
from typer.testing import CliRunner

from harec_deploy.bundle import load
from harec_deploy.decode import Size
from harec_deploy.errors import UsageError
from harec_deploy.files import sha256
from harec_deploy.models import build
from harec_deploy.spec import HeadSpec
from training.__main__ import app
from training.datasets import Sample, read_manifest, scan_folders, write_manifest
from training.fit import Report, fit, fit_all
from training.module import Module, Optimisation, read_metrics
from training.settings import Recipe, recipe_for
from training.splits import split

NONE: dict[str, object] = {}


def small(**changes: object) -> Recipe:
    recipe = recipe_for(
        "lrcn",
        sampling={"frames": 4},
        size=NONE,
        head={"hidden": 8},
        optimisation={"epochs": 4, "batch": 4, "learning_rate": 3e-3},
        seed=1,
    )
    return replace(recipe, **changes)  # type: ignore[arg-type]


def frozen(encoder_weights: Path) -> Recipe:
    return recipe_for(
        "mobilenet_v2_lstm",
        sampling={"frames": 2},
        size={"width": 64, "height": 64},
        head={"hidden": 8},
        optimisation={"epochs": 2},
        encoder_weights=str(encoder_weights),
        freeze_encoder=True,
    )


def report(epoch: Callable[[int], None] = lambda number: None) -> Report:
    return Report(
        say=lambda text: None, step=lambda done, total: None, epoch=lambda number, total, facts: epoch(number)
    )


@pytest.fixture(scope="module")
def samples(videos: Path) -> list[Sample]:
    done, _ = split(scan_folders(videos), (0, 0.5), seed=0)
    return done


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def weights(run: Path) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in load_file(run / "bundle/weights.safetensors").items()}


def same(one: Path, other: Path) -> bool:
    return sha256(one / "bundle/weights.safetensors") == sha256(other / "bundle/weights.safetensors")


def test_a_run_leaves_a_bundle_with_its_provenance(samples: list[Sample], tmp_path: Path, cache: Path) -> None:
    fit(samples, small(), tmp_path / "run", report(), cache=cache)
    spec = load(tmp_path / "run/bundle").spec
    assert spec.classes == ["climb", "jump", "swim"]
    assert spec.sampling.frames == 4
    assert spec.training["videos"] == {"train": 3, "val": 0, "test": 3}
    assert spec.training["seed"] == 1
    assert spec.training["flip"] is True
    assert spec.training["jitter"] == "clip"
    held_out = [str(sample.path) for sample in samples if sample.split == "test"]
    assert sorted(spec.training["proof_clips"]) == sorted(held_out)
    assert (tmp_path / "run/test.txt").read_text().split() == spec.training["proof_clips"]
    metrics = read_metrics(tmp_path / "run/metrics.csv")
    assert [row["epoch"] for row in metrics] == [1, 2, 3, 4]
    assert all(np.isfinite(list(row.values())).all() for row in metrics)


def test_it_learns_what_it_is_shown(samples: list[Sample], tmp_path: Path, cache: Path) -> None:
    recipe = small(flip=False)
    longer = replace(recipe, optimisation=replace(recipe.optimisation, epochs=40, learning_rate=0.02))
    fit(samples, longer, tmp_path / "run", report(), cache=cache)
    metrics = read_metrics(tmp_path / "run/metrics.csv")
    assert np.mean([row["train_accuracy"] for row in metrics[-10:]]) > 0.9  # with dropout
    assert metrics[-1]["train_loss"] < 0.6 * metrics[0]["train_loss"]


def test_the_seed_decides_the_weights(samples: list[Sample], tmp_path: Path, cache: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fit(samples, small(seed=seed), tmp_path / name, report(), cache=cache)
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize("schedule", ["onecycle", "plateau", "step"])
def test_an_interrupted_run_comes_to_the_same_weights(
    samples: list[Sample], tmp_path: Path, cache: Path, schedule: str
) -> None:
    """Interrupted where Lightning writes checkpoints, at the end of an epoch, or anywhere else in it."""
    watched = [replace(sample, split="val") if sample.split == "test" else sample for sample in samples]
    recipe = small(seed=3)
    how = replace(recipe.optimisation, batch=1, schedule=schedule, step_epochs=1, step_factor=0.5)
    recipe = replace(recipe, optimisation=how)
    fit(watched, recipe, tmp_path / "whole", report(), cache=cache)
    asked = [StepsLeft(4), StepsLeft(1), StepsLeft(1)]
    for stop in asked:
        with pytest.raises(KeyboardInterrupt), stop:
            fit(watched, recipe, tmp_path / "cut", report(), cache=cache)
    fit(watched, recipe, tmp_path / "cut", report(), cache=cache)
    assert same(tmp_path / "whole", tmp_path / "cut")
    whole, cut = (read_metrics(tmp_path / name / "metrics.csv") for name in ("whole", "cut"))
    assert cut == whole


def test_an_interrupted_run_goes_on_from_its_last_epoch(samples: list[Sample], tmp_path: Path, cache: Path) -> None:
    epochs: list[int] = []

    def interrupt(number: int) -> None:
        epochs.append(number)
        if number == 3 and epochs.count(3) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(samples, small(), tmp_path / "run", report(interrupt), cache=cache)
    assert not (tmp_path / "run/bundle").exists()
    fit(samples, small(), tmp_path / "run", report(interrupt), cache=cache)
    assert epochs[0] == 1
    assert epochs[3] > 1, "it began anew"
    assert [row["epoch"] for row in read_metrics(tmp_path / "run/metrics.csv")] == [1, 2, 3, 4]


class StepsLeft:
    """Sends this process SIGINT during a step of a training, after so many steps before it."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> None:
        self.before = Module.training_step

        def step(module: Module, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
            if self.count == 0:
                os.kill(os.getpid(), signal.SIGINT)
            self.count -= 1
            return self.before(module, batch, batch_idx)

        Module.training_step = step  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        Module.training_step = self.before  # type: ignore[method-assign]


@dataclass
class Bomb:
    """Unpickled, it leaves a file."""

    mark: Path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("content", ["bomb", "half", "empty"])
def test_a_checkpoint_that_is_none_is_refused(samples: list[Sample], tmp_path: Path, cache: Path, content: str) -> None:
    path = tmp_path / "run/checkpoints/last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(Bomb(tmp_path / "mark") if content == "bomb" else {"a": torch.zeros(99)}, path)
    if content != "bomb":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if content == "half" else 0])
    with pytest.raises(UsageError, match=r"cannot go on from the checkpoint: .*last\.ckpt holds"):
        fit(samples, small(), tmp_path / "run", report(), cache=cache)
    assert not (tmp_path / "mark").exists()


def test_a_checkpoint_of_another_recipe_or_manifest_is_refused(
    samples: list[Sample], tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(KeyboardInterrupt), StepsLeft(1):
        fit(samples, small(), tmp_path / "run", report(), cache=cache)
    moved = [replace(sample, split="train") for sample in samples]
    for videos, recipe in ((samples, small(seed=2)), (moved, small())):
        with pytest.raises(UsageError, match="the recipe, the manifest or the encoder's weights are others"):
            fit(videos, recipe, tmp_path / "run", report(), cache=cache)


def test_a_run_goes_on_with_the_encoder_that_it_began_with(samples: list[Sample], tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "w.pth"
    recipe = frozen(file)
    torch.save(torchvision.models.get_model("mobilenet_v2", weights=None).state_dict(), file)
    with pytest.raises(KeyboardInterrupt), StepsLeft(1):
        fit(samples, recipe, tmp_path / "run", report(), cache=cache)
    torch.save(torchvision.models.get_model("mobilenet_v2", weights=None).state_dict(), file)
    with pytest.raises(UsageError, match="the encoder's weights are others than it was made from"):
        fit(samples, recipe, tmp_path / "run", report(), cache=cache)


def test_a_finished_run_is_not_overwritten_unless_asked(samples: list[Sample], tmp_path: Path, cache: Path) -> None:
    write_manifest(tmp_path / "m.csv", samples, "test")
    arguments = (tmp_path / "m.csv", small(), tmp_path / "run", report())
    fit_all(*arguments, folds=0, cache=cache, restart=False)
    with pytest.raises(UsageError, match="is finished: evaluate it, use --restart"):
        fit_all(*arguments, folds=0, cache=cache, restart=False)
    fit_all(*arguments, folds=0, cache=cache, restart=True)
    for name in ("thesis.tex", "fold-old"):
        (tmp_path / "run" / name).write_text("years of work")
        with pytest.raises(UsageError, match=f"which holds {name} that no run wrote"):
            fit_all(*arguments, folds=0, cache=cache, restart=True)
        (tmp_path / "run" / name).unlink()


def test_folds_train_a_model_without_each(samples: list[Sample], tmp_path: Path, cache: Path) -> None:
    write_manifest(tmp_path / "m.csv", samples, "test", data={"layout": "folders"})
    bundles = fit_all(tmp_path / "m.csv", small(), tmp_path / "run", report(), folds=2, cache=cache, restart=False)
    notes = {"recipe": "none", "data": {"layout": "folders"}, "fold": 1, "folds": 2}
    assert load(bundles[1]).spec.training.items() >= notes.items()
    assert read_manifest(tmp_path / "run/fold-1/manifest.csv").data == {"layout": "folders"}
    tested = [set(load(bundle).spec.training["proof_clips"]) for bundle in bundles]
    assert tested[0] | tested[1] == {str(sample.path) for sample in samples}
    assert not tested[0] & tested[1]
    modified = [(bundle / "bundle.json").stat().st_mtime_ns for bundle in bundles]
    again = fit_all(tmp_path / "m.csv", small(), tmp_path / "run", report(), folds=2, cache=cache, restart=False)
    assert [(bundle / "bundle.json").stat().st_mtime_ns for bundle in again] == modified
    with pytest.raises(UsageError, match=r"fold-0 is finished, but the recipe, the manifest or the encoder's weights"):
        fit_all(tmp_path / "m.csv", small(seed=2), tmp_path / "run", report(), folds=2, cache=cache)
    (tmp_path / "run/fold-2").mkdir()
    with pytest.raises(UsageError, match="fold-2 is of a run with more than 2 folds: use --restart"):
        fit_all(tmp_path / "m.csv", small(), tmp_path / "run", report(), folds=2, cache=cache)


def test_a_frozen_encoder_keeps_its_weights(samples: list[Sample], tmp_path: Path, cache: Path) -> None:
    torch.manual_seed(0)
    state = torchvision.models.get_model("mobilenet_v2", weights=None).state_dict()
    torch.save(state, tmp_path / "w.pth")
    recipe = frozen(tmp_path / "w.pth")
    fit(samples, recipe, tmp_path / "run", report(), cache=cache)
    trained = weights(tmp_path / "run")
    np.testing.assert_array_equal(trained["encoder.backbone.trunk.0.0.weight"], state["features.0.0.weight"].numpy())
    np.testing.assert_array_equal(
        trained["encoder.backbone.trunk.0.1.running_mean"], state["features.0.1.running_mean"].numpy()
    )
    assert load(tmp_path / "run/bundle").spec.training["encoder"] == "frozen"


def test_the_last_stages_of_an_encoder_are_fine_tuned_on_what_the_others_gave_once(
    samples: list[Sample], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    state = torchvision.models.get_model("mobilenet_v2", weights=None).state_dict()
    torch.save(state, tmp_path / "w.pth")
    recipe = recipe_for(
        "mobilenet_v2_lstm",
        sampling={"frames": 2},
        size={"width": 64, "height": 64},
        head={"hidden": 8},
        optimisation={"epochs": 1, "encoder_rate": 0.1},
        encoder_weights=str(tmp_path / "w.pth"),
        finetune_stages=2,
    )
    fit(samples, recipe, tmp_path / "run", report(), cache=cache)
    trained = weights(tmp_path / "run")
    names = {name: f"encoder.backbone.trunk.{name.removeprefix('features.')}" for name in state if "features" in name}
    changed = {name for name, ours in names.items() if not np.array_equal(trained[ours], state[name].numpy())}
    assert {name.split(".")[1] for name in changed} == {"17", "18"}
    monkeypatch.setattr("training.sources.STORE_BYTES", 0)  # nothing is kept: the frozen stages run in every epoch
    fit(samples, recipe, tmp_path / "again", report(), cache=tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    for name, value in weights(tmp_path / "again").items():
        np.testing.assert_allclose(value, trained[name], rtol=1e-3, atol=1e-4)
    assert load(tmp_path / "run/bundle").spec.training["encoder"] == "last 2 stages trained"
    with pytest.raises(UsageError, match="stages are chosen of a pre-trained encoder that is fine-tuned"):
        replace(recipe, encoder_weights=None)


def test_an_encoder_learns_at_its_own_rate_and_what_is_frozen_not_at_all() -> None:
    model = build("mobilenet_v2_lstm", HeadSpec(hidden=4), 2, size=Size(width=64, height=64))
    model.encoder.freeze(but_last=1)
    module = Module(model, Optimisation(learning_rate=0.01, encoder_rate=0.1, schedule="none"), steps=1)
    (optimizer,), _ = module.configure_optimizers()
    head, encoder = optimizer.param_groups
    assert (head["lr"], encoder["lr"]) == (0.01, pytest.approx(0.001))
    assert {id(p) for p in head["params"]} == {id(p) for p in model.head.parameters()}
    assert {id(p) for p in encoder["params"]} == {id(p) for p in model.encoder.backbone.trunk[18].parameters()}


def test_whole_and_last_stages_at_once_are_refused(tmp_path: Path) -> None:
    arguments = ["fit", str(tmp_path / "m.csv"), "--encoder-weights", "w.pth", "--finetune", "--finetune-stages", "1"]
    result = CliRunner().invoke(app, arguments)
    assert str(result.exception) == "--finetune trains all stages: leave it or --finetune-stages out"


def test_validation_keeps_the_best_epoch_and_stops_early(samples: list[Sample], tmp_path: Path, cache: Path) -> None:
    watched = [replace(sample, split="val") if sample.split == "test" else sample for sample in samples]
    recipe = small()
    patient = replace(recipe, optimisation=replace(recipe.optimisation, epochs=60, patience=2, learning_rate=0.05))
    fit(watched, patient, tmp_path / "run", report(), cache=cache)
    metrics = read_metrics(tmp_path / "run/metrics.csv")
    assert 3 <= len(metrics) < 60
    losses = [row["val_loss"] for row in metrics]
    assert min(losses) == pytest.approx(min(losses[:-2]))


def test_the_bundle_holds_weights_and_metrics_of_the_best_epoch(
    samples: list[Sample], tmp_path: Path, cache: Path
) -> None:
    """The val videos carry wrong labels, so the more is learned the worse is their loss."""
    train = [sample for sample in samples if sample.split == "train"]
    wrong = {"climb": "jump", "jump": "swim", "swim": "climb"}
    watched = [*train, *(replace(sample, split="val", label=wrong[sample.label]) for sample in train)]
    how = replace(small().optimisation, epochs=30, learning_rate=0.02, schedule="none")
    fit(watched, small(optimisation=how), tmp_path / "run", report(), cache=cache)
    metrics = read_metrics(tmp_path / "run/metrics.csv")
    best = min(metrics, key=lambda row: row["val_loss"])
    assert best["epoch"] < len(metrics)
    assert load(tmp_path / "run/bundle").spec.training["metrics"] == best
    for name, epochs in (("best", int(best["epoch"])), ("last", len(metrics))):  # without val nothing is chosen
        fit(train, small(optimisation=replace(how, epochs=epochs)), tmp_path / name, report(), cache=cache)
        assert same(tmp_path / "run", tmp_path / name) is (name == "best")


def test_patience_without_a_val_split_is_told(samples: list[Sample], tmp_path: Path, cache: Path) -> None:
    told: list[str] = []
    patient = small(optimisation=replace(small().optimisation, epochs=2, patience=1))
    fit(samples, patient, tmp_path / "run", replace(report(), say=told.append), cache=cache)
    assert "--patience 1: there is no val split to watch, so all 2 epochs are trained" in told


def test_a_class_without_training_videos_is_noticed(samples: list[Sample], tmp_path: Path, cache: Path) -> None:
    wrong = [replace(sample, split="test") if sample.label == "jump" else sample for sample in samples]
    with pytest.raises(UsageError, match="a class has no training samples"):
        fit(wrong, small(), tmp_path / "run", report(), cache=cache)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"jitter": "wild"}, "--jitter wild: allowed are clip, frame, none"),
        ({"architecture": "vgg"}, "unknown architecture 'vgg'; allowed are lrcn, resnet18_lstm"),
        ({"head": {"pool": "min"}}, "Invalid enum value 'min' - at `$.pool`"),
        ({"sampling": {"span": 2}}, "sampling.span is 2"),
        ({"optimisation": {"schedule": "up"}}, "Invalid enum value 'up' - at `$.schedule`"),
    ],
)
def test_recipe_values_are_checked(changes: dict[str, object], message: str) -> None:
    arguments = {"architecture": "lrcn", "sampling": NONE, "size": NONE, "head": NONE, "optimisation": NONE} | changes
    with pytest.raises(UsageError) as caught:
        recipe_for(**arguments)  # type: ignore[arg-type]
    assert message in str(caught.value)
