"""What predictions are worth: accuracy with its intervals, scores by class and group, what is taken for what."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harec_deploy.errors import UsageError
from harec_deploy.intervals import bootstrap, wilson
from training.calibration import Reliability, reliability

FAILED = "(failed)"  # the label of a video that has none
TOP = 5
EXAMPLES = 3  # videos named for each pair of classes that are confused


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a video is and what it was taken for.

    uncalibrated: label and score at temperature 1, None where they are not known. The label may be another one where
    probabilities of several views were averaged.
    top: the TOP most probable classes, the first first; fewer where they are not known.
    group: what its clips were filmed with; "" if unknown.
    """

    path: Path
    truth: str
    label: str
    score: float
    uncalibrated: tuple[str, float] | None = None
    top: tuple[str, ...] = ()
    group: str = ""


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Precision, recall and F1 of one class, each 0 where it is undefined; count: its videos."""

    name: str
    precision: float
    recall: float
    f1: float
    count: int


@dataclass(frozen=True, slots=True)
class Average:
    """Precision, recall and F1 averaged over classes."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class Confused:
    """A class that is taken for another: how often, the share of its videos, and some of them."""

    truth: str
    label: str
    count: int
    share: float
    examples: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class GroupScore:
    """How many videos of a group there are, and how many are right."""

    name: str
    correct: int
    count: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Predictions summed up.

    confusion: int64 (C, C), rows are the truth, columns the label. about: what was measured, in words.
    """

    classes: list[str]
    predictions: list[Prediction]
    confusion: NDArray[np.int64]
    about: str = ""

    @property
    def correct(self) -> int:
        """Videos whose label is the truth."""
        return int(np.trace(self.confusion))

    @property
    def accuracy(self) -> float:
        """Share of videos whose label is the truth."""
        return self.correct / len(self.predictions)

    @property
    def top_5(self) -> float | None:
        """Share of videos whose truth is among the five most probable classes; None where those are not known."""
        wanted = min(TOP, len(self.classes))
        known = [p for p in self.predictions if p.label != FAILED]
        if not known or any(len(p.top) < wanted for p in known):
            return None
        return sum(p.truth in p.top[:TOP] for p in known) / len(self.predictions)

    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval of the accuracy by ``bootstrap`` over groups, and over videos that have none.

        None where there are too few. Several runs may have labelled the same video: it is drawn with all its labels.
        """
        drawn = self.drawn()
        return bootstrap([p.label == p.truth for p in self.predictions], [drawn[p.path] for p in self.predictions])

    def drawn(self) -> dict[Path, str]:
        """Return what ``bootstrap`` draws each video with: its group if several are known, else itself."""
        several = len({p.group for p in self.predictions} - {""}) > 1
        return {p.path: p.group if several and p.group else str(p.path) for p in self.predictions}

    def wilson(self) -> tuple[float, float]:
        """Return the 95 % interval of the accuracy if all videos have nothing in common; each counts once."""
        count = len({p.path for p in self.predictions})
        return wilson(self.accuracy * count, count)

    def by_group(self) -> list[GroupScore]:
        """Return every group's score, the worst first; none where no group is known."""
        hits: dict[str, list[bool]] = defaultdict(list)
        for p in self.predictions:
            if p.group:
                hits[p.group].append(p.label == p.truth)
        scores = [GroupScore(name, sum(each), len(each)) for name, each in sorted(hits.items())]
        return sorted(scores, key=lambda score: score.correct / score.count)

    def most_confused(self, limit: int = 20) -> list[Confused]:
        """Return the pairs of truth and wrong label with the most videos, the largest first."""
        paths: dict[tuple[str, str], list[Path]] = defaultdict(list)
        for p in self.predictions:
            if p.label != p.truth:
                paths[p.truth, p.label].append(p.path)
        totals = Counter(p.truth for p in self.predictions)
        pairs = [
            Confused(truth, label, len(each), len(each) / totals[truth], tuple(each[:EXAMPLES]))
            for (truth, label), each in sorted(paths.items())
        ]
        return sorted(pairs, key=lambda pair: (-pair.count, -pair.share))[:limit]

    def macro(self) -> Average:
        """Return the mean over classes that have videos, each counting the same."""
        return self._averaged(lambda score: 1.0)

    def weighted(self) -> Average:
        """Return the mean over classes, each counting by its videos."""
        return self._averaged(lambda score: float(score.count))

    def _averaged(self, weight: Callable[[ClassScore], float]) -> Average:
        scores = [score for score in self.by_class() if score.count]
        total = sum(map(weight, scores))

        def mean(values: Iterable[float]) -> float:
            return sum(weight(score) * value for score, value in zip(scores, values, strict=True)) / total

        return Average(
            mean(score.precision for score in scores),
            mean(score.recall for score in scores),
            mean(score.f1 for score in scores),
        )

    def reliability(self, *, calibrated: bool = True) -> Reliability | None:
        """Return how often labels are right by their score, or by that at temperature 1.

        Videos that failed have no score and do not count. Of one that is "unknown" the score is its best class's, which
        is judged. None where no score is known.
        """
        answers = [
            (p.truth, (p.top[0] if p.top else p.label, p.score) if calibrated else p.uncalibrated)
            for p in self.predictions
            if p.label != FAILED
        ]
        known = [(answer[1], answer[0] == truth) for truth, answer in answers if answer is not None]
        return reliability(*zip(*known, strict=True)) if known else None

    def by_class(self) -> list[ClassScore]:
        """Return the scores of every class."""
        scores = []
        for index, name in enumerate(self.classes):
            hits, count, taken = (
                float(self.confusion[index, index]),
                int(self.confusion[index].sum()),
                int(self.confusion[:, index].sum()),
            )
            precision, recall = hits / taken if taken else 0.0, hits / count if count else 0.0
            f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
            scores.append(ClassScore(name, precision, recall, f1, count))
        return scores


