"""Decoding ahead of the engine: videos in, decoded clips out as they are done.

This is the seam behind which decoding may run anywhere; here it runs in threads, which FFmpeg lets run side by side.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from harec_deploy.decode import Frames
from harec_deploy.discover import VideoFile
from harec_deploy.errors import VideoError


@dataclass(frozen=True, slots=True)
class Decoded:
    """One video after decoding: its frames or why there are none, and how long it took."""

    video: VideoFile
    frames: Frames | None
    error: VideoError | None
    seconds: float


def default_workers() -> int:
    """Return one decoder for each core that this process may use."""
    return len(os.sched_getaffinity(0))


def decode_ahead(videos: Iterable[VideoFile], decode: Callable[[VideoFile], Frames], workers: int) -> Iterator[Decoded]:
    """Decode ``videos`` in ``workers`` threads and yield each as it is done, at most two a worker ahead."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: set[Future[Decoded]] = set()
    try:
        for video in videos:
            waiting.add(pool.submit(_decode_one, video, decode))
            if len(waiting) >= 2 * workers:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode_one(video: VideoFile, decode: Callable[[VideoFile], Frames]) -> Decoded:
    start = time.perf_counter()
    try:
        if video.error:
            raise video.error
        frames = decode(video)
        _unchanged(video)
    except VideoError as error:
        return Decoded(video, None, error, time.perf_counter() - start)
    return Decoded(video, frames, None, time.perf_counter() - start)


def _unchanged(video: VideoFile) -> None:
    try:
        status = video.path.stat()
    except OSError:
        raise VideoError("vanished") from None
    if (status.st_size, status.st_mtime_ns) != (video.size, video.mtime_ns):
        raise VideoError("changed")
