"""Decoding ahead of the engine: videos in, decoded clips out as they are done, in children that can be lost.

Children of two kinds pull from one queue: those that decode one video at a time, whatever it is, and those that decode
several, as far as they can. Each has a socket and a piece of shared memory of its own, so that a crash, a hang or a
memory bomb costs one video and no other. A thread keeps them busy while the engine works, and stays a few videos in
front of it.
"""

import contextlib
import queue
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from harec_deploy.discover import VideoFile
from harec_deploy.errors import UsageError
from harec_deploy.label.child import Plan, readable
from harec_deploy.label.slots import BatchSlot, Decoded, OneSlot, Returned, Slot

FILES, FILES_A_CHILD = 256, 4  # open at a time: of a run with its model, and for each child


def allow_open_files(workers: int) -> None:
    """See to it that this process may have as many files open as so many children need. Raises UsageError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES + FILES_A_CHILD * workers
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        most = max((hard - FILES) // FILES_A_CHILD, 0)
        told = f"{workers} decoding children need {needed} open files, and the system allows {hard}"
        raise UsageError(f"{told}: raise that (ulimit -n)" + (f", or use --workers {most}" if most else ""))
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def decode_ahead(
    videos: Iterable[VideoFile], plan: Plan, workers: int, stop: threading.Event | None = None
) -> Iterator[Decoded]:
    """Decode videos in ``workers`` children and yield each as it is done, long ones part by part.

    With ``plan.batch`` its children pull from the same queue; a video that they refuse, or that they are lost with,
    goes to the others. A video whose child of one crashes, runs out of memory or takes longer than the limit is tried
    once; its error has the code decoder_crashed, out_of_memory or timeout. Setting ``stop`` ends the children and then,
    when what is decoded was taken, the generator; closing the generator ends both at once.
    """
    done: queue.Queue[Decoded | BaseException | None] = queue.Queue(maxsize=2 * workers)
    closed = threading.Event()

    def stopped() -> bool:
        return closed.is_set() or (stop is not None and stop.is_set())

    def pump() -> None:
        try:
            for decoded in _decode_all(videos, plan, workers, stopped):
                done.put(decoded)
            done.put(None)
        except BaseException as error:  # noqa: BLE001 - raised where results are taken
            done.put(error)

    # No program waits for a daemon when it ends, whatever it left untaken; the children end with it.
    pumping = threading.Thread(target=pump, name="decode", daemon=True)
    pumping.start()
    try:
        while (decoded := done.get()) is not None:
            if isinstance(decoded, BaseException):
                raise decoded
            yield decoded
    finally:
        closed.set()
        while pumping.is_alive() and not sys.is_finalizing():  # it may wait for room in the queue
            with contextlib.suppress(queue.Empty):
                done.get(timeout=0.05)


class _Queue:
    """The videos that wait: new ones for every slot, returned ones for slots of one video only."""

    def __init__(self, videos: Iterable[VideoFile], plan: Plan) -> None:
        self._new = iter(videos)
        self._returned: deque[Returned] = deque()
        self._given: dict[VideoFile, Returned] = {}
        self._shared = plan.batch is None or plan.batch.shared

    def next_for(self, slot: Slot) -> VideoFile | None:
        """Return a video for a slot, None if there is none for its kind."""
        if slot.single and self._returned:
            returned = self._returned.popleft()
            self._given[returned.video] = returned
            return returned.video
        return next(self._new, None) if self._shared or not slot.single else None

    def take_back(self, returned: Returned) -> None:
        """Keep a video for a slot of one video."""
        self._returned.append(returned)

    def with_history(self, decoded: Decoded) -> Decoded:
        """Return what was decoded with what became of the video before."""
        before = self._given.pop(decoded.video, None)
        return replace(decoded, refused=before.reason, refused_s=before.seconds) if before else decoded

    def open_to_all(self) -> None:
        """Let every slot take new videos: there is no other decoder any more."""
        self._shared = True


def _decode_all(
    videos: Iterable[VideoFile], plan: Plan, workers: int, stopped: Callable[[], bool]
) -> Iterator[Decoded]:
    waiting = _Queue(videos, plan)
    batches = [BatchSlot(plan) for _ in range(plan.batch.children)] if plan.batch else []
    slots: list[Slot] = [*batches, *(OneSlot(plan) for _ in range(workers))]
    try:
        while not stopped():
            yield from _fill(slots, waiting)
            busy = [slot for slot in slots if slot.busy]
            if not busy:
                return
            # Half a second at most, to notice that the run was stopped.
            pause_s = min(0.5, max(min(slot.deadline for slot in busy) - time.monotonic(), 0.0))
            ready = readable([slot.fileno() for slot in busy], pause_s)
            heard = {slot for slot in busy if slot.fileno() in ready}
            for slot in [s for s in busy if s in heard or s.deadline <= time.monotonic()]:
                for outcome in slot.take(in_time=slot in heard):
                    if isinstance(outcome, Returned):
                        waiting.take_back(outcome)
                    else:
                        yield waiting.with_history(outcome)
            if batches and all(slot.given_up for slot in batches):
                waiting.open_to_all()
    finally:
        for slot in slots:
            slot.close()


def _fill(slots: Iterable[Slot], waiting: _Queue) -> Iterator[Decoded]:
    """Give each slot the videos that it has room for; one that cannot be opened is answered at once."""
    for slot in slots:
        while slot.room and (video := waiting.next_for(slot)) is not None:
            if video.error:
                yield Decoded(video, None, video.error, 0.0)
            else:
                slot.start(video)
