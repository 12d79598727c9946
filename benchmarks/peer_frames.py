"""Tells which frames a peer's program takes of a clip: PYTHONPATH=. python benchmarks/peer_frames.py NAME BUNDLE CLIPS.

Its own ``read`` is called, and each frame looked for among all frames of a sequential decode, as decode.py does.
Without a NAME ("-") harec-deploy's decoder is looked at. Prints how many frames are those shown at the model's times.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from benchmarks.decode import FRAMES, count_right, look_at, scaled
from benchmarks.roster import PROGRAMS
from harec_deploy.bundle import load
from harec_deploy.decode.pyav import PyAVDecoder
from harec_deploy.discover import discover
from harec_deploy.export.verify import frames_of


def small(frame: Any) -> NDArray[np.uint8]:
    """Return a frame, (H, W, 3) or (3, H, W), of the size that frames are compared in."""
    pixels = np.asarray(frame)
    pixels = pixels.transpose(1, 2, 0) if pixels.shape[0] == 3 else pixels
    whole = np.ascontiguousarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    return scaled(VideoFrame.from_ndarray(whole, format="rgb24"))


def main(name: str, bundle: Path, clips: list[str]) -> None:
    spec, right = load(bundle).spec, 0
    if name == "-":
        decoder = PyAVDecoder()
        (videos,) = [{str(video.path): video for video in discover(clips).videos}]
    else:
        sys.path.insert(0, str(PROGRAMS))
        read = import_module(name).read
    for path in clips:
        frames = frames_of(decoder, videos[path], spec).pixels if name == "-" else read(path, spec)
        right += count_right(look_at(Path(path)), np.stack([small(frame) for frame in frames]))
    print(json.dumps({"right": right, "of": FRAMES * len(clips)}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
