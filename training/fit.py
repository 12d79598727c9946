"""Fits a recogniser to a manifest and writes a bundle.

A run is a folder:

    manifest.csv    what was trained on     test.txt     the videos held out, for harec-deploy label @test.txt
    metrics.csv     loss and accuracy by epoch           checkpoints/   to resume from: the best and the last
    bundle/         the result                           tensorboard/   the metrics as TensorBoard shows them
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import msgspec
import torch
from torch import nn
from torch.utils.data import DataLoader

from harec_deploy.bundle import SPEC_FILE, load
from harec_deploy.errors import UsageError
from harec_deploy.models import CLIPWISE, build
from training.calibration import calibrate
from training.datasets import Manifest, Sample, read_manifest
from training.features import DecodedFrames, Source
from training.loading import Order, loader
from training.module import Clips, Module, class_weights, read_metrics
from training.result import fold_folders, write_bundle, write_inputs
from training.settings import Recipe
from training.sources import clips_of, described, source_for, weights_file
from training.splits import folds as make_folds
from training.trainer import ALONE, CHECKPOINTS, LAST, LOGS, METRICS_FILE, Launch, new_trainer, resume_point, train


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Where progress goes: ``say`` takes lines, ``step`` counts videos, ``epoch`` takes an epoch's metrics."""

    say: Callable[[str], None]
    step: Callable[[int, int], None]
    epoch: Callable[[int, int, dict[str, float]], None]


SILENT = Report(say=lambda text: None, step=lambda done, total: None, epoch=lambda number, total, facts: None)


def fit_all(
    manifest: Path,
    recipe: Recipe,
    out: Path,
    report: Report,
    *,
    folds: int,
    cache: Path,
    restart: bool = False,
    resume: bool = False,
    launch: Launch = ALONE,
    name: str = "",
) -> list[Path]:
    """Train on a manifest's own split, or with ``folds`` once without each fold, in ``out/fold-0``, ``out/fold-1``, ...

    Folds that are finished are left alone, so the same command goes on where it stopped. Returns the bundles; of
    several processes, only the first comes back. ``restart`` removes an earlier run first, and without one ``resume``
    is refused. ``name`` is the recipe's, for the bundle.

    Raises:
        UsageError: as ``fit``, fewer groups than folds, or no run to resume.
    """
    listed = read_manifest(manifest)
    samples, notes = listed.samples, {"recipe": name or "none", "data": listed.data}
    _prepare(out, launch, restart=restart, resume=resume)
    if not launch.first:
        report = SILENT
    if folds:
        bundles = _fit_folds(samples, recipe, out, report, folds, cache, launch, notes)
    else:
        bundles = [fit(samples, recipe, out, report, cache=cache, launch=launch, notes=notes)]
    if not launch.first:
        raise SystemExit
    return bundles


def _fit_folds(
    samples: Sequence[Sample],
    recipe: Recipe,
    out: Path,
    report: Report,
    folds: int,
    cache: Path,
    launch: Launch,
    notes: dict[str, Any],
) -> list[Path]:
    if surplus := fold_folders(out)[folds:]:
        raise UsageError(f"{surplus[0]} is of a run with more than {folds} folds: use --restart, or another --out")
    bundles = []
    for number, fold in enumerate(make_folds(samples, folds, recipe.seed)):
        run = out / f"fold-{number}"
        if (run / "bundle" / SPEC_FILE).exists():
            _check_same(run, Manifest(tuple(fold)), recipe, report)
        else:
            report.say(f"fold {number + 1} of {folds}")
            about = notes | {"fold": number, "folds": folds}
            fit(fold, recipe, run, report, cache=cache, launch=launch, notes=about)
        bundles.append(run / "bundle")
    return bundles


def _check_same(run: Path, manifest: Manifest, recipe: Recipe, report: Report) -> None:
    """Check that a fold that is finished is of the same videos and recipe as those that are to come."""
    made_from = load(run / "bundle").spec.training.get("origin")
    if made_from != _origin(manifest, recipe, described(weights_file(recipe, report.say))):
        raise UsageError(
            f"{run} is finished, but the recipe, the manifest or the encoder's weights were others: use --restart, or "
            "name another folder with --out"
        )


def _prepare(out: Path, launch: Launch, *, restart: bool, resume: bool) -> None:
    """Check, or remove, what is in the folder of a run."""
    if resume and restart:
        raise UsageError("--resume goes on with a run and --restart removes it: leave one out")
    if restart and launch.nodes > 1:
        raise UsageError(f"--restart with --nodes: another machine may be at work in {out}; remove it by hand")
    if resume and not any((run / LAST).exists() for run in (out, *fold_folders(out))):
        raise UsageError(f"--resume: {out} holds no checkpoint to go on from; without --resume a run begins there")
    if restart and launch.first and out.exists():
        _remove_run(out)


def _remove_run(out: Path) -> None:
    known = {"bundle", CHECKPOINTS, LOGS, "evaluation", "manifest.csv", "test.txt", METRICS_FILE}
    known.update(path.name for path in fold_folders(out))
    foreign = [path.name for path in out.iterdir() if path.name not in known]
    if foreign:
        raise UsageError(
            f"--restart would remove {out}, which holds {foreign[0]} that no run wrote: name another --out"
        )
    shutil.rmtree(out)


