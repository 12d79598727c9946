"""Videos in, frames out: the decoder protocol, the values that cross it and the table of decoders."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from harec_deploy.errors import MissingDependency, UsageError, VideoError

MAX_PIXELS = 8192 * 4608  # a frame of 8K video fits, one of 16K does not


class Size(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The pixels that a model takes, and how a frame of another shape gets there.

    mode "stretch" scales both sides; "crop" scales the shorter side (of the picture as shown, with its pixel aspect)
    and takes the middle.
    """

    width: int
    height: int
    mode: Literal["stretch", "crop"] = "stretch"

    def __post_init__(self) -> None:
        for name, value in (("width", self.width), ("height", self.height)):
            if not 8 <= value <= 4096:
                raise ValueError(f"size.{name} is {value}; allowed are 8 to 4096")


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a video's packets say about it; nothing here is taken from a header unless the name says so.

    duration_s: from the first shown frame to the end of the last.
    fps: frames a second on average; None where the container has no clock (raw streams).
    width, height: pixels as shown, after rotation.
    frames_expected: the count in the container's header; None where it has none.
    frames_found: shown frames in the packets that are there.
    complete: False when packets are missing that the header promises.
    """

    duration_s: float
    fps: float | None
    width: int
    height: int
    codec: str
    container: str
    pixel_format: str
    rotation_degrees: int
    frames_expected: int | None
    frames_found: int
    complete: bool
    stream_index: int


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames of one video, or the next of them.

    pixels: uint8 RGB (N, H, W, 3).
    shown_s: float64 (N,), when each of them is first shown.
    bad_packets: packets that the decoder refused so far, and damaged frames among those that were asked for.
    last: no more frames of this video follow.
    scaled_s: how long scaling them and converting their colours took; 0 where that is not known by itself.
    """

    info: VideoInfo
    pixels: NDArray[np.uint8]
    shown_s: NDArray[np.float64]
    bad_packets: int
    last: bool = True
    scaled_s: float = 0.0


Timestamps = Sequence[float] | NDArray[np.float64] | Callable[[VideoInfo], Sequence[float] | NDArray[np.float64]]


class Decoder(Protocol):
    """Turns a video into frames. Every decoder gives the frames of a plain sequential decode.

    version: of the library that decodes. device: "cpu" or "cuda".
    """

    name: str
    version: str
    device: str

    def probe(self, path: Path) -> VideoInfo:
        """Read the packets of ``path`` without decoding them. Raises VideoError."""

    def frames(self, path: Path, timestamps_s: Timestamps, size: Size) -> Frames:
        """Return the frame shown at each timestamp, scaled to ``size``: as many frames as timestamps.

        A time outside the video gives its first or last frame. ``timestamps_s`` may be a function of the VideoInfo, so
        that the file is read once. Raises VideoError.
        """

    def stream(self, path: Path, timestamps_s: Timestamps, size: Size, count: int) -> Iterator[Frames]:
        """Yield the frames shown at any of the timestamps, each once, in the order shown, ``count`` at a time.

        Memory does not grow with the length of the video. Frames that are not later than those before begin the video
        anew: it did not come out as its packets said, and is decoded again; forget what was given. Raises VideoError.
        """


class Refused(Exception):
    """A decoder leaves this video to the reference decoder, which takes every video; ``str()`` says why."""


Key = TypeVar("Key")


class BatchDecoder(Protocol):
    """Turns many videos into frames at once."""

    def decode_many(
        self,
        videos: Iterable[tuple[Key, Path]],
        timestamps_s: Timestamps,
        size: Size,
        count: int,
        beat: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[Key, Frames | Refused | VideoError]]:
        """Yield what became of each video under its key, in any order: one answer for each.

        The Frames are those that ``Decoder.stream`` would give, all at once; a video of which more than ``count`` are
        asked for is refused. ``beat`` is called at each step forward: a decoder that does not call it for long hangs.
        """


DECODERS = {"pyav": "harec_deploy.decode.pyav:PyAVDecoder", "dali": "harec_deploy.decode.dali:DaliDecoder"}


def choose(name: str = "auto", device: str = "cpu") -> Decoder:
    """Return the decoder called ``name``; "auto" is the reference decoder, which takes every video.

    device: "cpu" or "cuda:N", for a decoder that can use either.

    Raises:
        UsageError: no such decoder.
        MissingDependency: its package is not installed.
    """
    if name != "auto" and name not in DECODERS:
        raise UsageError(f"unknown decoder {name!r}; allowed are auto, {', '.join(DECODERS)}")
    if name == "dali":
        need_dali("this decoder")
    module, _, attribute = DECODERS["pyav" if name == "auto" else name].partition(":")
    made = getattr(import_module(module), attribute)
    decoder: Decoder = made(device) if name == "dali" else made()
    return decoder


def has_dali() -> bool:
    """Tell whether DALI is installed, without loading it."""
    return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None


def need_dali(what: str) -> None:
    """Raise MissingDependency if DALI is not installed."""
    if not has_dali():
        raise MissingDependency("nvidia-dali-cuda130", "dali", what)
