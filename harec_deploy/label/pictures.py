"""The pictures of the report: which videos are shown, and frames of them that a page can hold."""

import base64
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harec_deploy.decode import Size, choose
from harec_deploy.errors import VideoError
from harec_deploy.label.journal import Key, Row, video_path
from harec_deploy.machine import cores
from harec_deploy.page import unit

MAX_UNCERTAIN = 24
MAX_GALLERY = 600  # videos in all galleries together: about 5 MB of page
BOX = (208, 156)  # pixels that a thumbnail fits in, width and height


@dataclass(frozen=True, slots=True)
class Shots:
    """Frames of one video as data: URIs of JPEG files, or why there are none."""

    images: list[str]
    missing: str = ""


def most_certain(rows: Iterable[Row], thumbnails: int) -> dict[str, list[Row]]:
    """Return the most certain videos of each class, the classes with most videos first."""
    by_class: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.label is not None:
            by_class[row.label].append(row)
    each = min(thumbnails, max(1, MAX_GALLERY // max(len(by_class), 1)))
    ranked = sorted(by_class.items(), key=lambda item: (-len(item[1]), item[0]))[:MAX_GALLERY]
    return {name: sorted(members, key=lambda row: -score_of(row))[:each] for name, members in ranked}


def least_certain(rows: Iterable[Row]) -> list[Row]:
    """Return the labelled videos with the lowest scores, the lowest first."""
    return sorted((row for row in rows if row.label is not None), key=score_of)[:MAX_UNCERTAIN]


def score_of(row: Row) -> float:
    """Return the score of the row's label, from 0 to 1 whatever the journal says."""
    return unit(row.score or 0.0)


def take_all(
    uncertain: list[Row], certain: list[Row], root: Path, progress: Callable[[int, int], None]
) -> dict[Key, Shots]:
    """Decode every wanted video once: three frames of an uncertain one, the middle frame of any other."""
    wanted = {row.key: (row, (0.5,)) for row in certain} | {row.key: (row, (1 / 6, 0.5, 5 / 6)) for row in uncertain}
    shots = {}
    executor = ThreadPoolExecutor(cores())
    try:
        tasks = {executor.submit(_take, root, row, places): key for key, (row, places) in wanted.items()}
        for done, task in enumerate(as_completed(tasks), 1):
            shots[tasks[task]] = task.result()
            progress(done, len(tasks))
    finally:
        executor.shutdown(cancel_futures=True)
    return shots


def _take(root: Path, row: Row, places: Sequence[float]) -> Shots:
    """Return the frames at ``places``, given as parts of the video's length."""
    path = video_path(root, row)
    try:
        size = path.stat().st_size
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return Shots([], "not found")
    if size != row.size:
        return Shots([], "changed since it was labelled")
    try:
        frames = choose().frames(path, lambda info: [info.duration_s * place for place in places], _fit(row))
    except VideoError as error:
        return Shots([], "not found" if error.kind == "vanished" else str(error))
    return Shots([jpeg(pixels) for pixels in frames.pixels])


def _fit(row: Row) -> Size:
    """Return the size of the video's picture in BOX; even, because JPEG halves the colours."""
    width, height = (min(max(side or 1, 1), 1 << 16) for side in (row.width, row.height))
    scale = min(BOX[0] / width, BOX[1] / height)
    return Size(width=max(2 * round(width * scale / 2), 8), height=max(2 * round(height * scale / 2), 8))


def jpeg(pixels: NDArray[np.uint8]) -> str:
    """Return a uint8 RGB (H, W, 3) picture as the data: URI of a JPEG file."""
    from fractions import Fraction

    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame

    height, width, _ = pixels.shape
    encoder = VideoCodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, height, "yuvj420p", Fraction(1)
    encoder.qmin = encoder.qmax = 4  # good to look at, about 6 kB
    picture = VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuvj420p", dst_color_range="JPEG")
    packets = [*encoder.encode(picture), *encoder.encode(None)]
    return "data:image/jpeg;base64," + base64.b64encode(b"".join(bytes(packet) for packet in packets)).decode()
