"""Several runs beside each other on the same test videos: accuracy, size, arithmetic, speed.

All figures of a run are of one way to execute it on the CPU: the fastest of its exported variants that passes its
proof, or PyTorch where nothing is exported.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from harec_deploy.bundle import SPEC_FILE, load
from harec_deploy.errors import UsageError
from harec_deploy.files import atomic_write
from harec_deploy.intervals import bootstrap
from harec_deploy.loading import clips_per_s
from harec_deploy.loading import load as load_recognizer
from harec_deploy.machine import cpu
from harec_deploy.recognizer import Recognizer
from training.costs import Cost, cost
from training.datasets import Sample, read_manifest
from training.evaluate import Progress, deployed, labelled, run_folders, write_csv
from training.metrics import Evaluation, holm, mcnemar, summed_up

ROUNDS, ROUND_S = 5, 0.4  # of timing; rounds of the runs take turns, so that what else the machine does hits them alike
SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class Contender:
    """What is compared: a run or the folds of one, and the samples of the split, of all folds together."""

    name: str
    samples: dict[Path, list[Sample]]  # by the folder of the fold

    @property
    def truths(self) -> dict[Path, str]:
        """Every video's class, in the order of the manifests."""
        return {sample.path: sample.label for fold in self.samples.values() for sample in fold}


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured of one contender, of its first fold where it is not accuracy.

    way: what executed it. clips_per_s: the median of ``rounds``, on the CPU.
    weights_bytes: of the PyTorch weights. variant_bytes: of the files that were executed.
    """

    name: str
    way: str
    evaluation: Evaluation
    cost: Cost
    rounds: list[float]
    weights_bytes: int
    variant_bytes: int

    @property
    def clips_per_s(self) -> float:
        """Clips a second, the median of all rounds."""
        return median(self.rounds)

    @property
    def ece(self) -> float | None:
        """Expected calibration error of the scores, None where there are none."""
        facts = self.evaluation.reliability()
        return facts.ece if facts else None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two contenders, the better one first.

    only_first, only_second: videos that only one of them has right.
    p: by McNemar's test, which takes videos as independent. p_holm: corrected for all pairs.
    difference: of their accuracies, with its 95 % interval by bootstrap over groups, None where they are too few.
    """

    first: str
    second: str
    only_first: int
    only_second: int
    p: float
    p_holm: float
    difference: float
    difference_low: float | None
    difference_high: float | None

    def __str__(self) -> str:
        verdict = "is better than" if self.p_holm < SIGNIFICANT else "is not shown to be better than"
        sure = "too few groups for an interval"
        if self.difference_low is not None and self.difference_high is not None:
            sure = f"95 % between {100 * self.difference_low:+.1f} and {100 * self.difference_high:+.1f}"
        return (
            f"{self.first} {verdict} {self.second}: {self.only_first} videos only the first has right, "
            f"{self.only_second} only the second (McNemar p {self.p:.2g}, with Holm's correction {self.p_holm:.2g}); "
            f"{100 * self.difference:+.1f} points, {sure}"
        )


def contenders(named: Sequence[Path], split: str) -> list[Contender]:
    """Return what the folders hold: runs, runs of folds, or the bundles of runs.

    Raises:
        UsageError: fewer than two runs, the same twice, no run in a folder, or no videos in its split; splits that are
            not the same videos of the same classes.
    """
    runs = [folder.parent if (folder / SPEC_FILE).is_file() else folder for folder in named]
    if len({run.resolve() for run in runs}) < max(len(runs), 2):
        raise UsageError("compare takes two runs or more, each once; python -m training evaluate measures one")
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    found = [
        Contender(name, {fold: list(read_manifest(fold / "manifest.csv").only(split).samples) for fold in folds})
        for name, folds in zip(names, (run_folders([run]) for run in runs), strict=True)
    ]
    for other in found:
        if not other.truths:
            raise UsageError(f"{other.name}: no videos in split {split!r}")
        _same_videos(found[0], other, split)
    return found


def _same_videos(one: Contender, other: Contender, split: str) -> None:
    for here, there in ((one, other), (other, one)):
        for path, truth in here.truths.items():
            told = f"{path} is in split {split!r} of {here.name}"
            if path not in there.truths:
                raise UsageError(f"{told} and not of {there.name}: compare what was tested on the same videos")
            if there.truths[path] != truth:
                raise UsageError(f"{told} as {truth!r} and of {there.name} as {there.truths[path]!r}: mend a manifest")


