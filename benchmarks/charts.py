"""The charts of benchmarks/README.md: PYTHONPATH=. python benchmarks/charts.py. Drawn from benchmarks/results."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.standing import programs

RESULTS = Path(__file__).parent / "results"
INK, PALE, GRID = "#222222", "#666666", "#dddddd"
OWN, OTHERS, WRONG = "#c2410c", "#64748b", "#d4d4d8"
# Of growth.py: what grows, which figure, times what, which axes are logarithmic, and the words at the axes.
GROWTH = (
    ("videos", "ms_a_video", 1, "x", "videos in a folder", "ms a video (small model)"),
    ("lengths_s", "whole_s", 1, "both", "length of one video, s", "s from start to label"),
    ("lengths_s", "peak_mib", 1, "both", "length of one video, s", "peak memory, MiB"),
    ("frames", "ms_a_video", 1e-3, "linear", "frames of a clip, T", "s a video (ResNet-50)"),
)
LINES = (  # colour and marker; harec-deploy comes first
    (OWN, "o"),
    ("#334155", "s"),
    ("#0f766e", "^"),
    ("#1d4ed8", "v"),
    ("#7c3aed", "D"),
    ("#a16207", "P"),
    ("#94a3b8", "X"),
)
mpl.rcParams.update({"font.size": 9, "axes.edgecolor": PALE, "axes.labelcolor": INK, "text.color": INK})


def bare(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=PALE, labelcolor=INK)
    axes.set_axisbelow(True)


def peers_chart(facts: dict[str, Any]) -> Figure:
    """Return videos a second of every program: the median, and the lowest and highest round."""
    found = programs(facts)[::-1]
    figure = Figure(figsize=(8, 0.8 + 0.34 * len(found)), layout="constrained", dpi=150)
    axes = figure.subplots()
    furthest = max(each.middle("videos_per_s")["highest"] for each in found)
    for place, each in enumerate(found):
        speed = each.middle("videos_per_s")
        low, high = speed["median"] - speed["lowest"], speed["highest"] - speed["median"]
        colour = WRONG if not each.right else OWN if each.own else OTHERS
        axes.barh(place, speed["median"], color=colour, height=0.7)
        axes.errorbar(speed["median"], place, xerr=[[low], [high]], color=INK, capsize=2.5, linewidth=1)
        wrong = "" if each.right else "  (other labels)"
        told = f"{speed['median']:.2f}{wrong}"
        axes.text(speed["highest"] + 0.012 * furthest, place, told, va="center", color=INK)
    axes.set_yticks(range(len(found)), [each.name for each in found])
    axes.set_xlim(0, furthest * 1.12)
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.set_xlabel("videos/s once the model is loaded; bar: median, line: lowest to highest round")
    axes.grid(axis="x", color=GRID)
    axes.tick_params(axis="y", length=0)
    bare(axes)
    return figure


def growth_chart(growth: dict[str, Any]) -> Figure:
    """Return four panels: time by the number of videos, time and memory by length, time by frames of a clip."""
    figure = Figure(figsize=(8, 6.4), layout="constrained", dpi=150)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    panels = figure.subplots(2, 2)
    for panel, (kind, measure, unit, scale, x, y) in zip(panels.flat, GROWTH, strict=True):
        for (name, rows), (colour, marker) in zip(growth[kind].items(), LINES, strict=False):
            values = [row[measure] if measure == "peak_mib" else row[measure]["median"] for row in rows]
            points = [row["value"] for row in rows], [value * unit for value in values]
            own = name.startswith("harec-deploy")
            how = {"linewidth": 2.4, "zorder": 3} if own else {"linewidth": 1.1}
            panel.plot(*points, color=colour, marker=marker, markersize=4, label=name, **how)
        panel.set(xscale="linear" if scale == "linear" else "log", yscale="log" if scale == "both" else "linear")
        if scale != "both":
            panel.set_ylim(0)
        ticks = [row["value"] for row in next(iter(growth[kind].values()))]
        panel.set_xticks(ticks, [f"{value:,}" for value in ticks])
        panel.minorticks_off()
        panel.set_xlabel(x)
        panel.set_ylabel(y)
        panel.grid(color=GRID)
        bare(panel)
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def draw() -> list[Path]:
    """Write the charts that there are results for; return their paths."""
    read = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    drawn = {}
    if "peers" in read:
        drawn["peers.png"] = peers_chart(read["peers"])
    if "growth" in read:
        drawn["growth.png"] = growth_chart(read["growth"])
    for name, figure in drawn.items():
        figure.savefig(RESULTS / name, metadata={"Software": None})
    return [RESULTS / name for name in drawn]


if __name__ == "__main__":
    for path in draw():
        print(path)
