"""The parent's places for videos that are being decoded: one video at a time, or several.

Slots of both kinds pull from one queue. What a slot gives back is decoded, or failed, or ``Returned``: a video that the
decoder of several leaves to the decoder of one, which takes every video and has the last word.
"""

import contextlib
import math
import time
from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

import msgspec
import numpy as np

from harec_deploy.decode import Frames
from harec_deploy.discover import VideoFile
from harec_deploy.errors import VideoError
from harec_deploy.label.child import PYAV, Answer, Beat, GoOn, Plan, job_for
from harec_deploy.label.process import ChildProcess

MAX_LOSSES = 5  # children in a row that gave no frame: then their decoder is left alone for the rest of the run


@dataclass(frozen=True, slots=True)
class Decoded:
    """One video after decoding, or a part of a long one: its frames or why there are none, and how long it took.

    route: the decoder that it went through. refused, refused_s: why another left it to that one, and after how long.
    """

    video: VideoFile
    frames: Frames | None
    error: VideoError | None
    seconds: float
    route: str = PYAV
    refused: str = ""
    refused_s: float = 0.0

    @property
    def last(self) -> bool:
        """Nothing more comes of this video."""
        return self.frames is None or self.frames.last


@dataclass(frozen=True, slots=True)
class Returned:
    """A video that goes back to the queue, for slots of one video only; ``seconds`` went into it."""

    video: VideoFile
    reason: str
    seconds: float


def frames_of(answer: Answer, plan: Plan, process: ChildProcess, at: int = 0) -> Frames:
    """Copy the frames of an answer out of shared memory, ``at`` so many bytes. Raises VideoError decoder_crashed.

    A child that answers with what cannot be is ended.
    """
    size, count = plan.size, len(answer.shown_s)
    wanted = (count, size.height, size.width, 3)
    if answer.info is None or answer.shape != wanted or not 1 <= count <= plan.count:
        process.end()
        told = f"{count} frames of shape {answer.shape}; expected 1 to {plan.count} of {wanted[1:]}"
        raise VideoError("decoder_crashed", f"the decoder answered with {told}")
    pixels = np.frombuffer(process.memory, dtype=np.uint8, count=math.prod(wanted), offset=at).reshape(wanted).copy()
    return Frames(answer.info, pixels, np.asarray(answer.shown_s), answer.bad_packets, answer.last, answer.scaled_s)


class OneSlot:
    """A place for one video at a time, part by part, whatever its codec."""

    single = True
    given_up = False

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.deadline = 0.0
        self._video: VideoFile | None = None
        self._process = ChildProcess("child", plan, plan.part_bytes)

    @property
    def room(self) -> int:
        """How many videos it takes now."""
        return 0 if self.busy else 1

    @property
    def busy(self) -> bool:
        """A video is being decoded."""
        return self._video is not None

    def fileno(self) -> int:
        """Return what becomes readable when there is something to take."""
        return self._process.fileno()

    def start(self, video: VideoFile) -> None:
        """Give the child a video; a new child if there is none."""
        self._process.start()
        self._video = video
        self._send(job_for(video))

    def _send(self, message: msgspec.Struct) -> None:
        """Tell the child what to do; from now on its time runs."""
        self.deadline = time.monotonic() + self.plan.limits.seconds
        self._process.send(message)

    def take(self, *, in_time: bool) -> list[Decoded | Returned]:
        """Read the answer and let the child go on, or say what became of it."""
        assert self._video is not None
        decoded = self._taken(self._video, in_time=in_time)
        if decoded.last:
            self._video = None
        return [decoded]

    def _taken(self, video: VideoFile, *, in_time: bool) -> Decoded:
        taken_s = self.plan.limits.seconds - (self.deadline - time.monotonic())
        answer: Answer | None = None
        if in_time:
            with contextlib.suppress(msgspec.DecodeError):
                data = self._process.receive()
                answer = msgspec.msgpack.decode(data, type=Answer) if data is not None else None
        if answer is None:
            return Decoded(video, None, self._process.lost(in_time=in_time, limit_s=self.plan.limits.seconds), taken_s)
        try:
            if answer.error:
                if answer.error[0] == "out_of_memory":
                    self._process.end()  # what is left of it is not to be trusted
                raise VideoError(*answer.error)
            frames = frames_of(answer, self.plan, self._process)
            if answer.last:
                unchanged(video)
            else:
                self._send(GoOn())
        except VideoError as error:
            return Decoded(video, None, error, answer.seconds)
        return Decoded(video, frames, None, answer.seconds)

    def close(self) -> None:
        """End the child and give back the memory."""
        self._process.close()


