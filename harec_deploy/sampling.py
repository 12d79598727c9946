"""Which moments of a video are looked at: pure arithmetic, no I/O.

All times are seconds from the first shown frame. A window is half-open, ``[start_s, end_s)``.

A clip of T frames cuts the sampled part of its window into T equal parts and takes the middle of each:

    window      |-----------------------------------------------|
    span 1.0    |     x     |     x     |     x     |     x     |     T = 4
    span 0.5                |  x  |  x  |  x  |  x  |
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from harec_deploy.errors import UsageError, VideoError

MAX_WINDOWS = 100_000  # of one video: 27 hours at one a second; timestamps may claim years
_SLACK_S = 1e-6  # a time computed to fall on a frame's start means that frame


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

    def timestamps_s(
        self, window: Window | Sequence[Window], shift: ArrayLike = 0.0, *, per_part: int = 1
    ) -> NDArray[np.float64]:
        """Return the times to sample in a window, or in each of several: float64 (T * per_part,), or (W, T * per_part).

        They ascend for shift in [-0.5, 0.5].

        shift moves the times by that share of a part: one number for all, or one per time. With an odd ``per_part``
        every part gives that many evenly spaced times, of which the middle one is the time that ``per_part=1`` gives.
        """
        count = self.frames * per_part
        start_s, end_s = np.moveaxis(np.asarray(window, dtype=np.float64), -1, 0)[..., None]
        length = (end_s - start_s) * self.span
        start = (start_s + end_s - length) / 2
        parts = np.arange(count, dtype=np.float64) + 0.5 + np.asarray(shift, dtype=np.float64)
        return np.asarray(start + parts * (length / count), dtype=np.float64)


def shown_at(shown_s: NDArray[np.float64], timestamps_s: ArrayLike) -> NDArray[np.int64]:
    """Return which frame is shown at each time, as an index of ``shown_s``, the ascending times that frames appear at.

    A time before the first frame means the first, one after the last the last: int64, of the shape of ``timestamps_s``.
    """
    place = np.searchsorted(shown_s, np.asarray(timestamps_s) + _SLACK_S, side="right") - 1
    return np.asarray(np.clip(place, 0, len(shown_s) - 1), dtype=np.int64)


class Windowing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Overlapping windows over a long video: ``window_s`` seconds long, one every ``stride_s`` seconds.

    smooth, min_segment_s: how their labels become segments, see ``segments.merge``.
    """

    window_s: float
    stride_s: float
    smooth: int = 3
    min_segment_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.stride_s <= self.window_s < float("inf"):
            told = f"window {self.window_s:g}s with stride {self.stride_s:g}s"
            raise UsageError(f"{told}: allowed are 0 < stride <= window")
        if not 1 <= self.smooth <= MAX_WINDOWS or self.smooth % 2 == 0:
            told = f"allowed are odd numbers up to {MAX_WINDOWS:,}, 1 for none"
            raise UsageError(f"smoothing over {self.smooth} windows: {told}")
        if not 0 <= self.min_segment_s < float("inf"):
            raise UsageError(f"segments of at least {self.min_segment_s:g}s: allowed are 0 and more")

    def windows(self, duration_s: float) -> list[Window]:
        """Return the windows of a video. Raises VideoError too_large for more of them than MAX_WINDOWS."""
        if duration_s / self.stride_s > MAX_WINDOWS:
            told = f"{duration_s / self.stride_s:.3g} windows; at most {MAX_WINDOWS:,} a video: take a longer stride"
            raise VideoError("too_large", told)
        return sliding(duration_s, self.window_s, self.stride_s)


def windows_of(duration_s: float, windowing: Windowing | None) -> list[Window]:
    """Return the windows of a video: the whole of it where ``windowing`` is None."""
    return whole(duration_s) if windowing is None else windowing.windows(duration_s)


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
