"""Every error that harec-deploy raises on purpose.

HarecError                  exit 1   the run could not go on
├── UsageError              exit 2   the command line or an argument is wrong
├── OutputLocked            exit 4   another live run writes the same output
├── ProofError              exit 5   a variant does not give the labels of the reference
├── BundleError             exit 1   the bundle is damaged, foreign or of another version
│   └── PlanRefused         exit 1   a TensorRT plan is of another TensorRT or GPU
├── DeviceError             exit 1   the GPU or its driver fails
├── OutputError             exit 1   the output cannot be written or does not belong to this run
├── FileSystemError         exit 1   no room, or no right, to read or write a file
├── MissingDependency       exit 1   an optional package is needed and not installed
├── EngineError             exit 1   a process that labels on a device was lost, and no other could go on
└── VideoError              (a row)  one video cannot be labelled; the run goes on and exits 3

Each class has a stable ``code`` for machines and the exit status that the command line ends with. A message is one
line: what was got, what is allowed, what to do next.
"""

from typing import Any, ClassVar

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_SOME_VIDEOS_FAILED = 3
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

VIDEO_ERRORS = {
    "not_regular": "not a regular file (a FIFO, socket, device or broken link)",
    "unreadable": "the file cannot be opened or read",
    "vanished": "the file was there when the run began and is gone",
    "changed": "the file changed while it was read",
    "empty": "the file has no bytes",
    "not_video": "no known container, or its header is missing",
    "no_video_stream": "the container holds no video stream",
    "forbidden_container": "a container that can point at other files, or is no video",
    "decoder_missing": "no decoder for the codec, or the video is encrypted",
    "truncated": "the file ends before a frame could be decoded",
    "corrupt": "no frame could be decoded, or most are damaged",
    "too_short": "fewer than two frames",
    "too_large": "more pixels a frame, or more windows, than the limit",
    "timeout": "decoding took longer than the limit",
    "decoder_crashed": "the decoder died",
    "out_of_memory": "the decoder ran out of memory",
    "bad_output": "the model's output is not finite",
    "engine_crashed": "two processes that label died while they worked on it",
}


def again(kind: type["HarecError"], message: str, facts: dict[str, Any]) -> "HarecError":
    """Return an error as it was; its ``__init__`` may take other things than the message."""
    error = kind.__new__(kind, message)
    error.__dict__.update(facts)
    return error


class HarecError(Exception):
    """Base of every error raised on purpose; ``str()`` is one line for a person."""

    code: ClassVar[str] = "failed"
    exit_status: ClassVar[int] = EXIT_FAILED

    def __reduce__(self) -> tuple[Any, ...]:
        return again, (type(self), str(self), self.__dict__)  # for pickle and copy


class UsageError(HarecError):
    """An argument or option has a value that is not allowed."""

    code = "usage"
    exit_status = EXIT_USAGE


class BundleError(HarecError):
    """The bundle is damaged, does not fit together, or has an unknown schema version."""

    code = "bad_bundle"


class PlanRefused(BundleError):
    """A TensorRT plan was built by another TensorRT, or for another GPU, than is here; it can be built again.

    variant: whose plan it is. device: the GPU that refuses it, "cuda:N".
    """

    code = "plan_refused"

    def __init__(self, message: str, variant: str, device: str) -> None:
        super().__init__(message)
        self.variant = variant
        self.device = device


class DeviceError(HarecError):
    """The GPU or its driver fails."""

    code = "device_failed"


class OutputError(HarecError):
    """The output cannot be written, or holds the rows of a different run."""

    code = "bad_output_file"


class FileSystemError(HarecError):
    """The file system refuses: no room, no right, a fault of the disk. What was written before stays whole."""

    code = "file_system"


class OutputLocked(HarecError):
    """Another live run writes the same output."""

    code = "locked"
    exit_status = 4


class ProofError(HarecError):
    """A variant's labels differ from those of the reference by more than the gate allows."""

    code = "proof_failed"
    exit_status = 5


_NOT_ON_PYPI = {"tensorrt": "--extra-index-url https://pypi.nvidia.com tensorrt-cu13"}  # no extra can bring it


class MissingDependency(HarecError):
    """An optional package is needed; the message has the pip line.

    wanted: what pip is to install where no extra of this package brings it.
    """

    code = "missing_dependency"

    def __init__(self, package: str, extra: str, purpose: str, wanted: str = "") -> None:
        ours = f"'harec-deploy[{extra}]'" if extra else "harec-deploy"
        wanted = wanted or _NOT_ON_PYPI.get(package, ours)
        super().__init__(f"{purpose} needs the package {package}: pip install {wanted}")


class EngineError(HarecError):
    """The processes that label, one on each device, are gone."""

    code = "engine_lost"


class VideoError(HarecError):
    """One video cannot be labelled.

    ``kind`` is a key of ``VIDEO_ERRORS`` and ends up in the journal's row.
    """

    code = "video"

    def __init__(self, kind: str, message: str = "") -> None:
        if kind not in VIDEO_ERRORS:
            raise ValueError(f"unknown video error {kind!r}; one of {', '.join(VIDEO_ERRORS)}")
        super().__init__(message or VIDEO_ERRORS[kind])
        self.kind = kind
