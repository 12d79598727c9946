"""Journals joined into one: those of the shards of a run, or of runs over different folders with the same settings.

Rows are copied from file to file; what is kept of each is its video's name and where it lies.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from harec_deploy.errors import OutputError, UsageError
from harec_deploy.files import atomic_write, locked
from harec_deploy.label import outputs
from harec_deploy.label.journal import Header, Row, lines, read_header, summary_path
from harec_deploy.shard import Shard


@dataclass(frozen=True, slots=True)
class Merged:
    """How many rows of each status were written."""

    statuses: Counter[str]


class _Place(NamedTuple):
    """Where a row begins: the number of its journal, and the byte."""

    journal: int
    offset: int


class _Last(msgspec.Struct):
    """What the summary of a journal's last run tells of its end."""

    todo: int = 0
    stopped: str = ""


def merge(
    out: Path,
    journals: Sequence[Path],
    *,
    partial: bool = False,
    announce: Callable[[str], None] = lambda text: None,
) -> Merged:
    """Write the rows of all journals to one, sorted by name, with a table beside it if ``out`` is one.

    Of several rows that a journal has for a name, the last counts. The journal that is written has no feature vectors,
    and is of no shard, so ``label`` goes on with it without ``--shard``.

    partial: shards may be missing. announce: called with a line of text for what should be known.

    Raises:
        UsageError: a journal is not there or is named twice, or ``out`` is not allowed.
        OutputError: the journals are of different runs or shards that do not belong together, have different rows for
            one name, or are damaged; or ``out`` is there already or cannot be written.
        OutputLocked: a live run writes one of them.
    """
    target = _check(out, journals)
    with ExitStack() as held:
        for path in (target, *journals):
            held.enter_context(_kept(path))
        if target.exists():
            raise OutputError(f"{target} is there already: remove it, or name another file")
        headers = {path: _header(path) for path in journals}
        _same_run(headers)
        for told in (*_missing(headers, partial=partial), *_unfinished(headers), *_without_features(headers)):
            announce(told)
        rows = _Joined(journals, held)
        header = msgspec.structs.replace(headers[journals[0]], shard=None, features=False)
        statuses: Counter[str] = Counter()
        with _writing(target), atomic_write(target) as stream:
            stream.write(msgspec.json.encode(header) + b"\n")
            for row in rows:
                statuses[row.status] += 1
                stream.write(msgspec.json.encode(row) + b"\n")
            if out.suffix in outputs.WRITERS:  # before the journal has its name: if it fails, nothing is there
                with _writing(out):
                    outputs.WRITERS[out.suffix](out, rows)
    return Merged(statuses)


def _check(out: Path, journals: Sequence[Path]) -> Path:
    """Return where the journal goes."""
    outputs.check(out, "OUT", (".jsonl", *outputs.WRITERS))
    if not out.parent.is_dir():
        raise UsageError(f"OUT {out}: there is no folder {out.parent}")
    target = out.with_suffix(".jsonl")
    for place, path in enumerate(journals):
        if not path.is_file():
            raise UsageError(f"{path}: no such journal; make it with harec-deploy label")
        if path.resolve() == target.resolve():
            raise UsageError(f"{path} is read and would be written: name another OUT")
        if path.resolve() in [other.resolve() for other in journals[:place]]:
            raise UsageError(f"{path} is named twice: name each journal once")
    return target


@contextmanager
def _kept(path: Path) -> Iterator[None]:
    """Keep runs from writing a journal; where nobody can write there is no need."""
    with locked(path) if os.access(path.parent, os.W_OK) else nullcontext():
        yield


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}; make room and merge again") from None


def _header(path: Path) -> Header:
    try:
        header = read_header(path)
    except OutputError:
        header = None
    if header is None:
        raise OutputError(f"{path} is no journal of harec-deploy: name the .jsonl files that label wrote")
    return header


def _same_run(headers: Mapping[Path, Header]) -> None:
    first, *others = headers
    mine = msgspec.structs.replace(headers[first], shard=None)
    for path in others:
        other = msgspec.structs.replace(headers[path], shard=None)
        if differences := other.differences(mine, str(first)):
            raise OutputError(f"{path} is of another run than {first}: {'; '.join(differences)}; merge like with like")


def _missing(headers: Mapping[Path, Header], *, partial: bool) -> Iterator[str]:
    """Check that the shards belong together, and tell which are missing."""
    found: dict[Shard, Path] = {}
    for path, header in headers.items():
        if header.shard is None:
            continue
        shard = Shard.read(header.shard)
        for other, there in found.items():
            if shard == other:
                raise OutputError(f"{there} and {path} are both shard {shard}: leave one of them out")
            if shard.total != other.total:
                raise OutputError(f"{there} is shard {other} and {path} is shard {shard}: they are not of one run")
        found[shard] = path
    total = max((shard.total for shard in found), default=0)
    missing = [str(shard) for shard in (Shard(number, total) for number in range(1, total + 1)) if shard not in found]
    if missing and not partial:
        told = f"shard{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
        raise OutputError(f"no journal of {told} is named: name all, or do without by --partial")
    if missing:
        yield f"without the videos of shard{'s' if len(missing) > 1 else ''} {', '.join(missing)}"


def _unfinished(journals: Iterable[Path]) -> Iterator[str]:
    """Tell which journals are of runs that were stopped, as far as their summaries say so."""
    for path in journals:
        try:
            last = msgspec.json.decode(summary_path(path).read_bytes(), type=_Last)
        except (OSError, ValueError, RecursionError):  # the journal is the record
            continue
        if last.todo:
            yield f"{path} is not complete: its run left {last.todo} videos ({last.stopped})"


def _without_features(headers: Mapping[Path, Header]) -> Iterator[str]:
    if any(header.features for header in headers.values()):
        yield "feature vectors stay in the tables of the runs: the merged journal has none"


class _Joined:
    """The rows of several journals, each name once, sorted as a run sorts its videos; read when they are asked for."""

    def __init__(self, journals: Sequence[Path], held: ExitStack) -> None:
        """Find the rows; the files stay open as long as ``held``.

        Raises:
            OutputError: a line is damaged, or two journals have different rows for a name.
        """
        self._streams = [held.enter_context(path.open("rb")) for path in journals]
        self._decoder = msgspec.json.Decoder(Row)
        places: dict[str, _Place] = {}
        for number, path in enumerate(journals):
            own = {row.key[0]: _Place(number, begin) for begin, _, row in lines(path) if row is not None}
            for name in sorted(own.keys() & places.keys(), key=os.fsencode):
                if self._read(places[name]) != self._read(own[name]):
                    told = f"{name} has different rows in {journals[places[name].journal]} and {path}"
                    raise OutputError(f"{told}: leave one out; two videos of one name cannot be merged")
            places |= own
        self._places = [places[name] for name in sorted(places, key=os.fsencode)]

    def __iter__(self) -> Iterator[Row]:
        return map(self._read, self._places)

    def _read(self, place: _Place) -> Row:
        """Return a row without the place of its features: they are not merged."""
        stream = self._streams[place.journal]
        stream.seek(place.offset)
        return msgspec.structs.replace(self._decoder.decode(stream.readline()), features=None)
