"""The Lightning side of training: what a step is, how the learning rate moves, what is written down."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import Dataset
from torchmetrics import Metric

from harec_deploy.errors import EXIT_FAILED, HarecError
from harec_deploy.files import atomic_write
from training.augment import UNCHANGED, Augmentation
from training.features import PER_PART, Grid, Source
from training.loading import derived_seed

METRICS = ("epoch", "learning_rate", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
Schedule = Literal["onecycle", "cosine", "step", "plateau", "none"]
WARMUP_START = 0.01  # of the highest learning rate
ORIGIN = "harec_deploy_origin"  # a checkpoint's key


@dataclass(frozen=True, slots=True)
class Optimisation:
    """How weights are fitted.

    learning_rate: of the head, at its highest. encoder_rate: the encoder's, as a share of it, where both are trained.
    class_weights: classes with few videos count as much as others in the loss.
    warmup_epochs: in which the rate rises to its highest; onecycle has a rise of its own.
    step_epochs: after so many, or so many without a better val loss for "plateau", the rate is multiplied by
        step_factor.
    clip_gradient: longest gradient that is not shortened; 0 for none.
    patience: stop after so many epochs without a better val loss; 0 for never.
    amp: what CUDA computes in beside fp32: "auto" is fp16; on a CPU only "bf16" changes anything.
    """

    epochs: int = 40
    batch: int = 32
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    encoder_rate: float = 1.0
    weight_decay: float = 0.01
    momentum: float = 0.9
    label_smoothing: float = 0.1
    class_weights: bool = False
    schedule: Schedule = "onecycle"
    warmup_epochs: int = 0
    step_epochs: int = 10
    step_factor: float = 0.1
    clip_gradient: float = 1.0  # an LSTM at a high rate now and then takes a step that it never recovers from
    patience: int = 0
    amp: Literal["auto", "none", "fp16", "bf16"] = "auto"

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("epochs", self.epochs, 1, 100_000),
            ("batch", self.batch, 1, 65_536),
            ("momentum", self.momentum, 0, 0.9999),
            ("label_smoothing", self.label_smoothing, 0, 0.99),
            ("warmup_epochs", self.warmup_epochs, 0, self.epochs),
            ("step_epochs", self.step_epochs, 1, 100_000),
            ("step_factor", self.step_factor, 0, 1),
            ("patience", self.patience, 0, 100_000),
        ):
            if not low <= value <= high:
                raise ValueError(f"optimisation.{name} is {value}; allowed are {low} to {high}")
        for name in ("learning_rate", "encoder_rate", "weight_decay", "clip_gradient"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"optimisation.{name} is {getattr(self, name)}; allowed are 0 and more")

    @property
    def trainer_precision(self) -> Literal["32-true", "16-mixed", "bf16-mixed"]:
        """The name that Lightning's Trainer has for ``amp`` on this machine."""
        if self.amp == "bf16":
            return "bf16-mixed"
        return "16-mixed" if self.amp in ("auto", "fp16") and torch.cuda.is_available() else "32-true"


# How far each of T frames is from the first place of its part: all alike, so that their distances stay, each as it
# comes, as in temporal segment networks (Wang et al. 2016, https://arxiv.org/abs/1608.00859), or as in labelling.
JITTERS: dict[str, Callable[[int], NDArray[np.int64]]] = {
    "clip": lambda frames: torch.randint(PER_PART, (1,)).numpy(),
    "frame": lambda frames: torch.randint(PER_PART, (frames,)).numpy(),
    "none": lambda frames: np.array([PER_PART // 2]),
}


class Clips(Dataset[tuple[Tensor, int]]):
    """Labelled clips of a source: those that labelling takes, or with ``augment`` shifted in time, mirrored and more.

    jitter: how clips are shifted in time, a key of JITTERS.
    pixels: what else is changed in a clip with ``augment``; of a source of frames.
    How a clip is augmented follows from ``seed``, ``epoch`` and its place alone.
    """

    def __init__(
        self,
        source: Source,
        indices: Sequence[int],
        labels: Sequence[int],
        grid: Grid,
        *,
        augment: bool,
        flip: bool,
        jitter: str = "clip",
        pixels: Augmentation = UNCHANGED,
        seed: int = 0,
    ) -> None:
        self.source = source
        self.indices = indices
        self.labels = labels
        self.grid = grid
        self.augment = augment
        self.flip = flip
        self.jitter = jitter
        self.pixels = pixels
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self.seed, self.epoch, item))
            return self._clip(item), self.labels[item]

    def _clip(self, item: int) -> Tensor:
        places, mirror = self.grid.middle(), False
        if self.augment:
            places = np.arange(len(places)) * PER_PART + JITTERS[self.jitter](len(places))
            mirror = self.flip and bool(torch.rand(()) < 0.5)
        clip = self.source.clip(self.indices[item], places, mirror=mirror)
        return self.pixels(clip) if self.augment and self.pixels.changes_pixels else clip


