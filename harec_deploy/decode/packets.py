"""The packet table: what demuxing a video once tells about its frames, before any is decoded.

A header's frame count, rate and duration are promises; the packets are what is there. The table says which frames are
shown, in which order and when, and where decoding can start, so that a decoder touches only what it needs:

    decode order    I0  P3  B1  B2  P6  B4  B5  I7 ...     a packet each
    display order   I0  B1  B2  P3  B4  B5  P6  I7 ...     `order`: packet index of each shown frame
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream
from numpy.typing import NDArray

from harec_deploy.decode.bitstream import is_packed, shown_pictures
from harec_deploy.errors import VideoError
from harec_deploy.sampling import shown_at

VideoPacket: TypeAlias = "Packet[VideoStream]"  # generic for type checkers only

KEEP_BYTES = 64 << 20  # packets of a file up to this size stay in memory; of a larger one they are read again,
KEEP_PACKETS = 10_000  # and of one with more: each takes more than a kilobyte, whatever is in it
HEADER_BYTES = 4096  # of a key packet, in which its encoder may say what it is
# Codecs that were seen to give the same pictures when others are left out. VC-1, SVQ3 and Cinepak do not.
SELECTIVE = frozenset(
    ["h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "prores", "dnxhd", "h263"]
)
HIDING_CODECS = frozenset(["vp8", "vp9", "mpeg4"])  # whose packets may show no picture, or two
_MISSING = np.iinfo(np.int64).min
RAW_STREAMS = frozenset(["h264", "hevc", "h263", "m4v", "mpegvideo", "obu"])
FALLBACK_FPS = 25.0  # the clock given to a stream that has none (raw H.264)


@dataclass(frozen=True, slots=True)
class PacketTable:
    """Packets of one video stream in decode order, and the frames they show.

    pts, dts: int64 (P,), when a packet is shown and decoded in the stream's time base; _MISSING where it does not say.
    keys: int64 (K,), ascending indices of packets that decoding can start from.
    order: int64 (F,), packet index of each shown frame in display order; where not ``timed``, in decode order.
    shown_s: float64 (F,), when each frame is first shown, from the first one.
    droppable: int64, ascending indices of packets at whose turn a picture is decoded that nothing refers to, as far as
        that is known without decoding.
    timed: timestamps can be trusted; otherwise frames are told apart by their place in a sequential decode.
    packets: the packets themselves, or None for a large file.
    broken: reading stopped at an error, or before the end that the header promises.
    """

    pts: NDArray[np.int64]
    dts: NDArray[np.int64]
    keys: NDArray[np.int64]
    order: NDArray[np.int64]
    shown_s: NDArray[np.float64]
    duration_s: float
    droppable: NDArray[np.int64]
    timed: bool
    broken: bool
    packets: list[VideoPacket] | None

    def at(self, timestamps_s: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the place in display order of the frame shown at each time: int64 (T,), clamped to the video."""
        return shown_at(self.shown_s, timestamps_s)

    def start_for(self, packet: int) -> int | None:
        """Return the key packet to start decoding from so that ``packet`` comes out right, or None if there is none.

        A picture shown before the key frame that it follows (an open GOP's leading picture) needs the key before that.
        """
        earlier = self.keys[: np.searchsorted(self.keys, packet, side="right")]
        usable = earlier[self.pts[earlier] <= self.pts[packet]]
        return int(usable[-1]) if len(usable) else None


class _Row(NamedTuple):
    """What the table keeps of a packet; pictures: a letter for each that it shows."""

    pts: int | None
    dts: int | None
    duration: int
    key: bool
    pictures: str


