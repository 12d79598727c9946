"""Scores that mean what they say: of the labels with a score of 0.8, four in five should be right.

The temperature of Guo et al. 2017, "On Calibration of Modern Neural Networks" (https://arxiv.org/abs/1706.04599): one
number that logits are divided by before the softmax. It moves scores and leaves every label as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

BINS = 15  # as in the paper
MIN_CLIPS = 30  # with fewer, the fitted temperature is as likely to harm as to help unless the scores are far off
LOW, HIGH = 0.05, 20.0


@dataclass(frozen=True, slots=True)
class Reliability:
    """Labels counted by score, in BINS bins of equal width, each open below and closed above.

    count: int64 (BINS,), labels. score, accuracy: float64 (BINS,), their mean score and the share that is right, 0 in
    an empty bin.
    """

    count: NDArray[np.int64]
    score: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def ece(self) -> float:
        """Expected calibration error: how far score and accuracy are apart, averaged over labels."""
        return float(np.average(np.abs(self.score - self.accuracy), weights=self.count))


def reliability(scores: ArrayLike, right: ArrayLike) -> Reliability:
    """Sum up labels by their scores (N,), 0 to 1, and whether each is right, bool (N,); there must be at least one."""
    values, hits = np.asarray(scores, dtype=np.float64), np.asarray(right, dtype=np.float64)
    bins = np.searchsorted(np.arange(1, BINS) / BINS, values)
    count = np.bincount(bins, minlength=BINS)
    each = np.maximum(count, 1)
    return Reliability(
        count, np.bincount(bins, values, minlength=BINS) / each, np.bincount(bins, hits, minlength=BINS) / each
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The temperature and what it was fitted on.

    videos: of the validation split. nll, ece: negative log likelihood and expected calibration error of these videos
    at temperature 1 and at the temperature, None where nothing was measured. note: what was done, in one line.
    """

    temperature: float = 1.0
    videos: int = 0
    nll_before: float | None = None
    nll_after: float | None = None
    ece_before: float | None = None
    ece_after: float | None = None
    note: str


def calibrate(net: nn.Module, clips: DataLoader[Any] | None) -> Calibration:
    """Fit the temperature of a trained net, float32 logits (B, C) out, on the clips of the validation split."""
    if clips is None:
        return Calibration(note="temperature stays 1: no validation split to fit it on")
    net.eval()
    device = next(net.parameters()).device
    with torch.inference_mode():
        parts = [(net(batch.to(device)).cpu(), labels) for batch, labels in clips]
    return fit_temperature(torch.cat([logits for logits, _ in parts]), torch.cat([labels for _, labels in parts]))


def fit_temperature(logits: Tensor, labels: Tensor) -> Calibration:
    """Find the temperature with the least negative log likelihood of labels int64 (N,) by logits float32 (N, C).

    It stays 1 with fewer than MIN_CLIPS clips, and wherever no other is better. From LOW to HIGH all are allowed, but
    N clips cannot show that a label is wrong less often than once in N + 2 (the rule of succession), so a mean score
    above that is not fitted. Without this limit a split whose labels are all right would drive every score to 1.
    """
    values, count = logits.double(), len(labels)
    if count < MIN_CLIPS:
        return Calibration(videos=count, note=f"temperature stays 1: {count} validation videos, {MIN_CLIPS} are needed")
    if not bool(values.isfinite().all()):
        return Calibration(videos=count, note="temperature stays 1: the model's logits are not finite")
    true = values.gather(1, labels[:, None])[:, 0]

    def slope(temperature: float) -> float:  # of the likelihood by 1 / temperature: 0 where it is best
        return float(((values / temperature).softmax(1).mul(values).sum(1) - true).mean())

    def surplus(temperature: float) -> float:
        return float((values / temperature).softmax(1).amax(1).mean()) - (count + 1) / (count + 2)

    best, lowest = _root(slope), min(_root(surplus), 1.0)
    return _measured(values, labels, max(best, lowest), limited=best < lowest)


def _measured(logits: Tensor, labels: Tensor, temperature: float, *, limited: bool) -> Calibration:
    def measure(at: float) -> tuple[float, float]:
        scores, found = (logits / at).softmax(1).max(1)
        return float(nn.functional.cross_entropy(logits / at, labels)), reliability(scores, found == labels).ece

    if not measure(temperature)[0] < measure(1.0)[0]:
        temperature = 1.0
    before, after = measure(1.0), measure(temperature)
    right = int((logits.argmax(1) == labels).sum())
    note = "temperature stays 1" if temperature == 1.0 else f"temperature {temperature:.3g}"
    note += f", fitted on {len(labels)} validation videos, {right} of them right"
    if limited:
        note += "; they ask for less, but so few cannot show that scores should be higher"
    elif temperature in (LOW, HIGH):
        note += "; they ask for more than is allowed"
    return Calibration(
        temperature=temperature,
        videos=len(labels),
        nll_before=before[0],
        nll_after=after[0],
        ece_before=before[1],
        ece_after=after[1],
        note=f"{note}; NLL {before[0]:.3f} -> {after[0]:.3f}, ECE {before[1]:.1%} -> {after[1]:.1%}",
    )


def _root(falling: Callable[[float], float]) -> float:
    """Return where a falling function of the temperature crosses 0, or the end of the range that is nearer to it."""
    low, high = LOW, HIGH
    if falling(low) <= 0:
        return low
    if falling(high) >= 0:
        return high
    while high / low > 1 + 1e-9:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return low
