"""Several devices, one run: an engine process for each of them, all fed from one queue; results come back here.

Each process pulls what it can do, so a fast device labels more videos than a slow one. A process that dies costs no
video: those that it had are given to others when all the rest is done, one at a time, so that if another process dies
there is no doubt which video did it. ``engine_child.py`` is the other side.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import msgspec
import numpy as np

from harec_deploy.devices import core_shares
from harec_deploy.discover import VideoFile
from harec_deploy.errors import BundleError, EngineError, VideoError
from harec_deploy.label.engine import Labelled, Stages
from harec_deploy.label.engine_messages import Done, Drained, FromEngine, Load, Loaded, Stop, Taken, Work
from harec_deploy.label.engine_process import Process, heard
from harec_deploy.label.workers import decode_ahead
from harec_deploy.loading import load
from harec_deploy.recognizer import Recognizer, VideoResult

AHEAD = 4  # videos that lie ready in a process, so that it need not wait for the parent


class Here:
    """The engine of a run on one device: in this process."""

    def __init__(self, recognizer: Recognizer, workers: int) -> None:
        self._recognizer = recognizer
        self.loaded = Loaded.of(recognizer)
        self.execution = str(recognizer.execution)
        self.stages = Stages(workers)

    def label(self, videos: Iterable[VideoFile], work: Work, stop: threading.Event | None = None) -> Iterator[Labelled]:
        """Label videos and yield each as it is done; ``stop`` ends it in good order."""
        engine = work.engine(self._recognizer, self.stages)
        return engine.label(decode_ahead(videos, work.plan, self.stages.workers, stop))

    def close(self) -> None:
        """Nothing is left behind."""


class Engines:
    """The engines of a run on several devices, a process for each. Close it, or use up what ``label`` yields."""

    def __init__(self, asked: Load, devices: Sequence[str], workers: int, announce: Callable[[str], None]) -> None:
        """Load a bundle on every device: on the first as ``asked``, on the others as the first chose.

        workers: decoding children in all, shared out; each engine has one at least.

        Raises:
            HarecError: what loading raises there, with the device.
            EngineError: a process died of it.
        """
        self._announce = announce
        self._waiting: deque[VideoFile] = deque()
        self._suspects: deque[VideoFile] = deque()
        self._told = ""  # what became of the processes that are gone
        each = [max((workers + place) // len(devices), 1) for place in range(len(devices))]
        self.stages = Stages(sum(each), engines=len(devices), videos=dict.fromkeys(_names(devices), 0))
        shares = iter(core_shares(devices.count("cpu")) if devices.count("cpu") > 1 else [[]])
        self._live: list[Process] = []
        try:
            for name, device, count in zip(self.stages.videos, devices, each, strict=True):
                self._live.append(Process(name, device, count, next(shares) if device == "cpu" else []))
            self.loaded = self._load(asked)
        except BaseException:
            self.close()
            raise
        where = f"{', '.join(devices)}: {len(devices)} engines"
        self.execution = f"{self.loaded.variant} on {self.loaded.runner} in {self.loaded.precision} on {where}"

    def _load(self, asked: Load) -> Loaded:
        first, *others = self._live
        loaded = first.load(asked)
        same = msgspec.structs.replace(asked, runner=loaded.runner, precision=loaded.precision, variant=loaded.variant)
        for process in others:
            process.send(msgspec.structs.replace(same, device=process.device))
        for process in others:
            if process.loaded().fingerprint != loaded.fingerprint:
                raise BundleError(f"{os.fsdecode(asked.bundle)} was changed while it was loaded: start again")
        return loaded

    def label(self, videos: Iterable[VideoFile], work: Work, stop: threading.Event | None = None) -> Iterator[Labelled]:
        """Label videos and yield each as it is done; ``stop`` ends it in good order. The processes end with it.

        Raises:
            EngineError: all processes died before all videos were done.
        """
        stop = stop or threading.Event()
        self._waiting.extend(videos)
        try:
            for process in self._live:
                process.send(_on(process.device, work))
            stopping = False
            while not self._finished(stopping=stopping):
                if stop.is_set() and not stopping:
                    stopping = True
                    for process in self._live:
                        process.send(Stop())
                elif not stopping:
                    yield from self._deal()
                for process, message in heard(self._live):
                    yield from self._take(process, message)
        finally:
            self.close()

    def _finished(self, *, stopping: bool) -> bool:
        if stopping:
            return all(process.idle for process in self._live)
        if self._waiting or self._suspects:
            if self._live:
                return False
            raise EngineError(f"no engine is left: {self._told}; what is done is written, the same command goes on")
        return not any(process.given for process in self._live)

    def _deal(self) -> Iterator[Labelled]:
        """Give every process what it has room for; yield videos that need no process, as they cannot be decoded."""
        for room in range(AHEAD):
            for process in self._live:
                while self._waiting and self._waiting[0].error:
                    video = self._waiting.popleft()
                    yield Labelled(video, VideoResult(video.name, error=video.error))
                if self._waiting and process.open and process.untaken <= room:
                    process.give(self._waiting.popleft())
        if self._waiting:
            return
        for process in self._live:
            if process.idle and self._suspects:  # alone, so that there is no doubt if it is lost again
                process.give(self._suspects.popleft())
                process.suspected = True
            if process.open:
                process.end_round()

    def _take(self, process: Process, message: FromEngine | None) -> Iterator[Labelled]:
        """Do what a message asks for; None is the end of the process."""
        if isinstance(message, Taken):
            process.untaken -= 1
        elif isinstance(message, Drained):
            process.idle, process.suspected = True, False
        elif isinstance(message, Done):
            self.stages.videos[process.name] += 1
            self.stages.add(message.stages)
            yield _labelled(process.given.pop(message.video), message)
        elif message is None:
            yield from self._lost(process)

    def _lost(self, process: Process) -> Iterator[Labelled]:
        fate = process.fate()
        self._live.remove(process)
        process.close()
        self._told += f"{', ' if self._told else ''}{process.name} {fate}"
        self._announce(f"{process.name} {fate}; {len(self._live)} of {self.stages.engines} engines go on")
        for video in process.given.values():
            if process.suspected:
                error = VideoError("engine_crashed", f"two processes that label died of it; the last {fate}")
                yield Labelled(video, VideoResult(video.name, error=error))
            else:
                self._suspects.append(video)

    def close(self) -> None:
        """End all processes."""
        for process in self._live:
            process.hang_up()
        for process in self._live:
            process.close()
        self._live.clear()


def load_engines(
    asked: Load, devices: Sequence[str], workers: int, announce: Callable[[str], None] = lambda text: None
) -> Here | Engines:
    """Load a bundle on one device in this process, or on several in a process each.

    devices: as ``devices.engine_devices`` gives them. workers: decoding children in all.

    Raises:
        HarecError: what ``loading.load`` raises; EngineError where a process died.
    """
    if len(devices) > 1:
        return Engines(asked, devices, workers, announce)
    (device,) = devices
    bundle = os.fsdecode(asked.bundle)
    recognizer = load(bundle, device=device, runner=asked.runner, precision=asked.precision, variant=asked.variant)
    return Here(recognizer, workers)


def _on(device: str, work: Work) -> Work:
    """Return the work with its second decoder, if any, on a device."""
    if work.plan.batch is None:
        return work
    batch = msgspec.structs.replace(work.plan.batch, device=device)
    return msgspec.structs.replace(work, plan=msgspec.structs.replace(work.plan, batch=batch))


def _names(devices: Sequence[str]) -> list[str]:
    """Return a name for each engine: its device, numbered where several have the same."""
    return [
        f"{device} #{devices[:place].count(device) + 1}" if devices.count(device) > 1 else device
        for place, device in enumerate(devices)
    ]


def _labelled(video: VideoFile, done: Done) -> Labelled:
    """Return what an engine of this process would have yielded."""
    vectors = None
    if done.vectors is not None:
        vectors = np.frombuffer(done.vectors, dtype=np.float32).reshape(len(done.windows), -1)
    result = replace(done.result, path=video.name, error=VideoError(*done.error) if done.error else None)
    return Labelled(video, result, done.windows, vectors, done.route)
