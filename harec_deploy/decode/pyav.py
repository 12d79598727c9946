"""The reference decoder: FFmpeg through PyAV, decoding only what the wanted frames need.

Bit for bit the frames of a plain sequential decode, for less work: demux once into a packet table, decode only the
GOPs that hold wanted frames, drop pictures that nothing refers to, stop after the last. Whenever anything does not come
out as the table says (a damaged packet, a frame that does not appear), the video is decoded once more from its first
packet, plainly, and that result counts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from numpy.typing import NDArray

from harec_deploy.decode import MAX_PIXELS, Frames, Size, Timestamps, VideoInfo
from harec_deploy.decode.packets import SELECTIVE, PacketTable, clock_fps, read_table
from harec_deploy.decode.passes import Plain, Unexpected, Video, selective
from harec_deploy.decode.picture import Picture, Scaler
from harec_deploy.errors import VideoError
from harec_deploy.files import open_regular
from harec_deploy.sampling import shown_at

# Containers that hold their own pictures. Playlists (hls, concat, dash) can name other files and are never opened.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpegts,mpeg,mpegvideo,m4v,h264,hevc,h263,flv,asf,ogg,ivf,obu,dv,mxf"
)
MIN_FRAMES = 2  # an action takes more than one picture


class PyAVDecoder:
    """Decodes on the CPU, one thread a video; use several decoders for several cores."""

    name = "pyav"
    version: str = av.__version__
    device = "cpu"

    def __init__(self, *, max_pixels: int = MAX_PIXELS, selective: bool = True) -> None:
        """Refuse frames above ``max_pixels``; with ``selective=False`` decode every frame up to the last wanted one."""
        self.max_pixels = max_pixels
        self.selective = selective

    def probe(self, path: Path) -> VideoInfo:
        """Read the packets of ``path`` and decode its first frame, the only one to tell rotation. Raises VideoError."""
        return self.frames(path, [0.0], Size(width=8, height=8)).info

    def frames(self, path: Path, timestamps_s: Timestamps, size: Size) -> Frames:
        """Return the frame shown at each timestamp: pixels uint8 (T, H, W, 3). Raises VideoError."""
        times: list[float] = []

        def asked(info: VideoInfo) -> list[float]:
            times[:] = timestamps_s(info) if callable(timestamps_s) else timestamps_s
            return times

        (found,) = self.stream(path, asked, size)
        at = shown_at(found.shown_s, times)
        return replace(found, pixels=np.ascontiguousarray(found.pixels[at]), shown_s=found.shown_s[at])

    def stream(self, path: Path, timestamps_s: Timestamps, size: Size, count: int | None = None) -> Iterator[Frames]:
        """Yield the frames shown at any of the timestamps, each once, ``count`` at a time; without it, all at once.

        See ``Decoder.stream``. Raises VideoError.
        """
        try:
            with self.open(path) as video:
                info = info_of(video)
                times = timestamps_s(info) if callable(timestamps_s) else timestamps_s
                places = np.unique(video.table.at(np.asarray(times, dtype=np.float64)))
                parts = _Parts(video.table, info)
                for plain, pictures in self._passes(video, places, size):
                    try:
                        yield from parts.of(pictures, plain, count)
                        return
                    except Unexpected:
                        continue  # and begin anew
        except MemoryError:
            raise VideoError("out_of_memory") from None
        except av.error.FFmpegError as error:
            raise VideoError("corrupt", f"FFmpeg: {error.strerror}") from None

    def _passes(
        self, video: Video, places: NDArray[np.int64], size: Size
    ) -> Iterator[tuple[Plain | None, Iterator[tuple[int, Picture]]]]:
        """Yield the ways to the pictures at ``places``, the second to be taken where the first raises Unexpected."""
        scaler = Scaler(size, video.stream.codec_context.sample_aspect_ratio)
        # What a decoder makes of a torn picture depends on all that it has seen, so a broken file is read in full.
        exact = video.table.timed and not video.table.broken and video.stream.codec.canonical_name in SELECTIVE
        if self.selective and exact:
            yield None, selective(video, places, scaler)
        elif video.table.packets is not None:
            plain = Plain(video, drop=self.selective and not video.table.broken)
            yield plain, plain.pictures(places, scaler)
        with self.again(video) as fresh:
            plain = Plain(fresh, drop=False)
            yield plain, plain.pictures(places, scaler)

    @contextmanager
    def open(self, path: Path) -> Iterator[Video]:
        """Open a video and read its packets. Raises VideoError."""
        with open_regular(path) as descriptor, open_container(descriptor, self.max_pixels) as container:
            stream = self._stream(container)
            if not stream.codec_context.width:
                self._refuse_claimed_size(descriptor)
            yield Video(descriptor, container, stream, read_table(container, stream))

    @contextmanager
    def again(self, video: Video) -> Iterator[Video]:
        """Open an opened video anew: a demuxer and a decoder that have seen nothing yet."""
        with open_container(video.descriptor, self.max_pixels) as container:
            yield replace(video, container=container, stream=self._stream(container))

    def _stream(self, container: InputContainer) -> VideoStream:
        """Return the video stream, its decoder limited to one thread and ``max_pixels``."""
        stream = _video_stream(container)
        context = stream.codec_context
        if context.width * context.height > self.max_pixels:
            shape = f"{context.width}x{context.height}"
            raise VideoError("too_large", f"{shape} pixels; at most {self.max_pixels:,} a frame are decoded")
        context.options = _limit(self.max_pixels)  # a picture may grow in mid-stream; av.open's options do not reach it
        context.thread_count = 1  # with more, a truncated file gives another number of frames
        context.thread_type = "NONE"
        return stream

    def _refuse_claimed_size(self, descriptor: int) -> None:
        """Raise VideoError if the container names a size above the limit, which its decoder has refused already."""
        with open_container(descriptor, self.max_pixels, decoders="none") as container:
            self._stream(container)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Makes the Frames of one video out of its pictures."""

    table: PacketTable
    info: VideoInfo

    def of(self, pictures: Iterator[tuple[int, Picture]], plain: Plain | None, count: int | None) -> Iterator[Frames]:
        """Yield the pictures, ``count`` at a time. Raises VideoError corrupt where most of them are damaged."""
        batch: dict[int, Picture] = {}
        first: Picture | None = None
        done = damaged = 0
        for place, picture in pictures:
            if len(batch) == count:
                yield self._frames(batch, first, damaged + (plain.refused if plain else 0), last=False)
                batch = {}
            first = first or picture
            done, damaged = done + 1, damaged + picture.damaged
            batch[place] = picture
        if 2 * damaged > done:  # noise, as of an encrypted stream that does not say so
            raise VideoError("corrupt", f"{damaged} of {done} frames are damaged")
        yield self._frames(batch, first, damaged + (plain.refused if plain else 0), last=True)

    def _frames(self, batch: dict[int, Picture], first: Picture | None, bad_packets: int, *, last: bool) -> Frames:
        assert first is not None
        shape = replace(
            self.info,
            width=first.width,
            height=first.height,
            pixel_format=first.pixel_format,
            rotation_degrees=first.rotation_degrees,
        )
        pixels = np.stack([picture.pixels for picture in batch.values()])
        scaled_s = sum(picture.scaled_s for picture in batch.values())
        return Frames(shape, pixels, self.table.shown_s[list(batch)], bad_packets, last, scaled_s)


