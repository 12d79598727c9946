"""Frames that hardly differ from an earlier one of their video take over its features: fixed cameras, idle scenes.

frames      0   1   2   3   4   5       in the order shown
features    0   0   0   3   3   3       of which frame they have: 1 and 2 are near 0, 3 is not

A frame is compared with the one whose features it would have, never with one that was passed over, so what changes
slowly adds up until it counts.
"""

import numpy as np
from numpy.typing import NDArray

from harec_deploy.decode import Frames
from harec_deploy.errors import UsageError

BLOCK = 8  # pixels of a block's side; benchmarks/reuse.py holds others against it


def difference(one: NDArray[np.uint8], other: NDArray[np.uint8], block: int = BLOCK) -> float:
    """Return how far two frames uint8 (H, W, 3) are apart, in levels from 0 to 255.

    It is the mean absolute difference of the ``block`` by ``block`` pixels that differ most: in the mean of a whole
    frame a small figure, or the hand of one, is lost in the noise of the sensor, and the smaller the block, the less.
    """
    apart = np.maximum(one, other) - np.minimum(one, other)  # (H, W, 3), in uint8: half the time of signed numbers
    height, width, colours = apart.shape
    rows, columns = np.arange(0, height, block), np.arange(0, width, block)
    sums = np.add.reduceat(apart.reshape(height, -1), rows, axis=0, dtype=np.uint32)  # (H / block, W * 3)
    sums = np.add.reduceat(sums, columns * colours, axis=1)  # (H / block, W / block)
    pixels = np.outer(np.diff(rows, append=height), np.diff(columns, append=width))
    return float((sums / (pixels * colours)).max())


class Reuse:
    """Which frames of one video need features of their own, and which have those of an earlier one.

    compared, reused: how many frames were looked at so far, and how many of them took over features.
    """

    def __init__(self, threshold: float | None = None) -> None:
        """Take frames for alike that are at most ``threshold`` levels apart, see ``difference``; None: none are.

        Raises:
            UsageError: the threshold is not of 0 to 255.
        """
        if threshold is not None and not 0 <= threshold <= 255:
            raise UsageError(f"reuse threshold {threshold:g}: allowed are 0 to 255 levels, 0 for equal frames only")
        self.threshold = threshold
        self.compared = self.reused = 0
        self._shown_s = -np.inf  # of the last frame that was looked at
        self._anchor: NDArray[np.uint8] | None = None  # (H, W, 3), the last frame with features of its own
        self._features: NDArray[np.float32] | None = None  # (1, D), of the last frame that was filled in

    def fresh(self, frames: Frames) -> NDArray[np.bool_]:
        """Return which of the next frames need features of their own: bool (N,).

        Frames that are not later than those before begin the video anew, and take nothing from before.
        """
        fresh = np.ones(len(frames.pixels), dtype=np.bool_)
        if self.threshold is None:
            return fresh
        anchor = self._anchor if frames.shown_s[0] > self._shown_s else None
        for place, picture in enumerate(frames.pixels):
            fresh[place] = anchor is None or difference(picture, anchor) > self.threshold
            if fresh[place]:
                anchor = picture
        assert anchor is not None
        self._anchor, self._shown_s = anchor.copy(), float(frames.shown_s[-1])  # the memory of the frames is lent
        self.compared += len(fresh)
        self.reused += int((~fresh).sum())
        return fresh

    def filled(self, fresh: NDArray[np.bool_], features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the features of all frames of a part (N, D), given what ``fresh`` said and those of the fresh ones."""
        if fresh.all():
            filled = features
        else:
            before = features[:0] if self._features is None else self._features
            known = np.concatenate([before, features])
            filled = known[np.cumsum(fresh) + len(before) - 1]
        self._features = filled[-1:].copy()
        return filled
