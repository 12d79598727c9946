"""A decoded picture becomes the pixels that a model takes: scaled straight from YUV, turned as a player shows it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import numpy as np
from av.buffer import Buffer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from harec_deploy.decode import Size

_FLAGS = Interpolation.BILINEAR  # colours within 3 levels; FULL_CHR_H_INT brings 1, for twice the time at 320x240


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame as shown: pixels uint8 RGB (H, W, 3) at the model's size, read-only, and the video's size and turn.

    damaged: the decoder made up parts of it. scaled_s: how long it took to make the pixels of the frame.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    rotation_degrees: int
    pixel_format: str
    damaged: bool
    scaled_s: float = 0.0


class Scaler:
    """Scales the frames of one video to one size; keeps swscale's context between frames.

    The colour matrix and range that the frame is tagged with are honoured; untagged means BT.601, limited range.
    """

    def __init__(self, size: Size, pixel_aspect: Fraction | None = None) -> None:
        """Scale to ``size`` pictures whose stored pixels are so wide by their height; None means square."""
        self.size = size
        self.pixel_aspect = pixel_aspect or Fraction(1)
        self._reformatter = VideoReformatter()

    def picture(self, frame: VideoFrame) -> Picture:
        """Return the frame as shown, scaled and cut to the model's size."""
        begun = time.perf_counter()
        matrix = display_matrix(frame)
        turned = is_turned(matrix)
        width, height = scaled_size(self.size, frame.width, frame.height, self.pixel_aspect, turned=turned)
        stored = (height, width) if turned else (width, height)
        scaled = self._reformatter.reformat(
            frame, width=stored[0], height=stored[1], format="rgb24", interpolation=_FLAGS, threads=1
        )
        shown = show(_view(scaled), matrix)
        top, left = (height - self.size.height) // 2, (width - self.size.width) // 2
        pixels = shown[top : top + self.size.height, left : left + self.size.width]
        shape = (frame.height, frame.width) if turned else (frame.width, frame.height)
        scaled_s = time.perf_counter() - begun
        return Picture(pixels, *shape, rotation_degrees(matrix), frame.format.name, frame.is_corrupt, scaled_s)


def scaled_size(
    size: Size, width: int, height: int, pixel_aspect: Fraction, *, turned: bool = False
) -> tuple[int, int]:
    """Return (width, height) of the shown picture after scaling and before the crop.

    width, height, pixel_aspect: of the stored picture; turned: its sides are exchanged when it is shown.
    """
    if size.mode == "stretch":
        return size.width, size.height
    aspect = Fraction(width, height) * pixel_aspect
    aspect = 1 / aspect if turned else aspect
    if aspect * size.height >= size.width:  # too wide for the box: heights agree, the sides are cut
        return max(size.width, round(size.height * aspect)), size.height
    return size.width, max(size.height, round(size.width / aspect))


def _view(frame: VideoFrame) -> NDArray[np.uint8]:
    """Return the pixels of an rgb24 frame (H, W, 3) where they lie; they live as long as the array does."""
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), dtype=np.uint8, count=plane.line_size * frame.height)
    rows = rows.reshape(frame.height, plane.line_size)
    return rows[:, : frame.width * 3].reshape(frame.height, frame.width, 3)


def display_matrix(frame: VideoFrame) -> NDArray[np.int32] | None:
    """Return the 2x2 part of the frame's display matrix, which maps stored to shown directions, or None if untagged."""
    data = cast("Mapping[str, Buffer]", frame.side_data).get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), dtype=np.int32).reshape(3, 3)[:2, :2]


def is_turned(matrix: NDArray[np.int32] | None) -> bool:
    """Tell whether the shown picture has width and height of the stored one exchanged."""
    return matrix is not None and abs(int(matrix[0, 1])) > abs(int(matrix[0, 0]))


def show(pixels: NDArray[np.uint8], matrix: NDArray[np.int32] | None) -> NDArray[np.uint8]:
    """Turn and mirror a stored picture (H, W, 3) by quarter turns, as the display matrix says."""
    if matrix is None:
        return pixels
    # A stored point (p, q) is shown at (a p + c q, b p + d q), with the matrix [[a, b], [c, d]] and y pointing down.
    (a, b), (c, d) = matrix.tolist()
    if is_turned(matrix):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def rotation_degrees(matrix: NDArray[np.int32] | None) -> int:
    """Return how far the shown picture is turned clockwise: 0, 90, 180 or 270; a mirror counts as no turn."""
    if matrix is None:
        return 0
    (a, b), (_, d) = matrix.tolist()
    if is_turned(matrix):
        return 90 if b > 0 else 270
    return 180 if a < 0 and d < 0 else 0
