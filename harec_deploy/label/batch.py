"""The child that decodes several videos at a time: jobs come and answers go in any order, each with its place.

A place is a part of the shared memory, and the identity of a video on its way. ``slots.BatchSlot`` is the parent's
side. The child says that it lives at each step forward, from the thread that does the work, so that one that hangs in
a library is noticed as well as one that is gone.
"""

import mmap
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from harec_deploy.decode import BatchDecoder, Frames, Refused
from harec_deploy.errors import VideoError
from harec_deploy.label.child import Answer, Beat, Job, Plan, Setup, give_up_rights, readable, receive, send
from harec_deploy.windows import Track

GPU_FILES = 1024  # descriptors that a CUDA context may have open
GPU_FILE_BYTES = 64 << 20  # of a file that its driver may write


def main() -> None:
    """Serve jobs until the parent closes the socket."""
    setup = msgspec.json.decode(sys.argv[1], type=Setup)
    plan, batch = setup.plan, setup.plan.batch
    assert batch is not None
    if batch.device == "cpu":
        give_up_rights(plan.limits, setup.parent)
    else:  # CUDA reserves address space for all memory of all GPUs, so that cannot be limited
        give_up_rights(plan.limits, setup.parent, GPU_FILE_BYTES, open_files=GPU_FILES, limit_memory=False)
    module, _, attribute = batch.decoder.partition(":")
    with socket.socket(fileno=setup.socket_fd) as stream:
        beat = partial(send, stream, Beat())
        decoder: BatchDecoder = getattr(import_module(module), attribute)(batch.device)
        beat()
        memory = np.frombuffer(mmap.mmap(setup.memory_fd, plan.part_bytes * batch.places), dtype=np.uint8)
        parts = memory.reshape(batch.places, plan.part_bytes)
        while jobs := _jobs(stream):
            for answer in _answers(decoder, jobs, plan, parts, beat):
                send(stream, answer)


def _answers(
    decoder: BatchDecoder, jobs: list[Job], plan: Plan, parts: NDArray[np.uint8], beat: Callable[[], None]
) -> Iterator[Answer]:
    """Decode the videos of some jobs and yield one answer for each; a second one for the same is a KeyError."""
    open_jobs = {job.number: job for job in jobs}
    videos = [(job.number, Path(os.fsdecode(job.path))) for job in jobs]
    times = Track(plan.sampling, plan.windowing).timestamps_s
    begin = time.perf_counter()
    for number, outcome in decoder.decode_many(videos, times, plan.size, plan.count, beat):
        job = open_jobs.pop(number)
        answer = _answer(job, outcome, parts[job.place], plan)
        now = time.perf_counter()
        yield msgspec.structs.replace(answer, seconds=now - begin)
        begin = now
    for job in open_jobs.values():
        yield Answer(place=job.place, number=job.number, seconds=0.0, refused="the decoder gave no answer")


def _jobs(stream: socket.socket) -> list[Job]:
    """Wait for a job and return it with all that came with it; none when the parent is gone."""
    return list(_waiting_jobs(stream))


def _waiting_jobs(stream: socket.socket) -> Iterator[Job]:
    while (data := receive(stream)) is not None:
        yield msgspec.msgpack.decode(data, type=Job)
        if not readable([stream.fileno()], 0):
            return


def _answer(job: Job, outcome: Frames | Refused | VideoError, memory: NDArray[np.uint8], plan: Plan) -> Answer:
    """Leave frames in the place's memory and return the message that says so, or why there are none."""
    answer = Answer(place=job.place, number=job.number, seconds=0.0)
    if isinstance(outcome, Refused):
        return msgspec.structs.replace(answer, refused=str(outcome) or "refused")
    if isinstance(outcome, VideoError):
        return msgspec.structs.replace(answer, error=(outcome.kind, str(outcome)))
    if len(outcome.pixels) > plan.count or not outcome.last:
        return msgspec.structs.replace(answer, refused="more frames than a part holds")
    memory[: outcome.pixels.size] = outcome.pixels.ravel()
    return msgspec.structs.replace(
        answer,
        shape=outcome.pixels.shape,
        info=outcome.info,
        shown_s=outcome.shown_s.tolist(),
        bad_packets=outcome.bad_packets,
    )
