"""Outputs for people and programs, written whole from the journal's rows: tables, and subtitles beside each video."""

import csv
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from harec_deploy.errors import MissingDependency, OutputError, UsageError
from harec_deploy.files import atomic_write
from harec_deploy.label.journal import Row

COLUMNS = (
    "path status label score duration_s fps width height codec frames_expected frames_decoded decoder variant".split()
)
ROW_GROUP = 8192  # rows of a Parquet file that are in memory together
MAX_NAME_BYTES = 240  # of the 255 that a name may have; a file that is being written has a name that is 14 longer
MAX_CUE_S = 1e6  # a time beyond is no measurement
UNKNOWN_END_S = 24 * 3600.0  # ends the cue of a video whose length is not known; players stop where the video does
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs a cell that starts so (CWE-1236)

Writer: TypeAlias = Callable[[Path, Iterable[Row]], None]


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


def write_parquet(path: Path, rows: Iterable[Row]) -> None:
    """Write one row a video with typed columns: those of the journal, top and segments as lists of structs.

    The columns error_code and error_message are null where nothing failed, path_b64 where the path is UTF-8. Rows are
    taken ROW_GROUP at a time, so memory does not grow with their number.

    Raises:
        MissingDependency: pyarrow is not installed.
    """
    need("pyarrow", "parquet", "writing .parquet")
    import pyarrow as pa
    from pyarrow import parquet

    pair = {"label": pa.string(), "score": pa.float64()}
    span = {"start_s": pa.float64(), "end_s": pa.float64(), **pair}
    kinds = {
        **dict.fromkeys("size mtime_ns width height frames_expected frames_decoded".split(), pa.int64()),
        **dict.fromkeys("score duration_s fps".split(), pa.float64()),
        "top": pa.list_(pa.struct(pair)),
        "segments": pa.list_(pa.struct(span)),
    }
    names = [name for name in Row.__struct_fields__ if name not in ("error", "features")]
    names += ["error_code", "error_message"]
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
    waiting = iter(rows)
    with atomic_write(path) as stream, parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        while group := list(islice(waiting, ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist([_record(row, pair, span) for row in group], schema))


def _record(row: Row, pair: Iterable[str], span: Iterable[str]) -> dict[str, object]:
    """Return a row as Parquet has it: named parts where the journal has places."""
    error = row.error or {}
    return {name: getattr(row, name) for name in row.__struct_fields__} | {
        "top": [dict(zip(pair, item, strict=True)) for item in row.top],
        "segments": [dict(zip(span, item, strict=True)) for item in row.segments],
        "error_code": error.get("code"),
        "error_message": error.get("message"),
    }


WRITERS: dict[str, Writer] = {".csv": write_csv, ".parquet": write_parquet}


def check(path: Path, option: str, allowed: Sequence[str]) -> None:
    """Find out before a run whether ``path`` can be written after it.

    Raises:
        UsageError: its suffix is not among those that are allowed.
        MissingDependency: the package that writes it is not installed.
    """
    if path.suffix not in allowed:
        raise UsageError(f"{option} {path}: the suffix gives the form; allowed are {', '.join(allowed)}")
    if path.suffix == ".parquet":
        need("pyarrow", "parquet", "writing .parquet")


def need(package: str, extra: str, purpose: str) -> None:
    """Raise MissingDependency if ``package``, which ``extra`` brings, is not installed."""
    if find_spec({"pillow": "PIL"}.get(package, package)) is None:
        raise MissingDependency(package, extra, purpose)


def write_vtt(folder: Path, rows: Iterable[Row]) -> int:
    """Write a WebVTT file for each video with a label, and return how many: a cue a segment, or one for the whole.

    Files are named by ``sidecars``; players take ``a.vtt`` for the subtitles of ``a.mp4``.

    Raises:
        OutputError: a file cannot be written, or a link in ``folder`` stands in its way.
    """
    labelled = [row for row in rows if row.label is not None]
    for row, path in zip(labelled, sidecars(folder, labelled, ".vtt"), strict=True):
        make_parents(folder, path)
        try:
            with atomic_write(path) as stream:
                stream.write(_vtt(row).encode("utf-8", "replace"))
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}") from None
    return len(labelled)


