"""What executes a bundle's graphs: the runner protocol and the table of runners."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from harec_deploy.bundle import BundleSpec, Variant
from harec_deploy.errors import BundleError, MissingDependency, UsageError


class Graph(Protocol):
    """One executable graph; it takes any batch size."""

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Run the graph on ``batch``, whose first axis is the batch; the result is the caller's to keep."""


class Runner(Protocol):
    """Loads graphs for one runtime and device."""

    name: str
    version: str
    device: str

    def precisions(self) -> tuple[str, ...]:
        """Return the precisions that this machine can compute an fp32 graph in."""

    def load(self, path: Path, *, precision: str, threads: int | None = None) -> Graph:
        """Load one ONNX file."""


# name -> (class, pip extra that brings the runtime, or "" for one that is always there)
RUNNERS = {
    "openvino": ("harec_deploy.runners.openvino:OpenVINORunner", ""),
    "onnx": ("harec_deploy.runners.onnx:OnnxRunner", "ort"),
}


@dataclass(frozen=True, slots=True)
class Execution:
    """One way to run a bundle here: a variant's files, by a runner, in a precision."""

    variant: str
    runner: Runner
    precision: str

    def __str__(self) -> str:
        return f"{self.variant} on {self.runner.name} in {self.precision}"


def get(name: str) -> Runner:
    """Return the runner called ``name``.

    Raises:
        UsageError: no such runner.
        MissingDependency: its package is not installed.
    """
    if name not in RUNNERS:
        raise UsageError(f"unknown runner {name!r}; allowed are auto, {', '.join(RUNNERS)}")
    target, extra = RUNNERS[name]
    module, _, attribute = target.partition(":")
    try:
        runner: Runner = getattr(import_module(module), attribute)()
    except ModuleNotFoundError as error:
        raise MissingDependency(error.name or name, extra or "ort", f"runner {name}") from None
    return runner


def installed() -> list[Runner]:
    """Return every runner whose package is there."""
    found = []
    for name in RUNNERS:
        try:
            found.append(get(name))
        except MissingDependency:
            continue
    return found


def executions(spec: BundleSpec, runner: str = "auto", precision: str = "auto") -> list[Execution]:
    """Return the ways to run a bundle here that ``runner`` and ``precision`` allow and that its proofs do not forbid.

    A combination that was never proved on real clips is left out of "auto" in any precision but the variant's own.

    Raises:
        UsageError: nothing fits; the message lists what there is.
        BundleError: the bundle has no variant yet.
    """
    if not spec.variants:
        raise BundleError("the bundle has no variant yet: run harec-deploy export on it")
    runners = installed() if runner == "auto" else [get(runner)]
    every = [
        Execution(name, candidate, p)
        for name, variant in spec.variants.items()
        for candidate in runners
        for p in candidate.precisions()
    ]
    named = [e for e in every if precision in ("auto", e.precision)]
    allowed = [e for e in named if _may_run(spec.variants[e.variant], e)]
    if allowed:
        return allowed
    there = ", ".join(str(e) for e in every if _may_run(spec.variants[e.variant], e)) or "nothing"
    raise UsageError(f"no way to run the bundle with runner {runner} in precision {precision}; there is {there}")


def _may_run(variant: Variant, execution: Execution) -> bool:
    proof = variant.proof(execution.runner.name, execution.precision)
    return proof.passed if proof else execution.precision == variant.precision
