"""What a random split hides: the accuracy that it promises beside the accuracy on people never seen.

    pip install -e '.[train]'
    PYTHONPATH=. python benchmarks/leak.py --json benchmarks/results/leak.json

The videos are rendered in the form of UCF: every class has groups, and the clips of a group show one person in one
room before one camera, who does nothing else. So whoever knows the room knows the action, and need not see the motion
that alone tells an action from its partner (training/synthetic.py). The same model is trained with the same seeds on
two splits of these videos, at random and by group, and tested on the split's own test videos and on a second data set:
other people, one clip of each. A seed draws the split and the weights.

An interval is Wilson's for the mean of the seeds and the videos of one seed. Clips of one group are alike, so that of
the split by group is rather too narrow.
"""

import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from decode import VIDEOS_FOLDER, machine
from rich.console import Console

from harec_deploy.intervals import wilson
from training.datasets import Sample, scan_folders
from training.evaluate import predict
from training.fit import SILENT, fit
from training.metrics import summed_up
from training.settings import recipe_for
from training.splits import split
from training.synthetic import synthesize

SCENES = {"actors": 8, "clips_per_action": 5, "own_actors": True, "seed": 0}
NEW_PEOPLE = {"actors": 12, "clips_per_action": 1, "own_actors": True, "seed": 1}
SHARES = (0.0, 0.25)  # of val and test
RECIPE: dict[str, Any] = {
    "sampling": {"frames": 8},
    "size": {},
    "head": {},
    "optimisation": {"epochs": 15, "learning_rate": 2e-3},
    "flip": False,
    "jitter": "frame",  # the default when this was measured
}
SIDES = ("test", "new_people")


def accuracy(bundle: Path, samples: list[Sample]) -> dict[str, Any]:
    evaluation = summed_up([], predict(bundle, samples, progress=lambda done, total: None))
    low, high = wilson(evaluation.correct, len(samples))
    return {"correct": evaluation.correct, "videos": len(samples), "accuracy": evaluation.accuracy, "95%": [low, high]}


def one_run(samples: list[Sample], new_people: list[Sample], out: Path, by: str, seed: int) -> dict[str, Any]:
    divided, told = split(samples, SHARES, seed, by)
    bundle = fit(divided, recipe_for("lrcn", seed=seed, **RECIPE), out / f"{by}-{seed}", SILENT, cache=out / "cache")
    held_out = [sample for sample in divided if sample.split == "test"]
    figures = {side: accuracy(bundle, own) for side, own in zip(SIDES, (held_out, new_people), strict=True)}
    return {"by": by, "seed": seed, "split": told, **figures}


def over_seeds(runs: list[dict[str, Any]], side: str) -> dict[str, Any]:
    """Return the mean of the seeds, with the interval for as many videos as one of them tests."""
    mean = statistics.mean(run[side]["accuracy"] for run in runs)
    videos = runs[0][side]["videos"]
    return {"mean": mean, "videos": videos, "95%": wilson(round(mean * videos), videos)}


def main(
    videos: Annotated[Path, typer.Option(help="where the videos are kept")] = VIDEOS_FOLDER / "leak",
    seeds: Annotated[int, typer.Option(help="how many models are trained on each split")] = 3,
    out: Annotated[Path | None, typer.Option("--json", help="write all figures here")] = None,
) -> None:
    console, start = Console(), time.perf_counter()
    for name, how in (("scenes", SCENES), ("new_people", NEW_PEOPLE)):
        synthesize(videos / name, **how)  # type: ignore[arg-type]
    console.print(f"rendered after {time.perf_counter() - start:.0f} s")
    samples, new_people = scan_folders(videos / "scenes"), scan_folders(videos / "new_people")
    facts: dict[str, Any] = {"machine": machine(), "scenes": SCENES, "new_people": NEW_PEOPLE, "recipe": RECIPE}
    trained = product(("random", "group"), range(seeds))
    # One thread each: two models side by side are done sooner than one after the other on two cores.
    pool = ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,))
    with tempfile.TemporaryDirectory(prefix="harec-leak-") as folder, pool:
        runs = list(pool.map(partial(one_run, samples, new_people, Path(folder)), *zip(*trained, strict=True)))
    for by in ("random", "group"):
        own = [run for run in runs if run["by"] == by]
        facts[by] = {side: over_seeds(own, side) for side in SIDES} | {"runs": own}
        means = ", ".join(f"{side} {facts[by][side]['mean']:.3f}" for side in SIDES)
        console.print(f"split by {by}: {means}; after {time.perf_counter() - start:.0f} s")
    facts["seconds"] = round(time.perf_counter() - start)
    if out:
        out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