def _limit(max_pixels: int) -> dict[str, str]:
    """Return the codec's own limit: twice ours, because it counts the padding of a picture too."""
    return {"max_pixels": str(2 * max_pixels)}


@contextmanager
def open_container(descriptor: int, max_pixels: int = MAX_PIXELS, *, decoders: str = "") -> Iterator[InputContainer]:
    """Open what a descriptor reads, if it is a container of the allowed list. Raises VideoError.

    FFmpeg decodes some frames to do so: with ``decoders``, if given, and none above twice ``max_pixels``.
    """
    # The descriptor's own name: the file that was checked is the file that is read, whatever its path means by now.
    name = f"/dev/fd/{descriptor}"
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    if decoders:
        options["codec_whitelist"] = decoders
    # From PyAV 19 on metadata that is not UTF-8 is read as it is, and there is no such argument.
    metadata: Any = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    try:
        container = av.open(name, options=_limit(max_pixels), container_options=options, **metadata)
    except av.error.ArgumentError:
        message = "not a container of the allowed list, or one that can name other files"
        raise VideoError("forbidden_container", message) from None
    except MemoryError:
        raise
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoError("not_video", f"no video container: {getattr(error, 'strerror', None) or error}") from None
    with container:
        yield container


def _video_stream(container: InputContainer) -> VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise VideoError("no_video_stream")
    best = container.streams.best("video")
    stream = next((s for s in streams if best is not None and s.index == best.index), streams[0])
    if stream.codec_context is None:
        raise VideoError("decoder_missing")
    if "enc_key_id" in stream.metadata:
        raise VideoError("decoder_missing", "the video is encrypted")
    return stream


def info_of(video: Video) -> VideoInfo:
    """Return what the packets say; a decoded frame tells its format and, as shown, its size and rotation.

    Raises VideoError for fewer than MIN_FRAMES frames.
    """
    table, stream = video.table, video.stream
    if len(table.order) < MIN_FRAMES:
        kind = "truncated" if table.broken else "too_short"
        raise VideoError(kind, f"{len(table.order)} frame(s); at least {MIN_FRAMES} are needed")
    context = stream.codec_context
    return VideoInfo(
        duration_s=table.duration_s,
        fps=len(table.order) / table.duration_s if table.timed else clock_fps(stream),
        width=context.width,
        height=context.height,
        codec=stream.codec.canonical_name,
        container=video.container.format.name.split(",")[0],
        pixel_format="",
        rotation_degrees=0,
        frames_expected=stream.frames or None,
        frames_found=len(table.order),
        complete=not table.broken,
        stream_index=stream.index,
    )
