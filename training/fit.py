"""Fits a recogniser to a manifest and writes a bundle.

A run is a folder:

    manifest.csv    what was trained on     test.txt     the videos held out, for harec-deploy label @test.txt
    metrics.csv     loss and accuracy by epoch           checkpoints/   to resume from
    bundle/         the result
"""

import logging
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import lightning
import msgspec
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from harec_deploy import __version__
from harec_deploy.bundle import SPEC_FILE, WEIGHTS_FILE, BundleSpec, HeadSpec, file_ref, save
from harec_deploy.decode import Size
from harec_deploy.errors import UsageError
from harec_deploy.files import atomic_folder, atomic_write
from harec_deploy.models import ARCHITECTURES, CLIPWISE, FramewiseModel, Model, build
from harec_deploy.models.clipwise import ClipwiseModel
from harec_deploy.models.encoders import load_plain
from harec_deploy.sampling import ClipSampling
from training.augment import UNCHANGED, Augmentation
from training.calibration import Calibration, calibrate
from training.datasets import Manifest, Sample, read_manifest, write_manifest
from training.features import DecodedFrames, Grid, Source, stored_features, stored_frames
from training.module import Clips, MetricsLog, Module, Optimisation, class_weights
from training.splits import folds as make_folds

T = TypeVar("T")
PROOF_CLIPS = 100  # held-out clips that export proves the model on, unless told otherwise
STORE_BYTES = 8 << 30  # frames of up to this size are decoded once; above, in every epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is trained and how.

    freeze_encoder: train the head alone; of a frame-wise model, on stored features of the encoder.
    finetune_stages: of a pre-trained encoder, train this many last stages and freeze the others; 0 for all.
    flip: mirror half of the clips; wrong where classes differ by direction.
    """

    architecture: str
    sampling: ClipSampling
    size: Size
    head: HeadSpec
    optimisation: Optimisation
    augmentation: Augmentation = UNCHANGED
    encoder_weights: str | None = None
    freeze_encoder: bool = False
    finetune_stages: int = 0
    flip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.finetune_stages and (self.encoder_weights is None or self.freeze_encoder):
            raise UsageError("stages are chosen of a pre-trained encoder that is fine-tuned: give --encoder-weights")
        if self.freeze_encoder and self.architecture not in CLIPWISE and self.augmentation.changes_pixels:
            raise UsageError(
                "features of a frozen encoder are stored once, so crops and colours cannot change: leave them out, or "
                "train the encoder too with --finetune or --finetune-stages"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Where progress goes: ``say`` takes lines, ``step`` counts videos, ``epoch`` takes an epoch's metrics."""

    say: Callable[[str], None]
    step: Callable[[int, int], None]
    epoch: Callable[[int, int, dict[str, float]], None]


def recipe_for(
    architecture: str,
    *,
    sampling: dict[str, Any],
    size: dict[str, Any],
    head: dict[str, Any],
    optimisation: dict[str, Any],
    augmentation: dict[str, Any] | None = None,
    **rest: Any,
) -> Recipe:
    """Return the architecture's recipe with what is given, and not None, in place of its defaults.

    Raises:
        UsageError: no such architecture, a value that is not allowed, or one that the architecture has no use for.
    """
    if architecture not in ARCHITECTURES:
        raise UsageError(f"unknown architecture {architecture!r}; allowed are {', '.join(ARCHITECTURES)}")
    base = ARCHITECTURES[architecture]
    for name, value in head.items():
        if value is not None and value != getattr(base.head, name) and name not in base.head_options:
            raise UsageError(f"{architecture} has no {name}: of the head it takes {', '.join(base.head_options)} only")

    def changed(default: T, given: dict[str, Any]) -> T:
        base = msgspec.to_builtins(default)
        if unknown := sorted(given.keys() - base.keys()):
            raise UsageError(f"unknown field `{unknown[0]}`; allowed are {', '.join(base)}")
        wanted = base | {name: value for name, value in given.items() if value is not None}
        try:
            return msgspec.convert(wanted, type(default))
        except msgspec.ValidationError as error:
            raise UsageError(str(error)) from None

    return Recipe(
        architecture=architecture,
        sampling=changed(base.sampling, sampling),
        size=changed(base.size, size),
        head=changed(base.head, head),
        optimisation=changed(Optimisation(), optimisation),
        augmentation=changed(UNCHANGED, augmentation or {}),
        **rest,
    )


