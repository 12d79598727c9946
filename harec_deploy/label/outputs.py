"""Tables for people and programs, written whole from the journal when a run ends."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from harec_deploy.files import atomic_write
from harec_deploy.label.journal import Row

COLUMNS = (
    "path status label score duration_s fps width height codec frames_expected frames_decoded decoder variant".split()
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs a cell that starts so (CWE-1236)


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Write one line a video, with the error's code and message in the last two columns."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*COLUMNS, "error_code", "error_message"])
    for row in rows:
        error = row.error or {}
        cells = [getattr(row, name) for name in COLUMNS] + [error.get("code"), error.get("message")]
        writer.writerow([_cell(value) for value in cells])
    with atomic_write(path) as stream:
        stream.write(text.getvalue().encode("utf-8", "replace"))


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
