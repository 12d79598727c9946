"""Which moments of a video are looked at: pure arithmetic, no I/O.

All times are seconds from the first shown frame. A window is half-open, ``[start_s, end_s)``.

A clip of T frames cuts the sampled part of its window into T equal parts and takes the middle of each:

    window      |-----------------------------------------------|
    span 1.0    |     x     |     x     |     x     |     x     |     T = 4
    span 0.5                |  x  |  x  |  x  |  x  |
"""

from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from harec_deploy.errors import UsageError


class Window(NamedTuple):
    """The half-open span ``[start_s, end_s)`` of a video from which one clip is sampled."""

    start_s: float
    end_s: float


class ClipSampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a clip is taken from a window.

    frames: T, the frames of a clip.
    span: the central share of the window that is sampled, in (0, 1].
    """

    frames: int = 16
    span: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.frames <= 1024:
            raise ValueError(f"sampling.frames is {self.frames}; allowed are 1 to 1024")
        if not 0 < self.span <= 1:
            raise ValueError(f"sampling.span is {self.span}; allowed are values above 0 and up to 1")

    def timestamps_s(self, window: Window, shift: ArrayLike = 0.0, *, per_part: int = 1) -> NDArray[np.float64]:
        """Return the times to sample in ``window``: float64 (T * per_part,), ascending for shift in [-0.5, 0.5].

        shift moves the times by that share of a part: one number for all, or one per time. With an odd ``per_part``
        every part gives that many evenly spaced times, of which the middle one is the time that ``per_part=1`` gives.
        """
        count = self.frames * per_part
        length = (window.end_s - window.start_s) * self.span
        start = (window.start_s + window.end_s - length) / 2
        parts = np.arange(count, dtype=np.float64) + 0.5 + np.asarray(shift, dtype=np.float64)
        return np.asarray(start + parts * (length / count), dtype=np.float64)


def whole(duration_s: float) -> list[Window]:
    """Return the one window that covers a video of ``duration_s`` seconds."""
    return [Window(0.0, duration_s)]


def sliding(duration_s: float, window_s: float, stride_s: float) -> list[Window]:
    """Return windows of ``window_s`` seconds every ``stride_s`` seconds that cover ``[0, duration_s)``.

    The last window is moved back so that it ends with the video; a video shorter than a window gets one window of its
    own length.

    Raises:
        UsageError: window_s or stride_s is not positive, or stride_s is longer than window_s, which would leave gaps.
    """
    if not (0 < stride_s <= window_s):
        raise UsageError(f"window {window_s:g}s with stride {stride_s:g}s: allowed are 0 < stride <= window")
    if duration_s <= window_s:
        return whole(duration_s)
    last = duration_s - window_s
    starts = [float(start) for start in np.arange(0.0, last, stride_s)]
    if last - starts[-1] < 1e-6:
        starts.pop()
    return [Window(start, start + window_s) for start in [*starts, last]]
