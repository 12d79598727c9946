"""Files that only the test matrix needs, made of the videos of tests/media.py."""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av
from av.packet import Packet

from tests.media import Clip, make_video, pictures


def make_animation(path: Path, codec: str) -> Path:
    """Write ten frames as an animated "gif" or "apng", under whatever name."""
    with av.open(str(path), "w", format=codec) as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 120, {"gif": "rgb8", "apng": "rgb24"}[codec]
        for frame in pictures(Clip(), range(10)):
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode(None))
    return path


def make_subtitles(path: Path) -> Path:
    """Write a Matroska file with nothing but a text in it."""
    source = path.with_suffix(".srt")
    source.write_text("1\n00:00:00,000 --> 00:00:02,000\nHello\n\n")
    with av.open(str(source)) as container, av.open(str(path), "w") as output:
        out = output.add_stream_from_template(container.streams.subtitles[0])
        for packet in container.demux():
            if packet.dts is not None:
                packet.stream = out
                output.mux(packet)
    source.unlink()
    return path


def point_at(path: Path, name: str) -> Path:
    """Say in a QuickTime file that its samples lie in the file ``name`` beside it: a data reference with an alias.

    The header must stand behind the samples, so that it may grow (no faststart).
    """
    data = path.read_bytes()
    text = name.encode()
    # The old form of an alias record (Inside Macintosh: Files, 3): of its fields FFmpeg reads the name, how far the
    # file is, and the path, the item of type 2.
    record = bytes(10) + bytes([1]) + b"v".ljust(27, b"\0") + bytes(12) + bytes([len(text)]) + text.ljust(63, b"\0")
    record += bytes(16) + b"\0\1\0\1" + bytes(16)
    item = b"v:" + text
    record += b"\0\2" + len(item).to_bytes(2, "big") + item + b"\0" * (len(item) % 2) + b"\xff\xff\0\0"
    entry = data.index(b"dref") + 12  # behind version, flags and count
    size = int.from_bytes(data[entry : entry + 4], "big")
    new = (12 + len(record)).to_bytes(4, "big") + b"alis" + bytes(4) + record
    assert data.index(b"mdat") < data.index(b"moov") < entry
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        place = data.rindex(box, 0, entry) - 4
        grown = int.from_bytes(data[place : place + 4], "big") + len(new) - size
        data = data[:place] + grown.to_bytes(4, "big") + data[place + 4 :]
    path.write_bytes(data[:entry] + new + data[entry + size :])
    return path


def remux(source: Path, path: Path, change: Callable[[int, Packet], bool | None], **muxer: str) -> Path:
    """Copy the coded pictures of ``source`` into ``path``; ``change`` may alter each, and leaves it out with False.

    It is called with the place of a packet in decode order and the packet.
    """
    with av.open(str(source)) as container, av.open(str(path), "w", options=muxer) as output:
        out = output.add_stream_from_template(container.streams.video[0])
        for index, packet in enumerate(container.demux(video=0)):
            if packet.size and change(index, packet) is not False:
                packet.stream = out
                output.mux(packet)
    return path


def patch_box(path: Path, box: str, offset: int, value: int, *, size: int = 4) -> Path:
    """Write a number at ``offset`` behind the name of an mp4's first such box; version and flags come first."""
    data = path.read_bytes()
    place = data.index(box.encode()) + 4 + offset
    path.write_bytes(data[:place] + value.to_bytes(size, "big") + data[place + size :])
    return path


def promise_frames(path: Path, count: int) -> Path:
    """Let the headers of an AVI say another count of frames."""
    data = path.read_bytes()
    old = data[data.index(b"avih") + 24 :][:4]
    for tag, offset in ((b"avih", 24), (b"strh", 40)):  # dwTotalFrames, dwLength
        place = data.index(tag) + offset
        assert data[place : place + 4] == old
        data = data[:place] + count.to_bytes(4, "little") + data[place + 4 :]
    path.write_bytes(data)
    return path


def make_h264_of_size(path: Path, width: int, height: int) -> Path:
    """Write a raw H.264 stream of a few kilobytes whose header says that its pictures have another size."""
    numbers = [0, 0, 2, 1]  # id, log2_max_frame_num - 4, pic_order_cnt_type (as decoded), max_num_ref_frames
    bits = f"{66:08b}{0:08b}{51:08b}" + "".join(_golomb(number) for number in numbers) + "0"  # no gaps
    bits += _golomb(-(-width // 16) - 1) + _golomb(-(-height // 16) - 1) + "1" + "1" + "0" + "0"  # no crop, no VUI
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    header = b"\x67" + re.sub(b"\0\0(?=[\0-\3])", b"\0\0\3", int(bits, 2).to_bytes(len(bits) // 8, "big"))
    options = {"profile": "baseline", "x264-params": "annexb=1"}
    data = make_video(path, frames=4, gop=1, b_frames=0, width=64, height=48, options=options).read_bytes()
    units = re.split(b"\0?\0\0\1", data)[1:]
    assert sum(unit[0] & 31 == 7 for unit in units) > 0  # sequence parameter sets
    path.write_bytes(b"".join(b"\0\0\0\1" + (header if unit[0] & 31 == 7 else unit) for unit in units))
    return path


def _golomb(number: int) -> str:
    """Return an unsigned Exp-Golomb code (H.264, 9.1)."""
    code = f"{number + 1:b}"
    return "0" * (len(code) - 1) + code


def repeat(source: Path, path: Path, times: int) -> Path:
    """Write the coded pictures of ``source``, which must be without B frames, one time behind the other."""
    with av.open(str(source)) as container, av.open(str(path), "w") as output:
        out = output.add_stream_from_template(container.streams.video[0])
        packets = [packet for packet in container.demux(video=0) if packet.size]
        step = packets[1].pts - packets[0].pts
        for place in range(times * len(packets)):
            original = packets[place % len(packets)]
            packet = Packet(bytes(original))
            packet.stream, packet.time_base, packet.is_keyframe = out, original.time_base, original.is_keyframe
            packet.pts = packet.dts = place * step
            packet.duration = step
            output.mux(packet)
    return path


def merge(path: Path, sources: Sequence[Path], *, dispositions: Sequence[int] = ()) -> Path:
    """Write the streams of all ``sources``, of one stream each, into one file."""
    with av.open(str(path), "w") as output, ExitStack() as stack:
        opened = [stack.enter_context(av.open(str(source))) for source in sources]
        outs = [output.add_stream_from_template(container.streams[0]) for container in opened]
        for out, disposition in zip(outs, dispositions, strict=False):
            out.disposition = disposition
        for container, out in zip(opened, outs, strict=True):
            for packet in container.demux(container.streams[0]):
                if packet.size:
                    packet.stream = out
                    output.mux(packet)
    return path
