"""The decoding child: takes a job from a socket, leaves frames in shared memory, answers with a small message.

A long video is answered part by part; the next is written when the parent has taken the one before.

Videos are untrusted and FFmpeg is written in C, so decoding happens in a process that can be lost: limited in memory,
time and files, without the right to gain privileges, and gone when its parent is. ``slots.py`` is the parent's side.
"""

import contextlib
import ctypes
import gc
import math
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import count
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from harec_deploy.decode import Decoder, Size, VideoInfo
from harec_deploy.discover import VideoFile
from harec_deploy.errors import VideoError
from harec_deploy.sampling import ClipSampling, Windowing
from harec_deploy.windows import Track

MAX_MESSAGE_BYTES = 1 << 20
PYAV = "pyav"  # the decoder of one video at a time
COLLECT_EVERY = 50  # videos: containers and streams hold each other, and Python by itself lets thousands gather
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one child may use: bytes of address space, and seconds for a video or for each part of a long one."""

    memory_bytes: int = 4 << 30
    seconds: float = 120.0


class BatchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A second decoder, of several videos at a time, in ``children`` of its own.

    name: of the decoder, for rows. decoder: "module:attribute" of a BatchDecoder. device: that it runs on.
    places: the videos that one child has at a time. shared: the first decoder takes new videos too, and not only those
    that this one refuses. silence_s: how long a child at work may say nothing.
    """

    name: str
    decoder: str
    device: str
    children: int = 1
    places: int = 32
    shared: bool = True
    silence_s: float = 120.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is decoded of every video, and with what.

    decoder: "module:attribute". count: the frames of a part; those of a whole clip fit into one.
    """

    decoder: str
    sampling: ClipSampling
    size: Size
    count: int
    windowing: Windowing | None = None
    limits: Limits = Limits()
    batch: BatchPlan | None = None

    @property
    def part_bytes(self) -> int:
        """Bytes of shared memory that a part takes."""
        return self.count * self.size.height * self.size.width * 3


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is started with. memory_fd: the shared memory, of plan.part_bytes."""

    socket_fd: int
    memory_fd: int
    parent: int
    plan: Plan


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One video by the bytes of its absolute path.

    place: of its frames in the memory of a child that has several; number: no two jobs of one child have the same.
    """

    path: bytes
    place: int = 0
    number: int = 0


def job_for(video: VideoFile, place: int = 0, number: int = 0) -> Job:
    """Return the job of decoding a video."""
    return Job(path=os.fsencode(video.path), place=place, number=number)


class Beat(msgspec.Struct, frozen=True, tag=True):
    """A child that has several videos made a step forward."""


class GoOn(msgspec.Struct, frozen=True):
    """The parent has taken the part that is in the shared memory."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What became of a job, or of a part of it; on success uint8 frames of ``shape`` lie in the shared memory.

    place, number: those of the job. refused: why a decoder of several videos leaves this one to the decoder of one.
    """

    seconds: float
    place: int = 0
    number: int = 0
    refused: str = ""
    shape: tuple[int, ...] = ()
    info: VideoInfo | None = None
    shown_s: list[float] = []
    bad_packets: int = 0
    last: bool = True
    scaled_s: float = 0.0
    error: tuple[str, str] | None = None


def command(module: str, *arguments: str) -> list[str]:
    """Return the command line of a child: ``main`` of a module in this folder, with this process's search path."""
    start = "import sys, json; sys.path[:] = json.loads(sys.argv.pop()); "
    start += f"from harec_deploy.label import {module}; {module}.main()"
    paths = msgspec.json.encode([path for path in sys.path if path]).decode()
    return [sys.executable, "-c", start, *arguments, paths]


def send(stream: socket.socket, message: msgspec.Struct) -> None:
    """Send one message: its length in 4 bytes, then msgpack."""
    data = msgspec.msgpack.encode(message)
    stream.sendall(struct.pack("<I", len(data)) + data)


