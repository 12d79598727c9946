"""Makes every video that the tests use, with real encoders, and damages them on purpose.

Each frame carries its index as ten black or white blocks (two rows of five in the upper half), over a texture that
moves, so that a frame decoded from the wrong references is seen by eye and by ``read_index``.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.packet import Packet
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from harec_deploy.decode import Size
from harec_deploy.decode.picture import Scaler

BITS = (2, 5)  # rows, columns of blocks
MUXERS = {".h264": "h264", ".ts": "mpegts", ".mkv": "matroska", ".webm": "webm", ".mpg": "mpeg", ".m4v": "m4v"}
CLOCKLESS = {"h264", "m4v"}  # raw streams: FFmpeg makes up 25 frames a second
FAST = {
    "libx264": {"preset": "veryfast", "sc_threshold": "0", "b-pyramid": "normal"},
    "libx265": {"preset": "ultrafast"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "row-mt": "0"},
    "libsvtav1": {"preset": "8", "crf": "12"},
}
PIXEL_FORMATS = {"mjpeg": "yuvj420p", "prores": "yuv422p10le"}


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What a made video is like; ``gop`` is the distance of key frames, ``b_frames`` the most of them in a row."""

    codec: str = "libx264"
    frames: int = 60
    width: int = 160
    height: int = 120
    fps: int | Fraction = 25
    gop: int = 12
    b_frames: int = 2
    vfr: bool = False
    open_gop: bool = False
    start_s: int = 0
    pixel_aspect: Fraction = Fraction(1)
    seed: int = 0
    options: dict[str, str] = field(default_factory=dict)
    muxer: dict[str, str] = field(default_factory=dict)

    def ticks(self) -> NDArray[np.int64]:
        """Return when each frame is shown, in units of 1 / (8 fps): int64 (frames,)."""
        random = np.random.default_rng(self.seed)
        # Some gaps of exactly one frame, some shorter, some much longer: what screen and phone recorders write.
        gaps = (
            random.choice([8, 4, 11, 24, 80], self.frames, p=[0.5, 0.2, 0.1, 0.1, 0.1])
            if self.vfr
            else [8] * self.frames
        )
        return np.cumsum([0, *gaps[: self.frames - 1]]).astype(np.int64)