class _Mean(Metric):
    """A mean over the clips of all processes; what went into it so far is kept in checkpoints.

    Lightning's own is wrong where processes have unequally many clips, because it rounds their mean number, and
    torchmetrics' MeanMetric forgets the weights unless it looks for NaN, of which it then makes something else.
    """

    total: Tensor
    clips: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), "sum", persistent=True)
        self.add_state("clips", torch.zeros(()), "sum", persistent=True)

    def update(self, mean: Tensor, clips: int) -> None:
        """Take the mean of a batch of so many clips."""
        self.total += mean.detach() * clips
        self.clips += clips

    def compute(self) -> Tensor:
        """Return the mean of all."""
        return self.total / self.clips


class Module(lightning.LightningModule):
    """Fits ``net``, whose input is what the source gives: a whole model for frames, a head for features."""

    def __init__(
        self,
        net: nn.Module,
        optimisation: Optimisation,
        steps: int,
        class_weights: Tensor | None = None,
        *,
        seed: int = 0,
        origin: str = "",
    ) -> None:
        """Take the number of ``steps`` of all epochs, and float32 (C,) weights for the loss.

        origin: what the weights are made from, in a word that a checkpoint keeps.
        """
        super().__init__()
        self.net = net
        self.optimisation = optimisation
        self.steps = steps
        self.loss = nn.CrossEntropyLoss(weight=class_weights, label_smoothing=optimisation.label_smoothing)
        self.seed = seed
        self.origin = origin
        self.means = nn.ModuleDict({name: _Mean() for name in METRICS[2:]})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note in a checkpoint what its weights are made from."""
        checkpoint[ORIGIN] = self.origin

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Make dropout a function of the step, and unlike in each process."""
        torch.manual_seed(derived_seed(self.seed, self.global_step, self.global_rank))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch. Raises HarecError where it is not finite: nothing good comes after that."""
        loss = self._measured(batch, "train")
        overall = self.trainer.strategy.reduce(loss.detach().clone(), reduce_op="mean")
        if not torch.isfinite(overall):
            if not self.trainer.is_global_zero:
                raise SystemExit(EXIT_FAILED)  # the first process tells it
            raise HarecError(
                f"the loss is {overall.item()} in epoch {self.current_epoch + 1}: try a lower --learning-rate or --amp "
                "none; the checkpoint of the epoch before is whole"
            )
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy of one batch."""
        self._measured(batch, "val")

    def _measured(self, batch: tuple[Tensor, Tensor], prefix: str) -> Tensor:
        clips, labels = batch
        logits = self.net(clips)
        loss: Tensor = self.loss(logits, labels)
        accuracy = (logits.argmax(1) == labels).float().mean()
        for name, value in ((f"{prefix}_loss", loss), (f"{prefix}_accuracy", accuracy)):
            self._mean(name).update(value, len(labels))
            self.log(name, self._mean(name), on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_start(self) -> None:
        """Forget the epoch before; of one that goes on, a checkpoint has brought what was measured so far."""
        for name in self.means:
            self._mean(name).reset()

    def _mean(self, name: str) -> _Mean:
        return cast(_Mean, self.means[name])

    def on_train_epoch_end(self) -> None:
        """Step the plateau schedule: Lightning would do it after the epoch's checkpoint was written."""
        for schedule in self._schedulers():
            if isinstance(schedule, ReduceLROnPlateau):
                schedule.step(float(self.trainer.callback_metrics["val_loss"]))

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step all other schedules, when Lightning says so."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()

    def _schedulers(self) -> list[Any]:
        found = self.lr_schedulers()
        return found if isinstance(found, list) else [found]

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedules, counted in steps or epochs."""
        optimizer = _optimizer(self.net, self.optimisation)
        return [optimizer], _schedules(optimizer, self.optimisation, self.steps)


def _optimizer(net: nn.Module, how: Optimisation) -> torch.optim.Optimizer:
    encoder = [p for name, p in net.named_parameters() if name.startswith("encoder.") and p.requires_grad]
    head = [p for name, p in net.named_parameters() if not name.startswith("encoder.")]
    rates = [how.learning_rate, how.learning_rate * how.encoder_rate]
    groups: list[dict[str, Any]] = [
        {"params": p, "lr": rate} for p, rate in zip((head, encoder), rates, strict=True) if p
    ]
    if how.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=how.momentum, weight_decay=how.weight_decay)
    kind = torch.optim.AdamW if how.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, weight_decay=how.weight_decay)


def _schedules(optimizer: torch.optim.Optimizer, how: Optimisation, steps: int) -> list[dict[str, Any]]:
    """Return what Lightning calls after each step or epoch: a linear warm-up, if any, and the schedule."""
    kinds = torch.optim.lr_scheduler
    warmup_steps = steps * how.warmup_epochs // how.epochs
    found: list[dict[str, Any]] = []
    if how.schedule == "onecycle":  # it warms up by itself
        rates = [group["lr"] for group in optimizer.param_groups]
        return [{"scheduler": kinds.OneCycleLR(optimizer, rates, total_steps=steps), "interval": "step"}]
    if how.schedule == "cosine":
        cosine = kinds.CosineAnnealingLR(optimizer, max(steps - warmup_steps, 1))
        if not warmup_steps:
            return [{"scheduler": cosine, "interval": "step"}]
        warmup = kinds.LinearLR(optimizer, WARMUP_START, total_iters=warmup_steps)
        both = kinds.SequentialLR(optimizer, [warmup, cosine], [warmup_steps])
        return [{"scheduler": both, "interval": "step"}]
    if how.schedule == "step":
        found.append({"scheduler": kinds.StepLR(optimizer, how.step_epochs, how.step_factor), "interval": "epoch"})
    if how.schedule == "plateau":
        plateau = kinds.ReduceLROnPlateau(optimizer, factor=how.step_factor, patience=how.step_epochs)
        found.append({"scheduler": plateau, "interval": "epoch", "monitor": "val_loss", "strict": False})
    if warmup_steps:  # it multiplies what the other has left, so the two do not disturb each other
        warmup = kinds.LinearLR(optimizer, WARMUP_START, total_iters=warmup_steps)
        found.append({"scheduler": warmup, "interval": "step"})
    return found


def class_weights(labels: Sequence[int], classes: int) -> Tensor:
    """Return a weight for each class, so that all count the same in the loss: float32 (C,), on average 1 a label."""
    counts = torch.bincount(torch.tensor(labels), minlength=classes).float()
    return len(labels) / (classes * counts.clamp(min=1))


class MetricsLog(Callback):
    """Appends the metrics of each epoch to ``path`` and passes them on."""

    def __init__(self, path: Path, report: Callable[[int, dict[str, float]], None]) -> None:
        self.path = path
        self.report = report

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the line of the epoch that has just ended, in the first process."""
        facts = {name: float(value) for name, value in trainer.callback_metrics.items()}  # summed up over all of them
        if not trainer.is_global_zero:
            return
        facts["learning_rate"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        facts["epoch"] = trainer.current_epoch + 1
        known = [row for row in read_metrics(self.path) if row["epoch"] < facts["epoch"]]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, METRICS, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows([*known, facts])
        with atomic_write(self.path) as stream:
            stream.write(text.getvalue().encode())
        self.report(int(facts["epoch"]), facts)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the epochs of a metrics file; a metric that was not measured is missing."""
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]
