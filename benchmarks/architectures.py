"""Six architectures on real clips: UT-Interaction, ten folds, several seeds, sequences held out and not.

    python -m benchmarks.architectures CLIPS --encoder-weights mobilenet_v2.pth

CLIPS is a class-per-folder tree whose names carry the filmed sequence, set1_<id>_<sequence>_<class>.avi. Every fold is
trained by ``training.fit`` and tested with PyTorch on whole clips and on six views of each. Those of the first seed are
exported with proof too, and tested again through the exported graphs. A fold's figures go to the results as soon as it
is done; the same command goes on where it stopped, seed by seed. A split at random has one seed.
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

import numpy as np
import torch

from harec_deploy.bundle import load as load_bundle
from harec_deploy.export import export
from harec_deploy.files import atomic_write
from harec_deploy.loading import load
from harec_deploy.models import from_bundle
from training.datasets import Manifest, Sample, grouped, inspect, scan_folders
from training.features import Grid, Source, stored_frames
from training.fit import SILENT, fit
from training.metrics import bootstrap
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
    "ConvLSTM": {"architecture": "convlstm", "optimisation": {"epochs": 20, "batch": 16, "learning_rate": 3e-3}},
    "3D-CNN + LSTM": {"architecture": "cnn3d_lstm", "optimisation": {"epochs": 20, "batch": 16, "amp": "bf16"}},
    "I3D-R50 + LSTM, from scratch": {
        "architecture": "i3d_r50_lstm",
        "sampling": {"frames": 8},
        "size": {"width": 64, "height": 64},
        "optimisation": {"epochs": 10, "batch": 16, "amp": "bf16"},
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

    def trained(self, samples: Sequence[Sample], settings: dict[str, Any], seed: int) -> tuple[Path, Recipe]:
        """Train on one split, anew, and return the bundle."""
        weights = str(self.encoder_weights) if settings["architecture"] == PRETRAINED else None
        recipe = to_recipe(RecipeFile(**settings, encoder_weights=weights, seed=seed))
        run = self.work / "run"
        shutil.rmtree(run, ignore_errors=True)
        return fit(samples, recipe, run, SILENT, cache=self.work / "cache"), recipe

    def run(self, model: str, split: str, seed: int) -> None:
        """Train and test every fold that has no row yet."""
        for number, fold in enumerate(self.splits(split, seed)):
            place = {"model": model, "split": split, "seed": seed, "fold": number}
            if any(place.items() <= row.items() for row in self.content["rows"]):
                continue
            start = time.perf_counter()
            settings = MODELS[model] if model in MODELS else FROZEN | CHOICES[self.choice(number, fold)]
            tests = [sample for sample in fold if sample.split == "test"]
            told = self.tested(*self.trained(fold, settings, seed), tests, exported=split == "sequences" and seed == 0)
            row = {**place, **told, "seconds": round(time.perf_counter() - start, 1)}
            self.content["rows"].append(row)
            self.save()
            print(*place.values(), f"{len(row['wrong'])} of {row['videos']} wrong, {row['seconds']} s")

    def splits(self, split: str, seed: int) -> list[list[Sample]]:
        """Return the folds: whole sequences held out, the same for every seed, or clips at random."""
        if split == "sequences":
            return folds(self.samples, FOLDS, seed=0)
        apart = folds([replace(sample, group=str(sample.path)) for sample in self.samples], FOLDS, seed)
        groups = {sample.path: sample.group for sample in self.samples}
        return [[replace(sample, group=groups[sample.path]) for sample in fold] for fold in apart]

    def tested(self, bundle: Path, recipe: Recipe, samples: list[Sample], *, exported: bool) -> dict[str, Any]:
        """Return what a bundle has wrong, on whole clips and on views; with ``exported``, what its graphs label anew.

        Frames, and features of a frozen encoder, are those that training stored: the decoder's, at the same times.
        """
        checked, paths = load_bundle(bundle), [sample.path for sample in samples]
        model = from_bundle(checked)
        source, net = source_for(model, Manifest(tuple(samples)), recipe, SILENT, self.work / "cache")
        net.eval()
        grid = Grid(recipe.sampling, recipe.size)

        def clips(shift: int, *, mirror: bool = False, of: Source = source) -> torch.Tensor:
            return torch.stack([of.clip(place, grid.middle() + shift, mirror=mirror) for place in range(len(paths))])

        with torch.inference_mode():
            views = [net(clips(shift, mirror=mirror)).softmax(-1) for shift in (0, -1, 1) for mirror in (False, True)]
        truths = np.array([checked.spec.classes.index(sample.label) for sample in samples])
        labels = [views[0].argmax(1).numpy(), torch.stack(views).mean(0).argmax(1).numpy()]
        told: dict[str, Any] = {"videos": len(samples)}
        for name, own in zip(("wrong", "wrong_views"), labels, strict=True):
            told[name] = [paths[place].name for place in np.flatnonzero(own != truths)]
        if exported:
            export(bundle)
            frames = clips(0, of=stored_frames(paths, grid, self.work / "cache", SILENT.step)).numpy()
            again = load(bundle).predict(frames).argmax(1)
            told["labels_changed"] = int((again != labels[0]).sum())
            told["wrong_exported"] = int((again != truths).sum())
        return told

    def choice(self, number: int, fold: Sequence[Sample]) -> str:
        """Return which settings are best on inner folds of an outer fold's training sequences, by one seed."""
        known: dict[str, str] = self.content["chosen"]
        if str(number) not in known:
            inside = [sample for sample in fold if sample.split == "train"]
            scores = dict.fromkeys(CHOICES, 0)
            for name, changes in CHOICES.items():
                for inner in folds(inside, INNER_FOLDS, seed=0):
                    tests = [sample for sample in inner if sample.split == "test"]
                    told = self.tested(*self.trained(inner, FROZEN | changes, seed=0), tests, exported=False)
                    scores[name] += len(tests) - len(told["wrong"])
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
        if exported := [row for row in tested if "wrong_exported" in row]:
            facts["folds_exported"] = len(exported)
            facts["labels_changed_by_export"] = sum(row["labels_changed"] for row in exported)
            facts["most_apart_in_a_fold"] = max(abs(len(row["wrong"]) - row["wrong_exported"]) for row in exported)
        told.append(facts)
    return told


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
            for model in options.models if split == "sequences" or seed == 0 else ():
                if model != CHOSEN or split == "sequences":
                    study.run(model, split, seed)


if __name__ == "__main__":
    main()