def receive(stream: socket.socket, limit: int = MAX_MESSAGE_BYTES) -> bytes | None:
    """Return the bytes of one message, or None when the other side is gone, silent or sends something else.

    limit: bytes of a message; what an untrusted child sends is small.
    """
    head = _exactly(stream, 4)
    if head is None:
        return None
    (length,) = struct.unpack("<I", head)
    return _exactly(stream, length) if length <= limit else None


def _exactly(stream: socket.socket, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        try:
            part = stream.recv(min(count - len(data), MAX_MESSAGE_BYTES))
        except (ConnectionError, TimeoutError):
            return None
        if not part:
            return None
        data += part
    return bytes(data)


def readable(numbers: Iterable[int], seconds: float) -> set[int]:
    """Wait until one of these descriptors has something to read or is closed by the other side; return all that are."""
    poll = select.poll()  # select.select has no place for descriptors from 1024 on
    for number in numbers:
        poll.register(number, select.POLLIN)
    return {number for number, _ in poll.poll(math.ceil(seconds * 1000))}


def main() -> None:
    """Serve jobs until the parent closes the socket."""
    setup = msgspec.json.decode(sys.argv[1], type=Setup)
    plan = setup.plan
    give_up_rights(plan.limits, setup.parent)
    module, _, attribute = plan.decoder.partition(":")
    decoder: Decoder = getattr(import_module(module), attribute)()
    memory = np.frombuffer(mmap.mmap(setup.memory_fd, plan.part_bytes), dtype=np.uint8)
    gc.freeze()  # what was imported stays, and need not be looked through
    with socket.socket(fileno=setup.socket_fd) as stream:
        for number in count(1):
            if (data := receive(stream)) is None:
                return
            path = Path(os.fsdecode(msgspec.msgpack.decode(data, type=Job).path))
            for answer in _answers(decoder, path, plan, memory):
                send(stream, answer)
                if not answer.last and receive(stream) is None:
                    return
            if number % COLLECT_EVERY == 0:
                gc.collect()


def _answers(decoder: Decoder, path: Path, plan: Plan, memory: NDArray[np.uint8]) -> Iterator[Answer]:
    """Decode a video and yield an answer for each part of it; each part has the time limit of its own."""
    limit_cpu(plan.limits.seconds)
    start = time.perf_counter()
    try:
        for part in decoder.stream(path, Track(plan.sampling, plan.windowing).timestamps_s, plan.size, plan.count):
            memory[: part.pixels.size] = part.pixels.ravel()
            yield Answer(
                seconds=time.perf_counter() - start,
                shape=part.pixels.shape,
                info=part.info,
                shown_s=part.shown_s.tolist(),
                bad_packets=part.bad_packets,
                last=part.last,
                scaled_s=part.scaled_s,
            )
            limit_cpu(plan.limits.seconds)
            start = time.perf_counter()
    except VideoError as error:
        yield Answer(seconds=time.perf_counter() - start, error=(error.kind, str(error)))
    except MemoryError:
        yield Answer(seconds=time.perf_counter() - start, error=("out_of_memory", "the memory limit was reached"))


def give_up_rights(
    limits: Limits, parent: int, file_bytes: int = 0, *, open_files: int = 64, limit_memory: bool = True
) -> None:
    """Limit this process: its memory, files to ``file_bytes``, no new privileges, and an end with ``parent``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, file_bytes)
    _limit(resource.RLIMIT_NOFILE, open_files)
    if limit_memory:
        _limit(resource.RLIMIT_AS, limits.memory_bytes)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    end_with(parent)


def _limit(what: int, most: int) -> None:
    """Limit a resource for good; where the outside has a lower limit, that one stays."""
    _, hard = resource.getrlimit(what)
    lower = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (lower, lower))


def end_with(parent: int) -> None:
    """Let the system kill this process when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before it could take us along
        sys.exit(1)


def limit_cpu(seconds: float) -> None:
    """Let this process use ``seconds`` more of CPU time; beyond, SIGXCPU ends it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    with contextlib.suppress(ValueError):  # a hard limit of the outside is lower: then that one holds
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, hard))
