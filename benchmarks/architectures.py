"""Six architectures on real clips: UT-Interaction, ten folds, several seeds, sequences held out and not.

    python -m benchmarks.architectures CLIPS --encoder-weights mobilenet_v2.pth

CLIPS is a class-per-folder tree whose names carry the filmed sequence, set1_<id>_<sequence>_<class>.avi. Every fold is
trained by ``training.fit``, tested with PyTorch on whole clips and on six views of each, exported with proof, and
tested again through the exported graphs. A fold's figures go to the results as soon as it is done; the same command
goes on where it stopped, seed by seed.
"""

import argparse
import json
import platform
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from harec_deploy.export import export
from harec_deploy.files import atomic_write
from training.datasets import Sample, grouped, inspect, scan_folders
from training.evaluate import predict
from training.fit import SILENT, fit
from training.metrics import Prediction, bootstrap
from training.recipes import RecipeFile, to_recipe
from training.splits import folds

RESULTS = Path(__file__).parent / "results" / "architectures.json"
SEQUENCE = r"set\d_\d+_(\d+)_"
FOLDS, INNER_FOLDS, VIEWS = 10, 3, 6
FROZEN: dict[str, Any] = {
    "architecture": "mobilenet_v2_lstm",
    "sampling": {"frames": 8, "span": 0.5},
    "head": {"hidden": 128, "pool": "max", "dropout": 0.5},
    "optimisation": {"epochs": 40, "learning_rate": 3e-3},
}
# The frozen model's settings are those that the clips' own notes name; the others were written down before any of them
# had been run on these clips, and were not changed since.
MODELS: dict[str, dict[str, Any]] = {
    "MobileNetV2, frozen, + LSTM": FROZEN,
    "MobileNetV2, last 3 stages trained, + LSTM": {
        **FROZEN,
        "finetune_stages": 3,
        "size": {"width": 160, "height": 160},
        "optimisation": {"epochs": 12, "batch": 16, "learning_rate": 1e-3, "encoder_rate": 0.3},
    },
    "LRCN": {"architecture": "lrcn", "optimisation": {"epochs": 40, "batch": 16}},
    "ConvLSTM": {"architecture": "convlstm", "optimisation": {"epochs": 40, "batch": 16, "learning_rate": 3e-3}},
    "3D-CNN + LSTM": {"architecture": "cnn3d_lstm", "optimisation": {"epochs": 30, "batch": 16}},
    "I3D-R50 + LSTM, from scratch": {
        "architecture": "i3d_r50_lstm",
        "sampling": {"frames": 8},
        "size": {"width": 64, "height": 64},
        "optimisation": {"epochs": 15, "batch": 16},
    },
}
PRETRAINED = "mobilenet_v2_lstm"
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


class Study:
    """Trains and tests, and keeps what came of it: ``rows``, one for each fold of a model, split and seed."""

    def __init__(self, out: Path, work: Path, samples: Sequence[Sample], encoder_weights: Path) -> None:
        self.out, self.work, self.samples, self.encoder_weights = out, work, samples, encoder_weights
        self.content: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"rows": [], "chosen": {}}

    def recipe(self, settings: dict[str, Any], seed: int) -> RecipeFile:
        weights = str(self.encoder_weights) if settings["architecture"] == PRETRAINED else None
        return RecipeFile(**settings, encoder_weights=weights, seed=seed)

    def trained(self, samples: Sequence[Sample], settings: dict[str, Any], seed: int) -> Path:
        """Train on one split, anew, and return the bundle."""
        run = self.work / "run"
        shutil.rmtree(run, ignore_errors=True)
        return fit(samples, to_recipe(self.recipe(settings, seed)), run, SILENT, cache=self.work / "cache")

    def run(self, model: str, split: str, seed: int) -> None:
        """Train and test every fold that has no row yet."""
        for number, fold in enumerate(self.splits(split, seed)):
            place = {"model": model, "split": split, "seed": seed, "fold": number}
            if any(place.items() <= row.items() for row in self.content["rows"]):
                continue
            start = time.perf_counter()
            settings = MODELS[model] if model in MODELS else FROZEN | CHOICES[self.choice(number, fold)]
            bundle = self.trained(fold, settings, seed)
            row = {**place, **self.tested(bundle, [sample for sample in fold if sample.split == "test"])}
            row["seconds"] = round(time.perf_counter() - start, 1)
            self.content["rows"].append(row)
            self.save()
            print(*place.values(), f"{row['correct']} of {row['videos']}", f"{row['seconds']} s")

    def splits(self, split: str, seed: int) -> list[list[Sample]]:
        """Return the folds: whole sequences held out, the same for every seed, or clips at random."""
        if split == "sequences":
            return folds(self.samples, FOLDS, seed=0)
        apart = folds([replace(sample, group=str(sample.path)) for sample in self.samples], FOLDS, seed)
        groups = {sample.path: sample.group for sample in self.samples}
        return [[replace(sample, group=groups[sample.path]) for sample in fold] for fold in apart]

    def tested(self, bundle: Path, samples: list[Sample]) -> dict[str, Any]:
        """Return how many videos a bundle has right: on whole clips, on views, and through the exported graphs."""
        whole = predict(bundle, samples, progress=lambda *_: None)
        export(bundle)
        exported = predict(bundle, samples, runner="auto", progress=lambda *_: None)
        views = predict(bundle, samples, views=VIEWS, progress=lambda *_: None)
        return {
            "videos": len(samples),
            "correct": _right(whole),
            "correct_exported": _right(exported),
            "labels_changed": sum(a.label != b.label for a, b in zip(whole, exported, strict=True)),
            "correct_views": _right(views),
            "wrong": [p.path.name for p in whole if p.label != p.truth],
            "wrong_views": [p.path.name for p in views if p.label != p.truth],
        }

    def choice(self, number: int, fold: Sequence[Sample]) -> str:
        """Return which settings are best on inner folds of an outer fold's training sequences, by one seed."""
        known: dict[str, str] = self.content["chosen"]
        if str(number) not in known:
            inside = [sample for sample in fold if sample.split == "train"]
            scores = dict.fromkeys(CHOICES, 0)
            for name, changes in CHOICES.items():
                for inner in folds(inside, INNER_FOLDS, seed=0):
                    bundle = self.trained(inner, FROZEN | changes, seed=0)
                    tests = [sample for sample in inner if sample.split == "test"]
                    scores[name] += _right(predict(bundle, tests, progress=lambda *_: None))
            known[str(number)] = max(scores, key=lambda name: scores[name])
            self.content.setdefault("inner_correct", {})[str(number)] = scores
            self.save()
        return known[str(number)]

    def save(self) -> None:
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
        facts["labels_changed_by_export"] = sum(row["labels_changed"] for row in tested)
        facts["most_apart_in_a_fold"] = max(abs(row["correct"] - row["correct_exported"]) for row in tested)
        told.append(facts)
    return told


def _right(predictions: Sequence[Prediction]) -> int:
    return sum(p.label == p.truth for p in predictions)


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
    found = grouped(scan_folders(options.clips), SEQUENCE)
    samples, problems = inspect(found)
    if problems:
        raise SystemExit(f"{len(problems)} videos cannot be read: {next(iter(problems))}")
    study = Study(options.json, options.work, samples, options.encoder_weights)
    for seed in range(options.seeds):
        for split in ("sequences", "random"):
            for model in options.models:
                if model != CHOSEN or split == "sequences":
                    study.run(model, split, seed)


if __name__ == "__main__":
    main()
