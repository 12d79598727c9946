"""Which of the ways to run a bundle here is taken: the one picked, or the fastest that its proofs allow."""

import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np

from harec_deploy import picks
from harec_deploy.bundle import Bundle
from harec_deploy.bundle import load as load_bundle
from harec_deploy.errors import BundleError, DeviceError, HarecError, PlanRefused, UsageError
from harec_deploy.recognizer import Recognizer
from harec_deploy.runners import Execution, executions
from harec_deploy.spec import BundleSpec


def load(
    bundle: str | Path,
    *,
    runner: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    variant: str = "auto",
    threads: int | None = None,
    on_trial: bool = False,
) -> Recognizer:
    """Load a bundle for labelling.

    device: "cpu", "cuda:N", or "auto": the first GPU where something runs on it, else the CPU.
    runner, precision, variant: what executes it; "auto" takes what `harec-deploy bench pick` has stored for this
    machine, else measures everything that it has and the bundle's proofs allow, and takes the fastest; variants in a
    single file have to be named.
    on_trial: it is loaded to be measured: not tested on the check clips, and in a precision that was asked for even if
    that has no proof or failed it.

    Raises:
        BundleError: the bundle is damaged or has no variant.
        PlanRefused: all that it has are TensorRT plans for other machines, or one of those was asked for.
        DeviceError: the GPU or its driver fails.
        UsageError: nothing here runs it as asked.
    """
    checked = load_bundle(Path(bundle))
    ways = executions(checked.spec, runner, precision, device, variant, unproved=on_trial and precision != "auto")
    load_all = partial(_load_all, checked, threads=threads, check=not on_trial)
    pick, note = picks.find(checked, ways) if runner == "auto" and len(ways) > 1 and not on_trial else (None, "")
    picked = [way for way in ways if pick and pick.is_of(way)]
    ready, refused = load_all(picked)
    if pick and ready:
        ready[0].reason = pick.reason()
    else:
        more, errors = load_all([way for way in ways if way not in picked])
        ready, refused = more, [*refused, *errors]
    if not ready and runner == device == variant == "auto" and ways[0].runner.device != "cpu":
        more, errors = load_all(_on_cpu(checked.spec, precision))
        ready, refused = more, [*refused, *errors]
    if not ready:
        raise refused[0]
    if len(ready) > 1:
        speeds = {each: clips_per_s(each) for each in ready}
        ready.sort(key=lambda each: speeds[each], reverse=True)
        several = len({each.execution.variant for each in ready}) > 1
        told = (f"{_way(each.execution, several)} {speeds[each]:.1f}" for each in ready)
        ready[0].reason = f"the fastest here, in clips/s: {', '.join(told)}"
    chosen = ready[0]
    chosen.refused = [error for error in refused if not _is_replaced(error, checked.spec, ready)]
    notes = [*chosen._notes, *([note] if note else [])]
    chosen.reason = "; ".join([chosen.reason, *notes, *(f"not used: {error}" for error in chosen.refused)])
    return chosen


def _load_all(
    bundle: Bundle, ways: Iterable[Execution], threads: int | None, *, check: bool
) -> tuple[list[Recognizer], list[HarecError]]:
    """Return the ways that run, and why the others do not."""
    ready: list[Recognizer] = []
    refused: list[HarecError] = []
    for way in ways:
        try:
            ready.append(Recognizer(bundle, way, threads=threads, check=check))
        except (BundleError, DeviceError) as error:
            refused.append(error)
    return ready, refused


def _on_cpu(spec: BundleSpec, precision: str) -> list[Execution]:
    """Return the ways that are left where nothing runs on the GPU; none if the CPU has none."""
    try:
        return executions(spec, "auto", precision, "cpu")
    except UsageError:
        return []


def _is_replaced(error: HarecError, spec: BundleSpec, ready: Iterable[Recognizer]) -> bool:
    """Tell whether a plan is for another machine and the bundle has one for this: nobody misses it."""
    if not isinstance(error, PlanRefused):
        return False
    wanted = ("tensorrt", spec.variants[error.variant].precision)
    return any((each.execution.runner.name, each.execution.precision) == wanted for each in ready)


def _way(execution: Execution, several: bool) -> str:
    """Name a way to run a bundle, with its variant where there are several to tell apart."""
    return " ".join([execution.runner.name, execution.precision, *([f"({execution.variant})"] if several else [])])


def clips_per_s(recognizer: Recognizer, seconds: float = 0.3) -> float:
    """Return how many clips a second the graphs classify, over about ``seconds`` after one batch to warm up."""
    size, count = recognizer.spec.size, recognizer.spec.sampling.frames
    together = max(recognizer.batch_frames // count, 1)  # one by one a GPU would wait for the next
    clips = np.zeros((together, count, size.height, size.width, 3), dtype=np.uint8)
    recognizer.predict(clips)
    done, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or not done:
        recognizer.predict(clips)
        done += together
    return done / elapsed if elapsed else float(done)