def summed_up(classes: Sequence[str], predictions: Sequence[Prediction]) -> Evaluation:
    """Count predictions into an Evaluation.

    Raises:
        UsageError: there are none.
    """
    if not predictions:
        raise UsageError("nothing to evaluate: no videos in this split")
    names = sorted({*classes, *(p.truth for p in predictions), *(p.label for p in predictions)})
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    for p in predictions:
        confusion[names.index(p.truth), names.index(p.label)] += 1
    return Evaluation(names, list(predictions), confusion)


def pooled(every: Sequence[Evaluation]) -> Evaluation:
    """Return the evaluation of all predictions together: of the folds of a run."""
    classes = {name for each in every for name in each.classes}
    together = summed_up(sorted(classes), [p for each in every for p in each.predictions])
    return replace(together, about=f"{every[0].about}; {len(every)} runs together")


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, float]:
    """Compare two models on the same videos (McNemar 1947, the exact binomial form).

    first, second: whether each video is right. Returns how many only the first and only the second has right, and the
    probability of so uneven a count, or a more uneven one, if they were equally good.
    """
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    count = only_first + only_second
    tail = sum(math.comb(count, k) for k in range(min(only_first, only_second) + 1))
    return only_first, only_second, min(1.0, 2 * tail / 2**count)


def holm(probabilities: Sequence[float]) -> list[float]:
    """Return the probabilities of several tests, corrected for there being several (Holm 1979), in the same order.

    Of m tests the smallest counts m times, the next m - 1 times, and none less than one that is smaller.
    """
    order = sorted(range(len(probabilities)), key=lambda place: probabilities[place])
    corrected, least = [0.0] * len(order), 0.0
    for done, place in enumerate(order):
        least = max(least, min(1.0, (len(order) - done) * probabilities[place]))
        corrected[place] = least
    return corrected
