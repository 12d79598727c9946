"""A result for people and for machines: one table behind the terminal and Markdown, JSON with everything, pictures."""

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from harec_deploy.bench.result import Result, Row
from harec_deploy.errors import MissingDependency, OutputError, UsageError
from harec_deploy.files import atomic_write

if TYPE_CHECKING:
    from rich.table import Table

SUFFIXES = (".json", ".md", ".png")
_BLOCKS = " ▁▂▃▄▅▆▇█"
_Column = tuple[str, Callable[[Row], str]]


def check(paths: Sequence[Path]) -> None:
    """Raise UsageError for a file that cannot be written, MissingDependency for a picture without matplotlib."""
    for path in paths:
        if path.suffix not in SUFFIXES:
            raise UsageError(f"--out {path}: the suffix gives the form; allowed are {', '.join(SUFFIXES)}")
        if not path.parent.is_dir():
            raise UsageError(f"--out {path}: there is no folder {path.parent}")
    if any(path.suffix == ".png" for path in paths):
        try:
            import_module("matplotlib")
        except ModuleNotFoundError:
            raise MissingDependency("matplotlib", "train", "--out with a picture") from None


def write(result: Result, path: Path) -> None:
    """Write a result in the form that the suffix of ``path`` names. Raises OutputError."""
    try:
        if path.suffix == ".png":
            from harec_deploy.bench.plots import draw

            draw(result, path)
            return
        text = as_json(result) if path.suffix == ".json" else as_markdown(result)
        with atomic_write(path) as stream:
            stream.write(text.encode())
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}; name another --out") from None


def as_json(result: Result) -> str:
    """Return everything that is known, for machines."""
    return msgspec.json.format(msgspec.json.encode(result), indent=1).decode() + "\n"


def as_markdown(result: Result) -> str:
    """Return a heading, where and what was measured, the table, and the notes."""
    headings, rows = _cells(result)
    table = (f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows))
    lines = [f"### {title(result)}", "", where(result), "", *table, "", f"Intervals: {result.about['intervals']}.", ""]
    lines += [f"- {note}" for note in result.notes]
    return "\n".join(lines).rstrip() + "\n"


def as_table(result: Result) -> "Table":
    """Return the table for a terminal."""
    from rich.markup import escape
    from rich.table import Column, Table

    headings, rows = _cells(result)
    caption = f"{where(result)}\nintervals: {result.about['intervals']}"
    columns = [Column(headings[0], overflow="fold"), *(Column(each, justify="right") for each in headings[1:])]
    table = Table(*columns, title=escape(title(result)), title_justify="left", caption=caption)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def title(result: Result) -> str:
    """Say what was measured, in a line."""
    about = result.about
    what = [str(about[name]) for name in ("architecture", "clip") if name in about]
    given = about.get("clips", f"{about.get('videos')} videos")
    return f"{result.kind}: {', '.join([*what, str(given)])}"


def where(result: Result) -> str:
    """Say on what it was measured, in a line."""
    cpu, gpus = result.machine["cpu"], result.machine["gpus"]
    versions = ", ".join(f"{name} {number}" for name, number in result.machine["versions"].items())
    return f"{', '.join([*gpus, cpu['model']])}, {cpu['cores_allowed']:g} cores; {versions}"


def _cells(result: Result) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells; a column in which every cell is empty is left out."""
    columns = _COLUMNS[result.kind]
    rows = [[cell(row) for _, cell in columns] for row in result.rows]
    kept = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    return [columns[place][0] for place in kept], [[row[place] for place in kept] for row in rows]


def figure(value: float | None) -> str:
    """Return a number with three significant digits, and all digits before the point; "" for none."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def _number(name: str) -> Callable[[Row], str]:
    return lambda row: figure(row[name])


def _text(name: str) -> Callable[[Row], str]:
    return lambda row: str(row[name])


def _spread(row: Row) -> str:
    return "" if row["within"] is None else f"± {row['within']:.1%}"


def _times(row: Row) -> str:
    low_high: Any = row["times_first_interval"]
    sure = f" ({figure(low_high[0])} to {figure(low_high[1])})" if low_high and low_high[0] != low_high[1] else ""
    return f"{figure(row['times_first'])}{sure}"


def _accuracy(row: Row) -> str:
    right = row["accuracy"]
    if not right:
        return ""
    low, high = right["interval"]
    return f"{right['accuracy']:.1%} of {right['clips']} ({low:.0%} to {high:.0%})"


def _spark(row: Row) -> str:
    """Draw a histogram in characters: the height of each is the share of the fullest bin."""
    counts = row["histogram"]["calls"]
    return "".join(_BLOCKS[math.ceil(count / max(counts) * (len(_BLOCKS) - 1))] for count in counts)


def _stage(name: str) -> _Column:
    return f"{name} ms", lambda row: figure(row["stages_ms_a_video"].get(name))


_WAY: _Column = ("way", _text("way"))
_SPEED: tuple[_Column, ...] = (("clips/s", _number("per_s")), ("95 %", _spread))
_GPU: _Column = ("GPU ms", lambda row: figure(row.get("gpu_ms")))
_TIMES: _Column = ("times the first", _times)
_ACCURACY: _Column = ("accuracy", _accuracy)
_COLUMNS: dict[str, tuple[_Column, ...]] = {
    "latency": (
        _WAY,
        ("clips", _text("batch")),
        ("streams", _text("streams")),
        *((f"{name} ms", _number(f"{name}_ms")) for name in ("p50", "p90", "p99", "mean")),
        ("95 % of p50", _spread),
        _GPU,
        ("calls", _text("calls")),
        ("fastest to slowest", _spark),
        ("clips/s", _number("clips_per_s")),
        _TIMES,
        _ACCURACY,
    ),
    "throughput": (
        _WAY,
        ("streams", _text("streams")),
        ("clips", _text("batch")),
        *_SPEED,
        _GPU,
        ("gain", lambda row: "" if row["gain"] is None else f"{row['gain']:+.0%}"),
        ("best", lambda row: "best" if row["best"] else ""),
        _ACCURACY,
    ),
    "decode": (
        ("decoder", _text("decoder")),
        ("codec", _text("codec")),
        ("size", _text("size")),
        ("videos", _text("videos")),
        ("refused", lambda row: str(row["refused"] or "")),
        ("ms a video", _number("ms_a_video")),
        ("95 %", _spread),
        ("frames/s", _number("frames_per_s")),
        ("times real time", _number("times_real_time")),
        _TIMES,
    ),
    "label": (
        _WAY,
        ("videos/s", _number("per_s")),
        ("95 %", _spread),
        _TIMES,
        *map(_stage, ("decode", "preprocess", "dali", "transfer", "engine", "write")),
        ("bound", lambda row: row["bound_by"].removeprefix("bound ")),
        _ACCURACY,
    ),
    "pick": (
        _WAY,
        *_SPEED,
        ("clips", _text("batch")),
        ("picked", lambda r: "picked" if r["picked"] else ""),
        _ACCURACY,
    ),
}
