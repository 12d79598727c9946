"""The engine process: loads the bundle on one device, and labels the videos that it is given until its parent leaves.

It decodes with children of its own, as a run on one device does. Videos come in rounds: within one it is given another
for each that it takes, and when there are no more it finishes those that it has and says so. ``engines.py`` is the
parent's side.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

import msgspec
import numpy as np

from harec_deploy.discover import VideoFile
from harec_deploy.errors import HarecError
from harec_deploy.label.child import end_with, receive, send
from harec_deploy.label.engine import Labelled, Stages
from harec_deploy.label.engine_messages import (
    Done,
    Drained,
    EngineSetup,
    Failed,
    FromEngine,
    Give,
    Load,
    Loaded,
    Stop,
    Taken,
    Work,
    to_engine,
)
from harec_deploy.label.workers import decode_ahead
from harec_deploy.loading import load


def main() -> None:
    """Serve the parent until it closes the connection, which ends this process at once."""
    setup = msgspec.json.decode(sys.argv[1], type=EngineSetup)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    end_with(setup.parent)
    if setup.cores:
        os.sched_setaffinity(0, setup.cores)
    parent = _Parent(socket.socket(fileno=setup.socket_fd))
    sys.excepthook = _end
    try:
        _serve(parent, setup)
    except HarecError as error:
        parent.send(Failed(code=error.code, message=str(error)))
        os._exit(1)


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End the process after an error, without waiting for a thread that may wait for videos."""
    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    os._exit(1)


class _Parent:
    """The other side, and a thread that hears what it says."""

    def __init__(self, stream: socket.socket) -> None:
        self.stop = threading.Event()
        self.first: SimpleQueue[Load | Work] = SimpleQueue()
        self._stream = stream
        self._videos: SimpleQueue[Give | None] = SimpleQueue()
        self._sending = threading.Lock()
        threading.Thread(target=self._hear, name="parent", daemon=True).start()

    def send(self, message: FromEngine) -> None:
        """Say something; whoever cannot hear it any more will not miss it."""
        with self._sending:
            try:
                send(self._stream, message)
            except OSError:
                os._exit(1)

    def videos(self) -> Iterator[VideoFile]:
        """Yield the videos of one round, each named by its number: its real name may be no text."""
        while (given := self._videos.get()) is not None:
            self.send(Taken())
            yield VideoFile(str(given.video), Path(os.fsdecode(given.path)), given.size, given.mtime_ns)

    def _hear(self) -> None:
        while True:
            data = receive(self._stream)
            if data is None:
                os._exit(0)  # with all threads, whatever they do; the children go with this process
            message = to_engine.decode(data)
            if isinstance(message, Give):
                self._videos.put(message)
            elif isinstance(message, Load | Work):
                self.first.put(message)
            else:
                if isinstance(message, Stop):
                    self.stop.set()
                self._videos.put(None)


def _serve(parent: _Parent, setup: EngineSetup) -> None:
    asked = parent.first.get()
    assert isinstance(asked, Load)
    recognizer = load(
        os.fsdecode(asked.bundle),
        runner=asked.runner,
        precision=asked.precision,
        device=asked.device,
        variant=asked.variant,
        threads=len(setup.cores) or None,
    )
    parent.send(Loaded.of(recognizer))
    work = parent.first.get()
    assert isinstance(work, Work)
    engine = work.engine(recognizer, Stages(setup.workers))
    while not parent.stop.is_set():
        for labelled in engine.label(decode_ahead(parent.videos(), work.plan, setup.workers, parent.stop)):
            parent.send(_done(labelled, engine.stages))
            engine.stages = Stages(setup.workers)
        parent.send(Drained())
    parent.send(Drained())  # the parent may have given a round that was not begun
    threading.Event().wait()  # until the parent closes the connection


def _done(labelled: Labelled, stages: Stages) -> Done:
    error = labelled.result.error
    done = Done(
        video=int(labelled.video.name),
        result=replace(labelled.result, error=None),
        error=(error.kind, str(error)) if error else None,
        stages=stages,
        route=labelled.route,
    )
    if labelled.vectors is None:
        return done
    vectors = np.ascontiguousarray(labelled.vectors).tobytes()
    return msgspec.structs.replace(done, windows=list(labelled.windows), vectors=vectors)
