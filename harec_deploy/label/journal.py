"""The journal: the append-only JSON Lines record of a labelling run.

The first line is the run's header, each further line the row of one video. A row is with the operating system before
the next batch starts, so an interrupted run loses at most what it was working on; a line that was torn by a crash is
dropped and done again. A later row for the same video counts instead of an earlier one.
"""

import base64
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, overload

import msgspec

from harec_deploy.discover import VideoFile
from harec_deploy.errors import OutputError
from harec_deploy.files import locked
from harec_deploy.recognizer import VideoResult
from harec_deploy.sampling import Windowing

SYNC_EVERY_S = 2.0
Key: TypeAlias = tuple[str, int, int]  # the identity of a video: its name, size and time of change


def summary_path(journal: Path) -> Path:
    """Return where a run leaves its summary for machines."""
    return journal.with_suffix(".summary.json")


def features_path(journal: Path) -> Path:
    """Return where a run keeps its feature vectors while it grows."""
    return journal.with_suffix(".features")


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What decides the labels of a run; rows of runs with different headers are never mixed.

    shard: which part of its inputs the run takes, such as "2/4"; none for all of them.
    reuse_threshold: in levels, how near an earlier frame one is to be to take over its features; none for never.
    begun_s: Unix time in seconds at which the journal was begun; decides nothing, and may differ.
    """

    journal: int = 1
    bundle: str
    variant: str
    runner: str
    precision: str
    decoder: str
    top_k: int
    harec_deploy: str
    windows: Windowing | None = None
    min_score: float = 0.0
    features: bool = False
    shard: str | None = None
    reuse_threshold: float | None = None
    begun_s: float = 0.0

    def differences(self, other: "Header", whose: str = "the journal") -> list[str]:
        """Return what differs, as "name here (``whose`` has there)"; the version of harec-deploy may."""
        fields = (name for name in self.__struct_fields__ if name not in ("harec_deploy", "begun_s"))
        pairs = ((name, _told(getattr(self, name)), _told(getattr(other, name))) for name in fields)
        return [f"{name} {mine} ({whose} has {theirs})" for name, mine, theirs in pairs if mine != theirs]


def _told(value: object) -> str:
    return str(msgspec.to_builtins(value)) if value is not None else "none"


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the journal.

    path: as given, relative where the input was. path_b64: its exact bytes, only where they are no UTF-8.
    frames_expected: from the container's header, null where it has none; frames_decoded: shown frames in the packets
    that are there, less those that the decoder refused.
    features: the number of the first vector and how many there are, of a run that keeps them.
    """

    path: str
    path_b64: str | None
    size: int
    mtime_ns: int
    status: str
    label: str | None
    score: float | None
    top: list[tuple[str, float]]
    segments: list[tuple[float, float, str, float]]
    duration_s: float | None
    fps: float | None
    width: int | None
    height: int | None
    codec: str | None
    frames_expected: int | None
    frames_decoded: int | None
    decoder: str
    variant: str
    error: dict[str, str] | None
    features: tuple[int, int] | None = None

    @property
    def key(self) -> Key:
        """The identity of the video that the row is for."""
        name = os.fsdecode(base64.b64decode(self.path_b64)) if self.path_b64 else self.path
        return (name, self.size, self.mtime_ns)


def video_path(root: Path, row: Row) -> Path:
    """Return where a row's video lies, for rows with paths relative to ``root``; a link means what it leads to."""
    path = root / row.key[0]
    with suppress(OSError, ValueError):  # a name that no file can have is not found later on
        path = Path(os.path.realpath(path))
    return path


