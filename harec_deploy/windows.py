"""The windows of one video, filled while its frames come: each frame is encoded once, whatever windows share it.

frames    0  1  2  3  4  5  6  7  8  9          features wait here until no later window needs them
window 0  |--------|
window 1        |--------|
window 2              |--------|
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harec_deploy.decode import Frames, VideoInfo
from harec_deploy.errors import UsageError
from harec_deploy.reuse import Reuse
from harec_deploy.sampling import ClipSampling, Window, Windowing, shown_at, windows_of


def _check(windows: Sequence[Window]) -> None:
    if not isinstance(windows, Sequence) or not windows:
        raise UsageError("no windows to look at: allowed are a list of (start_s, end_s), or None for the whole video")
    if not all(-math.inf < start < end < math.inf for start, end in windows):
        raise UsageError("a window ends before it begins: allowed are (start_s, end_s) with start_s < end_s")
    if (np.diff(np.asarray(windows, dtype=np.float64), axis=0) < 0).any():
        raise UsageError("windows must ascend, by start and by end: sort them")


class Track:
    """One video on its way through the engine.

    windows: of the video. probabilities, vectors: of the windows so far, float32 (k, C) and (k, D) a batch, put there
    by whoever computes them. info, bad_packets: of the last frames. reuse: which of its frames need no features of
    their own.
    """

    def __init__(
        self,
        sampling: ClipSampling,
        windows: Windowing | Sequence[Window] | None = None,
        reuse_threshold: float | None = None,
    ) -> None:
        """Look at ``windows``; None is the whole video. Raises UsageError for none at all, or if they do not ascend."""
        self.sampling = sampling
        self.wanted = windows
        self.reuse = Reuse(reuse_threshold)
        self.info: VideoInfo | None = None
        if windows is not None and not isinstance(windows, Windowing):
            _check(windows)
        self._begin()

    def _begin(self) -> None:
        self.windows: list[Window] = []
        self.probabilities: list[NDArray[np.float32]] = []
        self.vectors: list[NDArray[np.float32]] = []
        self.bad_packets = 0
        self._next = 0  # the first window that is not whole yet
        self._shown_s = np.zeros(0)
        self._features: NDArray[Any] | None = None

    def windows_in(self, info: VideoInfo) -> list[Window]:
        """Return the windows of a video. Raises VideoError for too many."""
        if self.wanted is None or isinstance(self.wanted, Windowing):
            return windows_of(info.duration_s, self.wanted)
        return list(self.wanted)

    def timestamps_s(self, info: VideoInfo) -> NDArray[np.float64]:
        """Return the times that the decoder is asked for: float64 (windows * T,)."""
        return self.sampling.timestamps_s(self.windows_in(info)).ravel()

    def add(self, frames: Frames, features: NDArray[Any], count: int) -> Iterator[NDArray[Any]]:
        """Take the next frames with their features (N, ...) and yield clips (k <= count, T, ...) that are whole now.

        Frames that are not later than those before begin the video anew, and all before is forgotten. Use up what is
        yielded before the next frames are added, and put the probabilities in the list that is there at that time.
        """
        if self._features is None or frames.shown_s[0] <= self._shown_s[-1]:
            self._begin()
            self.windows = self.windows_in(frames.info)
            self._shown_s, self._features = frames.shown_s, features
        else:
            self._shown_s = np.concatenate([self._shown_s, frames.shown_s])
            self._features = np.concatenate([self._features, features])
        self.info, self.bad_packets = frames.info, frames.bad_packets
        while self._next < len(self.windows):
            times = self.sampling.timestamps_s(self.windows[self._next : self._next + count])
            # A time's frame is settled when a later frame is there, or none will come.
            settled = len(times) if frames.last else int((shown_at(self._shown_s, times[:, -1]) < self._end).sum())
            if not settled:
                break
            yield self._features[shown_at(self._shown_s, times[:settled])]
            self._next += settled
        self._forget()

    @property
    def _end(self) -> int:
        return len(self._shown_s) - 1

    def _forget(self) -> None:
        """Drop the features that no later window needs."""
        assert self._features is not None
        if self._next < len(self.windows):
            first = int(shown_at(self._shown_s, self.sampling.timestamps_s(self.windows[self._next])[0]))
            self._shown_s, self._features = self._shown_s[first:], self._features[first:]