class BatchSlot:
    """A place for several videos at a time, each in a part of the shared memory that is its identity.

    When the child is lost, every video that it had is tried alone in a new one, and that with which this one is lost
    goes back for the other kind of slot.
    """

    single = False

    def __init__(self, plan: Plan) -> None:
        assert plan.batch is not None
        self.plan, self.batch = plan, plan.batch
        self.deadline = math.inf
        self.given_up = False
        self._inside: dict[int, tuple[int, VideoFile]] = {}  # by place; the number of the job beside the video
        self._jobs = 0
        self._again: deque[VideoFile] = deque()
        self._alone = False  # the one inside is tried again and must stay alone
        self._losses = 0
        self._process = ChildProcess("batch", plan, plan.part_bytes * self.batch.places)

    @property
    def room(self) -> int:
        """How many videos it takes now."""
        return 0 if self._alone or self.given_up else self.batch.places - len(self._inside)

    @property
    def busy(self) -> bool:
        """Videos are being decoded."""
        return bool(self._inside)

    def fileno(self) -> int:
        """Return what becomes readable when there is something to take."""
        return self._process.fileno()

    def start(self, video: VideoFile) -> None:
        """Give the child a video; a new child if there is none."""
        self._process.start()
        if not self._inside:
            self._heard()
        place = next(place for place in range(self.batch.places) if place not in self._inside)
        self._jobs += 1
        self._inside[place] = self._jobs, video
        self._process.send(job_for(video, place, self._jobs))

    def _heard(self) -> None:
        """Start the time anew in which the child must be heard of."""
        self.deadline = time.monotonic() + self.batch.silence_s

    def take(self, *, in_time: bool) -> list[Decoded | Returned]:
        """Read one message, or say what became of the videos of a child that is lost or silent."""
        message: Answer | Beat | None = None
        if in_time:
            with contextlib.suppress(msgspec.DecodeError):
                data = self._process.receive()
                message = msgspec.msgpack.decode(data, type=Answer | Beat) if data is not None else None
        if isinstance(message, Beat):
            self._heard()
            return []
        number, video = self._inside.get(message.place, (0, None)) if message else (0, None)
        if message is not None and video is not None and message.number == number:
            self._heard()
            del self._inside[message.place]
            outcomes = [self._answered(video, message)]
        else:
            outcomes = self._lost(in_time=in_time)
        # Without a child, whether it is gone or was ended for an answer that cannot be, each video is tried again.
        if not self._process.there:
            self._again.extend(video for _, video in self._inside.values())
            self._inside.clear()
        if self.given_up:
            outcomes += [Returned(video, "the decoder was lost too often", 0.0) for video in self._again]
            self._again.clear()
        if not self._inside:
            self._alone = bool(self._again)
            if self._again:
                self.start(self._again.popleft())
        return outcomes

    def _answered(self, video: VideoFile, answer: Answer) -> Decoded | Returned:
        route = self.batch.name
        if answer.refused:
            return Returned(video, answer.refused, answer.seconds)
        if answer.error:
            return Decoded(video, None, VideoError(*answer.error), answer.seconds, route)
        try:
            frames = frames_of(answer, self.plan, self._process, answer.place * self.plan.part_bytes)
        except VideoError as error:
            self._count_loss()
            return Returned(video, str(error), answer.seconds)
        self._losses = 0
        try:
            unchanged(video)
        except VideoError as error:
            return Decoded(video, None, error, answer.seconds, route)
        return Decoded(video, frames, None, answer.seconds, route)

    def _lost(self, *, in_time: bool) -> list[Decoded | Returned]:
        """End the child. Of several videos each is tried again, alone; one that was alone goes back."""
        reason = str(self._process.lost(in_time=in_time, limit_s=self.batch.silence_s))
        self._count_loss()
        if len(self._inside) > 1:  # nobody knows whose fault it was
            return []
        ((_, video),) = self._inside.values()
        self._inside.clear()
        return [Returned(video, reason, 0.0)]

    def _count_loss(self) -> None:
        self._losses += 1
        self.given_up = self._losses >= MAX_LOSSES

    def close(self) -> None:
        """End the child and give back the memory."""
        self._process.close()


Slot: TypeAlias = OneSlot | BatchSlot


def unchanged(video: VideoFile) -> None:
    """Raise VideoError if the file is not the one that was found when the run began."""
    try:
        status = video.path.stat()
    except OSError:
        raise VideoError("vanished") from None
    if (status.st_size, status.st_mtime_ns) != (video.size, video.mtime_ns):
        raise VideoError("changed")
