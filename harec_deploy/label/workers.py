"""Decoding ahead of the engine: videos in, decoded clips out as they are done, in children that can be lost.

One child process for each slot, each with a socket and a piece of shared memory of its own, so that a crash, a hang or
a memory bomb costs one video and no other. ``child.py`` is the other side. A thread keeps the slots busy while the
engine works, and stays a few videos in front of it.
"""

import contextlib
import math
import mmap
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
import numpy as np

from harec_deploy.decode import Frames
from harec_deploy.discover import VideoFile
from harec_deploy.errors import VideoError
from harec_deploy.label.child import Answer, GoOn, Job, Plan, Setup, receive, send

PATIENCE_S = 5.0  # for the rest of a message that has begun
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv.pop()); from harec_deploy.label import child; child.main()"
)


@dataclass(frozen=True, slots=True)
class Decoded:
    """One video after decoding, or a part of a long one: its frames or why there are none, and how long it took."""

    video: VideoFile
    frames: Frames | None
    error: VideoError | None
    seconds: float

    @property
    def last(self) -> bool:
        """Nothing more comes of this video."""
        return self.frames is None or self.frames.last


def default_workers() -> int:
    """Return one decoder for each core that this process may use."""
    return len(os.sched_getaffinity(0))


def decode_ahead(
    videos: Iterable[VideoFile], plan: Plan, workers: int, stop: threading.Event | None = None
) -> Iterator[Decoded]:
    """Decode videos in ``workers`` children and yield each as it is done, long ones part by part.

    A video whose child crashes, runs out of memory or takes longer than the limit is tried once; its error has the code
    decoder_crashed, out_of_memory or timeout. Setting ``stop`` ends the children and then, when what is decoded was
    taken, the generator; closing the generator ends both at once.
    """
    done: queue.Queue[Decoded | None] = queue.Queue(maxsize=2 * workers)
    closed = threading.Event()

    def stopped() -> bool:
        return closed.is_set() or (stop is not None and stop.is_set())

    def pump() -> None:
        try:
            for decoded in _decode_all(videos, plan, workers, stopped):
                done.put(decoded)
        finally:
            done.put(None)

    with ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
        pumping = pool.submit(pump)
        try:
            while (decoded := done.get()) is not None:
                yield decoded
            pumping.result()  # raises what stopped it
        finally:
            closed.set()
            while not pumping.done():  # it may wait for room in the queue
                with contextlib.suppress(queue.Empty):
                    done.get(timeout=0.05)


def _decode_all(
    videos: Iterable[VideoFile], plan: Plan, workers: int, stopped: Callable[[], bool]
) -> Iterator[Decoded]:
    waiting = iter(videos)
    idle = [_Slot(plan) for _ in range(workers)]
    busy: list[_Slot] = []
    try:
        while not stopped():
            while idle and (video := next(waiting, None)) is not None:
                if video.error:
                    yield Decoded(video, None, video.error, 0.0)
                    continue
                slot = idle.pop()
                slot.start(video)
                busy.append(slot)
            if not busy:
                return
            # Half a second at most, to notice that the run was stopped.
            pause_s = min(0.5, max(min(slot.deadline for slot in busy) - time.monotonic(), 0.0))
            ready, _, _ = select.select(busy, (), (), pause_s)
            for slot in [s for s in busy if s in ready or s.deadline <= time.monotonic()]:
                decoded = slot.take(in_time=slot in ready)
                if decoded.last:
                    busy.remove(slot)
                    idle.append(slot)
                yield decoded
    finally:
        for slot in (*idle, *busy):
            slot.close()


