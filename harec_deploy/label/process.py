"""A decoding child seen from the parent: a process, a socket, shared memory and a pipe for its last words.

All of it can be lost at any moment, and is replaced when it is needed again.
"""

import contextlib
import mmap
import os
import signal
import socket
import subprocess

import msgspec

from harec_deploy.errors import VideoError
from harec_deploy.label.child import Plan, Setup, command, receive, send

PATIENCE_S = 5.0  # for the rest of a message that has begun


class ChildProcess:
    """A place for one child, which runs ``main`` of a module in this folder and shares ``memory_bytes`` with us."""

    def __init__(self, module: str, plan: Plan, memory_bytes: int) -> None:
        self.plan = plan
        self._module = module
        self._memory_fd = os.memfd_create("frames")
        os.truncate(self._memory_fd, memory_bytes)
        self.memory = mmap.mmap(self._memory_fd, memory_bytes)
        self._words = -1  # the reading end of a pipe for what a dying child says
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    @property
    def there(self) -> bool:
        """A child was started and has not been ended."""
        return self._child is not None

    def fileno(self) -> int:
        """Return what becomes readable when the child has an answer or is gone."""
        assert self._socket is not None
        return self._socket.fileno()

    def send(self, message: msgspec.Struct) -> None:
        """Tell the child something; one that is gone is noticed when its answer is read."""
        assert self._socket is not None
        with contextlib.suppress(ConnectionError):
            send(self._socket, message)

    def receive(self) -> bytes | None:
        """Return the bytes of one message, None when the child is gone, silent or sends something else."""
        assert self._socket is not None
        return receive(self._socket)

    def start(self) -> None:
        """Start a child where there is none, and forget what it said so far."""
        if self._child is None:
            self._spawn()
        self._said()

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
        with theirs:
            self._child = subprocess.Popen(
                command(self._module, msgspec.json.encode(setup).decode()),
                pass_fds=(setup.socket_fd, setup.memory_fd),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=words,
                start_new_session=True,  # Ctrl-C on the terminal is for the parent alone
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_CACHE_DISABLE": "1"},
            )
        os.close(words)
        ours.settimeout(PATIENCE_S)
        self._socket = ours

    def lost(self, *, in_time: bool, limit_s: float) -> VideoError:
        """End a child that did not answer, ``in_time`` or within ``limit_s`` seconds, and say why it did not."""
        assert self._child is not None
        if not in_time:
            self.end()
            return VideoError("timeout", f"decoding took longer than {limit_s:g} s")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout=1.0)  # its socket is closed, so it is dying; how, is worth a moment
        status, words = self._child.poll(), self._last_words()
        self.end()
        if status == -signal.SIGXCPU:
            return VideoError("timeout", f"decoding took more than {limit_s:g} s of CPU time")
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

    def end(self) -> None:
        """End the child, if there is one."""
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
        self.end()
        self.memory.close()
        os.close(self._memory_fd)
