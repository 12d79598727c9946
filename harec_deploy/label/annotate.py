"""Annotated copies of labelled videos: H.264 with the label drawn in, for people who want to see what was recognised.

Each video is decoded, drawn on and encoded in a child process of its own, with the limits of a decoding child; this is
the parent's side, which opens the one file that a child writes. ``redraw.py`` is the other side.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from harec_deploy.decode import DECODERS
from harec_deploy.discover import VideoFile
from harec_deploy.errors import HarecError, UsageError, VideoError
from harec_deploy.files import atomic_write
from harec_deploy.label.child import Limits, command
from harec_deploy.label.journal import Row, video_path
from harec_deploy.label.outputs import make_parents, need, sidecars
from harec_deploy.label.overlay import Caption
from harec_deploy.label.slots import unchanged
from harec_deploy.machine import cores

EFFORT = 6.0  # seconds that a second of video may take, beyond the limit; one core takes about one at 720 lines
MAX_EXTRA_S = 12 * 3600.0
REFUSED = 3  # exit status of a child that said why


@dataclass(frozen=True, slots=True)
class Annotated:
    """What was written: how many videos, and (path, reason) of those that could not be."""

    done: int
    failures: list[tuple[str, str]]


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is started with: a video by the bytes of its absolute path, and the open file that it writes."""

    path: bytes
    output_fd: int
    parent: int
    decoder: str
    limits: Limits
    caption: Caption


def annotate_all(
    folder: Path,
    rows: Iterable[Row],
    *,
    root: Path = Path(),
    limits: Limits | None = None,
    workers: int | None = None,
    again: Callable[[Row], bool] = lambda row: True,
    since_s: float = 0.0,
    stop: threading.Event | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Annotated:
    """Write every labelled video again, with its label, score and a timeline drawn in.

    The copy is H.264 in mp4, as shown (turned upright), of at most 720 lines, with the video's timestamps and, where
    mp4 can hold it, its sound. Rows without a label are passed over.

    Args:
        folder: where the copies go; their names are given by ``sidecars``.
        rows: of a journal; a video must still have the size and time of change of its row.
        root: where relative paths of the rows begin.
        limits: of one child; a long video has more seconds, EFFORT for each of its own.
        workers: videos at a time; one for each core by default.
        again: tells whether a copy that is there already is made again.
        since_s: Unix time in seconds; older copies are of another run and made again too.
        stop: set from outside, ends it; copies that are not finished are not there.
        progress: called with (videos done, videos in all).

    Raises:
        UsageError: a copy would lie beside a video that is read, where it could replace one.
        MissingDependency: Pillow is not installed.
    """
    need("pillow", "annotate", "drawing labels into videos")
    labelled = [row for row in rows if row.label is not None]
    videos = [_video(root, row) for row in labelled]
    places = sidecars(folder, labelled, ".mp4")
    read_from = {video.path.parent for video in videos}
    for place in {place.parent for place in places}:
        if Path(os.path.realpath(place)) in read_from:
            raise UsageError(f"{place} holds videos that are read: name another folder for the annotated ones")
    todo = [at for at, row in enumerate(labelled) if again(row) or not _holds(places[at], since_s)]
    for at in todo:
        places[at].unlink(missing_ok=True)  # one with an old label would count as made if this is interrupted
    stop = stop or threading.Event()
    results: dict[int, str | None] = {}
    with ThreadPoolExecutor(workers or cores(), thread_name_prefix="annotate") as pool:
        try:
            jobs = {
                pool.submit(_annotate, folder, places[at], videos[at], labelled[at], limits or Limits(), stop): at
                for at in todo
            }
            for done, job in enumerate(as_completed(jobs), 1):
                results[jobs[job]] = job.result()
                progress(done, len(jobs))
        except BaseException:
            stop.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    failures = [(labelled[at].path, said) for at, said in sorted(results.items()) if said]
    return Annotated(sum(said == "" for said in results.values()), failures)


def _holds(place: Path, since_s: float) -> bool:
    """Tell whether a copy is there that is not older than a time."""
    return place.exists() and place.stat().st_mtime >= since_s


def _video(root: Path, row: Row) -> VideoFile:
    """Return the row's video as it was when it was labelled."""
    return VideoFile(row.path, video_path(root, row), row.size, row.mtime_ns)


def _annotate(
    folder: Path, place: Path, video: VideoFile, row: Row, limits: Limits, stop: threading.Event
) -> str | None:
    """Write one copy; return "", or why there is none, or None if that is because the run was stopped."""
    if stop.is_set():
        return None
    extra_s = min(max(row.duration_s or 0.0, 0.0) * EFFORT, MAX_EXTRA_S)
    allowed = msgspec.structs.replace(limits, seconds=limits.seconds + extra_s)
    caption = Caption(label=row.label or "", score=row.score, segments=row.segments)
    try:
        unchanged(video)
        make_parents(folder, place)
        with atomic_write(place) as stream:
            _in_child(video, stream, caption, allowed, stop)
            unchanged(video)
    except (HarecError, OSError, ValueError) as error:
        return None if stop.is_set() else getattr(error, "strerror", None) or str(error)
    return ""


def _in_child(video: VideoFile, stream: BinaryIO, caption: Caption, limits: Limits, stop: threading.Event) -> None:
    """Let a child write the copy into ``stream``. Raises VideoError."""
    task = Task(
        path=os.fsencode(video.path),
        output_fd=stream.fileno(),
        parent=os.getpid(),
        decoder=DECODERS["pyav"],
        limits=limits,
        caption=caption,
    )
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # a child may not wait for anybody who reads
    with (
        os.fdopen(reading, "rb", buffering=0) as words,
        os.fdopen(writing, "wb") as said,
        os.fdopen(os.memfd_create("task"), "w+b") as job,
    ):
        job.write(msgspec.json.encode(task))
        job.seek(0)
        child = subprocess.Popen(
            command("redraw"),
            pass_fds=(task.output_fd,),
            stdin=job,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,  # Ctrl-C on the terminal is for the parent alone
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        try:
            status = _wait(child, limits.seconds, stop)
        finally:
            child.kill()
            child.wait()
        if status != 0:
            raise _failure(status, limits, words.read(1 << 16) or b"")


def _wait(child: subprocess.Popen[bytes], seconds: float, stop: threading.Event) -> int | None:
    """Return the child's exit status, or None if it is still there when its time is up or the run is stopped."""
    deadline = time.monotonic() + seconds
    while not stop.is_set() and (left_s := deadline - time.monotonic()) > 0:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(min(left_s, 0.5))
    return None


def _failure(status: int | None, limits: Limits, said: bytes) -> VideoError:
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    last = lines[-1][:300] if lines else "it said nothing"
    if status in (None, -signal.SIGXCPU):
        return VideoError("timeout", f"annotating took longer than {limits.seconds:g} s")
    if status == -signal.SIGKILL:
        return VideoError("out_of_memory", "the decoder was killed from outside, most likely for its memory")
    if status is not None and status < 0:
        return VideoError("decoder_crashed", f"the decoder died of {signal.Signals(-status).name}")
    return VideoError("decoder_crashed", last if status == REFUSED else f"the decoder gave up ({status}): {last}")
