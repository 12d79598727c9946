"""Rows of videos on disk: computed once, whatever interrupted it, and never those of another video."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from numpy.typing import NDArray

from harec_deploy.errors import OutputError, UsageError
from training import store
from training.store import Layout, stored

COUNT = 5


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"v{number}.mp4" for number in range(COUNT)]
    for path in found:
        path.write_text(path.stem)
    return found


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "cache/numbers.rows", (2, 3), np.dtype(np.float32))


def row(path: Path) -> NDArray[np.float32]:
    """Return what is to be kept of a video."""
    return np.arange(6, dtype=np.float32).reshape(2, 3) + 10 * int(path.stem[1:])


class Computed:
    """Computes rows, and notes of which videos."""

    def __init__(self) -> None:
        self.of: list[Path] = []

    def __call__(self, paths: Sequence[Path]) -> Iterator[NDArray[np.float32]]:
        for path in paths:
            self.of.append(path)
            yield row(path)


def ignore(done: int, total: int) -> None:
    """Take progress."""


def interrupt_at(place: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == place:
            raise KeyboardInterrupt

    return progress


def check(layout: Layout, paths: Sequence[Path], computed: Sequence[Path]) -> None:
    """Hold the rows against the truth, and what had to be computed for them against ``computed``."""
    compute = Computed()
    rows = stored(layout, paths, compute, ignore)
    assert compute.of == list(computed)
    for index, path in enumerate(paths):
        np.testing.assert_array_equal(rows[index], row(path))


def test_only_what_is_missing_is_computed(layout: Layout, paths: list[Path]) -> None:
    check(layout, paths[:3], computed=paths[:3])
    check(layout, paths[:3], computed=[])
    check(layout, [paths[4], paths[1], paths[3], paths[1]], computed=[paths[4], paths[3]])
    check(layout, paths, computed=[])


def test_a_video_that_changed_is_computed_anew(layout: Layout, paths: list[Path]) -> None:
    check(layout, paths, computed=paths)
    before = paths[1].stat()
    paths[1].write_text("longer than it was")
    store.os.utime(paths[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    store.os.utime(paths[3], ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    check(layout, paths, computed=[paths[1], paths[3]])


@pytest.mark.parametrize("sync", [1, 2, 100])
def test_an_interrupted_run_goes_on_where_it_stopped(
    layout: Layout, paths: list[Path], sync: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SYNC_ROWS", sync)
    with pytest.raises(KeyboardInterrupt):
        stored(layout, paths, Computed(), interrupt_at(3))
    told: list[tuple[int, int]] = []
    compute = Computed()
    stored(layout, paths, compute, lambda done, total: told.append((done, total)))
    assert compute.of == paths[3:]
    assert told == [(4, 5), (5, 5)]
    check(layout, paths, computed=[])


def test_what_fails_keeps_the_rows_before_it(layout: Layout, paths: list[Path]) -> None:
    def failing(missing: Sequence[Path]) -> Iterator[NDArray[np.float32]]:
        yield row(missing[0])
        raise UsageError("take it out")

    with pytest.raises(UsageError, match="take it out"):
        stored(layout, paths, failing, ignore)
    check(layout, paths, computed=paths[1:])


@pytest.mark.parametrize("rows_cut", [1, 24, 25])
@pytest.mark.parametrize("lines_cut", [0, 1, store.LINE])
def test_a_tail_that_a_crash_left_is_cut_off(layout: Layout, paths: list[Path], rows_cut: int, lines_cut: int) -> None:
    check(layout, paths[:3], computed=paths[:3])
    for path, cut in ((layout.rows, rows_cut), (layout.videos, lines_cut)):
        with path.open("r+b") as stream:
            stream.truncate(path.stat().st_size - cut)
    whole = 3 - max(-(-rows_cut // layout.row_bytes), -(-lines_cut // store.LINE))
    check(layout, paths, computed=paths[whole:])
    assert layout.rows.stat().st_size == COUNT * layout.row_bytes
    assert layout.videos.stat().st_size == COUNT * store.LINE


def test_a_run_waits_for_another_that_computes_the_same(layout: Layout, paths: list[Path]) -> None:
    late, began = Computed(), Event()

    def slow(missing: Sequence[Path]) -> Iterator[NDArray[np.float32]]:
        began.set()
        wait([other], timeout=0.3)  # it ends only if it does not wait for this one
        yield from map(row, missing)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: began.wait() and stored(layout, paths, late, ignore))
        stored(layout, paths, slow, ignore)
        rows = other.result()
    assert late.of == []
    assert [float(rows[index][0, 0]) for index in range(COUNT)] == [0.0, 10.0, 20.0, 30.0, 40.0]


def test_a_video_that_is_gone_and_a_folder_that_cannot_be_written(layout: Layout, paths: list[Path]) -> None:
    gone = paths[0].with_name("gone.mp4")
    with pytest.raises(UsageError, match=r"gone\.mp4: No such file or directory; make the manifest again"):
        stored(layout, [*paths, gone], Computed(), ignore)
    layout.rows.parent.write_text("a file")
    with pytest.raises(OutputError, match=r"numbers\.rows cannot be written: .*or name another --cache"):
        stored(layout, paths, Computed(), ignore)
