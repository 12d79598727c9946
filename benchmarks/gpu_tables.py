"""What gpu_check found, as a table on the terminal and as Markdown."""

from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

Content = dict[str, Any]


def _rows(content: Content, section: str) -> list[Content]:
    rows: list[Content] = content["sections"].get(section, {}).get("rows", [])
    return rows


def engine_cells(content: Content) -> list[list[str]]:
    """Return runner, precision, batch, clips/s, p50, p90, p99, what the GPU works of a call, labels kept."""
    kept = {_way(row): row["same_labels"] for row in _rows(content, "engine") if "same_labels" in row}
    cells = []
    for row in _rows(content, "engine"):
        if "clips_per_s" in row:
            p99 = "-" if row["p99_ms"] is None else f"{row['p99_ms']:.2f}"
            figures = [f"{row['clips_per_s']:,.1f}", f"{row['p50_ms']:.2f}", f"{row['p90_ms']:.2f}", p99]
            cells.append([_way(row), str(row["batch"]), *figures, _gpu(row), f"{kept[_way(row)]:.0%}"])
    return cells


def _gpu(row: Content) -> str:
    if "gpu_ms" not in row:
        return "-"
    return f"{row['gpu_ms']:.2f}{', bound by the host' if row['host_bound'] else ''}"


def _way(row: Content) -> str:
    return f"{row.get('variant')} on {row.get('runner')} in {row.get('precision')}"


def decode_cells(content: Content) -> list[list[str]]:
    """Return videos, route, videos/s, frames/s, share that the GPU refused, share of the bound."""
    cells = []
    for row in _rows(content, "decode"):
        if "videos_per_s" in row:
            refused = "-" if row["route"] == "CPU cores" else f"{row['refused'] / row['count']:.0%}"
            speeds = [f"{row['videos_per_s']:,.1f}", f"{row['frames_per_s']:,.0f}"]
            cells.append([row["videos"], row["route"], *speeds, refused, _share(row)])
    return cells


def run_cells(content: Content) -> list[list[str]]:
    """Return way, videos/s, times the notebook, share of the bound, labels like the notebook's."""
    rows = [row for row in _rows(content, "end_to_end") if "videos_per_s" in row]
    notebook = next((row["videos_per_s"] for row in rows if row["way"].startswith("notebook")), None)
    cells = []
    for row in rows:
        times = f"{row['videos_per_s'] / notebook:.2f}" if notebook else "-"
        same = f"{row['same_labels']:.0%}" if "same_labels" in row else "-"
        cells.append([row["way"], f"{row['videos_per_s']:,.2f}", times, _share(row), same])
    return cells


def _share(row: Content) -> str:
    return f"{row['of_bound']:.2f}" if "of_bound" in row else "-"


TABLES = {
    "engine": (engine_cells, ("engine", "batch", "clips/s", "p50 ms", "p90 ms", "p99 ms", "GPU ms", "labels kept")),
    "decode": (decode_cells, ("videos", "decoded by", "videos/s", "frames/s", "left to the CPU", "of the bound")),
    "end_to_end": (run_cells, ("file to label", "videos/s", "times the notebook", "of the bound", "labels alike")),
}


def missing(content: Content) -> list[str]:
    """Return what was not run or did not end well, and why, a line each."""
    lines = []
    for name, section in content["sections"].items():
        if section["state"] != "ok":
            lines.append(f"{name}: {section['state']}")
        for row in section["rows"]:
            what = row.get("variant") or row.get("route") or row.get("runner") or row.get("name") or ""
            told = {
                key: row[key] for key in ("not_run", "not_made", "failed", "stopped") if isinstance(row.get(key), str)
            }
            where = f"{name}, {what}" if what else name
            lines += [f"{where}: {key.replace('_', ' ')}: {text}" for key, text in told.items()]
            if row.get("state") in ("missing", "broken"):
                lines.append(f"{what}: {row['state']}: {row['told']}")
    return lines


def hardware(content: Content) -> str:
    """Return what it was measured on."""
    named = {row["name"]: row["told"] for row in _rows(content, "machine") if "name" in row}
    return "; ".join(named[name].replace("\n", "; ") for name in ("GPU", "CPU") if name in named)


def summary(content: Content) -> Group:
    """Return the tables for a terminal."""
    tables: list[Any] = []
    for make, heads in TABLES.values():
        if cells := make(content):
            table = Table(*heads, title=hardware(content) if not tables else None, title_justify="left")
            for row in cells:
                table.add_row(*row)
            tables.append(table)
    return Group(*tables, *map(escape, missing(content)))


def markdown(content: Content) -> str:
    """Return the tables for a page, what they were measured on, and what was not."""
    parts = [f"Measured {content['begun']} on {hardware(content) or content['device']}."]
    for make, heads in TABLES.values():
        if cells := make(content):
            parts.append("\n".join(f"| {' | '.join(row)} |" for row in [list(heads), ["---"] * len(heads), *cells]))
    if lines := missing(content):
        parts.append("Not measured, or not there:\n\n" + "\n".join(f"- {line}" for line in lines))
    return "\n\n".join(parts) + "\n"