def fit(
    samples: Sequence[Sample],
    recipe: Recipe,
    run: Path,
    report: Report,
    *,
    cache: Path,
    launch: Launch = ALONE,
    notes: dict[str, Any] | None = None,
) -> Path:
    """Train on the samples of split train, watch val and calibrate on it if there is one, and write ``run/bundle``.

    A run that was interrupted goes on from its last checkpoint, to the weights that it would have come to without.
    Returns the bundle's folder; of several processes, the first writes it. ``notes`` go into the bundle.

    Raises:
        UsageError: no training samples, unreadable videos, the run is finished already, or its checkpoint is of
            another recipe.
        KeyboardInterrupt: a signal asked to stop; what was done is kept.
    """
    manifest, notes = Manifest(tuple(samples)), notes or {}
    bundle = run / "bundle"
    if (bundle / SPEC_FILE).exists():
        raise UsageError(f"{run} is finished: evaluate it, use --restart, or name another folder with --out")
    _check(manifest, recipe)
    trainer = _trainer(manifest, recipe, run, report, launch)
    if not trainer.is_global_zero:
        report = SILENT
    how = recipe.optimisation
    if how.patience and not manifest.only("val").samples:  # folds have none
        report.say(f"--patience {how.patience}: there is no val split to watch, so all {how.epochs} epochs are trained")
    weights = weights_file(recipe, report.say)
    began_with = described(weights)  # after hours of training the file may be another one
    origin = _origin(manifest, recipe, began_with)
    lightning.seed_everything(recipe.seed, workers=True, verbose=False)
    run.mkdir(parents=True, exist_ok=True)
    if trainer.is_global_zero:
        write_inputs(run, manifest, notes.get("data"))
    model = build(
        recipe.architecture,
        recipe.head,
        len(manifest.classes),
        size=recipe.size,
        frames=recipe.sampling.frames,
        encoder_weights=None if weights is None else str(weights),
        say=report.say,
    )
    source, net = source_for(model, manifest, recipe, report, cache)
    epoch = _train(trainer, net, source, manifest, recipe, run, report, origin)
    if trainer.is_global_zero:
        model.eval()
        val = clips_of(source, manifest, recipe, "val")
        calibration = calibrate(net, _batches(val, Order(val, shuffle=False), recipe) if len(val) else None)
        report.say(calibration.note)
        about = notes | {"origin": origin}
        write_bundle(bundle, model, manifest, recipe, began_with, _metrics_of(run, epoch), calibration, about)
    return bundle


def _metrics_of(run: Path, epoch: int) -> dict[str, float]:
    """Return what was measured in an epoch; its number alone where a run was killed before that was written."""
    known = {row["epoch"]: row for row in read_metrics(run / METRICS_FILE)}
    return known.get(epoch, {"epoch": epoch})


def _check(manifest: Manifest, recipe: Recipe) -> None:
    if len(manifest.only("train").classes) < len(manifest.classes):
        raise UsageError("a class has no training samples: make another split")
    if recipe.optimisation.schedule == "plateau" and not manifest.only("val").samples:
        raise UsageError("--schedule plateau watches the val loss, and the manifest has no val split: take another")


def _trainer(manifest: Manifest, recipe: Recipe, run: Path, report: Report, launch: Launch) -> lightning.Trainer:
    watched = len(manifest.only("val").samples)
    trainer = new_trainer(
        recipe.optimisation,
        launch,
        run,
        lambda epoch, facts: report.epoch(epoch, recipe.optimisation.epochs, facts),
        val=watched > 0,
        exact=recipe.architecture not in CLIPWISE,  # CUDA has no deterministic pooling over time; on a CPU all is
    )
    if 0 < watched < trainer.world_size:
        raise UsageError(f"{watched} val videos for {trainer.world_size} devices: take fewer --devices")
    return trainer


def _train(
    trainer: lightning.Trainer,
    net: nn.Module,
    source: Source,
    manifest: Manifest,
    recipe: Recipe,
    run: Path,
    report: Report,
    origin: str,
) -> int:
    """Train ``net``, in this process and those it starts, from the beginning or from the run's checkpoint.

    Returns the epoch that its weights are of, counted from 1.
    """
    place = {"rank": trainer.global_rank, "world": trainer.world_size}
    clips, val = (clips_of(source, manifest, recipe, split) for split in ("train", "val"))
    order = Order(clips, shuffle=True, seed=recipe.seed, **place)
    batches = _batches(clips, order, recipe)
    module = Module(
        net,
        recipe.optimisation,
        steps=len(batches) * recipe.optimisation.epochs,
        class_weights=class_weights(clips.labels, len(manifest.classes)) if recipe.optimisation.class_weights else None,
        seed=recipe.seed,
        origin=origin,
    )
    start = resume_point(run, origin)
    if start:
        report.say(f"going on from {start.path}, epoch {start.epochs + 1}, step {start.steps + 1}")
        order.set_epoch(start.epochs, skip=start.steps * (batches.batch_size or 1))
    watched = _batches(val, Order(val, shuffle=False, **place), recipe) if len(val) else None
    return train(trainer, module, batches, watched, start)


def _origin(manifest: Manifest, recipe: Recipe, began_with: dict[str, str]) -> str:
    """Return a digest of all that decides the weights; began_with: as ``described`` gives it."""
    videos = [(os.fsencode(sample.path), sample.label, sample.split) for sample in manifest.samples]
    return hashlib.sha256(msgspec.json.encode((recipe, began_with, videos))).hexdigest()


def _batches(clips: Clips, order: Order, recipe: Recipe) -> DataLoader[object]:
    # Stored clips are as quick to take as to pass between processes; work on pixels is worth a process on every core.
    worth_it = isinstance(clips.source, DecodedFrames) or (clips.augment and clips.pixels.changes_pixels)
    workers = max(torch.get_num_threads() // order.world, 1) if worth_it else 0
    return loader(clips, order, batch=recipe.optimisation.batch, workers=workers)
