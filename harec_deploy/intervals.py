"""How sure a figure is that rests on few samples."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

BOOTSTRAPS = 2000  # resamples: the interval's ends then move by less than a tenth of its width
_TAIL = (1, 40)  # of either side of a 95 % interval, as a fraction


def wilson(correct: float, count: float, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share (Wilson 1927), which holds for few samples and near 0 and 1."""
    share, spread = correct / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / count + spread / (4 * count)) ** 0.5
    return max(centre - half, 0.0), min(centre + half, 1.0)


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the median of what ``values`` were drawn from, or None if they are too few.

    Order statistics (Thompson 1936): each value falls below the median with chance 1/2, whatever the distribution, so
    the k-th from either end encloses it unless fewer than k values fall on that side.
    """
    rank = _rank(len(values))
    ordered = sorted(values)
    return (ordered[rank - 1], ordered[-rank]) if rank else None


@cache
def _rank(count: int) -> int:
    """Return the largest k with P(Bin(count, 1/2) < k) <= 1/40, in whole numbers."""
    rank, below, term = 0, 0, 1
    part, whole = _TAIL
    while (below + term) * whole <= part << count:
        below += term
        rank += 1
        term = term * (count - rank + 1) // rank
    return rank


def grouped_median_interval(groups: Sequence[NDArray[np.float64]]) -> tuple[float, float] | None:
    """Return the 95 % interval of the median of values that come in groups, or None of fewer than 6 groups.

    Values of a group may have much in common, so it is the groups that are samples (Woodruff 1952): by how much the
    share of values up to the median goes from group to group tells how unsure that share is, and the values at its two
    bounds are those of the median. It is never taken for surer than that of as many values with nothing in common.
    """
    count = len(groups)
    if not _rank(count):
        return None
    ordered = np.sort(np.concatenate(groups))
    total, median = len(ordered), np.median(ordered)
    below = np.array([(each <= median).sum() for each in groups], dtype=np.float64)
    sizes = np.array([len(each) for each in groups], dtype=np.float64)
    apart = float(((below - below.sum() / total * sizes) ** 2).sum()) * count / (count - 1)
    half = _student(count - 1) * max(math.sqrt(apart), math.sqrt(total) / 2)  # in values
    low, high = math.floor(total / 2 - half) - 1, math.ceil(total / 2 + half)
    return float(ordered[max(low, 0)]), float(ordered[min(high, total - 1)])


def ratio_interval(over: Sequence[float], under: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of sum(over) / sum(under) of pairs that were drawn together, or None of fewer than 6.

    By the variance of a ratio estimator (Cochran 1953): how far each pair is from the ratio of all.
    """
    count, total = len(under), math.fsum(under)
    if not _rank(count):
        return None
    ratio = math.fsum(over) / total
    apart = math.fsum((a - ratio * b) ** 2 for a, b in zip(over, under, strict=True)) * count / (count - 1)
    half = _student(count - 1) * math.sqrt(apart) / total
    return ratio - half, ratio + half


def bootstrap(values: Sequence[float], groups: Sequence[str], seed: int = 0) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean of values by bootstrap over groups, or None of fewer than 6 groups.

    groups: that of each value, by name.
    Values of one group are alike, so groups are drawn, not values (Efron 1979). The percentiles are those further out
    that make up for groups being few (Hesterberg 2015, https://arxiv.org/abs/1411.5279, section 4.4).
    """
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    number = len(names)
    if not _rank(number):
        return None
    sums, count = np.bincount(members, np.asarray(values, dtype=np.float64)), np.bincount(members)
    drawn = np.random.default_rng(seed).integers(0, number, (BOOTSTRAPS, number))
    tail = 50 * math.erfc(math.sqrt(number / (number - 1) / 2) * _student(number - 1))
    low, high = np.percentile(sums[drawn].sum(1) / count[drawn].sum(1), [tail, 100 - tail])
    return float(low), float(high)


def _student(freedom: int) -> float:
    """Return what 97.5 % of Student's t are below, for 5 degrees of freedom and more (Fisher and Cornish 1960)."""
    z = 1.959964
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
