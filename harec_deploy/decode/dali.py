"""Decoding many videos at once with NVIDIA DALI: NVDEC on a GPU, or its CPU form for VP8, VP9 and MJPEG.

    reference decoder (threads)            DALI
    packets, places, route, first frame -> encoded bytes and frame numbers -> decode -> resize -> crop -> frames
                                        -> refused: the reference decoder takes it

Frames are chosen from the same packet table as everywhere, and every video proves itself: the first frame is asked for
beside the wanted ones, and must look like the one that the reference decoder gives.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import nvidia.dali
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types

from harec_deploy.decode import Frames, Key, Refused, Size, Timestamps, VideoInfo
from harec_deploy.decode.passes import Plain, Video
from harec_deploy.decode.picture import Scaler, scaled_size
from harec_deploy.decode.pyav import PyAVDecoder, info_of
from harec_deploy.decode.routes import Rules
from harec_deploy.errors import VideoError
from harec_deploy.sampling import shown_at

BATCH = 16  # videos in a batch, fewer where they are large:
BATCH_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}  # of decoded frames in their own size
THREADS = {"cpu": 2, "cuda": 16}  # that decode; a GPU's decoders (7 on an H100) are each kept busy by two
PROBE_THREADS = 4
# Mean difference in levels between DALI's first frame and the reference's. Real clips, encoded anew as VP9 and MJPEG:
# 0.2 to 2.1; noise of 1280x720, which scaling treats worst: 6.7. Above it the colours or the picture are others.
FIRST_FRAME_LEVELS = 12.0


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A video that DALI is to decode.

    encoded: uint8 (bytes,). numbers: int32 (N,), ascending frames to decode; the first one is frame 0, whether wanted
    or not. wanted: which of those are. scaled: (width, height) before the crop. first: uint8 (H, W, 3), what frame 0
    is to look like.
    """

    info: VideoInfo
    encoded: NDArray[np.uint8]
    numbers: NDArray[np.int32]
    wanted: slice
    shown_s: NDArray[np.float64]
    scaled: tuple[int, int]
    first: NDArray[np.uint8]

    @property
    def group(self) -> tuple[str, int, int]:
        """Videos that are decoded together are alike in this."""
        return self.info.codec, self.info.width, self.info.height

    @property
    def decoded_bytes(self) -> int:
        """Bytes of its frames before they are scaled."""
        return len(self.numbers) * self.info.width * self.info.height * 3


