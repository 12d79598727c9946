"""The decoders that decode.py compares: each makes 16 frames of a video small, with one thread."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from harec_deploy.decode import Size
from harec_deploy.decode.pyav import PyAVDecoder

SIDE = 224
# A video's path, the times that are wanted and the places of the frames shown then -> uint8 (T, 224, 224, 3).
Decode = Callable[[Path, NDArray[np.float64], NDArray[np.int64]], Any]


def sequential_frames(path: Path, last: int | None = None) -> Iterator[VideoFrame]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count, stream.codec_context.thread_type = 1, "NONE"
        for index, frame in enumerate(container.decode(stream)):
            yield frame
            if index == last:
                return


def scaled(frame: VideoFrame) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = frame.reformat(
        width=SIDE, height=SIDE, format="rgb24", interpolation="BILINEAR", threads=1
    ).to_ndarray()
    return pixels


def pyav_sequential() -> Decode:
    def decode(path: Path, _: Any, places: NDArray[np.int64]) -> Any:
        wanted = set(places.tolist())
        frames = enumerate(sequential_frames(path, int(places.max())))
        found = {index: scaled(frame) for index, frame in frames if index in wanted}
        return np.stack([found[place] for place in places.tolist()])

    return decode


def harec_deploy() -> Decode:
    decoder, size = PyAVDecoder(), Size(width=SIDE, height=SIDE)
    return lambda path, times, _: decoder.frames(path, times, size).pixels


def torchcodec(seek_mode: str) -> Decode:
    import_module("torch").set_num_threads(1)
    decoders, transforms = import_module("torchcodec.decoders"), import_module("torchcodec.transforms")

    def decode(path: Path, times: NDArray[np.float64], _: Any) -> Any:
        options = {"num_ffmpeg_threads": 1, "dimension_order": "NHWC", "seek_mode": seek_mode}
        decoder = decoders.VideoDecoder(str(path), transforms=[transforms.Resize((SIDE, SIDE))], **options)
        start = decoder.metadata.begin_stream_seconds or 0.0
        return decoder.get_frames_played_at(seconds=(times + start).tolist()).data.numpy()

    return decode


def decord() -> Decode:
    library = import_module("decord")

    def decode(path: Path, _: Any, places: NDArray[np.int64]) -> Any:
        reader = library.VideoReader(str(path), ctx=library.cpu(0), width=SIDE, height=SIDE, num_threads=1)
        return reader.get_batch(places.tolist()).asnumpy()

    return decode


def opencv() -> Decode:
    cv2 = import_module("cv2")
    cv2.setNumThreads(1)

    def decode(path: Path, _: Any, places: NDArray[np.int64]) -> Any:
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        wanted, found = set(places.tolist()), {}
        for index in range(int(places.max()) + 1):
            if capture.grab() and index in wanted:
                small = cv2.resize(capture.retrieve()[1], (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
                found[index] = cv2.cvtColor(small, cv2.COLOR_BGR2RGB)
        capture.release()
        return np.stack([found[place] for place in places.tolist()])

    return decode


def ffmpeg_pipe() -> Decode:
    program = shutil.which("ffmpeg")
    if program is None:
        raise OSError("there is no program ffmpeg")

    def decode(path: Path, _: Any, places: NDArray[np.int64]) -> Any:
        chosen = "+".join(f"eq(n\\,{place})" for place in places.tolist())
        filters = f"select={chosen},scale={SIDE}:{SIDE}:flags=bilinear"
        one = ["-threads", "1", "-filter_threads", "1"]
        command = [program, "-v", "error", "-nostdin", *one, "-i", str(path), "-vf", filters, *one]
        command += [
            "-fps_mode",
            "passthrough",
            "-frames:v",
            str(len(places)),
            "-pix_fmt",
            "rgb24",
            "-f",
            "rawvideo",
            "-",
        ]
        pixels = subprocess.run(command, capture_output=True, check=True).stdout
        return np.frombuffer(pixels, np.uint8).reshape(-1, SIDE, SIDE, 3)

    return decode


DECODERS: dict[str, Callable[[], Decode]] = {
    "PyAV sequential": pyav_sequential,
    "harec-deploy": harec_deploy,
    "torchcodec approximate": lambda: torchcodec("approximate"),
    "torchcodec exact": lambda: torchcodec("exact"),
    "decord": decord,
    "OpenCV grab/retrieve": opencv,
    "ffmpeg pipe": ffmpeg_pipe,
}