def read_table(container: InputContainer, stream: VideoStream) -> PacketTable:
    """Demux ``stream`` once and return its table.

    Raises:
        VideoError: too_short or truncated without a packet, decoder_missing for an encrypted stream.
    """
    keep = container.size <= KEEP_BYTES
    kept: list[VideoPacket] = []
    rows: list[_Row] = []
    broken = False
    packed = is_packed(stream.codec_context.extradata or b"")
    codec, context = stream.codec.canonical_name, stream.codec_context
    macroblocks = -(-context.width // 16) * -(-context.height // 16)
    try:
        for packet in container.demux(stream):
            if is_end(packet):
                break
            pictures = "" if packet.is_discard else "P"  # an edit list cuts it off
            if pictures and codec in HIDING_CODECS:
                data = memoryview(packet)
                packed = packed or (packet.is_keyframe and is_packed(data[:HEADER_BYTES]))
                pictures = shown_pictures(codec, data, macroblocks, packed=packed)
            rows.append(_Row(packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe, pictures))
            if keep:
                kept.append(packet)
                if len(kept) > KEEP_PACKETS:
                    keep, kept = False, []
            if len(rows) == 1 and packet.has_sidedata("encryption_info"):
                raise VideoError("decoder_missing", "the video is encrypted")
    except MemoryError:
        raise
    except av.error.FFmpegError:
        broken = True
    if not rows:
        raise VideoError("truncated" if broken else "too_short", "the video stream has no packets")
    return _table(rows, container, stream, broken=broken, packets=kept if keep else None)


def is_end(packet: VideoPacket) -> bool:
    """Tell whether this is the empty packet with which demuxing ends."""
    return packet.size == 0 and packet.dts is None


def _turns(rows: list[_Row]) -> tuple[list[bool], list[bool]]:
    """Tell at which packets' turns a picture is decoded, and which of those can be left out.

    Of two pictures in one packet the second has the next packet's turn. If that packet has a picture too, it is put by
    while the one before is decoded, and would be lost if that were left out.
    """
    shown, droppable, waiting = [], [], ""
    for row in rows:
        keeps_another = bool(waiting and row.pictures)
        waiting += row.pictures
        shown.append(bool(waiting))
        droppable.append(waiting[:1] == "B" and not keeps_another)
        waiting = waiting[1:]
    return shown, droppable


def _table(
    rows: list[_Row],
    container: InputContainer,
    stream: VideoStream,
    *,
    broken: bool,
    packets: list[VideoPacket] | None,
) -> PacketTable:
    showing, droppable = _turns(rows)
    shown = np.flatnonzero(showing)
    if not len(shown):
        raise VideoError("too_short", "the video shows no frame")
    pts, dts = _times([row.pts for row in rows]), _times([row.dts for row in rows])
    keys = np.flatnonzero([row.key for row in rows])
    tick_s = float(stream.time_base or 0)
    packed = any(len(row.pictures) > 1 for row in rows)  # then each picture has the time of the packet beside its own
    # Some files have the times of decoding for those of showing; which codecs then reorder pictures is not told.
    doubtful = stream.codec.canonical_name not in SELECTIVE and bool((pts == dts).all())
    trusted = container.format.name != "avi" and not packed and not doubtful
    timed = trusted and _tells_apart(pts[shown]) and _goes_on(pts[keys])
    start_s = 0.0
    if timed:
        shown = shown[np.argsort(pts[shown], kind="stable")]
        start_s = float(pts[shown[0]]) * tick_s
        shown_s = (pts[shown] - pts[shown[0]]) * tick_s
    elif clock_fps(stream) and _tells_apart(dts[shown]):
        # The clock of an AVI counts chunks, empty ones too; the first frame that is decoded is shown at the first turn.
        shown_s = (np.sort(dts[shown]) - dts[shown].min()) * tick_s
    else:
        shown_s = np.arange(len(shown)) / (clock_fps(stream) or FALLBACK_FPS)
    duration_s = float(shown_s[-1]) + _last_frame_s(shown_s, rows[int(shown[-1])].duration * tick_s, stream)
    avi = container.format.name == "avi"
    count = int(dts.max() - dts.min()) + 1 if avi and _tells_apart(dts) else len(rows)
    return PacketTable(
        pts=pts,
        dts=dts,
        keys=keys,
        order=shown,
        shown_s=shown_s,
        duration_s=duration_s,
        droppable=np.flatnonzero(droppable),
        timed=timed,
        broken=broken or _missing_tail(count, max(start_s, 0.0) + duration_s, container, stream),
        packets=packets,
    )


def _times(column: list[int | None]) -> NDArray[np.int64]:
    return np.array([_MISSING if time is None else time for time in column], dtype=np.int64)


def _tells_apart(times: NDArray[np.int64]) -> bool:
    """Tell whether every frame has a time, and one of its own."""
    return bool((times != _MISSING).all()) and len(np.unique(times)) == len(times)


def _goes_on(key_times: NDArray[np.int64]) -> bool:
    """Tell whether the clock runs on: no key frame is shown before an earlier one, as where recordings were joined."""
    return bool((key_times[1:] >= key_times[:-1]).all())


def clock_fps(stream: VideoStream) -> float | None:
    """Return the container's average rate, or None where the container has no clock and FFmpeg makes one up."""
    if stream.duration is None and stream.container.format.name in RAW_STREAMS:
        return None
    rate = stream.average_rate or stream.guessed_rate
    return float(rate) if rate else None


def _last_frame_s(shown_s: NDArray[np.float64], tagged_s: float, stream: VideoStream) -> float:
    """Return how long the last frame is shown: as its packet says, or as long as the typical one."""
    if tagged_s > 0:
        return tagged_s
    if len(shown_s) > 1:
        return float(np.median(np.diff(shown_s)))
    return 1 / (clock_fps(stream) or FALLBACK_FPS)


def _missing_tail(found: int, end_s: float, container: InputContainer, stream: VideoStream) -> bool:
    """Tell whether the header promises more than the packets hold: a sample count, or a time that is never reached.

    MPEG-TS and raw streams promise nothing, so a cut in them cannot be seen.
    """
    if stream.frames:
        exact = container.format.name.startswith("mov")  # other headers are often one or two off
        return found < stream.frames - (0 if exact else 2)
    if container.format.name.startswith("matroska") and container.duration and not container.streams.audio:
        return end_s + 0.5 < container.duration / av.time_base
    return False


def packets_from(
    container: InputContainer, stream: VideoStream, table: PacketTable, start: int
) -> Iterator[tuple[int, VideoPacket]]:
    """Yield (index, packet) of a timed table in decode order from packet ``start`` on, out of memory or by seeking.

    A seek that does not land on a packet of the table, at or before ``start``, yields nothing.
    """
    if table.packets is not None:
        for index in range(start, len(table.packets)):
            yield index, table.packets[index]
        return
    # By decode time where there is one: some containers look for that, and a picture is decoded before it is shown.
    time = table.dts[start] if table.dts[start] != _MISSING else table.pts[start]
    container.seek(int(time), stream=stream, backward=True)
    index = -1
    for packet in container.demux(stream):
        if is_end(packet):
            return
        if index < 0:
            places = np.flatnonzero(table.pts == packet.pts)
            if len(places) != 1 or places[0] > start:
                return
            index = int(places[0])
        if index >= start:
            yield index, packet
        index += 1
