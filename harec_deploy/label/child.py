"""The decoding child: takes a job from a socket, leaves frames in shared memory, answers with a small message.

Videos are untrusted and FFmpeg is written in C, so decoding happens in a process that can be lost: limited in memory,
time and files, without the right to gain privileges, and gone when its parent is. ``workers.py`` is the parent's side.
"""

import contextlib
import ctypes
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from harec_deploy.decode import Decoder, Size, VideoInfo
from harec_deploy.errors import VideoError
from harec_deploy.sampling import ClipSampling, whole

MAX_MESSAGE_BYTES = 1 << 20
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one child may use: bytes of address space, and seconds for one video, by the clock and of CPU time."""

    memory_bytes: int = 4 << 30
    seconds: float = 120.0


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is started with. decoder: "module:attribute"; memory_fd: the shared memory, of memory_bytes."""

    socket_fd: int
    memory_fd: int
    memory_bytes: int
    parent: int
    decoder: str
    sampling: ClipSampling
    size: Size
    limits: Limits


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One video by the bytes of its absolute path."""

    path: bytes


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a job; on success uint8 frames of ``shape`` lie in the shared memory."""

    seconds: float
    shape: tuple[int, ...] = ()
    info: VideoInfo | None = None
    shown_s: list[float] = []
    bad_packets: int = 0
    error: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class _Task:
    decoder: Decoder
    memory: NDArray[np.uint8]
    setup: Setup


def send(stream: socket.socket, message: msgspec.Struct) -> None:
    """Send one message: its length in 4 bytes, then msgpack."""
    data = msgspec.msgpack.encode(message)
    stream.sendall(struct.pack("<I", len(data)) + data)


def receive(stream: socket.socket) -> bytes | None:
    """Return the bytes of one message, or None when the other side is gone, silent or sends something else."""
    head = _exactly(stream, 4)
    if head is None:
        return None
    (length,) = struct.unpack("<I", head)
    return _exactly(stream, length) if length <= MAX_MESSAGE_BYTES else None


def _exactly(stream: socket.socket, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        try:
            part = stream.recv(count - len(data))
        except (ConnectionError, TimeoutError):
            return None
        if not part:
            return None
        data += part
    return bytes(data)


def main() -> None:
    """Serve jobs until the parent closes the socket."""
    setup = msgspec.json.decode(sys.argv[1], type=Setup)
    _give_up_rights(setup)
    module, _, attribute = setup.decoder.partition(":")
    memory = mmap.mmap(setup.memory_fd, setup.memory_bytes)
    task = _Task(getattr(import_module(module), attribute)(), np.frombuffer(memory, dtype=np.uint8), setup)
    with socket.socket(fileno=setup.socket_fd) as stream:
        while (data := receive(stream)) is not None:
            _limit_cpu(setup.limits.seconds)
            send(stream, _answer(task, msgspec.msgpack.decode(data, type=Job)))


def _answer(task: _Task, job: Job) -> Answer:
    start = time.perf_counter()
    sampling = task.setup.sampling
    try:
        frames = task.decoder.frames(
            Path(os.fsdecode(job.path)),
            lambda info: sampling.timestamps_s(whole(info.duration_s)[0]),
            task.setup.size,
        )
        task.memory[: frames.pixels.size] = frames.pixels.ravel()
    except VideoError as error:
        return Answer(seconds=time.perf_counter() - start, error=(error.kind, str(error)))
    except MemoryError:
        return Answer(seconds=time.perf_counter() - start, error=("out_of_memory", "the memory limit was reached"))
    return Answer(
        seconds=time.perf_counter() - start,
        shape=frames.pixels.shape,
        info=frames.info,
        shown_s=frames.shown_s.tolist(),
        bad_packets=frames.bad_packets,
    )


def _give_up_rights(setup: Setup) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_AS, (setup.limits.memory_bytes, setup.limits.memory_bytes))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != setup.parent:  # it died before it could take us along
        sys.exit(1)


def _limit_cpu(seconds: float) -> None:
    """Let this process use ``seconds`` more of CPU time; beyond, SIGXCPU ends it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    with contextlib.suppress(ValueError):  # a hard limit of the outside is lower: then that one holds
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, hard))
