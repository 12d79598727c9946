"""What executes a bundle's graphs: the runner protocol and the table of runners."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from harec_deploy.bundle import Bundle
from harec_deploy.devices import resolve
from harec_deploy.errors import BundleError, MissingDependency, UsageError
from harec_deploy.spec import WEIGHTS_VARIANT, BundleSpec, Variant


class Graph(Protocol):
    """One executable graph; it takes any batch size."""

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Run the graph on ``batch``, whose first axis is the batch; the result is the caller's to keep.

        It parts a large batch itself: into what a CPU computes fastest, or so that copying a part to a GPU goes beside
        computing the one before.
        """


class Runner(Protocol):
    """Loads the graphs of a bundle for one runtime and one device.

    device: "cpu" or "cuda:N". hardware: the GPU's name, or "".
    batch_frames: how many frames the encoder takes at a time; more gains nothing.
    notes: what a person should know of the variant that was loaded last.
    """

    name: str
    version: str
    device: str
    hardware: str
    batch_frames: int
    notes: list[str]

    def precisions(self, variant: Variant) -> tuple[str, ...]:
        """Return the precisions that this machine can execute ``variant`` in; none for files of another runner."""

    def load(self, bundle: Bundle, variant: str, *, precision: str, threads: int | None = None) -> dict[str, Graph]:
        """Load the graphs of a variant, by name. Raises BundleError for files that the runtime refuses."""


class Entry(NamedTuple):
    """A runner of the table: "module:class", the package extra that brings its runtime, and the devices it runs on.

    alone: also where nobody asked for it by name.
    """

    target: str
    extra: str
    devices: tuple[str, ...]
    alone: tuple[str, ...]


# In the order in which they are shown. A class takes the device.
RUNNERS = {
    "openvino": Entry("harec_deploy.runners.openvino:OpenVINORunner", "", ("cpu",), ("cpu",)),
    "onnx": Entry("harec_deploy.runners.onnx:OnnxRunner", "ort", ("cpu", "cuda"), ("cpu", "cuda")),
    "onnx-trt": Entry("harec_deploy.runners.onnx_trt:OnnxTensorRTRunner", "gpu", ("cuda",), ()),
    "torch": Entry("harec_deploy.runners.torch:TorchRunner", "torch", ("cpu", "cuda"), ("cuda",)),
    "torch-compile": Entry("harec_deploy.runners.torch:CompiledTorchRunner", "torch", ("cpu", "cuda"), ()),
    "tensorrt": Entry("harec_deploy.runners.tensorrt:TensorRTRunner", "tensorrt", ("cuda",), ("cuda",)),
}


@dataclass(frozen=True, slots=True)
class Execution:
    """One way to run a bundle here: a variant's files, by a runner, in a precision."""

    variant: str
    runner: Runner
    precision: str

    def __str__(self) -> str:
        where = "" if self.runner.device == "cpu" else f" on {self.runner.device}"
        return f"{self.variant} on {self.runner.name} in {self.precision}{where}"


def get(name: str, device: str = "cpu") -> Runner:
    """Return the runner called ``name`` for ``device``, "cpu" or "cuda:N".

    Raises:
        UsageError: no such runner, or it does not run on that device.
        MissingDependency: its package is not installed, or cannot be loaded.
    """
    if name not in RUNNERS:
        raise UsageError(f"unknown runner {name!r}; allowed are auto, {', '.join(RUNNERS)}")
    entry, kind = RUNNERS[name], device.partition(":")[0]
    if kind not in entry.devices:
        raise UsageError(f"runner {name} does not run on {device}; it runs on {' and '.join(entry.devices)}")
    module, _, attribute = entry.target.partition(":")
    try:
        runner: Runner = getattr(import_module(module), attribute)(device)
    except (ImportError, OSError) as error:  # also of a library that the package loads
        package = (getattr(error, "name", None) or name).partition(".")[0].removesuffix("_bindings")
        raise MissingDependency(package, entry.extra, f"runner {name}") from None
    return runner


def installed(device: str = "cpu") -> list[Runner]:
    """Return every runner that is there for ``device`` and is considered without being asked for."""
    found = []
    for name, entry in RUNNERS.items():
        if device.partition(":")[0] not in entry.alone:
            continue
        try:
            found.append(get(name, device))
        except MissingDependency:
            continue
    return found


def executions(
    spec: BundleSpec,
    runner: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    variant: str = "auto",
    *,
    unproved: bool = False,
) -> list[Execution]:
    """Return the ways to run a bundle here that the arguments allow and that its proofs do not forbid.

    device: a name for ``devices.resolve``; of "auto", the CPU counts only where nothing runs on a GPU.
    variant: its name; "auto" is every one but those in a single file, which encode shared frames anew.
    A combination that was never proved on real clips is left out in any precision but the variant's own, unless
    ``unproved``: then failed ones are there too.

    Raises:
        UsageError: nothing fits; the message lists what there is.
        BundleError: the bundle has no variant yet, and nothing here takes its weights as they are.
    """
    there: list[Execution] = []
    ways = spec.ways()
    if variant not in ("auto", *ways):
        raise UsageError(f"the bundle has no variant {variant!r}; it has {', '.join(ways)}")
    names = [variant] if variant != "auto" else [name for name in ways if not spec.fused(name)]
    for runners in candidates(runner, device):
        every = [
            Execution(name, candidate, p)
            for name in names
            for candidate in runners
            for p in candidate.precisions(ways[name])
        ]
        there += (allowed := [e for e in every if unproved or _may_run(ways[e.variant], e)])
        if named := [e for e in allowed if precision in ("auto", e.precision)]:
            return named
    if not there and spec.variants.keys() <= {WEIGHTS_VARIANT}:
        raise BundleError("the bundle has no variant yet: run harec-deploy export on it, or name --runner torch")
    told = ", ".join(map(str, there)) or "nothing"
    where = "" if device == "auto" else f" on {device}"
    what = "the bundle" if variant == "auto" else variant
    raise UsageError(f"no way to run {what} with runner {runner} in precision {precision}{where}; there is {told}")


def candidates(runner: str, device: str) -> Iterator[list[Runner]]:
    """Yield for each device that ``device`` stands for the runners to consider there, of "auto" those of ``installed``.

    One that is asked for by name may be missing for the GPU as long as "auto" leaves it the CPU.

    Raises:
        UsageError: no such device or runner, or the one does not run on the other.
        MissingDependency: its package is not installed, or cannot be loaded.
    """
    places = resolve(device)
    for place in places:
        if runner == "auto":
            yield installed(place)
        elif runner in RUNNERS and place != places[-1] and place.partition(":")[0] not in RUNNERS[runner].devices:
            continue
        else:
            try:
                yield [get(runner, place)]
            except MissingDependency:
                if device != "auto" or place == "cpu" or "cpu" not in RUNNERS[runner].devices:
                    raise


def _may_run(variant: Variant, execution: Execution) -> bool:
    proof = variant.proof(execution.runner.name, execution.precision, execution.runner.device)
    return proof.passed if proof else execution.precision == variant.precision