class _Slot:
    """A place for one video at a time, and the child that decodes there; a lost child is replaced when it is needed."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.video: VideoFile | None = None
        self.deadline = 0.0
        self._memory_fd = os.memfd_create("frames")
        os.truncate(self._memory_fd, plan.part_bytes)
        self._memory = mmap.mmap(self._memory_fd, plan.part_bytes)
        self._words = -1  # the reading end of a pipe for what a dying child says
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def fileno(self) -> int:
        """Return what becomes readable when the child has an answer or is gone."""
        assert self._socket is not None
        return self._socket.fileno()

    def start(self, video: VideoFile) -> None:
        """Give the child a video; a new child if there is none."""
        if self._child is None:
            self._spawn()
        self.video = video
        self._said()  # and forget what it said of the video before
        self._send(Job(path=os.fsencode(video.path)))

    def _send(self, message: msgspec.Struct) -> None:
        """Tell the child what to do; from now on its time runs."""
        assert self._socket is not None
        self.deadline = time.monotonic() + self.plan.limits.seconds
        with contextlib.suppress(ConnectionError):  # a child that is gone is noticed when its answer is read
            send(self._socket, message)

    def take(self, *, in_time: bool) -> Decoded:
        """Read the answer and let the child go on, or say what became of it."""
        assert self.video is not None
        assert self._socket is not None
        video, taken = self.video, self.plan.limits.seconds - (self.deadline - time.monotonic())
        answer: Answer | None = None
        if in_time:
            with contextlib.suppress(msgspec.DecodeError):
                data = receive(self._socket)
                answer = msgspec.msgpack.decode(data, type=Answer) if data is not None else None
        if answer is None:
            return Decoded(video, None, self._lost(in_time=in_time), taken)
        try:
            if answer.error:
                if answer.error[0] == "out_of_memory":
                    self._end()  # what is left of it is not to be trusted
                raise VideoError(*answer.error)
            frames = self._frames(answer)
            if answer.last:
                unchanged(video)
            else:
                self._send(GoOn())
        except VideoError as error:
            return Decoded(video, None, error, answer.seconds)
        return Decoded(video, frames, None, answer.seconds)

    def _frames(self, answer: Answer) -> Frames:
        size, count = self.plan.size, len(answer.shown_s)
        wanted = (count, size.height, size.width, 3)
        if answer.info is None or answer.shape != wanted or not 1 <= count <= self.plan.count:
            self._end()
            told = f"{count} frames of shape {answer.shape}; expected 1 to {self.plan.count} of {wanted[1:]}"
            raise VideoError("decoder_crashed", f"the decoder answered with {told}")
        pixels = np.frombuffer(self._memory, dtype=np.uint8, count=math.prod(wanted)).reshape(wanted).copy()
        return Frames(answer.info, pixels, np.asarray(answer.shown_s), answer.bad_packets, answer.last)

    def _lost(self, *, in_time: bool) -> VideoError:
        """End a child that did not answer, and say why it did not."""
        assert self._child is not None
        if not in_time:
            self._end()
            return VideoError("timeout", f"decoding took longer than {self.plan.limits.seconds:g} s")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout=1.0)  # its socket is closed, so it is dying; how, is worth a moment
        status, words = self._child.poll(), self._last_words()
        self._end()
        if status == -signal.SIGXCPU:
            return VideoError("timeout", f"decoding took more than {self.plan.limits.seconds:g} s of CPU time")
        if status == -signal.SIGKILL:
            return VideoError("out_of_memory", "the decoder was killed from outside, most likely for its memory")
        if status is not None and status < 0:
            return VideoError("decoder_crashed", f"the decoder died of {signal.Signals(-status).name}")
        return VideoError("decoder_crashed", f"the decoder gave no answer (exit status {status}){words}")

    def _last_words(self) -> str:
        lines = self._said().decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last[:200]}" if last else ""

    def _said(self) -> bytes:
        """Empty the pipe of a child's words."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self._words, 1 << 16)
        return b""

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        # A child may not write to files, and may not wait for anybody who reads.
        self._words, words = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        setup = Setup(
            socket_fd=theirs.fileno(),
            memory_fd=self._memory_fd,
            parent=os.getpid(),
            plan=self.plan,
        )
        paths = msgspec.json.encode([path for path in sys.path if path]).decode()
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-c", _START, msgspec.json.encode(setup).decode(), paths],
                pass_fds=(setup.socket_fd, setup.memory_fd),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=words,
                start_new_session=True,  # Ctrl-C on the terminal is for the parent alone
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        os.close(words)
        ours.settimeout(PATIENCE_S)
        self._socket = ours

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            # One that waits for a mount whose server is gone cannot even be killed: it is left to itself.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout=PATIENCE_S)
            self._child = None
        if self._socket is not None:
            self._socket.close()
            os.close(self._words)
            self._socket = None

    def close(self) -> None:
        """End the child and give back the memory."""
        self._end()
        self._memory.close()
        os.close(self._memory_fd)


def unchanged(video: VideoFile) -> None:
    """Raise VideoError if the file is not the one that was found when the run began."""
    try:
        status = video.path.stat()
    except OSError:
        raise VideoError("vanished") from None
    if (status.st_size, status.st_mtime_ns) != (video.size, video.mtime_ns):
        raise VideoError("changed")
