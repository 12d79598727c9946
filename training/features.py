"""Where training takes its clips from: stored features, stored frames, or videos decoded as they are needed.

Every video is looked at on one grid: each of a clip's T parts is cut into PER_PART places, of which the middle one is
what labelling takes. A clip is one place from each part: the middle ones, or random ones as augmentation (temporal
jitter, see ``module.JITTERS``). So frames can be decoded, and features of a frozen encoder computed, once for all
epochs, by the decoder of labelling.

    part          |        1        |        2        |  ...  |        T        |
    place         |  0  |  1  |  2  |  3  |  4  |  5  |  ...
    labelling            *                 *                           *
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harec_deploy import __version__
from harec_deploy.decode import Decoder, Size, choose
from harec_deploy.errors import UsageError, VideoError
from harec_deploy.machine import cores
from harec_deploy.models.encoders import FrameEncoder
from harec_deploy.sampling import ClipSampling, whole
from training.store import Layout, Progress, Rows, stored

PER_PART = 3


class Source(Protocol):
    """Clips by video and grid places."""

    def clip(self, index: int, places: NDArray[np.int64], *, mirror: bool) -> Tensor:
        """Return the clip of video ``index``: frames uint8 (T, H, W, 3) or features float32 (T, D)."""


@dataclass(frozen=True, slots=True)
class Grid:
    """How videos are looked at."""

    sampling: ClipSampling
    size: Size

    @property
    def places(self) -> int:
        """Places of a video's grid."""
        return self.sampling.frames * PER_PART

    def middle(self) -> NDArray[np.int64]:
        """Return the places that labelling takes: int64 (T,)."""
        return np.arange(self.sampling.frames, dtype=np.int64) * PER_PART + PER_PART // 2

    def decode(self, decoder: Decoder, path: Path, places: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """Return the frames at ``places``, or at all: uint8 (places, H, W, 3). Raises VideoError."""
        chosen = slice(None) if places is None else places
        return decoder.frames(
            path,
            lambda info: self.sampling.timestamps_s(whole(info.duration_s)[0], per_part=PER_PART)[chosen],
            self.size,
        ).pixels


class DecodedFrames:
    """Decodes each clip when it is asked for."""

    def __init__(self, paths: Sequence[Path], grid: Grid) -> None:
        self.paths = paths
        self.grid = grid

    def clip(self, index: int, places: NDArray[np.int64], *, mirror: bool) -> Tensor:
        """Return frames uint8 (T, H, W, 3)."""
        return _mirrored(torch.from_numpy(self.grid.decode(choose(), self.paths[index], places)), mirror)


class StoredFrames:
    """Frames of all videos at all places, in one memory-mapped file."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows  # of each video uint8 (places, H, W, 3)

    def clip(self, index: int, places: NDArray[np.int64], *, mirror: bool) -> Tensor:
        """Return frames uint8 (T, H, W, 3)."""
        return _mirrored(torch.from_numpy(np.asarray(self.rows[index][places])), mirror)


class StoredFeatures:
    """What a frozen encoder, or its frozen stages, make of all videos at all places, as they are and mirrored."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows  # of each video float32 (2, places, D), or maps (2, places, C, H', W')

    def clip(self, index: int, places: NDArray[np.int64], *, mirror: bool) -> Tensor:
        """Return features float32 (T, D), or maps (T, C, H', W')."""
        return torch.from_numpy(np.asarray(self.rows[index][int(mirror), places]))


def _mirrored(frames: Tensor, mirror: bool) -> Tensor:
    return frames.flip(2) if mirror else frames  # width is the third axis of (T, H, W, 3)


def stored_frames(paths: Sequence[Path], grid: Grid, cache: Path, progress: Progress) -> StoredFrames:
    """Decode all places of the videos into ``cache``, but for those that are found there.

    Raises:
        UsageError: a video cannot be decoded.
        OutputError: ``cache`` cannot be written.
    """
    shape = (grid.places, grid.size.height, grid.size.width, 3)
    layout = Layout(cache / f"{_key('frames', grid, b'')}.rows", shape, np.dtype(np.uint8))
    return StoredFrames(stored(layout, paths, lambda missing: _decoded(missing, grid), progress))


def stored_features(
    paths: Sequence[Path], grid: Grid, encoder: FrameEncoder, cache: Path, progress: Progress
) -> StoredFeatures:
    """Freeze the encoder and compute its features of all places of the videos into ``cache``, but for those there.

    encoder: a whole one, or its first stages. The file's name is made of its weights, the grid and the decoder, and
    each row in it is of a video as it was; so what is taken is never stale.

    Raises:
        UsageError: a video cannot be decoded.
        OutputError: ``cache`` cannot be written.
    """
    encoder.to(memory_format=torch.channels_last).eval().freeze()
    layout = Layout(
        cache / f"{_key('features', grid, weights_digest(encoder))}.rows",
        features_shape(grid, encoder),
        np.dtype(np.float32),
    )

    def compute(missing: Sequence[Path]) -> Iterator[NDArray[np.float32]]:
        return (_both_ways(encoder, pixels) for pixels in _decoded(missing, grid))

    return StoredFeatures(stored(layout, paths, compute, progress))


def features_shape(grid: Grid, encoder: FrameEncoder) -> tuple[int, ...]:
    """Return the shape of what is stored of a video: (2, places, ...), as the encoder gives it for a frame."""
    frame = torch.zeros(1, grid.size.height, grid.size.width, 3, dtype=torch.uint8)
    with torch.inference_mode():
        return (2, grid.places, *encoder.eval()(frame).shape[1:])


def weights_digest(module: torch.nn.Module) -> bytes:
    """Return a SHA-256 over all weights of a module."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()


def _both_ways(encoder: FrameEncoder, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return features (2, places, D) of frames as they are and mirrored."""
    frames = torch.from_numpy(pixels)
    with torch.inference_mode():
        return np.stack([encoder(frames).numpy(), encoder(frames.flip(2)).numpy()])


def _key(kind: str, grid: Grid, weights: bytes) -> str:
    decoder = choose()
    facts = (kind, __version__, decoder.name, decoder.version, PER_PART, grid.sampling, grid.size, weights)
    return f"{kind}-{hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:16]}"


def _decoded(paths: Sequence[Path], grid: Grid) -> Iterable[NDArray[np.uint8]]:
    """Yield all places of every video, in order, decoded ahead on all cores."""
    decoder = choose()
    workers = cores()
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(paths), 4 * workers):
            block = paths[start : start + 4 * workers]
            for path, future in [(path, pool.submit(grid.decode, decoder, path)) for path in block]:
                try:
                    yield future.result()
                except VideoError as error:
                    raise UsageError(f"{path}: {error.kind}: {error}; take it out of the manifest") from None