def picture(clip: Clip, index: int) -> NDArray[np.uint8]:
    """Return frame ``index`` of a clip as it goes into the encoder: uint8 RGB (H, W, 3)."""
    random = np.random.default_rng(clip.seed)
    coarse = random.integers(40, 216, (9, 13, 3)).repeat(16, axis=0).repeat(16, axis=1)
    fine = random.integers(-24, 25, coarse.shape)
    texture = np.roll((coarse + fine).astype(np.uint8), (index, 3 * index), axis=(0, 1))
    repeats = (-(-clip.height // texture.shape[0]), -(-clip.width // texture.shape[1]), 1)
    pixels = np.tile(texture, repeats)[: clip.height, : clip.width].copy()
    for bit, box in enumerate(_boxes(clip.height, clip.width)):
        pixels[box] = 235 if index >> bit & 1 else 16
    return pixels


def _boxes(height: int, width: int, margin: float = 0.0) -> Iterator[tuple[slice, slice]]:
    rows, columns = BITS
    for row in range(rows):
        for column in range(columns):
            y, x = (row + margin) * height / 2 / rows, (column + margin) * width / columns
            yield (
                slice(round(y), round(y + (1 - 2 * margin) * height / 2 / rows)),
                slice(round(x), round(x + (1 - 2 * margin) * width / columns)),
            )


def pictures(clip: Clip, indices: Sequence[int]) -> Iterator[VideoFrame]:
    """Yield these frames of a clip."""
    return (VideoFrame.from_ndarray(picture(clip, index), format="rgb24") for index in indices)


def read_index(pixels: NDArray[np.uint8]) -> int:
    """Return the index that the blocks of a decoded, possibly scaled, frame (H, W, 3) spell."""
    height, width = pixels.shape[:2]
    return sum(int(pixels[box].mean() > 125) << bit for bit, box in enumerate(_boxes(height, width, 0.25)))


def make_video(path: Path, clip: Clip | None = None, **fields: Any) -> Path:
    """Write the video that ``clip``, or a Clip of ``fields``, describes; the suffix chooses the container."""
    clip = clip or Clip(**fields)
    return write_frames(path, clip, pictures(clip, range(clip.frames)))


def write_frames(
    path: Path,
    clip: Clip,
    frames: Iterator[VideoFrame],
    **context: Any,
) -> Path:
    """Encode ``frames`` as ``clip`` says; ``context`` sets attributes of the encoder."""
    options = {"movflags": "faststart", **clip.muxer} if path.suffix in {".mp4", ".mov"} else clip.muxer
    with _tame(clip.codec), av.open(str(path), "w", format=MUXERS.get(path.suffix), options=options) as container:
        stream: Any = container.add_stream(clip.codec, rate=clip.fps, options=_options(clip))
        _set_up(stream.codec_context, clip)
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        packets = (packet for frame in _timed(frames, clip, stream) for packet in stream.encode(frame))
        for packet in packets:
            packet.duration = 1 if path.suffix == ".avi" else packet.duration  # or empty chunks follow the last one
            container.mux(packet)
    return path


@contextmanager
def _tame(codec: str) -> Iterator[None]:
    """Undo what SVT-AV1 does to a process of root's: it schedules the caller, and so every child, in real time.

    Beside a real-time process that waits busily, threads that are pinned to its core do not run at all.
    """
    if codec != "libsvtav1":
        yield
        return
    os.environ["SVT_LOG"] = "1"  # errors only
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def _options(clip: Clip) -> dict[str, str]:
    extra = {}
    if clip.codec == "libx265":
        extra["x265-params"] = (
            f"log-level=none:pools=none:frame-threads=1:keyint={clip.gop}:min-keyint={clip.gop}:scenecut=0"
            f":bframes={clip.b_frames}:open-gop={int(clip.open_gop)}"
        )
    elif clip.codec == "libx264":
        extra = {"bf": str(clip.b_frames), "x264-params": f"open-gop={int(clip.open_gop)}"}
    elif clip.codec == "libvpx-vp9":  # its counterpart of B frames: alternate references, which are not shown
        extra = {"auto-alt-ref": str(int(clip.b_frames > 0)), "lag-in-frames": "25" if clip.b_frames else "0"}
    elif clip.codec == "mpeg4":
        extra = {"qmax": "12"}
    return {**FAST.get(clip.codec, {}), **extra, **clip.options}


def _set_up(context: Any, clip: Clip) -> None:
    context.width, context.height = clip.width, clip.height
    context.pix_fmt = PIXEL_FORMATS.get(clip.codec, "yuv420p")
    context.gop_size = clip.gop
    context.thread_count = 1
    context.sample_aspect_ratio = clip.pixel_aspect
    context.time_base = _tick(clip)
    context.bit_rate = 0 if clip.codec in {"libx264", "libx265", "libsvtav1"} else 1_500_000
    if clip.codec in {"mpeg4", "mpeg2video"}:
        context.max_b_frames = clip.b_frames


def _tick(clip: Clip) -> Fraction:
    return 1 / Fraction(clip.fps * (8 if clip.vfr else 1))


def _timed(frames: Iterator[VideoFrame], clip: Clip, stream: Any) -> Iterator[VideoFrame | None]:
    """Yield the frames with their times, and last the None that empties the encoder."""
    ticks = (clip.ticks() if clip.vfr else clip.ticks() // 8) + int(clip.start_s / _tick(clip))
    for tick, frame in zip(ticks.tolist(), frames, strict=True):
        timed = frame.reformat(format=stream.pix_fmt) if frame.format.name != stream.pix_fmt else frame
        timed.pts, timed.time_base = tick, _tick(clip)
        yield timed
    yield None


@dataclass(frozen=True)
class Sequential:
    """Every frame of a video by a plain sequential decode, and when each is shown: what tests compare with."""

    frames: list[VideoFrame]
    shown_s: NDArray[np.float64]
    context: Any

    def places(self, timestamps_s: Sequence[float] | NDArray[np.float64]) -> list[int]:
        """Return the index of the frame shown at each time; the first or last for a time outside the video."""
        started = [[place for place, shown in enumerate(self.shown_s) if shown <= time + 1e-6] for time in timestamps_s]
        return [places[-1] if places else 0 for places in started]

    def pixels(self, timestamps_s: Sequence[float] | NDArray[np.float64], size: Size) -> NDArray[np.uint8]:
        """Return the frames shown at these times, scaled: uint8 (T, H, W, 3)."""
        scaler = Scaler(size, self.context.sample_aspect_ratio)
        return np.stack([scaler.picture(self.frames[place]).pixels for place in self.places(timestamps_s)])


def decode_all(path: Path) -> Sequential:
    """Decode ``path`` with nothing but PyAV's own loop."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        first = frames[0].pts or 0
        if container.format.name == "avi":  # it counts chunks, also empty ones; packed frames have wrong times
            with av.open(str(path)) as again:
                shown_s = [float(packet.dts * stream.time_base) for packet in again.demux(video=0) if packet.size]
        elif container.format.name in CLOCKLESS:
            shown_s = [index / 25 for index in range(len(frames))]
        else:
            shown_s = [float((frame.pts - first) * stream.time_base) for frame in frames]
        return Sequential(frames, np.array(shown_s), stream.codec_context)


def make_patches(path: Path, colours: Sequence[tuple[int, int, int]], *, colorspace: int, color_range: int) -> Path:
    """Write a lossless video of vertical bars with the given (Y, Cb, Cr), tagged as said; a bar is 32 pixels wide."""
    clip = Clip(width=32 * len(colours), height=64, frames=4, b_frames=0, options={"qp": "0"})
    planes = np.array(colours, dtype=np.uint8).T  # (3, bars)
    luma = planes[0].repeat(32)[None].repeat(clip.height, axis=0)
    chroma = [plane.repeat(16)[None].repeat(clip.height // 2, axis=0).reshape(-1, clip.width) for plane in planes[1:]]
    frame = np.concatenate([luma, *chroma])
    frames = (VideoFrame.from_ndarray(frame, format="yuv420p") for _ in range(clip.frames))
    return write_frames(path, clip, frames, colorspace=colorspace, color_range=color_range)


def make_packed_avi(path: Path, clip: Clip, frames: Iterator[VideoFrame] | None = None) -> Path:
    """Write an AVI the way DivX and old Xvid do: each P frame shares a chunk with the first B frame shown before it.

    chunks of a plain AVI    I0  P3    B1  B2  P6 ...
    packed                   I0  P3+B1 B2  N   P6+B4 ...      N: a placeholder of a few bytes
    """
    packets = _mpeg4(clip, frames or pictures(clip, range(clip.frames)))
    return _write_chunks(path, clip, _pack(packets, int(clip.fps)))


def make_skipped_avi(path: Path, clip: Clip, skipped: range) -> Path:
    """Write an AVI in which the ``skipped`` frames are not coded: nothing new was seen, a placeholder written."""
    coded = [index for index in range(clip.frames) if index not in skipped]
    data = _mpeg4(replace(clip, frames=len(coded)), pictures(clip, coded))
    chunks = [(chunk, b"\0\0\1\0" in chunk) for chunk in data]
    chunks[skipped.start : skipped.start] = [(_placeholder(int(clip.fps)), False)] * len(skipped)
    return _write_chunks(path, clip, chunks)


def encoder_for(clip: Clip) -> Any:
    """Return an encoder without a container."""
    encoder: Any = av.CodecContext.create(clip.codec, "w")
    encoder.options = _options(clip)
    _set_up(encoder, clip)
    return encoder


def _mpeg4(clip: Clip, frames: Iterator[VideoFrame]) -> list[bytes]:
    """Return the packets of MPEG-4 part 2, each key frame with its headers."""
    encoder = encoder_for(clip)
    return [bytes(packet) for frame in _timed(frames, clip, encoder) for packet in encoder.encode(frame)]


def _write_chunks(path: Path, clip: Clip, chunks: list[tuple[bytes, bool]]) -> Path:
    """Write (data, is key) as the chunks of an AVI."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=clip.fps)
        _set_up(stream.codec_context, clip)
        for place, (data, key) in enumerate(chunks):
            packet = Packet(data)
            packet.stream, packet.time_base = stream, _tick(clip)
            packet.pts = packet.dts = place
            packet.is_keyframe = key
            container.mux(packet)
    return path


def _pack(packets: list[bytes], fps: int) -> list[tuple[bytes, bool]]:
    """Return (chunk, is key) in file order."""
    kinds = [data[data.index(b"\0\0\1\xb6") + 4] >> 6 for data in packets]  # 0: I, 1: P, 2: B
    chunks: list[tuple[bytes, bool]] = []
    for place, (data, kind) in enumerate(zip(packets, kinds, strict=True)):
        followed, follows = kinds[place + 1 : place + 2] == [2], place > 0 and kinds[place - 1] != 2
        if kind == 2 and not follows:
            chunks.append((data, False))
        elif kind != 2:
            chunks.append((_as_divx(data) + (packets[place + 1] if followed else b""), kind == 0))
        if kind == 2 and kinds[place + 1 : place + 2] != [2]:
            chunks.append((_placeholder(fps), False))
    return chunks


def _as_divx(data: bytes) -> bytes:
    """Put the user data of DivX 5.03, "packed", in front of a key frame, in the place of libavcodec's own."""
    start = data.index(b"\0\0\1\xb6")
    header = data[:start]
    if not header:
        return data
    user = header.find(b"\0\0\1\xb2")
    return (header[:user] if user >= 0 else header) + b"\0\0\1\xb2DivX503b1393p" + data[start:]


def _placeholder(fps: int) -> bytes:
    """Return an N-VOP: a P picture that is not coded."""
    bits = (
        "01" + "0" + "1" + "0" * max(1, (fps - 1).bit_length()) + "1" + "0"
    )  # type, seconds, marker, time, marker, coded
    bits += "0"  # stuffing: a zero, then ones up to the byte's end
    bits += "1" * (-len(bits) % 8)
    return b"\0\0\1\xb6" + int(bits, 2).to_bytes(len(bits) // 8, "big")


def make_resized(path: Path, sizes: Sequence[tuple[int, int]], *, frames: int = 20, **fields: Any) -> Path:
    """Write an H.264 stream whose picture size changes in mid-stream, each part a whole video with its own headers."""
    with av.open(str(path), "w", format=MUXERS[path.suffix]) as container:
        out: Any = container.add_stream("libx264", rate=25)
        out.width, out.height = sizes[0]
        for part, (width, height) in enumerate(sizes):
            clip = Clip(width=width, height=height, frames=frames, seed=part, **fields)
            encoder = encoder_for(clip)
            timed = _timed(pictures(clip, range(frames)), clip, encoder)
            for packet in (packet for frame in timed for packet in encoder.encode(frame)):
                packet.stream, packet.time_base = out, _tick(clip)
                packet.pts, packet.dts = packet.pts + part * frames, packet.dts + part * frames
                container.mux(packet)
    return path


def make_hidden_vp9(path: Path, clip: Clip) -> Path:
    """Write VP9 whose alternate references, which are not shown, stand in packets of their own, as old encoders did."""
    source = make_video(path.with_suffix(".whole.webm"), clip)
    options = {"fflags": "-autobsf"}  # or the muxer puts the two back into one packet
    with av.open(str(source)) as container, av.open(str(path), "w", options=options) as output:
        out: Any = output.add_stream_from_template(container.streams.video[0])
        split = BitStreamFilterContext("vp9_superframe_split", container.streams.video[0])
        for packet in container.demux(video=0):
            tick, time_base = packet.pts, packet.time_base
            for part in split.filter(packet if packet.size else None):
                part.pts = part.dts = tick  # a hidden frame has the time of the one that follows it
                part.stream, part.time_base = out, time_base
                output.mux(part)
    return path


def rotate(path: Path, degrees: int, *, mirrored: bool = False) -> Path:
    """Write a display matrix into an mp4's track header: mirrored left to right first, then turned clockwise."""
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    first = -1 if mirrored else 1
    one = 1 << 16
    matrix = [first * cosine * one, first * sine * one, 0, -sine * one, cosine * one, 0, 0, 0, 1 << 30]
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # behind version, flags and the times of a version 0 box
    assert data[start : start + 4] == one.to_bytes(4, "big"), "not the identity matrix of a version 0 tkhd"
    data[start : start + 36] = np.array(matrix, dtype=">i4").tobytes()
    path.write_bytes(data)
    return path


def repeat(source: Path, path: Path, times: int) -> Path:
    """Write a long video: the packets of ``source`` again and again."""
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        packets = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in container.demux(stream) if p.size]
        length = len(packets) * (packets[1][2] - packets[0][2])
        with av.open(str(path), "w") as output:
            copy = output.add_stream_from_template(stream)
            for turn in range(times):
                for data, pts, dts, key in packets:
                    packet: Any = Packet(data)
                    packet.pts, packet.dts, packet.is_keyframe = pts + turn * length, dts + turn * length, key
                    packet.time_base, packet.stream = stream.time_base, copy
                    output.mux(packet)
    return path


def cut(path: Path, share: float) -> Path:
    """Cut a file's end off: ``share`` of its bytes stay."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def flip_bytes(path: Path, *, every: int = 997, start: int | None = None) -> Path:
    """Invert a byte in every so many, from ``start`` or from where an mp4's coded pictures begin."""
    data = np.frombuffer(path.read_bytes(), dtype=np.uint8).copy()
    begin = start if start is not None else data.tobytes().index(b"mdat") + 64
    data[begin::every] ^= 0xFF
    path.write_bytes(data.tobytes())
    return path


def replace_bytes(path: Path, old: bytes, new: bytes) -> Path:
    """Replace ``old``, which must occur, everywhere in a file by as many bytes."""
    data = path.read_bytes()
    assert old in data
    assert len(old) == len(new)
    path.write_bytes(data.replace(old, new))
    return path


def make_png(path: Path) -> Path:
    """Write one picture in PNG, under whatever name."""
    return _make_picture(path, "png", "rgb24")


def make_jpeg(path: Path) -> Path:
    """Write one picture in JPEG, under whatever name."""
    return _make_picture(path, "mjpeg", "yuvj420p")


def _make_picture(path: Path, codec: str, pixel_format: str) -> Path:
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 160, 120, pixel_format, Fraction(1, 25)
    frame = VideoFrame.from_ndarray(picture(Clip(), 0), format="rgb24").reformat(format=pixel_format)
    path.write_bytes(b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)]))
    return path


def make_audio(path: Path, *, cover: Path | None = None, muxer: str = "mp4", seconds: float = 0.5) -> Path:
    """Write silence, with a PNG file as attached picture if ``cover`` is given."""
    codec = {"mp4": "aac", "mp3": "libmp3lame"}[muxer]
    with av.open(str(path), "w", format=muxer) as container:
        sound: Any = container.add_stream(codec, rate=16000, layout="mono")
        if cover is not None:
            image: Any = container.add_stream("png", rate=25)
            image.width, image.height, image.pix_fmt = 160, 120, "rgb24"
            image.disposition = av.stream.Disposition.attached_pic
        container.start_encoding()
        if cover is not None:
            packet = Packet(cover.read_bytes())
            packet.stream, packet.pts, packet.dts, packet.time_base = image, 0, 0, Fraction(1, 25)
            packet.is_keyframe = True
            container.mux(packet)
        silence = np.zeros((1, int(seconds * 16000)), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux([*sound.encode(frame), *sound.encode(None)])
    return path