def make_row(
    video: VideoFile,
    result: VideoResult,
    header: Header,
    features: tuple[int, int] | None = None,
    *,
    decoder: str | None = None,
) -> Row:
    """Return the row of one labelled or failed video; decoder: that answered for it, by default the header's."""
    raw = os.fsencode(video.name)
    text = raw.decode("utf-8", "replace")
    info, error = result.info, result.error
    return Row(
        path=text,
        path_b64=None if text.encode() == raw else base64.b64encode(raw).decode(),
        size=video.size,
        mtime_ns=video.mtime_ns,
        status=result.status,
        label=result.label,
        score=_rounded(result.score),
        top=[(name, round(score, 6)) for name, score in result.top[: header.top_k]],
        segments=[(round(s.start_s, 6), round(s.end_s, 6), s.label, round(s.score, 6)) for s in result.segments],
        duration_s=_rounded(info.duration_s) if info else None,
        fps=_rounded(info.fps) if info else None,
        width=info.width if info else None,
        height=info.height if info else None,
        codec=info.codec if info else None,
        frames_expected=info.frames_expected if info else None,
        frames_decoded=max(info.frames_found - result.bad_packets, 0) if info else None,
        decoder=decoder or header.decoder,
        variant=header.variant,
        error={"code": error.kind, "message": str(error)} if error else None,
        features=features,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


class Place(NamedTuple):
    """Where the last row of a video begins, and what a run that goes on has to know of it.

    vectors: the number of the feature vector behind its last one; 0 where it has none.
    """

    offset: int
    failed: bool
    vectors: int


class Rows(Sequence[Row]):
    """Rows of a journal, read when they are asked for: a run of millions keeps their offsets alone."""

    def __init__(self, path: Path, offsets: Sequence[int]) -> None:
        self._path = path.absolute()
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[Row]:
        decoder = msgspec.json.Decoder(Row)
        with self._path.open("rb") as stream:
            for offset in self._offsets:
                stream.seek(offset)
                yield decoder.decode(stream.readline())

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows": ...
    def __getitem__(self, index: int | slice) -> "Row | Rows":
        if isinstance(index, slice):
            return Rows(self._path, self._offsets[index])
        return next(iter(Rows(self._path, [self._offsets[index]])))


class Journal:
    """An open journal. Use as a context manager; ``places`` tells of each video that had a row when it was opened."""

    def __init__(self, path: Path, header: Header, *, restart: bool = False) -> None:
        """Open or create ``path``, for this process alone.

        Raises:
            OutputLocked: another run writes it.
            OutputError: it cannot be written, belongs to a run with another header, or a line in its middle is damaged.
        """
        self.path = path
        self.header = header
        self.places: dict[Key, Place] = {}
        self._length = 0
        self._synced = time.monotonic()
        self._end = ExitStack()
        self._end.enter_context(locked(path))
        try:
            self._begin(restart=restart)
        except BaseException:
            self._end.close()
            raise

    def _begin(self, *, restart: bool) -> None:
        path, header = self.path, self.header
        if not restart and (old := read_header(path)) is not None:
            self.header = old
            if differences := header.differences(old):
                raise OutputError(f"{path} is of another run: {'; '.join(differences)}; use --restart or another --out")
            for offset, self._length, row in lines(path):
                if row is not None:
                    self.places[row.key] = Place(offset, row.status == "failed", sum(row.features or (0, 0)))
        self._stream = _open(path, self._length)
        if not self._length:
            self.header = msgspec.structs.replace(header, begun_s=time.time())
            self._write(self.header)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        with self._end:
            if not self._stream.closed:
                self._sync()
                self._stream.close()

    def append(self, row: Row) -> int:
        """Write one row and return where it begins.

        It reaches the disk within SYNC_EVERY_S seconds, and the operating system at once.
        """
        offset = self._length
        self._write(row)
        if time.monotonic() - self._synced > SYNC_EVERY_S:
            self._sync()
        return offset

    def _write(self, value: Any) -> None:
        line = memoryview(msgspec.json.encode(value) + b"\n")
        self._length += len(line)
        try:
            while line:
                line = line[self._stream.write(line) :]
        except OSError as error:
            self._stream.close()
            told = f"{self.path} cannot be written: {error.strerror}; the rows before are whole"
            raise OutputError(f"{told}. Make room and give the same command again") from None

    def _sync(self) -> None:
        os.fsync(self._stream.fileno())
        self._synced = time.monotonic()


def _open(path: Path, whole: int) -> FileIO:
    """Open for writing behind the first ``whole`` bytes, unbuffered: a line that was written is out of our hands."""
    try:
        stream = path.open("r+b" if whole else "wb", buffering=0)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None
    stream.truncate(whole)
    stream.seek(whole)
    return stream


_BEGINNING = b'{"journal":'  # of every header


def read_header(path: Path) -> Header | None:
    """Return the header of a journal, or None if there is no file, or nothing whole in it.

    Raises:
        OutputError: the file is something else.
    """
    if not path.exists():
        return None
    try:
        with path.open("rb") as stream:
            line = stream.readline()
        if not line.endswith(b"\n") and _BEGINNING.startswith(line[: len(_BEGINNING)]):
            return None  # torn off while it was written
        return msgspec.json.decode(line, type=Header)
    except (OSError, ValueError, RecursionError):  # msgspec raises ValueErrors
        raise OutputError(f"{path} is no journal of harec-deploy: nothing was written; name another --out") from None


def read_rows(path: Path) -> dict[str, Row]:
    """Return the last row of every video by its name, the latest written last; one that changed has its newest alone.

    Raises:
        OutputError: a line is damaged that is not the last.
    """
    rows: dict[str, Row] = {}
    for _, _, row in lines(path):
        if row is not None:
            rows.pop(row.key[0], None)
            rows[row.key[0]] = row
    return rows


def lines(path: Path) -> Iterator[tuple[int, int, Row | None]]:
    """Yield (begin, end, row) of each whole line, the first of which is the header and has no row.

    Raises:
        OutputError: a line is damaged that is not the last.
    """
    decoder = msgspec.json.Decoder(Row)
    begin = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = decoder.decode(line) if number > 1 else None
                _ = row and row.key  # a name that cannot be read back is damage too
            except (ValueError, RecursionError) as error:
                raise OutputError(f"{path}, line {number} is damaged: {error}; mend it or use --restart") from None
            yield begin, begin + len(line), row
            begin += len(line)