class DaliDecoder:
    """Decodes batches of videos on one device; what it may not decode is refused, for the reference decoder.

    Its single-video methods raise Refused beside VideoError.
    """

    name = "dali"
    version: str = nvidia.dali.__version__

    def __init__(self, device: str = "cpu", *, batch: int = BATCH) -> None:
        """Decode on "cpu" or "cuda:N", at most ``batch`` videos at a time."""
        self.device = device
        self.batch = batch
        self._kind = device.partition(":")[0]
        self._rules = Rules(gpu=self._kind != "cpu")
        self._reference = PyAVDecoder()
        self._graphs: dict[Size, _Graph] = {}

    def probe(self, path: Path) -> VideoInfo:
        """Read the packets of ``path``, as the reference decoder does. Raises VideoError."""
        return self._reference.probe(path)

    def frames(self, path: Path, timestamps_s: Timestamps, size: Size) -> Frames:
        """Return the frame shown at each timestamp: pixels uint8 (T, H, W, 3). Raises VideoError and Refused."""
        times: list[float] = []

        def asked(info: VideoInfo) -> list[float]:
            times[:] = timestamps_s(info) if callable(timestamps_s) else timestamps_s
            return times

        ((_, found),) = self.decode_many([(0, path)], asked, size)
        if not isinstance(found, Frames):
            raise found
        at = shown_at(found.shown_s, times)
        return replace(found, pixels=np.ascontiguousarray(found.pixels[at]), shown_s=found.shown_s[at])

    def stream(self, path: Path, timestamps_s: Timestamps, size: Size, count: int) -> Iterator[Frames]:
        """Yield the frames shown at any of the timestamps, all at once. Raises VideoError, and Refused for more."""
        ((_, found),) = self.decode_many([(0, path)], timestamps_s, size, count)
        if not isinstance(found, Frames):
            raise found
        yield found

    def decode_many(
        self,
        videos: Iterable[tuple[Key, Path]],
        timestamps_s: Timestamps,
        size: Size,
        count: int | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[Key, Frames | Refused | VideoError]]:
        """Yield what became of each video, see ``BatchDecoder``: videos of one codec and size are decoded together."""
        waiting = iter(videos)
        while some := list(islice(waiting, 2 * self.batch)):  # whose bytes are in memory together
            yield from self._decode_some(some, timestamps_s, size, count, beat)

    def _decode_some(
        self,
        videos: list[tuple[Key, Path]],
        timestamps_s: Timestamps,
        size: Size,
        count: int | None,
        beat: Callable[[], None],
    ) -> Iterator[tuple[Key, Frames | Refused | VideoError]]:
        groups: dict[tuple[str, int, int], list[tuple[Key, _Chosen]]] = defaultdict(list)
        with ThreadPoolExecutor(PROBE_THREADS, thread_name_prefix="probe") as pool:
            asked = {pool.submit(self._choose, path, timestamps_s, size, count): key for key, path in videos}
            for done in as_completed(asked):
                key, chosen = asked.pop(done), done.result()
                beat()
                if not isinstance(chosen, _Chosen):
                    yield key, chosen
                    continue
                group = groups[chosen.group]
                if group and not self._fits([*(each for _, each in group), chosen]):
                    yield from self._decode(group, size, beat)
                    group.clear()
                group.append((key, chosen))
        for group in groups.values():
            if group:
                yield from self._decode(group, size, beat)

    def _fits(self, batch: list[_Chosen]) -> bool:
        return len(batch) <= self.batch and sum(each.decoded_bytes for each in batch) <= BATCH_BYTES[self._kind]

    def _choose(
        self, path: Path, timestamps_s: Timestamps, size: Size, count: int | None
    ) -> _Chosen | Refused | VideoError:
        """Read a video's packets and say what is to be decoded, or why nothing is."""
        try:
            with self._reference.open(path) as video:
                return self._chosen(video, timestamps_s, size, count)
        except (Refused, VideoError) as error:
            return error
        except (av.error.FFmpegError, MemoryError) as error:
            return Refused(f"{type(error).__name__} while its packets were read")

    def _chosen(self, video: Video, timestamps_s: Timestamps, size: Size, count: int | None) -> _Chosen:
        info = info_of(video)
        times = timestamps_s(info) if callable(timestamps_s) else timestamps_s
        places = np.unique(video.table.at(np.asarray(times, dtype=np.float64)))
        if count is not None and len(places) > count:
            raise Refused(f"{len(places)} frames; at most {count} are decoded at once")
        plain = Plain(video, drop=False)
        position, first = next(plain.frames(), (None, None))
        if first is None or first.is_corrupt or plain.refused:
            raise Refused("its first frame cannot be decoded")
        if position != (video.table.pts[0] if video.table.timed else 0):
            raise Refused("its first frame is not the one that its packets name")
        if why := self._rules.refusal(video, first):
            raise Refused(why)
        scaler = Scaler(size, video.stream.codec_context.sample_aspect_ratio)
        picture = scaler.picture(first)
        numbers = np.union1d(places, [0]).astype(np.int32)
        decoded_bytes = len(numbers) * first.width * first.height * 3
        if decoded_bytes > BATCH_BYTES[self._kind]:
            raise Refused(f"{decoded_bytes >> 20} MiB of frames")
        return _Chosen(
            info=replace(info, width=picture.width, height=picture.height, pixel_format=picture.pixel_format),
            encoded=np.fromfile(f"/dev/fd/{video.descriptor}", dtype=np.uint8),
            numbers=numbers,
            wanted=slice(len(numbers) - len(places), None),
            shown_s=video.table.shown_s[places],
            scaled=scaled_size(size, first.width, first.height, Fraction(scaler.pixel_aspect)),
            first=np.ascontiguousarray(picture.pixels),
        )

    def _decode(
        self, group: list[tuple[Key, _Chosen]], size: Size, beat: Callable[[], None]
    ) -> Iterator[tuple[Key, Frames | Refused]]:
        """Decode a batch; of one that fails, each video alone, and the one that fails alone is refused."""
        beat()
        try:
            decoded = self._run([chosen for _, chosen in group], size)
        except (RuntimeError, MemoryError) as error:
            # A pipeline is not to be used again after an error, whatever its next answer looks like.
            self._graphs.pop(size, None)
            if len(group) == 1:
                yield group[0][0], Refused(_told(error))
                return
            for each in group:
                yield from self._decode([each], size, beat)
            return
        for (key, chosen), pixels in zip(group, decoded, strict=True):
            yield key, _checked(chosen, pixels, size)

    def _run(self, batch: list[_Chosen], size: Size) -> list[NDArray[np.uint8]]:
        if size not in self._graphs:
            self._graphs[size] = _Graph(self.device, size, self.batch)
        return self._graphs[size].run(batch)


