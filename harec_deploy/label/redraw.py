"""The annotating child: decodes one video, draws its labels onto every frame and encodes it, then ends.

It has the rights of a decoding child, and one file to write, which its parent opened. Once its input is open too, it
can open nothing more. ``annotate.py`` is the parent's side.
"""

import os
import resource
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import av
import msgspec
from av.container import InputContainer, OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream

from harec_deploy.decode import Size, VideoInfo
from harec_deploy.decode.passes import Plain, Video
from harec_deploy.decode.picture import Scaler
from harec_deploy.decode.pyav import PyAVDecoder, open_container
from harec_deploy.errors import VideoError
from harec_deploy.label.annotate import REFUSED, Task
from harec_deploy.label.child import give_up_rights, limit_cpu
from harec_deploy.label.overlay import Caption, Overlay

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.packet import Packet
    from av.stream import Stream

MAX_LINES = 720
MAX_COLUMNS = 4096
MAX_FILE_BYTES = 8 << 30  # of one annotated video
SOUNDS = frozenset("aac ac3 alac eac3 flac mp3 opus".split())  # what mp4 holds and players play
ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "veryfast", "crf": "21"},
    "mpeg4": {"qmin": "2", "qmax": "5"},  # where FFmpeg was built without x264
}
_FINE = Fraction(1, 60000)  # a clock for videos without one of their own, and for MPEG-4, whose clock has 16 bits


def main() -> None:
    """Do the one task of a child: give up rights, decode, draw, encode; say on stderr why not."""
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    give_up_rights(task.limits, task.parent, MAX_FILE_BYTES)
    limit_cpu(task.limits.seconds)
    module, _, attribute = task.decoder.partition(":")
    decoder = getattr(import_module(module), attribute)()
    try:
        with os.fdopen(task.output_fd, "r+b") as stream:
            write(Path(os.fsdecode(task.path)), stream, task.caption, decoder, sealed=_open_nothing_more)
    except MemoryError:
        said = "the memory limit was reached"
    except (VideoError, av.error.FFmpegError) as error:
        said = str(error)
    else:
        return
    sys.stderr.write(f"{said}\n")
    sys.exit(REFUSED)


