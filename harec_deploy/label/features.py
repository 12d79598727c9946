"""Feature vectors of a run: kept beside the journal while it grows, written as one table when it ends.

Records of one window each lie one behind the other in a plain file, and a row of the journal says which are its own. A
record is written before its row, so what no row speaks of is the tail of an interrupted run, and is cut off.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harec_deploy.errors import OutputError
from harec_deploy.files import atomic_write
from harec_deploy.label.journal import Place, Row, features_path
from harec_deploy.label.outputs import need
from harec_deploy.sampling import Window

SUFFIXES = (".npz", ".parquet")
ROW_GROUP = 4096  # vectors written to Parquet at a time


class FeatureStore:
    """The vectors of a run, each the mean feature of the frames of a window's clip: float32 (D,)."""

    def __init__(self, journal: Path, places: Iterable[Place], dim: int) -> None:
        """Open or create the file beside ``journal``, and cut off what no row speaks of. Raises OutputError."""
        self.path = features_path(journal)
        self.record = np.dtype([("start_s", "<f8"), ("end_s", "<f8"), ("features", "<f4", (dim,))])
        try:
            self._stream = self.path.open("r+b" if self.path.exists() else "w+b", buffering=0)
            there = self._stream.seek(0, 2) // self.record.itemsize
            self.count = max((place.vectors for place in places if place.vectors <= there), default=0)
            self._stream.seek(self._stream.truncate(self.count * self.record.itemsize))
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}") from None

    def has(self, place: Place) -> bool:
        """Tell whether the vectors of a row are there; after a power cut they may be lost."""
        return place.failed or 0 < place.vectors <= self.count

    def append(self, windows: Sequence[Window], vectors: NDArray[np.float32]) -> tuple[int, int]:
        """Write the vectors (k, D) of k windows; return the number of the first one, and k."""
        records = np.zeros(len(vectors), dtype=self.record)
        spans = np.asarray(windows, dtype=np.float64)
        records["start_s"], records["end_s"], records["features"] = spans[:, 0], spans[:, 1], vectors
        data = memoryview(records.tobytes())
        try:
            while data:
                data = data[self._stream.write(data) :]
        except OSError as error:
            told = f"{self.path} cannot be written: {error.strerror}; the rows before are whole"
            raise OutputError(f"{told}. Make room and give the same command again") from None
        first, self.count = self.count, self.count + len(vectors)
        return first, len(vectors)

    def close(self) -> None:
        """Close the file; it stays, for the run to go on."""
        self._stream.close()

    def write(self, path: Path, rows: Sequence[Row]) -> None:
        """Write the vectors of ``rows`` to a table, .npz or .parquet. Raises MissingDependency, OSError."""
        records: NDArray[np.void] = np.zeros(0, dtype=self.record)
        if self.count:
            records = np.memmap(self.path, dtype=self.record, mode="r", shape=(self.count,))
        labelled = [row for row in rows if row.features]
        {".npz": _write_npz, ".parquet": _write_parquet}[path.suffix](path, labelled, records)


def _write_npz(path: Path, rows: Sequence[Row], records: NDArray[np.void]) -> None:
    """Write arrays by video, ``paths``, ``labels`` and ``scores``, and by vector; ``video`` is its place in those."""
    chosen = [np.arange(first, first + count) for first, count in map(_span, rows)]
    own = records[np.concatenate([np.zeros(0, dtype=np.int64), *chosen])]
    with atomic_write(path) as stream:
        np.savez(
            stream,
            paths=np.array([row.path for row in rows], dtype=str),
            labels=np.array([row.label for row in rows], dtype=str),
            scores=np.array([row.score for row in rows], dtype=np.float64),
            video=np.repeat(np.arange(len(rows)), [count for _, count in map(_span, rows)]),
            start_s=own["start_s"],
            end_s=own["end_s"],
            features=own["features"],
        )


def _span(row: Row) -> tuple[int, int]:
    assert row.features is not None
    return row.features


def _write_parquet(path: Path, rows: Sequence[Row], records: NDArray[np.void]) -> None:
    """Write a row a vector: path, label, score, start_s, end_s, features (a list of fixed size)."""
    need("pyarrow", "parquet", "writing .parquet")
    import pyarrow
    from pyarrow import parquet

    dim = records.dtype["features"].shape[0]
    fields = {"path": pyarrow.string(), "label": pyarrow.string(), "score": pyarrow.float64()}
    fields |= {"start_s": pyarrow.float64(), "end_s": pyarrow.float64()}
    schema = pyarrow.schema(fields | {"features": pyarrow.list_(pyarrow.float32(), dim)})
    with atomic_write(path) as stream, parquet.ParquetWriter(stream, schema) as writer:
        for places, owners in _groups(rows):
            own = records[places]
            columns = [[owner.path for owner in owners], [owner.label for owner in owners]]
            columns += [[owner.score for owner in owners], own["start_s"], own["end_s"]]
            vectors = pyarrow.FixedSizeListArray.from_arrays(own["features"].ravel(), dim)
            writer.write_batch(pyarrow.record_batch([*columns, vectors], schema=schema))


def _groups(rows: Sequence[Row]) -> Iterator[tuple[list[int], list[Row]]]:
    """Yield the numbers of records with the row of each, some thousands at a time."""
    places: list[int] = []
    owners: list[Row] = []
    for row in rows:
        first, count = _span(row)
        for start in range(first, first + count, ROW_GROUP):
            part = range(start, min(start + ROW_GROUP, first + count))
            places += part
            owners += [row] * len(part)
            if len(places) >= ROW_GROUP:
                yield places, owners
                places, owners = [], []
    if places:
        yield places, owners
