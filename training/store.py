"""Arrays of videos, all of one shape, computed once and kept in a memory-mapped file.

    NAME.rows     the arrays, one behind the other
    NAME.videos   a line for each of them: the video, as a hash of its path, its size and the time it was changed

NAME says what was computed and how, a line of what; so a row is never stale, and the rows of one file serve every list
of videos. What was computed when a run is interrupted stays. A row is on the disk before its line is, so rows without a
line are the tail of such a run, and are cut off.
"""

import fcntl
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from harec_deploy.errors import OutputError, UsageError
from harec_deploy.files import sync_folder

LINE = 2 * 32 + 1  # bytes: a SHA-256 in hexadecimal digits and the line's end
SYNC_ROWS = 16  # a power cut costs as many at most

Progress = Callable[[int, int], None]
Compute = Callable[[Sequence[Path]], Iterable[NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class Layout:
    """The file of an array for each video: where it is, and the shape and dtype of each."""

    rows: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def videos(self) -> Path:
        """The file that says which row is of which video."""
        return self.rows.with_suffix(".videos")

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape) * self.dtype.itemsize

    def known(self) -> list[str]:
        """Return the videos of the rows that are whole, as ``identity`` writes them."""
        try:
            lines, size = self.videos.read_bytes(), self.rows.stat().st_size
        except FileNotFoundError:
            return []
        whole = min(len(lines) // LINE, size // self.row_bytes)
        return [lines[row * LINE : (row + 1) * LINE - 1].decode("ascii", "replace") for row in range(whole)]


@dataclass(frozen=True, slots=True)
class Rows:
    """The arrays of some videos, in a file that may hold more.

    array: of all rows of the file, a read-only memory map. at: the row of each video.
    """

    path: Path
    array: NDArray[Any]
    at: Sequence[int]

    def __getitem__(self, index: int) -> NDArray[Any]:
        """Return the array of a video by its place in the list."""
        row: NDArray[Any] = self.array[self.at[index]]
        return row


def stored(layout: Layout, paths: Sequence[Path], compute: Compute, progress: Progress) -> Rows:
    """Return the arrays of videos; ``compute`` gives, in order, those that are not there yet.

    progress: is told, as each is computed, how many of the videos are there.

    Raises:
        UsageError: a video is gone; and what ``compute`` raises. The rows before it are kept.
        OutputError: the file cannot be written.
    """
    wanted = [identity(path) for path in paths]
    try:
        if not set(wanted).issubset(layout.known()):
            layout.rows.parent.mkdir(parents=True, exist_ok=True)
            _add(layout, dict(zip(wanted, paths, strict=True)), compute, progress)
        known = layout.known()
    except OSError as error:
        told = f"{layout.rows} cannot be written: {error.strerror}"
        raise OutputError(f"{told}; make room and give the same command again, or name another --cache") from None
    array = np.memmap(layout.rows, dtype=layout.dtype, mode="r", shape=(len(known), *layout.shape))
    places = {video: place for place, video in enumerate(known)}
    return Rows(layout.rows, array, [places[video] for video in wanted])


def identity(path: Path) -> str:
    """Return what stands for a video as it is now: 64 hexadecimal digits. Raises UsageError if it is gone."""
    try:
        status = path.stat()
    except OSError as error:
        told = f"{path}: {error.strerror}; make the manifest again with python -m training prepare"
        raise UsageError(told) from None
    return hashlib.sha256(os.fsencode(path) + f"\0{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()


def _add(layout: Layout, wanted: dict[str, Path], compute: Compute, progress: Progress) -> None:
    """Append the rows of the videos that are not there; another run that does so is waited for."""
    with layout.videos.open("a+b") as lines, layout.rows.open("ab") as rows:
        fcntl.flock(lines, fcntl.LOCK_EX)
        known = layout.known()
        lines.truncate(len(known) * LINE)
        rows.truncate(len(known) * layout.row_bytes)
        there = wanted.keys() & known
        missing = {video: path for video, path in wanted.items() if video not in there}
        new: list[str] = []
        try:
            computed = compute(list(missing.values()))
            for done, (video, row) in enumerate(zip(missing, computed, strict=True), len(there) + 1):
                rows.write(np.ascontiguousarray(row, dtype=layout.dtype).tobytes())
                new.append(video)
                progress(done, len(wanted))
                if len(new) == SYNC_ROWS:
                    _commit(rows, lines, new)
        finally:
            _commit(rows, lines, new)
    sync_folder(layout.rows.parent)


def _commit(rows: BinaryIO, lines: BinaryIO, new: list[str]) -> None:
    """Put rows on the disk, then their lines, and forget them."""
    rows.flush()
    os.fsync(rows.fileno())
    lines.write("".join(f"{video}\n" for video in new).encode())
    lines.flush()
    os.fsync(lines.fileno())
    new.clear()