def _open_nothing_more() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def write(
    path: Path,
    stream: BinaryIO,
    caption: Caption,
    decoder: PyAVDecoder,
    *,
    encoder: str | None = None,
    sealed: Callable[[], None] = lambda: None,
) -> None:
    """Write the annotated copy of ``path`` as mp4 into ``stream``, a file that is open for reading and writing.

    encoder: a name of ENCODERS; by default the first that this FFmpeg has. sealed: called when no file is left to open.
    Raises VideoError for the input, FFmpegError for the output.
    """
    info = decoder.probe(path)
    with (
        decoder.open(path) as video,
        decoder.again(video) as fresh,
        open_container(video.descriptor) as for_sound,
        av.open(stream, "w", "mp4") as output,
    ):
        table, context = video.table, video.stream.codec_context
        size = _size(info, context.sample_aspect_ratio or Fraction(1))
        name = encoder or next(name for name in ENCODERS if name in av.codec.codecs_available)
        tick = _tick(video.stream) if table.timed and name != "mpeg4" else _FINE
        out = _encoder(output, name, size, info, tick)
        begin_s = int(table.pts[table.order[0]]) * _tick(video.stream) if table.timed else Fraction(0)
        sound = _Sound(output, for_sound, begin_s)
        overlay = Overlay(size.width, size.height, caption, table.duration_s)
        scaler, reformatter = Scaler(size, context.sample_aspect_ratio), VideoReformatter()
        sealed()
        for ticks, frame in _timed(fresh, tick):
            shown_s = ticks * tick
            pixels = scaler.picture(frame).pixels.copy()
            overlay.draw(pixels, float(shown_s))
            drawn = reformatter.reformat(
                VideoFrame.from_ndarray(pixels, format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                threads=1,
            )
            drawn.pts, drawn.time_base = ticks, tick
            sound.copy_until(shown_s)
            output.mux(out.encode(drawn))
        output.mux(out.encode(None))
        sound.copy_until(None)


def _size(info: VideoInfo, pixel_aspect: Fraction) -> Size:
    """Return the copy's size: as shown, with square pixels and even sides, of at most MAX_LINES."""
    aspect = 1 / pixel_aspect if info.rotation_degrees in (90, 270) else pixel_aspect
    width = info.width * aspect
    scale = min(Fraction(1), Fraction(MAX_LINES, info.height), MAX_COLUMNS / width)
    return Size(width=max(2 * round(width * scale / 2), 8), height=max(2 * round(info.height * scale / 2), 8))


def _encoder(output: OutputContainer, name: str, size: Size, info: VideoInfo, tick: Fraction) -> VideoStream:
    fps = min(max(round(info.fps or 25), 1), 240)
    stream = cast(VideoStream, output.add_stream(name, rate=fps, options=ENCODERS[name]))
    context = stream.codec_context
    context.width, context.height, context.pix_fmt = size.width, size.height, "yuv420p"
    context.time_base = tick
    context.gop_size = 2 * fps  # a player can jump to every other second
    context.thread_count = 1  # there is a child for each core
    context.color_range = ColorRange.MPEG
    context.colorspace = context.color_primaries = context.color_trc = Colorspace.ITU709  # BT.709 is 1 in all three
    return stream


def _timed(video: Video, tick: Fraction) -> Iterator[tuple[int, VideoFrame]]:
    """Yield every frame in the order they are shown, and when, counted in ticks from the first frame of the table."""
    table, last = video.table, -1
    first = int(table.pts[table.order[0]])
    for position, frame in Plain(video, drop=False).frames():
        if table.timed:
            shown_s = (position - first) * _tick(video.stream)
        else:
            shown_s = Fraction(table.shown_s[min(position, len(table.order) - 1)])
        last = max(round(shown_s / tick), last + 1)
        yield last, frame


def _tick(timed: "Stream | Packet[AudioStream]") -> Fraction:
    return timed.time_base or Fraction(1, 1000)


class _Sound:
    """The sound of a video on its way into the copy, packet by packet; nothing, where mp4 cannot hold its codec."""

    def __init__(self, output: OutputContainer, source: InputContainer, begin_s: Fraction) -> None:
        """Add a stream like the best one of ``source``; what is at ``begin_s`` there is at 0 in the copy."""
        self._output, self._begin_s = output, begin_s
        self._waiting: Iterator[Packet[AudioStream]] = iter(())
        self._next: Packet[AudioStream] | None = None
        stream = cast("AudioStream | None", source.streams.best("audio"))
        if stream is None or stream.codec_context is None or stream.codec.canonical_name not in SOUNDS:
            return
        self._stream = output.add_stream_from_template(stream)
        self._waiting = self._packets(source, stream)
        self._next = next(self._waiting, None)

    def _packets(self, source: InputContainer, stream: "AudioStream") -> Iterator["Packet[AudioStream]"]:
        """Yield packets that the muxer takes; a file that breaks off has sound up to there."""
        last = None
        shift = round(self._begin_s / _tick(stream))
        try:
            for packet in source.demux(stream):
                if packet.dts is None or packet.pts is None or (last is not None and packet.dts <= last):
                    continue
                last = packet.dts
                packet.dts, packet.pts = packet.dts - shift, packet.pts - shift
                packet.stream = self._stream
                yield packet
        except MemoryError:
            raise
        except av.error.FFmpegError:
            return

    def _is_due(self, time_s: Fraction | None) -> bool:
        if self._next is None or time_s is None:
            return self._next is not None
        return (self._next.pts or 0) * _tick(self._next) <= time_s

    def copy_until(self, time_s: Fraction | None) -> None:
        """Copy what is heard up to ``time_s``, or all that is left."""
        while self._next is not None and self._is_due(time_s):
            self._output.mux(self._next)
            self._next = next(self._waiting, None)
