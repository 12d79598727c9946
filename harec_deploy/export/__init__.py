"""Export: a bundle's PyTorch weights become a variant, which is proved on real clips before it gets its name."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from harec_deploy.bundle import CHECK_FILE, Bundle, alone, file_ref, load, save
from harec_deploy.devices import resolve
from harec_deploy.errors import BundleError, ProofError, UsageError
from harec_deploy.export.verify import Check, ProofClips, failure, prove, read_clips, reference_logits
from harec_deploy.files import atomic_folder, atomic_write
from harec_deploy.machine import versions
from harec_deploy.recognizer import Recognizer
from harec_deploy.runners import Execution, Runner, candidates, installed
from harec_deploy.spec import WEIGHTS_VARIANT, BundleSpec, FileRef, Proof, Quantisation, Variant

if TYPE_CHECKING:
    from harec_deploy.export.int8 import Int8Options

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
Progress = Callable[[str], None]
CHECK_CLIPS = 2  # real clips that travel in the bundle, so that any machine can test itself


@alone
def export(
    folder: Path,
    clips: Sequence[str] = (),
    *,
    precision: str = "fp32",
    lstm: str = "op",
    int8: "Int8Options | None" = None,
    fused: bool = False,
    max_clips: int = 100,
    device: str = "auto",
    progress: Progress = lambda text: None,
) -> Bundle:
    """Write and prove the variant ``onnx-<precision>`` of the bundle in ``folder``; its other variants stay.

    clips: videos, folders or lists for the proof; without any, the held-out clips that training noted in the bundle.
    precision, lstm: as write_graphs takes them, and "int8": the encoder in integers, the head in fp32.
    int8: how, in that precision.
    fused: write and prove ``onnx-<precision>-fused`` too, the same graphs in one file; a clip-wise model has one only.
    device: where the variant is proved, as devices.resolve reads it; "auto" is the first GPU and the CPU.

    Raises:
        BundleError: the bundle is damaged.
        UsageError: no clips for the proof; no such precision, or no such form of the LSTM.
        ProofError: a runner gives other labels than PyTorch, or none here executes such graphs; then the bundle stays
            as it was.
    """
    from harec_deploy.export.int8 import Int8Options, int8_forms  # these import torch, and rebuilding a plan needs none
    from harec_deploy.export.onnx import write_graphs
    from harec_deploy.export.torch import prove_weights
    from harec_deploy.models import from_bundle
    from harec_deploy.models.typed import check_types

    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}; allowed are {', '.join(PRECISIONS)}")
    types = "fp32" if precision == "int8" else precision
    check_types(types, lstm)
    bundle, name = load(folder), f"onnx-{precision}"
    if precision == "int8" and bundle.spec.feature_dim == 0:
        raise UsageError(f"{bundle.spec.architecture} takes whole clips: such models have no int8 form yet, use fp32")
    model = from_bundle(bundle)
    progress("decoding clips for the proof")
    real = read_clips(bundle.spec, clips or bundle.spec.training.get("proof_clips", []), max_clips)
    progress(f"labelling {len(real.names)} clips with PyTorch")
    logits = reference_logits(model, real)
    runners = [each for there in candidates("auto", device) for each in there]
    bundle = prove_weights(bundle, runners, real, logits, progress)
    proving = _Proving(real, logits, device, progress)

    def written(spec: BundleSpec, staging: Path) -> Iterator[_Form]:
        paths = write_graphs(model, spec, staging, precision=types, lstm=lstm)
        if precision != "int8":
            yield _Form(paths)
            return
        for quantisation in int8_forms(paths["encoder"], spec, real, int8 or Int8Options(), progress):
            yield _Form(paths, quantisation)

    progress("writing ONNX graphs")
    bundle = _add(bundle, name, precision, written, proving)
    return _fuse(bundle, name, precision, proving, fused=fused)


def _fuse(bundle: Bundle, name: str, precision: str, proving: "_Proving", *, fused: bool) -> Bundle:
    """Add the graphs of a new variant in one file; where nobody asks for that, take away one of graphs that are gone.

    Raises:
        ProofError: in one file they give other labels; then the variant stays and the file is not there.
    """
    from harec_deploy.export.fused import write_fused

    graphs, progress = bundle.spec.variants[name].graphs, proving.progress
    if not fused and f"{name}-fused" in bundle.spec.variants:
        progress(f"{name}-fused is removed, for it is of graphs that were replaced: --fused writes it anew")
        return _remove(bundle, f"{name}-fused")
    if fused and "model" in graphs:
        progress(f"{graphs['model'].path} is a single file already: --fused adds nothing to a model of whole clips")
    elif fused:
        progress(f"{name} is proved and written; writing both graphs as one file")
        pair = {graph: bundle.path(file) for graph, file in graphs.items()}
        return _add(
            bundle, f"{name}-fused", precision, lambda spec, staging: [_Form(write_fused(pair, spec, staging))], proving
        )
    return bundle


class _Form(NamedTuple):
    """Graphs that were written, by name, and how they were made integers, if they were."""

    paths: dict[str, Path]
    quantisation: Quantisation | None = None


Write = Callable[[BundleSpec, Path], Iterable[_Form]]  # to a folder; one form over the other while they fail


class _Proving(NamedTuple):
    """What a variant is proved with: clips, PyTorch's logits of them (N, C), and where."""

    clips: ProofClips
    logits: NDArray[np.float32]
    device: str
    progress: Progress


