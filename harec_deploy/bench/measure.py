"""Times and what they are worth: works that take turns until the interval of each median is narrow enough.

All works run once, then all again, so that whatever slows the machine for a while slows all of them; who begins changes
from round to round. Ratios are taken within a round, for the same reason.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from harec_deploy.errors import UsageError
from harec_deploy.intervals import grouped_median_interval

LEAST_ROUNDS = 6  # from so many on a median has an interval
P90_CALLS, P99_CALLS = 10, 100  # fewer calls have none beyond that share
_BINS = 12  # of a histogram

Key = TypeVar("Key")
Work = Callable[[], Sequence[float]]  # does its work once and returns the seconds of each call that it made


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When enough was measured.

    within: half the width of the 95 % interval of each median, ``Timing.interval``, as a share of the median.
    seconds: of measuring, at most; a round that has begun is ended, and there is always one.
    least: rounds, and least_calls: of each work; both count less than the seconds. most: rounds.
    turn_s: of a work in each round. warm_up_s: of each work before, at least one run.
    """

    within: float = 0.02
    seconds: float = 30.0
    least: int = LEAST_ROUNDS
    least_calls: int = 1
    most: int = 2000
    turn_s: float = 0.1
    warm_up_s: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.within < 1:
            raise UsageError(f"--within {self.within:.3g}: allowed are shares above 0 and below 100 %, such as 2%")
        if not 0 < self.seconds < math.inf:
            raise UsageError(f"--seconds {self.seconds:g}: allowed are values above 0")


@dataclass(frozen=True)
class Timing:
    """The seconds of every call of a work, by round."""

    rounds: tuple[tuple[float, ...], ...]

    @cached_property
    def calls(self) -> "np.ndarray[Any, np.dtype[np.float64]]":
        """Seconds of all calls, ascending: float64 (N,)."""
        return np.sort(np.concatenate([np.asarray(each, dtype=np.float64) for each in self.rounds]))

    @property
    def by_round(self) -> list[float]:
        """The median seconds of each round: calls of one round share what happened in it."""
        return [float(np.median(each)) for each in self.rounds]

    @property
    def median(self) -> float:
        """Seconds that half of all calls take less than."""
        return float(np.median(self.calls))

    @property
    def mean(self) -> float:
        """Seconds of a call on average."""
        return float(self.calls.mean())

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of ``median``, in seconds; None of fewer than LEAST_ROUNDS rounds.

        It is that of the median of all calls, with rounds for samples: see ``intervals.grouped_median_interval``.
        """
        return grouped_median_interval([np.asarray(each, dtype=np.float64) for each in self.rounds])

    @property
    def within(self) -> float:
        """Half the interval's width as a share of the median; infinite where there is no interval."""
        return (self.interval[1] - self.interval[0]) / 2 / self.median if self.interval else math.inf

    def percentile(self, share: float) -> float | None:
        """Return the seconds that ``share`` percent of the calls do not exceed; None where too few calls were made."""
        least = {90: P90_CALLS, 99: P99_CALLS}.get(int(share), 1)
        return float(np.percentile(self.calls, share)) if len(self.calls) >= least else None

    def histogram(self) -> tuple[list[int], list[float]]:
        """Return how many calls fall into each of equal bins, and the bins' edges in seconds.

        The slowest hundredth lies in the last bin, or one stall would leave all others in the first.
        """
        low, high = float(self.calls[0]), float(np.percentile(self.calls, 99))
        counts, edges = np.histogram(np.minimum(self.calls, high), bins=_BINS, range=(low, max(high, low + 1e-9)))
        return counts.tolist(), edges.tolist()


def ratios(first: Timing, other: Timing) -> list[float]:
    """Return how many times as fast as ``first`` the other was, in each round."""
    return [a / b for a, b in zip(first.by_round, other.by_round, strict=True)]


def interleave(
    works: Mapping[Key, Work],
    budget: Budget,
    *,
    progress: Callable[[int], None] = lambda rounds: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Key, Timing]:
    """Run works in turn, round by round, until all are known well enough or the budget is used up.

    Looking after each round whether the interval is narrow enough makes it a little too narrow; the least rounds and
    the ratios, which do not decide when to stop, keep that small.

    progress: called with the rounds that are done. clock: in seconds.
    """
    for work in works.values():
        _warm_up(work, budget.warm_up_s, clock)
    laps: dict[Key, list[tuple[float, ...]]] = {key: [] for key in works}
    order, rounds = deque(works), 0
    begun = clock()
    while True:
        for key in order:
            laps[key].append(_turn(works[key], budget.turn_s, clock))
        order.rotate(-1)
        rounds += 1
        progress(rounds)
        timings = {key: Timing(tuple(each)) for key, each in laps.items()}
        spent = clock() - begun
        if spent + spent / rounds > budget.seconds or rounds >= budget.most:
            return timings
        if rounds >= budget.least and all(_is_known(timing, budget) for timing in timings.values()):
            return timings


def _turn(work: Work, seconds: float, clock: Callable[[], float]) -> tuple[float, ...]:
    """Run a work for its time and return the seconds of its calls.

    The first run pays for what the work before left behind, in caches and in threads that still spin, so it counts
    only where there is no other.
    """
    begun = clock()
    first, calls = tuple(work()), list[float]()
    while clock() - begun < seconds:
        calls += work()
    return tuple(calls) or first


def _is_known(timing: Timing, budget: Budget) -> bool:
    return timing.within <= budget.within and len(timing.calls) >= budget.least_calls


def timed(work: Callable[[], object]) -> Work:
    """Return a work of one call: ``work``, which is done when it returns."""

    def run() -> tuple[float]:
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start,)

    return run


def _warm_up(work: Work, seconds: float, clock: Callable[[], float]) -> None:
    begun = clock()
    work()
    while clock() - begun < seconds:
        work()
