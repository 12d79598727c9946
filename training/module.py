"""The Lightning side of training: what a step is, how the learning rate moves, what is written down."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import Dataset

from training.features import PER_PART, Grid, Source

METRICS = ("epoch", "learning_rate", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
Schedule = Literal["onecycle", "cosine", "none"]


@dataclass(frozen=True, slots=True)
class Optimisation:
    """How weights are fitted.

    encoder_rate: the encoder's learning rate as a share of the head's, where both are trained.
    """

    epochs: int = 40
    batch: int = 32
    learning_rate: float = 1e-3
    encoder_rate: float = 1.0
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    schedule: Schedule = "onecycle"
    patience: int = 0


class Clips(Dataset[tuple[Tensor, int]]):
    """Labelled clips of a source: the ones that labelling takes, or with ``augment`` shifted in time and mirrored."""

    def __init__(
        self, source: Source, indices: Sequence[int], labels: Sequence[int], grid: Grid, *, augment: bool, flip: bool
    ) -> None:
        self.source = source
        self.indices = indices
        self.labels = labels
        self.grid = grid
        self.augment = augment
        self.flip = flip

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        places, mirror = self.grid.middle(), False
        if self.augment:
            jitter = torch.randint(PER_PART, places.shape).numpy()
            places = np.arange(len(places)) * PER_PART + jitter
            mirror = self.flip and bool(torch.rand(()) < 0.5)
        return self.source.clip(self.indices[item], places, mirror=mirror), self.labels[item]


class Module(lightning.LightningModule):
    """Fits ``net``, whose input is what the source gives: a whole model for frames, a head for features."""

    def __init__(self, net: nn.Module, optimisation: Optimisation, steps: int) -> None:
        super().__init__()
        self.net = net
        self.optimisation = optimisation
        self.steps = steps
        self.loss = nn.CrossEntropyLoss(label_smoothing=optimisation.label_smoothing)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        return self._measured(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy of one batch."""
        self._measured(batch, "val")

    def _measured(self, batch: tuple[Tensor, Tensor], prefix: str) -> Tensor:
        clips, labels = batch
        logits = self.net(clips)
        loss: Tensor = self.loss(logits, labels)
        accuracy = (logits.argmax(1) == labels).float().mean()
        facts = {f"{prefix}_loss": loss, f"{prefix}_accuracy": accuracy}
        self.log_dict(facts, on_step=False, on_epoch=True, batch_size=len(labels), prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Return AdamW and its schedule, counted in steps."""
        how = self.optimisation
        encoder = [p for name, p in self.net.named_parameters() if name.startswith("encoder.") and p.requires_grad]
        head = [p for name, p in self.net.named_parameters() if not name.startswith("encoder.")]
        rates = [how.learning_rate, how.learning_rate * how.encoder_rate]
        groups: list[dict[str, Any]] = [
            {"params": p, "lr": rate} for p, rate in zip((head, encoder), rates, strict=True) if p
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=how.weight_decay)
        if how.schedule == "none":
            return optimizer
        schedules = torch.optim.lr_scheduler
        scheduler = (
            schedules.OneCycleLR(optimizer, [group["lr"] for group in groups], total_steps=self.steps)
            if how.schedule == "onecycle"
            else schedules.CosineAnnealingLR(optimizer, self.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class MetricsLog(Callback):
    """Appends the metrics of each epoch to ``path`` and passes them on."""

    def __init__(self, path: Path, report: Callable[[int, dict[str, float]], None]) -> None:
        self.path = path
        self.report = report

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the line of the epoch that has just ended."""
        facts = {name: float(value) for name, value in trainer.callback_metrics.items()}
        facts["learning_rate"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        facts["epoch"] = trainer.current_epoch + 1
        known = [row for row in read_metrics(self.path) if row["epoch"] < facts["epoch"]]
        with self.path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, METRICS, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows([*known, facts])
        self.report(int(facts["epoch"]), facts)

    def last(self) -> dict[str, float]:
        """Return the metrics of the last epoch."""
        rows = read_metrics(self.path)
        return rows[-1] if rows else {}


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the epochs of a metrics file; a metric that was not measured is missing."""
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]
