"""Pieces of the report's page that its journal alone does not give."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from harec_deploy.label.engine import Stages
from harec_deploy.label.journal import summary_path
from harec_deploy.page import bar, section, text, unit


def videos(rows: Sequence[object]) -> str:
    """Return how many there are, in words."""
    return f"{len(rows):,} video{'' if len(rows) == 1 else 's'}"


class _Run(msgspec.Struct):
    """What the report takes from the summary of the last run."""

    done: int
    videos_per_s: float
    times_real_time: float
    stages: Stages


def stages(journal: Path) -> str:
    """Return what bounded the last run, if its summary lies beside the journal."""
    try:
        run = msgspec.json.decode(summary_path(journal).read_bytes(), type=_Run)
    except (OSError, ValueError, RecursionError):  # the journal is the record; without a summary nothing is lost
        return ""
    times = run.stages
    note = f"The last run labelled {run.done:,} in {times.wall_s:,.1f} s: {run.videos_per_s:,.1f} videos/s, "
    note += f"{run.times_real_time:,.0f} times real time, {text(times.bound_by())}."
    rows = [
        ("engine" if times.engines == 1 else f"{times.engines} engines", times.engine_busy, times.engine_s),
        (f"decode, {times.workers} at a time", times.decode_busy, times.decode_s),
    ]
    if times.batch_name:
        note += f" {text(times.routes_told())}."
        rows.append((f"decode by {text(times.batch_name)}", times.batch_busy, times.batch_s))
    items = "".join(
        f"<li><span>{name}</span>{bar(busy)}<span>{unit(busy):.0%}, {seconds:,.1f} s</span></li>"
        for name, busy, seconds in rows
    )
    return section("stages", "Where the time went", note, f'<ul class="bars">{items}</ul>')