def _add(bundle: Bundle, name: str, precision: str, write: Write, proving: _Proving) -> Bundle:
    """Write a variant, prove it and give it its name; the others stay. Raises ProofError."""
    folder = bundle.folder
    others = {other: variant for other, variant in bundle.spec.variants.items() if other != name}
    check = check_clips_of(bundle) if others else None  # they were proved to be near it, so it stays
    with atomic_folder(folder / name) as staging:
        variant = _first_proved(bundle, name, precision, write(bundle.spec, staging), check, proving)
        # From here to the last line the bundle lacks the variant: a kill in between leaves a bundle that says so.
        bare = msgspec.structs.replace(bundle.spec, variants=others, check=bundle.spec.check if check else None)
        save(folder, bare)
    graphs = {graph: in_folder(file, name) for graph, file in variant.graphs.items()}
    spec = _with_variant(bare, name, msgspec.structs.replace(variant, graphs=graphs))
    if check is None:
        spec = msgspec.structs.replace(spec, check=write_check(folder, proving.clips, proving.logits))
    return save(folder, spec)


def _remove(bundle: Bundle, name: str) -> Bundle:
    """Take a variant out of the bundle, and its files with it."""
    others = {other: variant for other, variant in bundle.spec.variants.items() if other != name}
    without = save(bundle.folder, msgspec.structs.replace(bundle.spec, variants=others))
    shutil.rmtree(bundle.folder / name)
    return without


def check_clips_of(bundle: Bundle) -> Check | None:
    """Return the check clips that the bundle's variants were proved to be near, None where there are none."""
    try:
        return bundle.check_clips()
    except BundleError:
        return None  # a bundle whose clips were changed by hand gets new ones


@alone
def export_weights(
    folder: Path,
    clips: Sequence[str] = (),
    *,
    runner: str = "torch",
    max_clips: int = 100,
    device: str = "auto",
    progress: Progress = lambda text: None,
) -> Bundle:
    """Prove the bundle's weights as they are, in every precision of a runner that takes them; no graphs are written.

    clips, device: as for ``export``.

    Raises:
        BundleError: the bundle is damaged.
        UsageError: no clips for the proof, no such runner or device, or the runner takes no weights.
        ProofError: fp32 gives other labels than the reference; then nothing is written.
    """
    from harec_deploy.export.torch import prove_weights
    from harec_deploy.models import from_bundle

    bundle = load(folder)
    runners = [each for there in candidates(runner, device) for each in there]
    if not all(each.precisions(bundle.spec.ways()[WEIGHTS_VARIANT]) for each in runners):
        raise UsageError(f"runner {runner} takes no weights, only exported graphs: leave --runner out")
    progress("decoding clips for the proof")
    real = read_clips(bundle.spec, clips or bundle.spec.training.get("proof_clips", []), max_clips)
    progress(f"labelling {len(real.names)} clips with PyTorch")
    logits = reference_logits(from_bundle(bundle), real)
    spec = prove_weights(bundle, runners, real, logits, progress, asked=True).spec
    if spec.check is None:
        spec = msgspec.structs.replace(spec, check=write_check(folder, real, logits))
    return save(folder, spec)


