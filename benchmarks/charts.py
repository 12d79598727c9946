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


def growth_chart(growth: dict[str, Any], soak: dict[str, Any]) -> Figure:
    """Return four panels: cost by the number of videos, length, classes and frames."""
    figure = Figure(figsize=(8, 5.4), layout="constrained", dpi=150)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    panels = figure.subplots(2, 2).ravel()
    folders = [(own["videos"], own["ms_a_video"]) for own in soak["folders"]]
    lengths = [(own["value"], own["ms_a_video"]["median"] / 1e3) for own in growth["lengths_s"]]
    longer = [(own["duration_s"], own["seconds"]) for own in soak["lengths"]]
    line(panels[0], folders, "videos in a folder", "ms a video (small model)", logarithmic="x")
    line(
        panels[1],
        lengths,
        "length of one video, s",
        "s to label it in windows",
        logarithmic="both",
        label="growth.py: from a loaded model",
    )
    line(panels[1], longer, "", "", logarithmic="both", label="soak.py: whole run", hollow=True)
    panels[1].legend(frameon=False)
    classes = [(own["value"], own["ms_a_video"]["median"]) for own in growth["classes"]]
    line(panels[2], classes, "classes", "ms a video (small model)")
    frames = [(own["value"], own["ms_a_video"]["median"] / 1e3) for own in growth["frames"]]
    line(panels[3], frames, "frames of a clip, T", "s a video (ResNet-50)")
    panels[3].set_xticks([value for value, _ in frames])
    return figure


def line(
    axes: Any,
    points: list[tuple[float, float]],
    x: str,
    y: str,
    *,
    logarithmic: str = "",
    label: str | None = None,
    hollow: bool = False,
) -> None:
    """Draw one line of points; logarithmic: "x" or "both", an axis that is not begins at zero."""
    colour = OTHERS if hollow else OWN
    face = "white" if hollow else colour
    axes.plot(*zip(*points, strict=True), marker="o", color=colour, markerfacecolor=face, label=label)
    if logarithmic:
        axes.set_xscale("log")
    if logarithmic == "both":
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, max(axes.get_ylim()[1], 1.15 * max(value for _, value in points)))
    if x:
        axes.set_xlabel(x)
        axes.set_ylabel(y)
    axes.grid(color=GRID)
    bare(axes)


def draw() -> list[Path]:
    """Write the charts that there are results for; return their paths."""
    read = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    drawn = {}
    if "peers" in read:
        drawn["peers.png"] = peers_chart(read["peers"])
    if "growth" in read:
        drawn["growth.png"] = growth_chart(read["growth"], read["soak"])
    for name, figure in drawn.items():
        figure.savefig(RESULTS / name, metadata={"Software": None})
    return [RESULTS / name for name in drawn]


if __name__ == "__main__":
    for path in draw():
        print(path)
