"""Seconds of a training epoch from stored features beside one that decodes and encodes every video.

    pip install -e '.[train]'
    PYTHONPATH=. python benchmarks/features.py --json benchmarks/results/features.json

ResNet-50, frozen, with an LSTM head, 16 frames of 224x224, on a CPU; the clips are those of end_to_end.py. Both ways
are what fit does, with its clips, loader, loss and optimiser: one by the file that ``training features`` writes, the
other with the encoder in the model and frames decoded for each clip. Weights are random: they change no time. Rounds
are interleaved. Computing the features, once for all epochs and for every place of a video, is timed beside them.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from decode import VIDEOS_FOLDER, machine
from end_to_end import make_clips
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from harec_deploy.models import ARCHITECTURES, FramewiseModel, build
from training.features import DecodedFrames, Grid, Source, stored_features
from training.module import Clips, Module, Optimisation

ARCHITECTURE, CLASSES = "resnet50_lstm", 8
HOW = Optimisation(epochs=1, batch=8)


class Way:
    """A way to train: where clips come from, and what is trained on them."""

    def __init__(self, source: Source, net: nn.Module, grid: Grid, count: int, workers: int) -> None:
        labels = [place % CLASSES for place in range(count)]
        clips = Clips(source, range(count), labels, grid, augment=True, flip=True)
        self.loader = DataLoader(clips, batch_size=HOW.batch, shuffle=True, num_workers=workers)
        self.module = Module(net, HOW, steps=10_000).train()
        (self.optimizer,), _ = self.module.configure_optimizers()

    def epoch_s(self) -> float:
        start = time.perf_counter()
        for clips, labels in self.loader:
            self.optimizer.zero_grad()
            self.module.loss(self.module.net(clips), labels).backward()
            self.optimizer.step()
        return time.perf_counter() - start


def main(
    videos: Annotated[Path, typer.Option(help="where the clips are kept")] = VIDEOS_FOLDER,
    count: Annotated[int, typer.Option(help="clips of an epoch")] = 16,
    rounds: Annotated[int, typer.Option(help="how often everything is measured")] = 5,
    out: Annotated[Path | None, typer.Option("--json", help="write all figures here")] = None,
) -> None:
    console = Console()
    paths = sorted(make_clips(videos / "ucf_like", count, console).glob("clip_*.avi"))[:count]
    known = ARCHITECTURES[ARCHITECTURE]
    grid = Grid(known.sampling, known.size)
    torch.manual_seed(0)
    model = build(ARCHITECTURE, known.head, CLASSES, size=known.size)
    assert isinstance(model, FramewiseModel)
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        stored = stored_features(paths, grid, model.encoder, Path(cache), lambda done, total: None)
        once_s = time.perf_counter() - start
        ways = {
            "features": Way(stored, model.head, grid, count, workers=0),
            "video": Way(DecodedFrames(paths, grid), model, grid, count, workers=torch.get_num_threads()),
        }
        ways["features"].epoch_s()  # warms up
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                seconds[name].append(way.epoch_s())
            console.print({name: round(values[-1], 3) for name, values in seconds.items()})
    ratios = [video / features for video, features in zip(seconds["video"], seconds["features"], strict=True)]
    facts: dict[str, Any] = {
        "machine": machine(),
        "rounds": rounds,
        "architecture": ARCHITECTURE,
        "clips": count,
        "batch": HOW.batch,
        "epoch_s": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
        "features_once_s": round(once_s, 1),
        "times_faster": round(statistics.median(ratios), 1),
        "times_faster_least": round(min(ratios), 1),
    }
    console.print(facts)
    if out:
        out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
