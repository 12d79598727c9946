"""Two passes over a video that give its pictures: one that leaves out what no wanted picture needs, and a plain one.

Both yield (place, picture) in display order. The selective pass raises ``Unexpected`` as soon as anything does not come
out as the packet table says; the plain pass takes what the decoder gives.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from harec_deploy.decode.packets import PacketTable, VideoPacket, is_end, packets_from
from harec_deploy.decode.picture import Picture, Scaler
from harec_deploy.errors import VideoError


class Unexpected(Exception):
    """A picture did not come out as the packet table says."""


@dataclass(frozen=True, slots=True)
class Video:
    """An opened video and its packet table."""

    descriptor: int
    container: InputContainer
    stream: VideoStream
    table: PacketTable


def selective(video: Video, places: NDArray[np.int64], scaler: Scaler) -> Iterator[tuple[int, Picture]]:
    """Decode only what holds the frames at ``places``, which ascend. Raises Unexpected."""
    table, context = video.table, video.stream.codec_context
    last = -1
    for start, wanted in _runs(table, places).items():
        by_pts = {int(table.pts[packet]): place for packet, place in wanted.items()}
        try:
            for frame in _decode_run(video, start, wanted):
                if frame.is_corrupt:
                    raise Unexpected
                if frame.pts in by_pts:
                    place = by_pts.pop(frame.pts)
                    if place < last:
                        raise Unexpected
                    last = place
                    yield place, scaler.picture(frame)
        except MemoryError:
            raise
        except av.error.FFmpegError:
            raise Unexpected from None
        if by_pts:
            raise Unexpected
        context.flush_buffers()


def _runs(table: PacketTable, places: NDArray[np.int64]) -> dict[int, dict[int, int]]:
    """Return {first packet to decode: {wanted packet: its place}}; Unexpected where a frame has no key to start from.

    A run that would start inside the one before it, or right behind it, is joined to it.
    """
    starts = [(table.start_for(int(table.order[place])), int(table.order[place]), place) for place in places.tolist()]
    runs: dict[int, dict[int, int]] = {}
    run = last = -1
    for start, packet, place in sorted((-1 if start is None else start, *rest) for start, *rest in starts):
        if start < 0:
            raise Unexpected
        if run < 0 or start > last + 1:
            run = start
        runs.setdefault(run, {})[packet] = place
        last = max(last, packet)
    return runs


def _decode_run(video: Video, start: int, wanted: Collection[int]) -> Iterator[VideoFrame]:
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


class Plain:
    """All frames of a video, decoded from its first packet on.

    drop: frames that are told by their place are left out where nothing refers to them and none is wanted.
    refused: packets so far that the decoder raised an error for; the frames behind them keep their positions.
    """

    def __init__(self, video: Video, *, drop: bool) -> None:
        self.video = video
        self.drop = drop and not video.table.timed
        self.refused = 0

    def pictures(self, places: NDArray[np.int64], scaler: Scaler) -> Iterator[tuple[int, Picture]]:
        """Yield the pictures at ``places``, which ascend; one that does not appear is that shown before it.

        Raises VideoError if there is none.
        """
        table = self.video.table
        # Where timestamps can be trusted a frame is known by its own, elsewhere by its place.
        positions = table.pts[table.order[places]] if table.timed else places
        waiting = list(zip(positions.tolist(), places.tolist(), strict=True))[::-1]  # the next one last
        before: VideoFrame | None = None
        for position, frame in self.frames(set(places.tolist()) if self.drop else None):
            while waiting and waiting[-1][0] <= position:
                wanted, place = waiting.pop()
                yield place, scaler.picture(frame if wanted == position or before is None else before)
            before = frame
            if not waiting:
                return
        if before is None:
            kind = "truncated" if table.broken else "corrupt"
            raise VideoError(kind, f"none of {len(table.order)} frames can be decoded")
        for _, place in reversed(waiting):
            yield place, scaler.picture(before)

    def frames(self, wanted: Collection[int] | None = None) -> Iterator[tuple[int, VideoFrame]]:
        """Yield (position, frame) in the order shown; pictures at other places than ``wanted`` may be left out.

        The position is the timestamp of a timed video. Elsewhere it is the place in display order: of the packet that
        gives the frame, or, where the decoder holds frames back to reorder them, the count of frames.
        """
        table, context = self.video.table, self.video.stream.codec_context
        place_of = {packet: place for place, packet in enumerate(table.order.tolist())}
        droppable = frozenset(table.droppable.tolist())
        count, immediate = 0, None
        for index, packet in enumerate(_all_packets(self.video)):
            # Such a picture is shown as soon as it is decoded, so the count tells its place.
            drop = wanted is not None and index in droppable and count not in wanted
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


def _all_packets(video: Video) -> Iterator["VideoPacket | None"]:
    """Yield every packet from the first on and, last, the None that empties the decoder."""
    try:
        packets = video.table.packets or video.container.demux(video.stream)
        yield from (packet for packet in packets if not is_end(packet))
    except MemoryError:
        raise
    except av.error.FFmpegError:
        pass  # the table knows already that the file is broken there
    yield None
