"""The journal: the append-only JSON Lines record of a labelling run.

The first line is the run's header, each further line the row of one video. A row is with the operating system before
the next batch starts, so an interrupted run loses at most what it was working on; a line that was torn by a crash is
dropped and done again. A later row for the same video counts instead of an earlier one.
"""

import base64
import os
import time
from io import FileIO
from pathlib import Path
from typing import Any

import msgspec

from harec_deploy.discover import VideoFile
from harec_deploy.errors import OutputError
from harec_deploy.recognizer import VideoResult

SYNC_EVERY_S = 2.0


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What decides the labels of a run; rows of runs with different headers are never mixed."""

    journal: int = 1
    bundle: str
    variant: str
    runner: str
    precision: str
    decoder: str
    top_k: int
    harec_deploy: str

    def differences(self, other: "Header") -> list[str]:
        """Return what differs, as "name: here, there"; the version of harec-deploy may."""
        fields = (name for name in self.__struct_fields__ if name != "harec_deploy")
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in fields)
        return [f"{name} {mine} (the journal has {theirs})" for name, mine, theirs in pairs if mine != theirs]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the journal.

    path: as given, relative where the input was. path_b64: its exact bytes, only where they are no UTF-8.
    frames_expected: from the container's header, null where it has none; frames_decoded: shown frames in the packets
    that are there, less those that the decoder refused.
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

    @property
    def key(self) -> tuple[str, int, int]:
        """The identity of the video that the row is for."""
        name = os.fsdecode(base64.b64decode(self.path_b64)) if self.path_b64 else self.path
        return (name, self.size, self.mtime_ns)


def make_row(video: VideoFile, result: VideoResult, header: Header) -> Row:
    """Return the row of one labelled or failed video."""
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
        segments=[(s.start_s, s.end_s, s.label, round(s.score, 6)) for s in result.segments],
        duration_s=_rounded(info.duration_s) if info else None,
        fps=_rounded(info.fps) if info else None,
        width=info.width if info else None,
        height=info.height if info else None,
        codec=info.codec if info else None,
        frames_expected=info.frames_expected if info else None,
        frames_decoded=max(info.frames_found - result.bad_packets, 0) if info else None,
        decoder=header.decoder,
        variant=header.variant,
        error={"code": error.kind, "message": str(error)} if error else None,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


class Journal:
    """An open journal. Use as a context manager; ``rows`` holds the last row of every video done so far."""

    def __init__(self, path: Path, header: Header, *, restart: bool = False) -> None:
        """Open or create ``path``.

        Raises:
            OutputError: it cannot be written, belongs to a run with another header, or a line in its middle is damaged.
        """
        self.path = path
        self.header = header
        self.rows: dict[tuple[str, int, int], Row] = {}
        self._synced = time.monotonic()
        whole = 0
        if not restart and (old := read_header(path)) is not None:
            if differences := header.differences(old):
                raise OutputError(f"{path} is of another run: {'; '.join(differences)}; use --restart or another --out")
            self.rows, whole = read_rows(path)
        self._stream = _open(path, whole)
        if not whole:
            self._write(header)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._stream.closed:
            self._sync()
            self._stream.close()

    def append(self, row: Row) -> None:
        """Write one row; it reaches the disk within SYNC_EVERY_S seconds, and the operating system at once."""
        self._write(row)
        self.rows[row.key] = row
        if time.monotonic() - self._synced > SYNC_EVERY_S:
            self._sync()

    def _write(self, value: Any) -> None:
        line = memoryview(msgspec.json.encode(value) + b"\n")
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
        return msgspec.json.decode(line, type=Header) if line.endswith(b"\n") else None
    except (OSError, msgspec.DecodeError):
        raise OutputError(f"{path} is no journal of harec-deploy: nothing was written; name another --out") from None


def read_rows(path: Path) -> tuple[dict[tuple[str, int, int], Row], int]:
    """Return the last row of every video, and the length in bytes of the whole lines.

    Raises:
        OutputError: a line is damaged that is not the last.
    """
    rows: dict[tuple[str, int, int], Row] = {}
    whole = 0
    decoder = msgspec.json.Decoder(Row)
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                break
            if number > 1:
                try:
                    row = decoder.decode(line)
                    key = row.key
                except (msgspec.DecodeError, ValueError) as error:
                    raise OutputError(f"{path}, line {number} is damaged: {error}; mend it or use --restart") from None
                rows.pop(key, None)
                rows[key] = row
            whole += len(line)
    return rows, whole
