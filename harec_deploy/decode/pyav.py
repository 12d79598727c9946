"""The reference decoder: FFmpeg through PyAV, decoding only what the wanted frames need.

Bit for bit the frames of a plain sequential decode, for less work: demux once into a packet table, decode only the
GOPs that hold wanted frames, drop pictures that nothing refers to, stop after the last. Whenever anything does not come
out as the table says (a damaged packet, a frame that does not appear), the video is decoded once more from its first
packet, plainly, and that result counts.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from harec_deploy.decode import MAX_PIXELS, Frames, Size, Timestamps, VideoInfo
from harec_deploy.decode.packets import PacketTable, VideoPacket, clock_fps, is_end, packets_from, read_table
from harec_deploy.decode.picture import Picture, Scaler
from harec_deploy.errors import VideoError
from harec_deploy.files import open_regular

# Containers that hold their own pictures. Playlists (hls, concat, dash) can name other files and are never opened.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpegts,mpeg,mpegvideo,m4v,h264,hevc,h263,flv,asf,ogg,ivf,obu,dv,mxf"
)
# Codecs that were seen to give the same pictures when others are left out. VC-1, SVQ3 and Cinepak do not.
SELECTIVE = frozenset(
    ["h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "prores", "dnxhd", "h263"]
)
MIN_FRAMES = 2  # an action takes more than one picture


@dataclass(frozen=True, slots=True)
class _Video:
    """An opened video and its packet table."""

    descriptor: int
    container: InputContainer
    stream: VideoStream
    table: PacketTable


class PyAVDecoder:
    """Decodes on the CPU, one thread a video; use several decoders for several cores."""

    name = "pyav"

    def __init__(self, *, max_pixels: int = MAX_PIXELS, selective: bool = True) -> None:
        """Refuse frames above ``max_pixels``; with ``selective=False`` decode every frame up to the last wanted one."""
        self.max_pixels = max_pixels
        self.selective = selective

    def probe(self, path: Path) -> VideoInfo:
        """Read the packets of ``path`` and decode its first frame, the only one to tell rotation. Raises VideoError."""
        return self.frames(path, [0.0], Size(width=8, height=8)).info

    def frames(self, path: Path, timestamps_s: Timestamps, size: Size) -> Frames:
        """Return the frame shown at each timestamp: pixels uint8 (T, H, W, 3). Raises VideoError."""
        try:
            with self._open(path) as video:
                info = _info(video)
                times = timestamps_s(info) if callable(timestamps_s) else timestamps_s
                places = video.table.at(np.asarray(times, dtype=np.float64))
                found, bad_packets = self._decode(video, np.unique(places), size)
        except MemoryError:
            raise VideoError("out_of_memory") from None
        except av.error.FFmpegError as error:
            raise VideoError("corrupt", f"FFmpeg: {error.strerror}") from None
        damaged = sum(picture.damaged for picture in found.values())
        if 2 * damaged > len(found):  # noise, as of an encrypted stream that does not say so
            raise VideoError("corrupt", f"{damaged} of {len(found)} frames are damaged")
        first = found[int(places[0])]
        return Frames(
            info=replace(
                info,
                width=first.width,
                height=first.height,
                pixel_format=first.pixel_format,
                rotation_degrees=first.rotation_degrees,
            ),
            pixels=np.ascontiguousarray(np.stack([found[int(place)].pixels for place in places])),
            shown_s=video.table.shown_s[places],
            bad_packets=bad_packets + damaged,
        )

    @contextmanager
    def _open(self, path: Path) -> Iterator[_Video]:
        with open_regular(path) as descriptor, _container(descriptor) as container:
            stream = self._stream(container)
            yield _Video(descriptor, container, stream, read_table(container, stream))

    def _stream(self, container: InputContainer) -> VideoStream:
        """Return the video stream, its decoder limited to one thread and ``max_pixels``."""
        stream = _video_stream(container)
        context = stream.codec_context
        if context.width * context.height > self.max_pixels:
            shape = f"{context.width}x{context.height}"
            raise VideoError("too_large", f"{shape} pixels; at most {self.max_pixels:,} a frame are decoded")
        # A picture that grows in mid-stream is refused by the codec itself; av.open's options do not reach it.
        # Twice the limit, because codecs count the padding of a picture too.
        context.options = {"max_pixels": str(2 * self.max_pixels)}
        context.thread_count = 1  # with more, a truncated file gives another number of frames
        context.thread_type = "NONE"
        return stream

    def _decode(self, video: _Video, places: NDArray[np.int64], size: Size) -> tuple[dict[int, Picture], int]:
        """Return the picture at each place in display order, and how many packets were refused."""
        scaler = Scaler(size, video.stream.codec_context)
        # What a decoder makes of a torn picture depends on all that it has seen, so a broken file is read in full.
        exact = video.table.timed and not video.table.broken and video.stream.codec.canonical_name in SELECTIVE
        if self.selective and exact:
            found = _selective(video, places, scaler)
            if found is not None:
                return found, 0
        elif video.table.packets is not None:
            return _sequential(video, places, scaler, drop=self.selective and not video.table.broken)
        with _container(video.descriptor) as container:  # a demuxer and a decoder that have seen nothing yet
            fresh = replace(video, container=container, stream=self._stream(container))
            return _sequential(fresh, places, scaler, drop=False)


def _selective(video: _Video, places: NDArray[np.int64], scaler: Scaler) -> dict[int, Picture] | None:
    """Decode only what holds the wanted frames; None if anything does not come out as the table says."""
    table, context = video.table, video.stream.codec_context
    runs = _runs(table, places)
    found: dict[int, Picture] = {}
    for start, wanted in (runs or {}).items():
        by_pts = {int(table.pts[packet]): place for packet, place in wanted.items()}
        try:
            for frame in _decode_run(video, start, wanted):
                if frame.is_corrupt:
                    return None
                if frame.pts in by_pts:
                    found[by_pts.pop(frame.pts)] = scaler.picture(frame)
        except MemoryError:
            raise
        except av.error.FFmpegError:
            return None
        if by_pts:
            return None
        context.flush_buffers()
    return found if runs else None


def _runs(table: PacketTable, places: NDArray[np.int64]) -> dict[int, dict[int, int]] | None:
    """Return {first packet to decode: {wanted packet: its place}}, or None where a frame has no key to start from.

    A run that would start inside the one before it, or right behind it, is joined to it.
    """
    starts = {int(table.order[place]): (table.start_for(int(table.order[place])), place) for place in places.tolist()}
    runs: dict[int, dict[int, int]] = {}
    run = last = -1
    for packet, (start, place) in sorted(starts.items(), key=lambda item: (item[1][0] or -1, item[0])):
        if start is None:
            return None
        if run < 0 or start > last + 1:
            run = start
        runs.setdefault(run, {})[packet] = place
        last = max(last, packet)
    return runs


def _decode_run(video: _Video, start: int, wanted: Collection[int]) -> Iterator[VideoFrame]:
    """Yield the frames decoded from packet ``start`` up to the last wanted one, without what only costs time."""
    context = video.stream.codec_context
    droppable = context.codec.canonical_name != "av1"  # dav1d reads the setting once, when it is opened
    last = max(wanted)
    for index, packet in packets_from(video.container, video.stream, video.table, start):
        context.skip_frame = "NONREF" if droppable and index not in wanted else "DEFAULT"
        yield from context.decode(packet)
        if index == last:
            break
    yield from context.decode(None)


def _sequential(
    video: _Video, places: NDArray[np.int64], scaler: Scaler, *, drop: bool
) -> tuple[dict[int, Picture], int]:
    """Decode from the first packet on; a frame that does not appear is replaced by the one shown before it.

    With ``drop``, frames that are told by their place are left out where nothing refers to them and none is wanted.
    """
    table = video.table
    # Where timestamps can be trusted a frame is known by its own, elsewhere by its place.
    positions = table.pts[table.order[places]] if table.timed else places
    waiting = list(zip(positions.tolist(), places.tolist(), strict=True))[::-1]  # the next one last
    found: dict[int, Picture] = {}
    before: VideoFrame | None = None
    frames = _Plain(video, set(places.tolist()) if drop and not table.timed else None)
    for position, frame in frames:
        while waiting and waiting[-1][0] <= position:
            wanted, place = waiting.pop()
            found[place] = scaler.picture(frame if wanted == position or before is None else before)
        before = frame
        if not waiting:
            return found, frames.refused
    if before is None:
        kind = "truncated" if table.broken else "corrupt"
        raise VideoError(kind, f"none of {len(table.order)} frames can be decoded")
    found |= {place: scaler.picture(before) for _, place in waiting}
    return found, frames.refused


class _Plain:
    """All frames of a video in the order they are shown, each with its position.

    The position is the timestamp of a timed video. Elsewhere it is the place in display order: of the packet that gives
    the frame, or, where the decoder holds frames back to reorder them, the count of frames.

    wanted: if given, pictures at other places are not decoded where nothing refers to them.
    refused: packets so far that the decoder raised an error for; the frames behind them keep their positions.
    """

    def __init__(self, video: _Video, wanted: set[int] | None) -> None:
        self.video = video
        self.wanted = wanted
        self.refused = 0

    def __iter__(self) -> Iterator[tuple[int, VideoFrame]]:
        table, context = self.video.table, self.video.stream.codec_context
        place_of = {packet: place for place, packet in enumerate(table.order.tolist())}
        droppable = frozenset(table.droppable.tolist())
        count, immediate = 0, None
        for index, packet in enumerate(_all_packets(self.video)):
            # Such a picture is shown as soon as it is decoded, so the count tells its place.
            drop = self.wanted is not None and index in droppable and count not in self.wanted
            context.skip_frame = "NONREF" if drop else "DEFAULT"
            count += drop
            try:
                frames = context.decode(packet)
            except MemoryError:
                raise
            except av.error.FFmpegError:
                self.refused += 1
                count += 1
                continue
            for frame in frames:
                if immediate is None:
                    immediate = place_of.get(index) == 0
                place = place_of.get(index, count) if immediate else count
                yield (frame.pts if frame.pts is not None else -1) if table.timed else place, frame
                count += 1


def _all_packets(video: _Video) -> Iterator["VideoPacket | None"]:
    """Yield every packet from the first on and, last, the None that empties the decoder."""
    try:
        packets = video.table.packets or video.container.demux(video.stream)
        yield from (packet for packet in packets if not is_end(packet))
    except MemoryError:
        raise
    except av.error.FFmpegError:
        pass  # the table knows already that the file is broken there
    yield None


@contextmanager
def _container(descriptor: int) -> Iterator[InputContainer]:
    # The descriptor's own name: the file that was checked is the file that is read, whatever its path means by now.
    name = f"/dev/fd/{descriptor}"
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        container = av.open(name, options=options, metadata_errors="replace")
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


def _info(video: _Video) -> VideoInfo:
    """Return what the packets say; a decoded frame tells its format and, as shown, its size and rotation."""
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