def _vtt(row: Row) -> str:
    end_s = UNKNOWN_END_S if row.duration_s is None else row.duration_s
    cues = [(_span(start, end), _cue_text(label, score)) for start, end, label, score in sorted(row.segments)]
    cues = cues or [(_span(0.0, end_s), _cue_text(row.label or "", row.score))]
    return "WEBVTT\n" + "".join(f"\n{span}\n{text}\n" for span, text in cues)


def _span(start_s: float, end_s: float) -> str:
    """Return a cue's times; its end has to come after its start, if only by a millisecond."""
    start_ms, end_ms = (round(1000 * min(max(time, 0.0), MAX_CUE_S)) for time in (start_s, end_s))
    return f"{_clock(start_ms)} --> {_clock(max(end_ms, start_ms + 1))}"


def _clock(time_ms: int) -> str:
    seconds, milliseconds = divmod(time_ms, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{milliseconds:03d}"


def _cue_text(label: str, score: float | None) -> str:
    """Return a label on one line, as text and nothing else: an empty line would end the cue, a < begin a tag."""
    text = " ".join("".join(c if c.isprintable() else " " for c in label).split()) or "?"
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text if score is None else f"{text} {score:.0%}"


def sidecars(folder: Path, rows: Sequence[Row], suffix: str) -> list[Path]:
    """Return where in ``folder`` the file with ``suffix`` that goes with each row's video is put; no two are the same.

    It lies as the video does, without the root and what leads upwards: ``in/a.mp4`` gives ``folder/in/a.vtt``. Videos
    that would share a file keep their own suffix (``a.mp4.vtt`` and ``a.avi.vtt``), and if that does not tell them
    apart they get a hash of their identity. A name that is too long is cut and gets a hash too.
    """
    forms = [0] * len(rows)
    while True:
        places = [_place(row, form, suffix) for row, form in zip(rows, forms, strict=True)]
        taken = Counter(places)
        taken.update({above for place in places for above in place.parents})  # a folder cannot be a file as well
        crowded = [at for at, place in enumerate(places) if taken[place] > 1 and forms[at] < 2]
        if not crowded:
            return [folder / place for place in places]
        lowest = min(forms[at] for at in crowded)  # these give way, so that most names stay short
        for at in crowded:
            forms[at] += forms[at] == lowest


def _place(row: Row, form: int, suffix: str) -> PurePosixPath:
    """Return a relative path; form 0 replaces the video's suffix, 1 keeps it, 2 adds a hash of the row's identity."""
    parts = [part.replace("\0", "_") for part in PurePosixPath(row.key[0]).parts if part not in ("/", "//", "..")]
    *above, name = parts or ["video"]
    stem = PurePosixPath(name).stem if form == 0 else name
    tag = f".{_hash(repr(row.key))}" if form == 2 else ""
    return PurePosixPath(*(_short(part, "") for part in above), _short(stem, tag + suffix))


def _short(name: str, ending: str) -> str:
    """Return name and ending, with a hash in place of what is too long for a file's name."""
    raw, room = os.fsencode(name), MAX_NAME_BYTES - len(ending)
    if len(raw) <= room:
        return name + ending
    tag = f"~{_hash(name)}"
    # Not in the middle of a character.
    return os.fsdecode(re.sub(rb"[\xc0-\xff]?[\x80-\xbf]*\Z", b"", raw[: room - len(tag)])) + tag + ending


def _hash(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:12]


def make_parents(folder: Path, path: Path) -> None:
    """Make the folders between ``folder``, itself included, and ``path``; what lies there may not lead elsewhere.

    Raises:
        OutputError: a link or a file stands in the place of a folder, or one cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place in _between(folder, path):
            if place.is_symlink():
                raise OutputError(f"{place} is a link, and nothing is written through it; name another folder")
            place.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{error.filename} cannot be made: {error.strerror}") from None


def _between(folder: Path, path: Path) -> Iterator[Path]:
    place = folder
    for part in path.relative_to(folder).parts[:-1]:
        place /= part
        yield place
