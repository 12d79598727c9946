"""What a measurement comes to: rows of figures, and all that must be known to read them."""

from collections.abc import Collection
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from harec_deploy import machine
from harec_deploy.bench.measure import Budget, Timing, ratios
from harec_deploy.bench.noise import Watch
from harec_deploy.intervals import median_interval
from harec_deploy.runners import Execution

Row = dict[str, Any]
INTERVALS = "95 % for the median of all calls, rounds being the samples; of ratios, for the median of the rounds"


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of one command.

    kind: "latency", "throughput", "decode", "label" or "pick". about: what was measured, with what settings.
    rows: a figure's name ends in its unit; of what an interval is, ``about`` says under "intervals". gpu_ms: of a call,
        by the GPU's clock; only where that is known. notes: what a reader must know.
    meanwhile: what else the machine did. machine: processor, memory, versions.
    """

    kind: str
    about: Row
    rows: list[Row]
    notes: list[str]
    meanwhile: Row
    machine: Row = field(default_factory=machine.facts)


def stated(budget: Budget) -> Row:
    """Return what ``about`` says of how sure figures were to be."""
    return {"within": budget.within, "seconds": budget.seconds, "intervals": INTERVALS}


def made(kind: str, about: Row, rows: list[Row], notes: list[str], watch: Watch) -> Result:
    """Return a result with what the watch saw."""
    return Result(kind, about, rows, [*notes, *watch.notes], watch.facts)


def rate(timing: Timing, count: float) -> Row:
    """Return things a second, where ``count`` of them are done in the median time of a call."""
    interval = timing.interval
    return {
        "per_s": count / timing.median,
        "per_s_interval": (count / interval[1], count / interval[0]) if interval else None,
        "within": timing.within if interval else None,
        "rounds": len(timing.rounds),
    }


def times(first: Timing, other: Timing) -> Row:
    """Return how many times as fast as the first another is, from ratios within the rounds."""
    each = ratios(first, other)
    return {"times_first": median(each), "times_first_interval": median_interval(each)}


def way_row(execution: Execution) -> Row:
    """Return what a row says of the way that its figures are of."""
    return {
        "way": str(execution),
        "variant": execution.variant,
        "runner": execution.runner.name,
        "runner_version": execution.runner.version,
        "precision": execution.precision,
        "device": execution.runner.device,
    }


def unsure(timings: Collection[Timing], budget: Budget) -> list[str]:
    """Say how many figures are less sure than was asked for."""
    wide = [timing for timing in timings if timing.within > budget.within]
    if not wide:
        return []
    widths = [timing.within for timing in wide if timing.interval]
    told = f"up to {max(widths):.1%}" if len(widths) == len(wide) else "too few rounds for an interval"
    return [f"{len(wide)} of {len(timings)} medians are not within {budget.within:.1%} ({told}): give more --seconds"]