def _checked(chosen: _Chosen, pixels: NDArray[np.uint8], size: Size) -> Frames | Refused:
    """Return the wanted frames, if there are as many as asked for and the first one looks as it should."""
    if pixels.shape != (len(chosen.numbers), size.height, size.width, 3):
        return Refused(f"DALI gave frames of shape {pixels.shape}")
    levels = float(np.abs(pixels[0].astype(np.int16) - chosen.first).mean())
    if levels > FIRST_FRAME_LEVELS:
        return Refused(f"its first frame differs by {levels:.1f} levels from the reference decoder's")
    return Frames(chosen.info, np.ascontiguousarray(pixels[chosen.wanted]), chosen.shown_s, 0)


def _told(error: BaseException) -> str:
    """Return the one line of DALI's many that says what happened."""
    text = str(error)
    found = re.search(r"encountered:\s*(.+?)\n", text, re.S) or re.search(r"\s*([^\n]+)", text)
    return f"DALI: {(found[1] if found else type(error).__name__).strip()[:200]}"


class _Graph:
    """The pipeline: encoded bytes and frame numbers in, pixels of one size out. Not to be used after an error."""

    def __init__(self, device: str, size: Size, batch: int) -> None:
        kind, _, number = device.partition(":")
        self._pipeline: Any = Pipeline(
            batch_size=batch,
            num_threads=THREADS[kind],
            device_id=None if kind == "cpu" else int(number or 0),
            prefetch_queue_depth=1,
        )
        with self._pipeline:
            encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
            frames = fn.external_source(name="frames", dtype=types.INT32, ndim=1)
            scaled = fn.external_source(name="scaled", dtype=types.FLOAT, ndim=1)
            video = fn.decoders.video(
                encoded,
                frames=frames,
                device="cpu" if kind == "cpu" else "mixed",
                pad_mode="none",  # a frame that is not there is an error, and not a black one
                affine=False,  # the other decoder's processes want the cores too
            )
            # Antialiased is nearest to swscale's bilinear: on those clips 0.2 to 2.1 levels off, without it 0.4 to 8.4.
            video = fn.resize(video, size=scaled, interp_type=types.INTERP_LINEAR, antialias=True)
            if size.mode == "crop":
                video = fn.crop(video, crop=(size.height, size.width), rounding="truncate")
            self._pipeline.set_outputs(video)

    def run(self, batch: list[_Chosen]) -> list[NDArray[np.uint8]]:
        """Return the frames of each video: uint8 (N, H, W, 3). Raises RuntimeError if one of them fails."""
        (outputs,) = self._pipeline.run(
            encoded=[each.encoded for each in batch],
            frames=[each.numbers for each in batch],
            scaled=[np.array(each.scaled[::-1], dtype=np.float32) for each in batch],
        )
        host = outputs.as_cpu()
        return [np.array(host.at(place), dtype=np.uint8) for place in range(len(batch))]
