"""A decoder that does what the first bytes of a file tell it to: the faults of decoders, on order, in a real child."""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harec_deploy.decode import Frames, Refused, Size, Timestamps, VideoInfo
from harec_deploy.decode.pyav import PyAVDecoder
from harec_deploy.errors import VideoError


def hang() -> None:
    """Sleep for ever."""
    while True:
        time.sleep(60)


def hold_the_interpreter() -> None:
    """Never come back from C, with the interpreter's lock held, so that no Python signal handler could run."""
    ctypes.PyDLL(None).sleep(10**6)


def spin() -> None:
    """Use up the CPU time."""
    while True:
        pass


def use_memory() -> None:
    """Take memory until there is none."""
    taken = []
    while True:
        taken.append(np.empty(1 << 26, dtype=np.uint8))


def answer_with(data: bytes) -> None:
    """Write raw bytes where the answer is expected."""
    for descriptor in range(3, 64):
        try:
            stream = socket.socket(fileno=os.dup(descriptor))
        except OSError:
            continue
        try:
            stream.getpeername()
            stream.sendall(data)
        except OSError:
            continue
    hang()


def fork_and_die() -> None:
    """Leave a grandchild behind."""
    if os.fork() == 0:
        hang()
    os.kill(os.getpid(), signal.SIGSEGV)


def end_the_parent() -> None:
    """Kill the process that this one decodes for."""
    os.kill(os.getppid(), signal.SIGKILL)
    hang()


FAULTS = {
    b"PARENT": end_the_parent,
    b"SEGV": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    b"ABRT": os.abort,
    b"KILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    b"EXIT": lambda: os._exit(0),
    b"RAISE": lambda: [][1],
    b"HANG": hang,
    b"HOLD": hold_the_interpreter,
    b"SPIN": spin,
    b"OOM": use_memory,
    b"GARBAGE": lambda: answer_with(b"\x08\0\0\0notmsgpk"),
    b"FLOOD": lambda: answer_with(b"\xff" * (1 << 20)),
    b"HALF": lambda: answer_with(b"\x10\0\0\0half"),
    b"WRITE": lambda: Path(f"/tmp/harec-written-{os.getpid()}").write_bytes(b"x" * 100),
    b"SAY": lambda: (sys.stderr.write("what went wrong\n"), os._exit(7)),
}


PAUSE = b"PAUSE"  # at the end of a video
ONCE = b"ONCE"  # at the end of a video that ends the parent the first time that it is decoded


def pause(path: Path) -> None:
    """Make a folder beside the video, and go on when somebody has removed it."""
    reading = path.with_name(f"{path.name}.reading")
    reading.mkdir()
    while reading.exists():
        time.sleep(0.01)


class FaultyDecoder(PyAVDecoder):
    """Decodes like its parent, except for files that begin with the name of a fault, or end with PAUSE."""

    def stream(self, path: Path, timestamps_s: Timestamps, size: Size, count: int | None = None) -> Iterator[Frames]:
        """Commit the fault, or decode."""
        data = path.read_bytes()
        for name, fault in FAULTS.items():
            if data.startswith(name):
                fault()

        if data.endswith(ONCE):
            with contextlib.suppress(FileExistsError):
                path.with_name(f"{path.name}.once").mkdir()
                end_the_parent()

        def in_the_middle(info: VideoInfo) -> Sequence[float] | NDArray[np.float64]:
            """Pause between reading the packets and decoding them."""
            if data.endswith(PAUSE):
                pause(path)
            return timestamps_s(info) if callable(timestamps_s) else timestamps_s

        for number, part in enumerate(super().stream(path, in_the_middle, size, count)):
            if number == 2 and "midway" in path.name:
                os.kill(os.getpid(), signal.SIGSEGV)
            yield part


class FaultyBatch:
    """A decoder of several videos, in batches of three, whose fault is in a file's name: the video itself is sound.

    REFUSE, NONE: it refuses the video, or has no answer. TWICE: it has two. STRANGER: an answer for no job.
    SHAPE, PART, MANY: frames of another size, not the last ones, more than fit. Or a name of FAULTS.
    """

    def __init__(self, device: str) -> None:
        self.device = device

    def decode_many(
        self,
        videos: Iterable[tuple[Any, Path]],
        timestamps_s: Timestamps,
        size: Size,
        count: int,
        beat: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[Any, Frames | Refused | VideoError]]:
        """Decode as the reference decoder does, or commit the faults."""
        jobs = list(videos)
        for first in range(0, len(jobs), 3):
            beat()
            yield from [each for job in jobs[first : first + 3] for each in self._one(*job, timestamps_s, size, count)]

    def _one(
        self, key: Any, path: Path, timestamps_s: Timestamps, size: Size, count: int
    ) -> Iterator[tuple[Any, Frames | Refused | VideoError]]:
        for name, fault in FAULTS.items():
            if name.decode() in path.name:
                fault()
        if "REFUSE" in path.name:
            yield key, Refused("as asked")
        if "REFUSE" in path.name or "NONE" in path.name:
            return
        try:
            frames = next(PyAVDecoder().stream(path, timestamps_s, size, count))
        except VideoError as error:
            yield key, error
            return
        if "SHAPE" in path.name:
            frames = replace(frames, pixels=frames.pixels[:, :-1])
        if "PART" in path.name:
            frames = replace(frames, last=False)
        if "MANY" in path.name:
            frames = replace(frames, pixels=np.repeat(frames.pixels, count, axis=0))
        yield "nobody" if "STRANGER" in path.name else key, frames
        if "TWICE" in path.name:
            yield key, frames
