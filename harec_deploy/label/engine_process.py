"""An engine process as its parent sees it; ``engine_child.py`` is what runs in it."""

import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from harec_deploy import errors
from harec_deploy.discover import VideoFile
from harec_deploy.errors import EngineError, HarecError
from harec_deploy.label.child import command, readable, receive, send
from harec_deploy.label.engine_messages import (
    MAX_BYTES,
    EngineSetup,
    Failed,
    FromEngine,
    Give,
    Load,
    Loaded,
    NoMore,
    ToEngine,
    from_engine,
)

END_S = 5.0  # that a process has to end itself
NOTICE_S = 0.5  # that are waited for a message at most
WORDS_BYTES = 4096  # that are kept of what a process said


@dataclass(slots=True)
class Process:
    """One engine process.

    given: videos that it has and that are not done, by number. untaken: how many of them it has not begun.
    open: it may be given more in this round. idle: it has finished its round. suspected: its one video was with a
    process that died.
    """

    name: str
    device: str
    workers: int
    cores: list[int]
    given: dict[int, VideoFile] = field(default_factory=dict)
    untaken: int = 0
    open: bool = True
    idle: bool = False
    suspected: bool = False
    stream: socket.socket = field(init=False)
    words_fd: int = field(init=False)  # the reading end of a pipe for what it says
    _child: "subprocess.Popen[bytes]" = field(init=False)
    _said: bytes = b""
    _failure: str = ""
    _number: int = 0

    def __post_init__(self) -> None:
        self.stream, theirs = socket.socketpair()
        self.words_fd, words = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        setup = EngineSetup(socket_fd=theirs.fileno(), parent=os.getpid(), workers=self.workers, cores=self.cores)
        try:
            self._child = subprocess.Popen(
                command("engine_child", msgspec.json.encode(setup).decode()),
                pass_fds=(setup.socket_fd,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=words,
                start_new_session=True,  # Ctrl-C on the terminal is for the parent alone
            )
        finally:
            theirs.close()
            os.close(words)

    def send(self, message: ToEngine) -> None:
        """Say something. That a process is gone is noticed when nothing more comes from it."""
        try:
            send(self.stream, message)
        except OSError:
            pass

    def load(self, asked: Load) -> Loaded:
        """Load a bundle on the process's device. Raises what loading raised there, EngineError where it died."""
        self.send(msgspec.structs.replace(asked, device=self.device))
        return self.loaded()

    def loaded(self) -> Loaded:
        """Wait for what was loaded."""
        while True:
            for _, message in heard([self]):
                if isinstance(message, Loaded):
                    return message
                if isinstance(message, Failed):
                    raise _raised(message.code, f"{self.name}: {message.message}")
                if message is None:
                    raise EngineError(f"{self.name} {self.fate()} while it loaded the bundle")

    def give(self, video: VideoFile) -> None:
        """Give it a video to label; that begins a round if it had ended one."""
        self.open, self.idle = True, False
        self._number += 1
        self.given[self._number] = video
        self.untaken += 1
        self.send(Give(video=self._number, path=os.fsencode(video.path), size=video.size, mtime_ns=video.mtime_ns))

    def end_round(self) -> None:
        """Let it finish what it has."""
        self.open = False
        self.send(NoMore())

    def receive(self) -> FromEngine | None:
        """Read a message; None when the process is gone."""
        data = receive(self.stream, MAX_BYTES)
        if data is None:
            return None
        message = from_engine.decode(data)
        if isinstance(message, Failed):
            self._failure = message.message
        return message

    def hear(self) -> None:
        """Keep the end of what it says, and make room for more."""
        try:
            self._said = (self._said + os.read(self.words_fd, 1 << 16))[-WORDS_BYTES:]
        except BlockingIOError:
            pass

    def fate(self) -> str:
        """Say how it ended; it has closed its connection, so it must be ending."""
        try:
            status = self._child.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            return "does not answer"
        self.hear()
        if status < 0:
            return f"died of {signal.Signals(-status).name}"
        lines = self._said.decode("utf-8", "replace").splitlines()
        said = self._failure or next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"ended: {said[:300]}" if said else f"ended with status {status}"

    def hang_up(self) -> None:
        """Close the connection, at which the process ends itself."""
        self.stream.close()

    def close(self) -> None:
        """End the process, by force if it does not do it by itself."""
        self.hang_up()
        try:
            self._child.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self.words_fd >= 0:
            os.close(self.words_fd)
            self.words_fd = -1


def heard(processes: Sequence[Process]) -> list[tuple[Process, FromEngine | None]]:
    """Wait a moment and return a message of each process that has one; None of one that is gone."""
    answers = [process.stream.fileno() for process in processes]
    ready = readable([*answers, *(process.words_fd for process in processes)], NOTICE_S)
    for process in processes:
        if process.words_fd in ready:
            process.hear()
    return [(process, process.receive()) for process, answer in zip(processes, answers, strict=True) if answer in ready]


def _raised(code: str, message: str) -> HarecError:
    """Return the error of a process as one of this process."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HarecError)]
    kind = next((kind for kind in kinds if kind.code == code), EngineError)
    return errors.again(kind, message, {})
