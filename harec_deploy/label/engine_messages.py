"""What an engine process and its parent say to each other, by ``child.send`` and ``child.receive``."""

from typing import TypeAlias

import msgspec

from harec_deploy.label.child import PYAV, Plan
from harec_deploy.label.engine import Engine, Stages
from harec_deploy.recognizer import Recognizer, VideoResult
from harec_deploy.sampling import Window
from harec_deploy.spec import BundleSpec

MAX_BYTES = 1 << 32  # of a message: the vectors of a long video


class EngineSetup(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine process is started with. workers: its decoding children; cores: those it keeps to, if any."""

    socket_fd: int
    parent: int
    workers: int
    cores: list[int]


class Load(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Load a bundle, given by the bytes of its path, on a device; the rest as ``loading.load`` takes it."""

    bundle: bytes
    device: str
    runner: str
    precision: str
    variant: str = "auto"


class Work(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What is done with every video of a run."""

    plan: Plan
    min_score: float = 0.0
    features: bool = False
    reuse_threshold: float | None = None

    def engine(self, recognizer: Recognizer, stages: Stages) -> Engine:
        """Return what does it with a recogniser."""
        return Engine(recognizer, stages, self.plan.windowing, self.min_score, self.features, self.reuse_threshold)


class Give(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One video: its number in the run, the bytes of its absolute path, and its identity."""

    video: int
    path: bytes
    size: int
    mtime_ns: int


class NoMore(msgspec.Struct, frozen=True, tag=True):
    """The round ends with the videos that were given."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Label what is decoded, and begin nothing."""


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What a run has to know of a recogniser, wherever it was loaded. fingerprint: of the bundle's variant."""

    fingerprint: str
    spec: BundleSpec
    variant: str
    runner: str
    precision: str
    reason: str
    framewise: bool
    part_frames: int

    @classmethod
    def of(cls, recognizer: Recognizer) -> "Loaded":
        """Take it from a recogniser of this process."""
        execution = recognizer.execution
        return cls(
            fingerprint=recognizer.bundle.fingerprint(execution.variant),
            spec=recognizer.spec,
            variant=execution.variant,
            runner=execution.runner.name,
            precision=execution.precision,
            reason=recognizer.reason,
            framewise=recognizer.framewise,
            part_frames=recognizer.part_frames,
        )


class Taken(msgspec.Struct, frozen=True, tag=True):
    """A video that was given is being decoded: there is room for another."""


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A video with its result, and what each stage took since the last one that was done.

    result: without its error, which stands beside it as kind and words.
    vectors: float32 (k, D) of its k windows, as bytes, where they were asked for and it has a label.
    route: the decoder that answered for it.
    """

    video: int
    result: VideoResult
    error: tuple[str, str] | None
    stages: Stages
    windows: list[Window] = []
    vectors: bytes | None = None
    route: str = PYAV


class Drained(msgspec.Struct, frozen=True, tag=True):
    """All videos of the round are done, or the run was stopped."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The process ends, for an error of this code and in these words."""

    code: str
    message: str


ToEngine: TypeAlias = Load | Work | Give | NoMore | Stop
FromEngine: TypeAlias = Loaded | Taken | Done | Drained | Failed


to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
