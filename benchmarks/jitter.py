"""How training clips are best shifted in time: each frame by itself, all of a clip alike, or not at all.

    python -m benchmarks.jitter CLIPS --encoder-weights mobilenet_v2.pth --json benchmarks/results/jitter.json

CLIPS is UT-Interaction as architectures.py takes it. Its frozen model is trained in each way on inner folds of every
outer fold's training sequences, so that no way is chosen by what a test fold says.
"""

import json
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from benchmarks.architectures import FOLDS, FROZEN, Job, read_samples
from harec_deploy.machine import facts
from training.module import JITTERS
from training.splits import folds

SEEDS = 2


def main(
    clips: Annotated[Path, typer.Argument(help="UT-Interaction")],
    encoder_weights: Annotated[Path, typer.Option(help="of MobileNetV2, as torchvision has them")],
    out: Annotated[Path | None, typer.Option("--json", help="write all figures here")] = None,
) -> None:
    samples, ways = read_samples(clips), {name: {"jitter": name} for name in JITTERS}
    outer = folds(samples, FOLDS, seed=0)
    inside = [sum(sample.split == "train" for sample in fold) for fold in outer]
    pool = ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,))
    with tempfile.TemporaryDirectory(prefix="harec-jitter-") as folder, pool:
        jobs = [
            Job("", "sequences", seed, number, tuple(fold), encoder_weights, Path(folder))
            for seed in range(SEEDS)
            for number, fold in enumerate(outer)
        ]
        told = [answer.result() for answer in [pool.submit(job.inner_correct, ways) for job in jobs]]
    figures: dict[str, Any] = {"machine": facts(), "settings": FROZEN, "seeds": SEEDS, "videos": inside}
    shares = {name: np.array([row[name] for row in told]) / (inside * SEEDS) for name in ways}
    for name, own in shares.items():
        better, worse = (own > shares["frame"]).sum(), (own < shares["frame"]).sum()
        figures[name] = {"mean": float(own.mean()), "better": int(better), "worse": int(worse)}
        Console().print(name, figures[name], f"than frame, of {len(told)}")
    figures["correct"] = told
    if out:
        out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