def _first_proved(
    bundle: Bundle, name: str, precision: str, forms: Iterable[_Form], check: Check | None, proving: _Proving
) -> Variant:
    """Return the first of the forms that passes, with its proofs; the next is written once one has failed.

    Raises:
        ProofError: that of the last, as none passes.
    """
    failed: ProofError | None = None
    packages = ["torch", "onnx", "onnxscript", *(["onnxruntime", "onnxruntime-gpu"] if precision == "int8" else [])]
    for paths, quantisation in forms:
        variant = Variant(
            precision=precision,
            graphs={graph: file_ref(bundle.folder, path) for graph, path in paths.items()},
            made_with=versions(packages),
            proofs=[],
            quantisation=quantisation,
        )
        try:
            proofs = _prove_everywhere(bundle, name, variant, check, proving)
        except ProofError as error:
            failed = error
            continue
        return msgspec.structs.replace(variant, proofs=proofs)
    assert failed is not None
    raise failed


def _prove_everywhere(
    bundle: Bundle, name: str, variant: Variant, check: Check | None, proving: _Proving
) -> list[Proof]:
    """Run a variant on every runner and precision of this machine.

    Raises:
        ProofError: one of them fails in the graphs' own precision, or none executes them; a coarser precision that
            fails is noted and not used.
    """
    # Without check clips, for how near this variant comes to them is not known yet.
    trial = Bundle(bundle.folder, msgspec.structs.replace(_with_variant(bundle.spec, name, variant), check=None))
    proofs, left_out = [], []
    for runner in (runner for place in resolve(proving.device) for runner in installed(place)):
        if _lacks_types(runner, variant):
            left_out.append(f"{runner.name} cannot execute {variant.precision} graphs on {runner.device}")
            proving.progress(f"{left_out[-1]}: left out")
        for precision in runner.precisions(variant):
            execution = Execution(name, runner, precision)
            proving.progress(f"proving {execution}")
            proof = prove(Recognizer(trial, execution), proving.clips, proving.logits, check)
            if not proof.passed and precision == variant.precision:
                raise failure(execution, proof)
            proofs.append(proof)
    if not proofs:
        told = "; ".join(left_out) or "no runner of ONNX files is installed"
        raise ProofError(f"{name} cannot be proved on this machine: {told}. Nothing was written")
    return proofs


def _lacks_types(runner: Runner, variant: Variant) -> bool:
    """Tell whether ``runner`` would execute such graphs if only their types were others."""
    return not runner.precisions(variant) and bool(
        runner.precisions(msgspec.structs.replace(variant, precision="fp32"))
    )


def _with_variant(spec: BundleSpec, name: str, variant: Variant) -> BundleSpec:
    return msgspec.structs.replace(spec, variants={**spec.variants, name: variant})


def in_folder(file: FileRef, folder: str) -> FileRef:
    """Return the file with the folder that it lies in now."""
    return msgspec.structs.replace(file, path=f"{folder}/{Path(file.path).name}")


def write_check(folder: Path, real: ProofClips, logits: NDArray[np.float32]) -> FileRef:
    """Write the first of the proof's clips as the bundle's check clips."""
    path = folder / CHECK_FILE
    with atomic_write(path) as stream:
        np.savez(stream, clips=real.pixels[:CHECK_CLIPS], logits=logits[:CHECK_CLIPS])
    return file_ref(folder, path)
