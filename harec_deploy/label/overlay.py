"""What is drawn over an annotated video: the label and its score at the top, a timeline with a cursor at the bottom.

Text is drawn once for each segment, the timeline once for each video; a frame costs the blending of two bands.
"""

import unicodedata
from bisect import bisect_right
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from harec_deploy.label.report import COLOURS
from harec_deploy.page import unit

BAND = (10, 12, 16, 184)  # red, green, blue and opacity of what text stands on: it is read on any picture
EMPTY = (92, 98, 108, 255)  # of the timeline where there is no segment
WHITE = (255, 255, 255, 255)
SOFT = (214, 219, 226, 255)
MAX_LETTERS = 300  # of a label that are measured; no picture is so wide


class Caption(msgspec.Struct, frozen=True, kw_only=True):
    """What is said about a video: its label and score, and its segments as (start_s, end_s, label, score)."""

    label: str
    score: float | None
    segments: list[tuple[float, float, str, float]]


@dataclass(frozen=True, slots=True)
class _Layer:
    """Lines from ``top`` on that become pixels * keep / 256 + colour; both uint16 (h, W, 1 or 3)."""

    top: int
    keep: NDArray[np.uint16]
    colour: NDArray[np.uint16]

    def blend(self, pixels: NDArray[np.uint8]) -> None:
        area = pixels[self.top : self.top + len(self.keep)]
        area[:] = (area * self.keep + self.colour) >> 8


class Overlay:
    """Draws the caption of one video onto its frames, which are all of one size.

    label_px, timeline_px: how many lines at the top and at the bottom are drawn over.
    """

    def __init__(self, width: int, height: int, caption: Caption, duration_s: float) -> None:
        self.width, self.height = width, height
        self.label_px = max(min(max(round(min(width, height) * 0.1), 18), height // 3), 1)
        self.timeline_px = max(min(max(self.label_px // 2, 8), height // 4), 1)
        self._caption = caption
        self._segments = sorted(caption.segments)
        self._starts = [segment[0] for segment in self._segments]
        self._duration_s = max(duration_s, 1e-3)
        names = dict.fromkeys([segment[2] for segment in self._segments] or [caption.label])
        self._colours = {name: _rgba(COLOURS[place % len(COLOURS)]) for place, name in enumerate(names)}
        self._margin = max(self.timeline_px // 4, 1)
        self._timeline = self._draw_timeline()
        self._shown: tuple[str, float | None] | None = None
        self._label: _Layer = self._timeline

    def draw(self, pixels: NDArray[np.uint8], time_s: float) -> None:
        """Draw onto uint8 RGB pixels (H, W, 3), in place, what is to be seen at ``time_s``."""
        said = self._at(time_s)
        if said != self._shown:
            self._shown, self._label = said, self._draw_label(*said)
        self._label.blend(pixels)
        self._timeline.blend(pixels)
        centre, half = self._column(time_s), max(self.timeline_px // 14, 1)
        band = pixels[self._timeline.top :]
        band[:, max(centre - 2 * half, 0) : centre + 2 * half + 1] //= 3  # a dark edge
        band[:, max(centre - half, 0) : centre + half + 1] = 255

    def _at(self, time_s: float) -> tuple[str, float | None]:
        """Return the label and score at a time: of the segment there, or of the video."""
        place = bisect_right(self._starts, time_s + 1e-6) - 1
        if place >= 0 and time_s < self._segments[place][1]:
            return self._segments[place][2], self._segments[place][3]
        return self._caption.label, self._caption.score

    def _column(self, time_s: float) -> int:
        return self._margin + round(unit(time_s / self._duration_s) * (self.width - 1 - 2 * self._margin))

    def _draw_label(self, label: str, score: float | None) -> _Layer:
        """Return the band at the top: a square of the segment's colour, the label, and the score on the right."""
        from PIL import Image, ImageDraw, ImageFont

        height = self.label_px
        image = Image.new("RGBA", (self.width, height), BAND)
        pen = ImageDraw.Draw(image)
        font = ImageFont.load_default(max(height * 0.58, 9))
        margin, middle = height * 0.32, height / 2
        told = "" if score is None else f"{unit(score):.0%}"
        side = height * 0.42
        square = (margin, middle - side / 2, margin + side, middle + side / 2)
        pen.rounded_rectangle(square, radius=side / 4, fill=self._colours.get(label, EMPTY))
        left, right = margin * 1.9 + side, self.width - margin
        if told:
            pen.text((right, middle), told, SOFT, font, anchor="rm")
            right -= pen.textlength(told, font) + margin
        text = _plain(label)
        cut = text
        while cut and pen.textlength(cut if cut == text else f"{cut}…", font) > right - left:
            cut = cut[:-1].rstrip()
        pen.text((left, middle), cut if cut == text else f"{cut}…", WHITE, font, anchor="lm")
        return _layer(0, np.asarray(image))

    def _draw_timeline(self) -> _Layer:
        """Return the band at the bottom: the video's whole length, coloured by the label of each segment."""
        from PIL import Image, ImageDraw

        image = Image.new("RGBA", (self.width, self.timeline_px), BAND)
        pen = ImageDraw.Draw(image)
        top, bottom = self._margin, max(self.timeline_px - 1 - self._margin, self._margin)
        pen.rectangle((self._margin, top, self.width - 1 - self._margin, bottom), fill=EMPTY)
        for start, end, name, _ in self._segments or [(0.0, self._duration_s, self._caption.label, 0.0)]:
            left, right = self._column(start), self._column(end)
            pen.rectangle((left, top, max(right, left), bottom), fill=self._colours[name])
        return _layer(self.height - self.timeline_px, np.asarray(image))


def _plain(label: str) -> str:
    """Return a label on one line, without the accents that Pillow's own font has no letters for."""
    letters = unicodedata.normalize("NFKD", label[:MAX_LETTERS])
    letters = "".join(c if c.isprintable() else " " for c in letters if not unicodedata.combining(c))
    return " ".join(letters.split())


def _rgba(colour: str) -> tuple[int, int, int, int]:
    """Return "#rrggbb", lighter than on a white page, because it is seen on a dark band."""
    red, green, blue = (round(int(colour[at : at + 2], 16) * 0.75 + 255 * 0.25) for at in (1, 3, 5))
    return red, green, blue, 255


def _layer(top: int, rgba: NDArray[np.uint8]) -> _Layer:
    """Prepare an RGBA picture (h, W, 4) for blending."""
    opacity = rgba[..., 3:].astype(np.uint16)
    opacity += opacity >> 7  # 255 becomes 256, so that nothing shines through
    return _Layer(top, 256 - opacity, rgba[..., :3] * opacity)