def fit_all(
    manifest: Path, recipe: Recipe, out: Path, report: Report, *, folds: int, cache: Path, restart: bool
) -> list[Path]:
    """Train on a manifest's own split, or with ``folds`` once without each fold, in ``out/fold-0``, ``out/fold-1``, ...

    Folds that are finished are left alone, so the same command goes on where it stopped. Returns the bundles.

    Raises:
        UsageError: as ``fit``, or fewer groups than folds.
    """
    samples = read_manifest(manifest).samples
    if restart and out.exists():
        _remove_run(out)
    if not folds:
        return [fit(samples, recipe, out, report, cache=cache)]
    bundles = []
    for number, fold in enumerate(make_folds(samples, folds, recipe.seed)):
        run = out / f"fold-{number}"
        if not (run / "bundle" / SPEC_FILE).exists():
            report.say(f"fold {number + 1} of {folds}")
            fit(fold, recipe, run, report, cache=cache)
        bundles.append(run / "bundle")
    return bundles


def _remove_run(out: Path) -> None:
    known = {"bundle", "checkpoints", "evaluation", "manifest.csv", "test.txt", "metrics.csv"}
    foreign = [path.name for path in out.iterdir() if path.name not in known and not path.name.startswith("fold-")]
    if foreign:
        raise UsageError(
            f"--restart would remove {out}, which holds {foreign[0]} that no run wrote: name another --out"
        )
    shutil.rmtree(out)


