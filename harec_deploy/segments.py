"""Windows become segments: the labels of overlapping windows, smoothed and merged into spans of time.

windows     |----a----|                       overlapping; each speaks for the time around its middle
|----a----|
|----b----|
segments    |-----a------|---b--|             they tile the video, none shorter than asked for
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from harec_deploy.sampling import Window

UNKNOWN = "unknown"  # the label of what no class is probable enough for
_TINY = 1e-9
_SLACK_S = 1e-6  # of times that are sums
_NEW_RUN = 1e-6  # what a run costs, so that of equal labellings the one of fewer segments is taken


@dataclass(frozen=True, slots=True)
class Segment:
    """One label over the half-open span [start_s, end_s) of a video; score: its mean probability there."""

    start_s: float
    end_s: float
    label: str
    score: float


def label_of(name: str, score: float, min_score: float) -> str:
    """Return the class, or "unknown" where its probability is below ``min_score``."""
    return name if score >= min_score else UNKNOWN


def merge(
    windows: Sequence[Window],
    probabilities: NDArray[np.float32],
    classes: Sequence[str],
    *,
    smooth: int = 1,
    min_segment_s: float = 0.0,
    min_score: float = 0.0,
) -> tuple[Segment, ...]:
    """Merge windows (ascending) with their probabilities, float32 (W, C), into segments that tile their span.

    smooth: probabilities are averaged over so many neighbouring windows before labels are chosen, an odd number.
    min_segment_s: no label lasts for less, unless the video does. Among all labellings that keep to this, the one with
        the greatest sum of log probabilities is taken, which dynamic programming finds exactly.
    min_score: segments below it are "unknown", and join where they meet.
    """
    middles = np.asarray(windows, dtype=np.float64).mean(1)
    borders = [windows[0].start_s, *((middles[1:] + middles[:-1]) / 2).tolist(), windows[-1].end_s]
    chosen = best_labels(smoothed(probabilities, smooth), borders, min_segment_s)
    runs: list[tuple[str, int, int]] = []
    start = 0
    for label, group in groupby(chosen.tolist()):
        end = start + len(list(group))
        score = float(probabilities[start:end, label].mean())
        runs.append((label_of(classes[label], score, min_score), start, end))
        start = end
    found = []
    for name, joined in groupby(runs, key=lambda run: run[0]):
        spans = list(joined)
        start, end = spans[0][1], spans[-1][2]
        own = [float(probabilities[i, chosen[i]]) for i in range(start, end)]
        found.append(Segment(borders[start], borders[end], name, float(np.mean(own))))
    return tuple(found)


def smoothed(probabilities: NDArray[np.float32], count: int) -> NDArray[np.float64]:
    """Return the mean of each row, (W, C), with its neighbours in a span of ``count`` rows, fewer at the ends."""
    sums = np.concatenate([np.zeros((1, probabilities.shape[1])), probabilities.cumsum(0, dtype=np.float64)])
    place = np.arange(len(probabilities))
    low, high = np.maximum(place - count // 2, 0), np.minimum(place + count // 2 + 1, len(probabilities))
    return np.asarray((sums[high] - sums[low]) / (high - low)[:, None])


def best_labels(probabilities: NDArray[np.float64], borders: Sequence[float], shortest_s: float) -> NDArray[np.int64]:
    """Return the labels, int64 (W,), with the greatest sum of log probabilities in runs of at least ``shortest_s``.

    borders: W + 1 ascending times in seconds, between which the windows speak.
    """
    count, classes = probabilities.shape
    shortest_s = min(shortest_s, borders[-1] - borders[0]) - _SLACK_S
    sums = np.concatenate([np.zeros((1, classes)), np.log(np.maximum(probabilities, _TINY)).cumsum(0)])
    best = np.full(count + 1, -np.inf)  # of the first so many windows
    best[0] = 0.0
    begun, label = np.zeros(count + 1, dtype=np.int64), np.zeros(count + 1, dtype=np.int64)  # the run that ends there
    offer, offered_at = np.full(classes, -np.inf), np.zeros(classes, dtype=np.int64)  # best start so far, by class
    start = 0  # the next that a run may have begun at
    for end in range(1, count + 1):
        while start < end and borders[end] - borders[start] >= shortest_s:
            gain = best[start] - sums[start] - _NEW_RUN
            offered_at[gain > offer] = start
            offer = np.maximum(gain, offer)
            start += 1
        total = sums[end] + offer
        label[end] = total.argmax()
        best[end], begun[end] = total[label[end]], offered_at[label[end]]
    chosen = np.zeros(count, dtype=np.int64)
    end = count
    while end:
        chosen[begun[end] : end] = label[end]
        end = int(begun[end])
    return chosen