def compare(
    every: Sequence[Contender],
    *,
    runner: str = "auto",
    precision: str = "auto",
    variant: str = "auto",
    progress: Progress,
) -> list[Result]:
    """Measure every contender.

    runner, precision, variant: what executes all of them, as for ``loading.load``.

    Raises:
        UsageError: a bundle cannot be run like that.
        VideoError: a video cannot be decoded.
    """
    loaded = [_loaded(each, runner, precision, variant) for each in every]
    rounds = [[clips_per_s(recognizer, ROUND_S) for recognizer in loaded] for _ in range(ROUNDS)]
    return [
        _measured(each, recognizer, list(times), progress)
        for each, recognizer, times in zip(every, loaded, zip(*rounds, strict=True), strict=True)
    ]


def _loaded(contender: Contender, runner: str, precision: str, variant: str) -> Recognizer:
    """Return the first fold's recogniser, by PyTorch where no other is asked for and not every fold is exported."""
    bundles = [folder / "bundle" for folder in contender.samples]
    exported = all(any(v.is_onnx for v in load(bundle).spec.variants.values()) for bundle in bundles)
    if (runner, variant) == ("auto", "auto") and not exported:
        runner = "torch"
    return load_recognizer(bundles[0], runner=runner, precision=precision, variant=variant, device="cpu")


def _measured(contender: Contender, recognizer: Recognizer, rounds: list[float], progress: Progress) -> Result:
    way, predictions = recognizer.execution, []
    name, precision, variant = way.runner.name, way.precision, way.variant
    for number, (folder, samples) in enumerate(contender.samples.items()):
        fold = recognizer
        if number:
            fold = load_recognizer(folder / "bundle", runner=name, precision=precision, variant=variant, device="cpu")
        predictions += labelled(deployed(fold), samples, progress=progress)
    spec = recognizer.spec
    return Result(
        contender.name,
        str(way),
        summed_up(spec.classes, predictions),
        cost(spec.architecture, spec.head, len(spec.classes), frames=spec.sampling.frames, size=spec.size),
        rounds,
        spec.weights.size,
        spec.variant_bytes(way.variant),
    )


def pairs(results: Sequence[Result]) -> list[Pair]:
    """Test all pairs of results on the same videos for a difference that is more than chance."""
    ranked = sorted(results, key=lambda result: -result.evaluation.accuracy)
    hits = {result.name: {p.path: p.label == p.truth for p in result.evaluation.predictions} for result in ranked}
    groups = ranked[0].evaluation.drawn()
    tests = []
    for one, other in combinations(hits, 2):
        first, second = ([hits[name][path] for path in groups] for name in (one, other))
        gained = [int(a) - int(b) for a, b in zip(first, second, strict=True)]
        interval = bootstrap(gained, list(groups.values())) or (None, None)
        tests.append((one, other, mcnemar(first, second), (sum(gained) / len(gained), *interval)))
    corrected = holm([p for _, _, (_, _, p), _ in tests])
    return [
        Pair(one, other, *counted, p_holm, *difference)
        for (one, other, counted, difference), p_holm in zip(tests, corrected, strict=True)
    ]


def as_row(result: Result) -> dict[str, Any]:
    """Return a result by column; the intervals are of 95 %, Wilson's and that of drawing groups anew."""
    found = result.evaluation
    low, high = found.wilson()
    by_group = found.interval() or (None, None)
    return {
        "run": result.name,
        "correct": found.correct,
        "accuracy": found.accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "by_group_low": by_group[0],
        "by_group_high": by_group[1],
        "ece": result.ece,
        "architecture": result.cost.architecture,
        "parameters": result.cost.parameters,
        "gflops_per_clip": result.cost.flops / 1e9,
        "cpu_clips_per_s": result.clips_per_s,
        "weights_mb": result.weights_bytes / 1e6,
        "variant_mb": result.variant_bytes / 1e6,
        "run_by": result.way,
    }


def write(results: Sequence[Result], tested: Sequence[Pair], split: str, folder: Path) -> None:
    """Write comparison.csv, pairs.csv, and comparison.json with both and the machine that was measured on."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [as_row(result) for result in results]
    write_csv(folder / "comparison.csv", list(rows[0]), [list(row.values()) for row in rows])
    write_csv(folder / "pairs.csv", [field.name for field in fields(Pair)], map(astuple, tested))
    facts = {
        "split": split,
        "videos": len(results[0].evaluation.predictions),
        "groups": len(results[0].evaluation.by_group()),
        "machine": cpu(),
        "runs": [row | {"cpu_clips_per_s_rounds": one.rounds} for row, one in zip(rows, results, strict=True)],
        "pairs": tested,
    }
    with atomic_write(folder / "comparison.json") as stream:
        stream.write(msgspec.json.format(msgspec.json.encode(facts), indent=2))
