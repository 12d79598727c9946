"""Six architectures on real clips: UT-Interaction, ten folds, several seeds, sequences held out and not.

    python -m benchmarks.architectures CLIPS --encoder-weights mobilenet_v2.pth

CLIPS is a class-per-folder tree whose names carry the filmed sequence, set1_<id>_<sequence>_<class>.avi. Every fold is
trained by ``training.fit`` and tested with PyTorch on whole clips and on six views of each. Those of the first seed are
exported with proof too, and the files labelled anew by the exported bundle. Folds are worked on side by side, each by
one thread. A fold's figures go to the results as soon as it is done; the same command goes on where it stopped, seed by
seed.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from harec_deploy.bundle import load as load_bundle
from harec_deploy.export import export
from harec_deploy.files import atomic_write
from harec_deploy.intervals import bootstrap
from harec_deploy.loading import load
from harec_deploy.models import from_bundle
from training.datasets import Manifest, Sample, grouped, inspect, scan_folders
from training.features import Grid
from training.fit import SILENT, fit
from training.recipes import RecipeFile, to_recipe
from training.settings import Recipe
from training.sources import source_for
from training.splits import folds

RESULTS = Path(__file__).parent / "results" / "architectures.json"
SEQUENCE = r"set\d_\d+_(\d+)_"
FOLDS, INNER_FOLDS = 10, 3
FROZEN: dict[str, Any] = {
    "architecture": "mobilenet_v2_lstm",
    "sampling": {"frames": 8, "span": 0.5},
    "head": {"hidden": 128, "pool": "max", "dropout": 0.5},
    "optimisation": {"epochs": 40, "learning_rate": 3e-3},
}
JITTER = "frame"  # the default when all this was measured; jitter.py compares it with today's
TUNED = "MobileNetV2, last 2 stages trained, + LSTM"
# The frozen model's settings are those that the clips' own notes name. Those of TUNED were chosen once, on inner folds
# of the first outer fold's training sequences. The others, trained from nothing, were written down before any had been
# run with them, to fit two cores: they are shorter and smaller than is usual.
MODELS: dict[str, dict[str, Any]] = {
    "MobileNetV2, frozen, + LSTM": FROZEN,
    TUNED: {
        **FROZEN,
        "finetune_stages": 2,
        "optimisation": {"epochs": 12, "batch": 8, "learning_rate": 3e-3, "encoder_rate": 0.05},
    },
    "LRCN": {
        "architecture": "lrcn",
        "optimisation": {"epochs": 25, "batch": 8, "learning_rate": 1e-3, "amp": "bf16"},
    },
    "ConvLSTM": {
        "architecture": "convlstm",
        "optimisation": {"epochs": 7, "batch": 8, "learning_rate": 3e-3, "amp": "bf16"},
    },
    "3D-CNN + LSTM, 64x64": {
        "architecture": "cnn3d_lstm",
        "size": {"width": 64, "height": 64},
        "optimisation": {"epochs": 18, "batch": 8, "learning_rate": 1e-3, "amp": "bf16"},
    },
    "I3D-R50 + LSTM from scratch, 8 frames of 64x64": {
        "architecture": "i3d_r50_lstm",
        "sampling": {"frames": 8},
        "size": {"width": 64, "height": 64},
        "optimisation": {"epochs": 4, "batch": 8, "learning_rate": 1e-3, "amp": "bf16"},
    },
}
# What inner folds choose from, for the frozen model.
CHOICES: dict[str, dict[str, Any]] = {
    "8 frames of the middle half": {},
    "16 frames of the middle half": {"sampling": {"frames": 16, "span": 0.5}},
    "8 frames of the middle half, LSTM of 256 both ways": {
        "head": {**FROZEN["head"], "hidden": 256, "bidirectional": True}
    },
    "12 frames of the middle third": {"sampling": {"frames": 12, "span": 1 / 3}},
}
CHOSEN = "MobileNetV2, frozen, + LSTM, settings chosen on inner folds"


@dataclass(frozen=True)
class Job:
    """One fold of a model, split and seed: what a process is given to do.

    samples: all clips, each in split "train" or "test". work: a folder for runs and for what is computed once.
    """

    model: str
    split: str
    seed: int
    fold: int
    samples: tuple[Sample, ...]
    encoder_weights: Path
    work: Path

    @property
    def place(self) -> dict[str, Any]:
        """What tells its row in the results from others."""
        return {"model": self.model, "split": self.split, "seed": self.seed, "fold": self.fold}

    def row(self) -> dict[str, Any]:
        """Train and test; return what the results keep."""
        start = time.perf_counter()
        told: dict[str, Any] = self.place
        if self.model == CHOSEN:
            told["inner_correct"] = scores = self.inner_correct(CHOICES)
            told["chosen"] = max(scores, key=lambda name: scores[name])
        settings = MODELS[self.model] if self.model in MODELS else FROZEN | CHOICES[told["chosen"]]
        trained = self.trained(self.samples, settings, self.seed)
        told |= self.tested(*trained, self.samples, exported=self.split == "sequences" and self.seed == 0)
        return told | {"seconds": round(time.perf_counter() - start, 1)}

    def inner_correct(self, choices: dict[str, dict[str, Any]]) -> dict[str, int]:
        """Return how many clips of the training sequences the choices have right, on folds of those, by its seed.

        choices: by name, what each changes of the frozen model's settings.
        """
        inside = [sample for sample in self.samples if sample.split == "train"]
        scores = dict.fromkeys(choices, 0)
        for name, changes in choices.items():
            for inner in folds(inside, INNER_FOLDS, seed=0):
                told = self.tested(*self.trained(inner, FROZEN | changes, self.seed), inner, exported=False)
                scores[name] += told["videos"] - len(told["wrong"])
        return scores

    def trained(self, samples: Sequence[Sample], settings: dict[str, Any], seed: int) -> tuple[Path, Recipe]:
        """Train on one split, anew, and return the bundle."""
        weights = str(self.encoder_weights) if settings["architecture"] == FROZEN["architecture"] else None
        recipe = to_recipe(RecipeFile(**{"jitter": JITTER, **settings}, encoder_weights=weights, seed=seed))
        run = self.work / f"run-{os.getpid()}"
        shutil.rmtree(run, ignore_errors=True)
        return fit(samples, recipe, run, SILENT, cache=self.work / "cache"), recipe

    def tested(self, bundle: Path, recipe: Recipe, samples: Sequence[Sample], *, exported: bool) -> dict[str, Any]:
        """Return which test clips a bundle has wrong, whole and by views; with ``exported``, its exported form too.

        Frames, and what frozen stages make of them, are those that training stored: the decoder's, at the same times.
        The exported form is given the files.
        """
        tests = [sample for sample in samples if sample.split == "test"]
        checked, paths = load_bundle(bundle), [sample.path for sample in tests]
        source, net = source_for(from_bundle(checked), Manifest(tuple(tests)), recipe, SILENT, self.work / "cache")
        net.eval()
        middle = Grid(recipe.sampling, recipe.size).middle()

        def view(shift: int, *, mirror: bool) -> torch.Tensor:
            clips = torch.stack([source.clip(place, middle + shift, mirror=mirror) for place in range(len(paths))])
            return torch.cat([net(few).softmax(-1) for few in clips.split(4)])

        with torch.inference_mode():
            views = [view(shift, mirror=mirror) for shift in (0, -1, 1) for mirror in (False, True)]
        classes = checked.spec.classes
        ways = {"wrong": views[0], "wrong_views": torch.stack(views).mean(0)}
        labels = {name: [classes[place] for place in scores.argmax(1)] for name, scores in ways.items()}
        if exported:
            export(bundle)
            by_path = {result.path: result.label or "" for result in load(bundle, threads=1).label_many(paths)}
            labels["wrong_exported"] = [by_path[str(path)] for path in paths]
        told: dict[str, Any] = {"videos": len(tests)}
        for name, own in labels.items():
            told[name] = [test.path.name for test, label in zip(tests, own, strict=True) if label != test.label]
        if exported:
            pairs = zip(labels["wrong"], labels["wrong_exported"], strict=True)
            told["labels_changed"] = sum(one != other for one, other in pairs)
        return told


class Study:
    """What is to be done, and ``content``, what came of it: "rows", one for each fold of a model, split and seed."""

    def __init__(self, out: Path, work: Path, samples: Sequence[Sample], encoder_weights: Path) -> None:
        self.out, self.work, self.samples, self.encoder_weights = out, work, samples, encoder_weights
        self.content: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"rows": []}

    def jobs(self, models: Sequence[str], seeds: int) -> Iterator[Job]:
        """Yield the folds that have no row yet."""
        for seed in range(seeds):
            for split in ("sequences", "random"):
                for model in models if split == "sequences" else [each for each in models if each != CHOSEN]:
                    for number, fold in enumerate(self.splits(split)):
                        job = Job(model, split, seed, number, tuple(fold), self.encoder_weights, self.work)
                        if not any(job.place.items() <= row.items() for row in self.content["rows"]):
                            yield job

    def splits(self, split: str) -> list[list[Sample]]:
        """Return the folds, the same for every seed: whole sequences held out, or clips at random."""
        if split == "sequences":
            return folds(self.samples, FOLDS, seed=0)
        apart = folds([replace(sample, group=str(sample.path)) for sample in self.samples], FOLDS, seed=0)
        groups = {sample.path: sample.group for sample in self.samples}
        return [[replace(sample, group=groups[sample.path]) for sample in fold] for fold in apart]

    def run(self, models: Sequence[str], seeds: int) -> None:
        """Do all that is left."""
        pool = ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,))
        with pool:
            try:
                for done in as_completed([pool.submit(job.row) for job in self.jobs(models, seeds)]):
                    self.keep(done.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def keep(self, row: dict[str, Any]) -> None:
        """Add a row to the results, and sum them up anew."""
        self.content["rows"].append(row)
        told = (row["model"], row["split"], f"seed {row['seed']} fold {row['fold']}:")
        print(*told, f"{len(row['wrong'])} of {row['videos']} wrong, {row['seconds']} s", flush=True)
        groups = {sample.path.name: sample.group for sample in self.samples}
        self.content["summary"] = summary(self.content["rows"], groups)
        self.content["machine"] = {"python": platform.python_version(), "torch": torch.__version__}
        with atomic_write(self.out) as stream:
            stream.write(json.dumps(self.content, indent=1).encode() + b"\n")


def summary(rows: Sequence[dict[str, Any]], groups: dict[str, str]) -> list[dict[str, Any]]:
    """Return the accuracy of each model and split over the seeds of which all folds are done.

    groups: the filmed sequence of each clip, by name. The interval is by bootstrap over sequences, of the share of
    seeds that have a clip right.
    """
    told = []
    for model, split in dict.fromkeys((row["model"], row["split"]) for row in rows):
        own = [row for row in rows if (row["model"], row["split"]) == (model, split)]
        by_seed = [[row for row in own if row["seed"] == seed] for seed in sorted({row["seed"] for row in own})]
        done = [folds for folds in by_seed if len(folds) == FOLDS]
        if not done:
            continue
        facts: dict[str, Any] = {"model": model, "split": split, "seeds": len(done)}
        for name, wrong in (("whole", "wrong"), ("views", "wrong_views")):
            missed = Counter(clip for folds in done for row in folds for clip in row[wrong])
            shares = [1 - sum(len(row[wrong]) for row in folds) / len(groups) for folds in done]
            right = [1 - missed[clip] / len(done) for clip in groups]
            facts[name] = {
                "by_seed": shares,
                "mean": statistics.mean(shares),
                "stdev": statistics.stdev(shares) if len(shares) > 1 else None,
                "interval": bootstrap(right, list(groups.values())),
            }
        tested = [row for folds in done for row in folds]
        if exported := [row for row in tested if "wrong_exported" in row]:
            facts["folds_exported"] = len(exported)
            facts["labels_changed_by_export"] = sum(row["labels_changed"] for row in exported)
            apart = [abs(len(row["wrong"]) - len(row["wrong_exported"])) for row in exported]
            facts["most_apart_in_a_fold"] = max(apart)
        told.append(facts)
    return told


def read_samples(clips: Path) -> Sequence[Sample]:
    """Return the clips of a folder with their sequences as groups, and end the program if one cannot be read."""
    samples, problems = inspect(grouped(scan_folders(clips), SEQUENCE))
    if problems:
        raise SystemExit(f"{len(problems)} videos cannot be read: {next(iter(problems))}")
    return samples


def main() -> None:
    """Run what is left to do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--encoder-weights", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/architectures"))
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--models", nargs="*", default=[*MODELS, CHOSEN], help="some of: " + "; ".join([*MODELS, CHOSEN])
    )
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    samples = read_samples(options.clips)
    Study(options.json, options.work.resolve(), samples, options.encoder_weights).run(options.models, options.seeds)


if __name__ == "__main__":
    main()
