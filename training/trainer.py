"""Lightning's side of a run: which processes share it, how it stops and goes on, what it leaves beside the bundle."""

import logging
import os
import signal
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader

from harec_deploy.cli.console import Signals
from harec_deploy.errors import EXIT_INTERRUPTED, HarecError, MissingDependency, UsageError
from harec_deploy.models.encoders import load_plain, one_line
from training.module import ORIGIN, MetricsLog, Module, Optimisation

CHECKPOINTS, LOGS, METRICS_FILE = "checkpoints", "tensorboard", "metrics.csv"
LAST = Path(CHECKPOINTS, "last.ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Where a run computes and what it logs: nothing of it is part of a recipe.

    devices: GPUs of each machine, or processes on its CPU, that share every batch; "auto" for all GPUs.
    nodes: machines; the same command is started on each, and they share a file system.
    tensorboard: write a TensorBoard log beside metrics.csv.
    """

    devices: int | Literal["auto"] = 1
    nodes: int = 1
    tensorboard: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the one process that writes and speaks, as far as it is known before ``new_trainer``."""
        return self.devices == self.nodes == 1 or getattr(rank_zero_only, "rank", 0) == 0

    def __post_init__(self) -> None:
        gpus = torch.cuda.device_count()
        if self.devices != "auto" and (self.devices < 1 or 0 < gpus < self.devices):
            allowed = f"1 to {gpus}, the GPUs of this machine" if gpus else "1 and more processes on the CPU"
            raise UsageError(f"--devices {self.devices}: allowed are auto and {allowed}")
        if self.nodes < 1:
            raise UsageError(f"--nodes {self.nodes}: allowed are 1 and more")
        if self.nodes > 1 and not os.environ.keys() & {"MASTER_ADDR", "SLURM_JOB_ID"}:
            raise UsageError(
                f"--nodes {self.nodes}: on each machine set MASTER_ADDR and MASTER_PORT to an address of the first one "
                "and NODE_RANK to its number from 0 on, or start the command with torchrun or srun"
            )


ALONE = Launch()


def new_trainer(
    how: Optimisation,
    launch: Launch,
    run: Path,
    tell: Callable[[int, dict[str, float]], None],
    *,
    val: bool,
    exact: bool,
) -> lightning.Trainer:
    """Return a Trainer that logs and keeps its checkpoints in the folder ``run``.

    It knows at once which of the processes this is, though it starts the others in ``train`` only.

    ``tell`` takes the number of each epoch, from 1, and its metrics, in the first process. ``val`` says whether there
    is a validation split to watch, ``exact`` whether all operations of the model have a deterministic form.

    Raises:
        MissingDependency: TensorBoard is asked for, and nothing that writes its files is installed.
        UsageError: the batch cannot be shared equally.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):  # what a user needs to know is in the report
        logging.getLogger(name).setLevel(logging.ERROR)
    keep_best = ModelCheckpoint(
        run / CHECKPOINTS, monitor="val_loss" if val else None, save_last=True, enable_version_counter=False
    )
    callbacks: list[Callback] = [MetricsLog(run / METRICS_FILE, tell), StopAtStep(run / LAST), keep_best]
    if val and how.patience:
        callbacks.append(EarlyStopping("val_loss", patience=how.patience))
    if launch.tensorboard:
        callbacks.append(LearningRateMonitor())
    trainer = lightning.Trainer(
        max_epochs=how.epochs,
        callbacks=callbacks,
        default_root_dir=run,
        devices=launch.devices,
        num_nodes=launch.nodes,
        strategy="auto" if launch.devices == launch.nodes == 1 else "ddp",
        use_distributed_sampler=False,  # Order shares the clips out
        deterministic=True if exact else "warn",
        precision=how.trainer_precision,
        logger=_tensorboard(run) if launch.tensorboard else False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        gradient_clip_val=how.clip_gradient or None,
    )
    if how.batch % trainer.world_size:
        raise UsageError(f"--batch {how.batch} for {trainer.world_size} devices: allowed are multiples of their number")
    return trainer


def _tensorboard(run: Path) -> TensorBoardLogger:
    try:
        return TensorBoardLogger(run, name=LOGS, version="")
    except ModuleNotFoundError:
        raise MissingDependency("tensorboardX", "train", "--tensorboard") from None


class StopAtStep(Callback):
    """Ends a run that a signal asks to, all its processes after the same step, with a checkpoint of that step."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.asked = Event()
        self.signals: Signals | None = None
        self._handlers = ExitStack()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Listen, in place of the handlers that Lightning has set up by now."""
        told = "stopping after this step or validation; once more to stop at once" if trainer.is_global_zero else ""
        self.signals = self._handlers.enter_context(Signals(self.asked, told))

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        """Write the checkpoint and stop; but after its last step, let an epoch end with a checkpoint of its own."""
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch and self._agreed(trainer):
            trainer.save_checkpoint(self.checkpoint)
            raise KeyboardInterrupt(self.exit_status)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop between two epochs."""
        if self._agreed(trainer):
            raise KeyboardInterrupt(self.exit_status)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Listen no longer; what was asked for during the last epoch is done now."""
        self._handlers.close()
        if self._agreed(trainer):
            raise KeyboardInterrupt(self.exit_status)

    def on_exception(self, *_: Any) -> None:
        """Listen no longer."""
        self._handlers.close()

    @property
    def exit_status(self) -> int:
        """What the command exits with: 130, or as the signal says."""
        return self.signals.exit_status if self.signals and self.signals.number else EXIT_INTERRUPTED

    def _agreed(self, trainer: lightning.Trainer) -> bool:
        """Whether any process was asked: the others are told, so that none waits for one that has gone."""
        return trainer.strategy.reduce_boolean_decision(self.asked.is_set(), all=False)


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """A checkpoint, and how many epochs, and steps of the next one, it has behind it."""

    path: Path
    epochs: int
    steps: int


def resume_point(run: Path, origin: str) -> ResumePoint | None:
    """Return where the run goes on, None if it begins.

    Raises:
        UsageError: the checkpoint is damaged, or was made from something else than ``origin``.
    """
    path = run / LAST
    if not path.exists():
        return None
    try:
        found = load_plain(path)
    except UsageError as error:
        raise UsageError(f"cannot go on from the checkpoint: {error}; remove it, or use --restart") from None
    if not isinstance(found, dict) or found.get(ORIGIN) != origin:
        raise UsageError(
            f"cannot go on from {path}: the recipe, the manifest or the encoder's weights are others than it was made "
            "from; use --restart, or name another folder with --out"
        )
    loops = found["loops"]["fit_loop"]
    batches = loops["epoch_loop.batch_progress"]
    steps = 0 if batches["is_last_batch"] else batches["current"]["ready"]
    return ResumePoint(path, loops["epoch_progress"]["current"]["processed"], steps)


def train(
    trainer: lightning.Trainer,
    module: Module,
    clips: DataLoader[object],
    val: DataLoader[object] | None,
    start: ResumePoint | None,
) -> int:
    """Train ``module`` in all processes and leave it, where there is a validation split, with its best weights.

    Returns the epoch that its weights are of, counted from 1.

    Raises:
        KeyboardInterrupt: a signal asked to stop; the argument is the exit status.
        HarecError: the loss is not finite, or another process of the run has died.
    """
    _fit(trainer, module, clips, val, start.path if start else None)
    best = trainer.checkpoint_callback
    if val and isinstance(best, ModelCheckpoint) and best.best_model_path:
        state = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
        module.load_state_dict(state["state_dict"])
        return int(state["epoch"]) + 1
    return trainer.current_epoch


def _fit(
    trainer: lightning.Trainer,
    module: Module,
    clips: DataLoader[object],
    val: DataLoader[object] | None,
    checkpoint: Path | None,
) -> None:
    """Call Lightning, and tell in one line what it tells in many."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            trainer.fit(module, clips, val, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as ended:  # what Lightning makes of Ctrl-C, after it has told the process to ignore the next one
        interrupt = ended.__context__
        if not trainer.is_global_zero or not isinstance(interrupt, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt(*interrupt.args) from None
    except RuntimeError as error:
        if trainer.world_size == 1:
            raise
        raise HarecError(f"a process of this run was lost: {one_line(error)}; the same command goes on") from None
    finally:
        signal.signal(signal.SIGINT, handler)
