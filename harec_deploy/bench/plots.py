"""Pictures of a result: speed and accuracy, percentiles of latency, sweeps, decoders, stages."""

from collections import defaultdict
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from harec_deploy.bench.output import figure, title, where
from harec_deploy.bench.result import Result, Row
from harec_deploy.files import atomic_write

SHADES = ("#9ecae1", "#4292c6", "#08519c")  # p50, p90, p99
STAGES = {
    "decode": "#4292c6",
    "preprocess": "#9ecae1",
    "dali": "#74a57f",
    "transfer": "#f2b134",
    "engine": "#c0392b",
    "write": "#7f8c8d",
}
_BAR_INCHES = 0.42
_LETTERS_AN_INCH = 16  # of the smallest print


def draw(result: Result, path: Path) -> None:
    """Draw a result as PNG: its main picture, and beside it speed against accuracy where that is known."""
    with_accuracy = any(row.get("accuracy") for row in result.rows)
    bars = len(result.rows) if result.kind != "throughput" else 8
    size = (8.5 + 4.5 * with_accuracy, 2.4 + _BAR_INCHES * max(bars, 4))
    sheet = Figure(figsize=size, layout="constrained")
    axes = sheet.subplots(1, 1 + with_accuracy, squeeze=False, width_ratios=[2, 1][: 1 + with_accuracy])[0]
    _PICTURES[result.kind](axes[0], result.rows)
    if with_accuracy:
        _speed_and_accuracy(axes[1], result.rows)
    sheet.suptitle(title(result), fontsize=11)
    told = f"{where(result)}. Whiskers are intervals of 95 %."
    sheet.supxlabel(fill(told, int(_LETTERS_AN_INCH * size[0])), fontsize=7, color="#555555")
    with atomic_write(path) as stream:
        sheet.savefig(stream, format="png", dpi=110)


def _bars(axes: Axes, names: list[str]) -> NDArray[np.int64]:
    """Name horizontal bars, the first on top, and return their places."""
    places = np.arange(len(names))
    axes.set_yticks(places, names, fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    return places


def _percentiles(axes: Axes, rows: list[Row]) -> None:
    """Draw p50, p90 and p99 of each case into one another; those of which too few calls were made are missing.

    Beside them the interval of p50, the mean, and on a GPU what it works of a call.
    """
    places = _bars(axes, [f"{row['way']}, {_many(row['batch'], 'clip')}, {_streams(row)}" for row in rows])
    drawn: list[Any] = []
    for name, shade in reversed(tuple(zip(("p50", "p90", "p99"), SHADES, strict=True))):
        known = [place for place in places if rows[place][f"{name}_ms"] is not None]
        if known:
            widths = [rows[place][f"{name}_ms"] for place in known]
            drawn.insert(0, axes.barh(known, widths, color=shade, height=0.7, label=name))
    for place, row in zip(places, rows, strict=True):
        if around := row["p50_ms_interval"]:
            sides = [[row["p50_ms"] - around[0]], [around[1] - row["p50_ms"]]]
            axes.errorbar([row["p50_ms"]], [place], xerr=sides, fmt="none", ecolor="black", capsize=3, linewidth=1)
    for key, name, mark in (("mean_ms", "mean", "d"), ("gpu_ms", "by the GPU's clock", "s")):
        if known := [place for place in places if key in rows[place]]:
            widths = [rows[place][key] for place in known]
            below = [place + 0.22 for place in known]  # clear of the whiskers
            drawn.append(axes.scatter(widths, below, s=18, marker=mark, color="black", label=name, zorder=3))
    axes.set(xlabel="ms of a call", xlim=(0, None))
    axes.legend(handles=drawn, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=len(drawn), frameon=False)


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _streams(row: Row) -> str:
    return _many(row["streams"], "stream")


def _sweep(axes: Axes, rows: list[Row]) -> None:
    """Draw clips a second over the batch, a line for each way and number of streams."""
    lines: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        lines[f"{row['way']}, {_streams(row)}"].append(row)
    for name, points in lines.items():
        batches, speeds = [row["batch"] for row in points], [row["per_s"] for row in points]
        axes.errorbar(batches, speeds, _errors(points), marker="o", capsize=3, label=name)
    every = sorted({row["batch"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, list(map(str, every)))
    axes.set(xlabel="clips in a call", ylabel="clips/s", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _decoders(axes: Axes, rows: list[Row]) -> None:
    """Draw videos a second of each decoder, codec and size."""
    names = [f"{row['codec']} {row['size']}, {row['decoder']}: {figure(row['ms_a_video'])} ms" for row in rows]
    _speeds(axes, names, rows, [SHADES[1]] * len(rows))
    axes.set(xlabel="videos/s, one after the other")


def _stages(axes: Axes, rows: list[Row]) -> None:
    """Draw the seconds of each stage end to end. Stages overlap in time, so their sum is work, not waiting."""
    told = [f"{row['way']}\n{figure(row['per_s'])} videos/s, {row['bound_by']}" for row in rows]
    places = _bars(axes, told)
    left = np.zeros(len(rows))
    for name, colour in STAGES.items():
        widths = np.array([row["stages_ms_a_video"].get(name, 0.0) for row in rows])
        if widths.any():
            axes.barh(places, widths, left=left, color=colour, height=0.6, label=name)
            left += widths
    axes.set(xlabel="ms a video, of all workers and engines together", xlim=(0, None))
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.25), ncols=len(STAGES), fontsize=8, frameon=False)


def _picked(axes: Axes, rows: list[Row]) -> None:
    """Draw the speed of each way; the one that was picked is darker."""
    names = [f"{row['way']}: {figure(row['per_s'])}" for row in rows]
    _speeds(axes, names, rows, [SHADES[2] if row["picked"] else SHADES[0] for row in rows])
    axes.set(xlabel="clips/s")


def _speeds(axes: Axes, names: list[str], rows: list[Row], colours: list[str]) -> None:
    """Draw how many of something a second each row has, with its interval."""
    places, speeds = _bars(axes, names), [row["per_s"] for row in rows]
    axes.barh(places, speeds, xerr=_errors(rows), color=colours, height=0.6, capsize=3)
    axes.set(xlim=(0, None))


def _errors(rows: list[Row]) -> NDArray[np.float64]:
    """Return how far the intervals of speeds reach below and above them: float64 (2, N), NaN where there is none."""
    around = [row["per_s_interval"] or (np.nan, np.nan) for row in rows]
    return np.abs(np.array(around, dtype=np.float64).T - np.array([row["per_s"] for row in rows], dtype=np.float64))


def _speed_and_accuracy(axes: Axes, rows: list[Row]) -> None:
    """Draw accuracy with its interval over the best speed of each way."""
    best: dict[str, Row] = {}
    for row in rows:
        if _speed(row) > _speed(best.get(row["way"], {})):
            best[row["way"]] = row
    for name, row in best.items():
        right = row["accuracy"]
        low, high = right["interval"]
        errors = [[right["accuracy"] - low], [high - right["accuracy"]]]
        axes.errorbar([_speed(row)], [right["accuracy"]], errors, marker="o", capsize=3, label=name)
    axes.set(xlabel="videos/s" if "stages_ms_a_video" in rows[0] else "clips/s", ylabel="accuracy")
    axes.set(xlim=(0, 1.08 * max(map(_speed, best.values()))), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=7)


def _speed(row: Row) -> float:
    return float(row.get("per_s") or row.get("clips_per_s") or 0.0)


_PICTURES = {
    "latency": _percentiles,
    "throughput": _sweep,
    "decode": _decoders,
    "label": _stages,
    "pick": _picked,
}