def _quiet_lightning() -> None:
    """Keep Lightning's advice off the terminal: what a user needs to know is in the report."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def fit(samples: Sequence[Sample], recipe: Recipe, run: Path, report: Report, *, cache: Path) -> Path:
    """Train on the samples of split train, watch val and calibrate on it if there is one, and write ``run/bundle``.

    A run that was interrupted goes on from its last epoch. Returns the bundle's folder.

    Raises:
        UsageError: no training samples, unreadable videos, or the run is finished already.
    """
    manifest = Manifest(tuple(samples))
    bundle = run / "bundle"
    if (bundle / SPEC_FILE).exists():
        raise UsageError(f"{run} is finished: evaluate it, use --restart, or name another folder with --out")
    if len(manifest.only("train").classes) < len(manifest.classes):
        raise UsageError("a class has no training samples: make another split")
    _quiet_lightning()
    lightning.seed_everything(recipe.seed, workers=True, verbose=False)
    run.mkdir(parents=True, exist_ok=True)
    write_manifest(run / "manifest.csv", samples, "written by python -m training fit")
    _write_list(run / "test.txt", manifest.only("test"))
    model = build(
        recipe.architecture,
        recipe.head,
        len(manifest.classes),
        size=recipe.size,
        frames=recipe.sampling.frames,
        encoder_weights=recipe.encoder_weights,
        say=report.say,
    )
    metrics, calibration = _train(model, manifest, recipe, run, report, cache)
    report.say(calibration.note)
    _write_bundle(bundle, model, manifest, recipe, metrics, calibration)
    return bundle


def _train(
    model: Model, manifest: Manifest, recipe: Recipe, run: Path, report: Report, cache: Path
) -> tuple[dict[str, float], Calibration]:
    source, net = _source(model, manifest, recipe, report, cache)
    grid = Grid(recipe.sampling, recipe.size)
    labels = manifest.labels(manifest.classes)
    how = recipe.optimisation

    def loader(split: str, *, augment: bool) -> DataLoader[object]:
        indices = [i for i, sample in enumerate(manifest.samples) if sample.split == split]
        clips = Clips(
            source,
            indices,
            [labels[i] for i in indices],
            grid,
            augment=augment,
            flip=recipe.flip,
            pixels=recipe.augmentation,
        )
        workers = _loader_workers(source, augment and recipe.augmentation.changes_pixels)
        return DataLoader(clips, batch_size=how.batch, shuffle=augment, num_workers=workers)

    train = loader("train", augment=True)
    val = loader("val", augment=False) if manifest.only("val").samples else None
    if how.schedule == "plateau" and not val:
        raise UsageError("--schedule plateau watches the val loss, and the manifest has no val split: take another")
    weights = None
    if how.class_weights:
        trained = [place for place, sample in zip(labels, manifest.samples, strict=True) if sample.split == "train"]
        weights = class_weights(trained, len(manifest.classes))
    module = Module(net, how, steps=len(train) * how.epochs, class_weights=weights)
    log = MetricsLog(run / "metrics.csv", lambda epoch, facts: report.epoch(epoch, how.epochs, facts))
    keep_best = ModelCheckpoint(
        run / "checkpoints", monitor="val_loss" if val else None, save_last=True, enable_version_counter=False
    )
    callbacks: list[Callback] = [log, keep_best]
    if val and how.patience:
        callbacks.append(EarlyStopping("val_loss", patience=how.patience))
    trainer = lightning.Trainer(
        max_epochs=how.epochs,
        callbacks=callbacks,
        default_root_dir=run,
        # CUDA has no deterministic pooling over time; on a CPU all of it is.
        deterministic=True if isinstance(model, FramewiseModel) else "warn",
        precision=how.trainer_precision,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        gradient_clip_val=how.clip_gradient or None,
    )
    last = run / "checkpoints" / "last.ckpt"
    if last.exists():
        _check_checkpoint(last)
        report.say(f"going on from {last}")
    _run(trainer, module, train, val, last if last.exists() else None)
    if val and keep_best.best_model_path:
        best = torch.load(keep_best.best_model_path, map_location="cpu", weights_only=True)
        module.load_state_dict(best["state_dict"])
    model.eval()
    return log.last(), calibrate(net, val)


def _check_checkpoint(path: Path) -> None:
    try:
        load_plain(path)
    except UsageError as error:
        raise UsageError(f"cannot go on from the checkpoint: {error}; remove it, or use --restart") from None


def _run(
    trainer: lightning.Trainer,
    module: Module,
    train: DataLoader[object],
    val: DataLoader[object] | None,
    checkpoint: Path | None,
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            trainer.fit(module, train, val, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # what Lightning makes of Ctrl-C, after it has told the process to ignore the next one
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)


def _source(model: Model, manifest: Manifest, recipe: Recipe, report: Report, cache: Path) -> tuple[Source, nn.Module]:
    """Return where clips come from and the part of the model that is trained on them."""
    paths = [sample.path for sample in manifest.samples]
    grid = Grid(recipe.sampling, recipe.size)
    if recipe.freeze_encoder and isinstance(model, FramewiseModel):
        report.say(f"features of {len(paths)} videos by the frozen encoder, once for all epochs")
        return stored_features(paths, grid, model.encoder, cache, report.step), model.head
    if recipe.freeze_encoder and isinstance(model, ClipwiseModel):
        report.say("the frozen encoder sees whole clips, and other ones in each epoch: its features cannot be stored")
        model.encoder.freeze()
    if recipe.finetune_stages:
        model.encoder.freeze(but_last=recipe.finetune_stages)
    if len(paths) * grid.places * grid.size.height * grid.size.width * 3 > STORE_BYTES:
        report.say(f"frames of {len(paths)} videos are decoded in every epoch: too many to store")
        return DecodedFrames(paths, grid), model
    report.say(f"frames of {len(paths)} videos, decoded once for all epochs")
    return stored_frames(paths, grid, cache, report.step), model


def _loader_workers(source: Source, changes_pixels: bool) -> int:
    """Stored clips are as quick to take as to pass between processes; work on pixels is worth a process a core."""
    return torch.get_num_threads() if isinstance(source, DecodedFrames) or changes_pixels else 0


def _write_list(path: Path, manifest: Manifest) -> None:
    with atomic_write(path) as stream:
        stream.write(
            b"".join(str(sample.path).encode("utf-8", "surrogateescape") + b"\n" for sample in manifest.samples)
        )


def _trained_part(recipe: Recipe) -> str:
    """Return what was trained of the encoder: "frozen", "trained" or "last 2 stages trained"."""
    if recipe.finetune_stages:
        return f"last {recipe.finetune_stages} stages trained"
    return "frozen" if recipe.freeze_encoder else "trained"


def _spread(samples: Sequence[Sample]) -> list[str]:
    """Return the paths of at most PROOF_CLIPS of the samples, evenly spread."""
    return [str(sample.path) for sample in samples[:: max(len(samples) // PROOF_CLIPS, 1)]][:PROOF_CLIPS]


def _write_bundle(
    folder: Path,
    model: Model,
    manifest: Manifest,
    recipe: Recipe,
    metrics: dict[str, float],
    calibration: Calibration,
) -> None:
    held_out = manifest.only("test").samples or manifest.only("val").samples
    training = {
        "videos": {split: len(manifest.only(split).samples) for split in ("train", "val", "test")},
        "encoder_weights": recipe.encoder_weights or "none",
        "encoder": _trained_part(recipe),
        "flip": recipe.flip,
        "seed": recipe.seed,
        "augmentation": asdict(recipe.augmentation),
        "optimisation": asdict(recipe.optimisation),
        "metrics": metrics,
        "calibration": asdict(calibration),
        "versions": {"harec_deploy": __version__, "torch": version("torch"), "python": sys.version.split()[0]},
        "proof_clips": _spread(held_out),
        "calibration_clips": _spread(manifest.only("train").samples),
    }
    with atomic_folder(folder) as staging:
        weights = staging / WEIGHTS_FILE
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)
        spec = BundleSpec(
            architecture=recipe.architecture,
            head=recipe.head,
            feature_dim=model.encoder.feature_dim if isinstance(model, FramewiseModel) else 0,
            classes=manifest.classes,
            sampling=recipe.sampling,
            size=recipe.size,
            weights=file_ref(staging, weights),
            temperature=calibration.temperature,
            training=training,
        )
        save(staging, spec)
