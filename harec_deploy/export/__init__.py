"""Export: a bundle's PyTorch weights become a variant, which is proved on real clips before it gets its name."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from harec_deploy.bundle import CHECK_FILE, Bundle, BundleSpec, FileRef, Proof, Variant, file_ref, load, save
from harec_deploy.devices import resolve
from harec_deploy.errors import ProofError
from harec_deploy.export.onnx import write_graphs
from harec_deploy.export.verify import MAX_ABS_DP, MIN_AGREEMENT, ProofClips, prove, read_clips, reference_logits
from harec_deploy.files import atomic_folder, atomic_write
from harec_deploy.models import from_bundle
from harec_deploy.recognizer import Recognizer
from harec_deploy.runners import Execution, installed

Progress = Callable[[str], None]
VARIANT = "onnx-fp32"
CHECK_CLIPS = 2  # real clips that travel in the bundle, so that any machine can test itself


def export(
    folder: Path,
    clips: Sequence[str] = (),
    *,
    max_clips: int = 100,
    device: str = "auto",
    progress: Progress = lambda text: None,
) -> Bundle:
    """Write and prove the variant ``onnx-fp32`` of the bundle in ``folder``.

    clips: videos, folders or lists for the proof; without any, the held-out clips that training noted in the bundle.
    device: where the variant is proved, as devices.resolve reads it; "auto" is the first GPU and the CPU.

    Raises:
        BundleError: the bundle is damaged.
        UsageError: no clips for the proof.
        ProofError: a runner gives other labels than PyTorch; then nothing is left at the variant's place.
    """
    bundle = load(folder)
    model = from_bundle(bundle)
    progress("decoding clips for the proof")
    real = read_clips(bundle.spec, clips or bundle.spec.training.get("proof_clips", []), max_clips)
    progress(f"labelling {len(real.names)} clips with PyTorch")
    logits = reference_logits(model, real)
    with atomic_folder(folder / VARIANT) as staging:
        progress("writing ONNX graphs")
        graphs = {name: file_ref(folder, path) for name, path in write_graphs(model, bundle.spec, staging).items()}
        proofs = _prove_everywhere(bundle, graphs, real, logits, device, progress)
        # From here to the last line the bundle has no variant: a kill in between leaves a bundle that says so.
        others = {name: variant for name, variant in bundle.spec.variants.items() if name != VARIANT}
        save(folder, msgspec.structs.replace(bundle.spec, variants=others, check=None))
    graphs = {name: _in_folder(file, VARIANT) for name, file in graphs.items()}
    spec = _with_variant(bundle.spec, graphs, proofs)
    return save(folder, msgspec.structs.replace(spec, check=_write_check(folder, real, logits)))


def _prove_everywhere(
    bundle: Bundle,
    graphs: dict[str, FileRef],
    real: ProofClips,
    logits: NDArray[np.float32],
    device: str,
    progress: Progress,
) -> list[Proof]:
    """Run the graphs on every runner and precision of this machine.

    Raises:
        ProofError: one of them fails in the graphs' own precision; a coarser one that fails is noted and not used.
    """
    # The bundle's old check clips belong to its old variants.
    trial = Bundle(bundle.folder, msgspec.structs.replace(_with_variant(bundle.spec, graphs, []), check=None))
    proofs = []
    for runner in (runner for place in resolve(device) for runner in installed(place)):
        for precision in runner.precisions(trial.spec.variants[VARIANT]):
            execution = Execution(VARIANT, runner, precision)
            progress(f"proving {execution}")
            proof = prove(Recognizer(trial, execution), real, logits)
            if not proof.passed and precision == "fp32":
                raise ProofError(
                    f"{execution} is not the trained model: {proof.top1_agreement:.1%} of {proof.clips} clips keep "
                    f"their label (at least {MIN_AGREEMENT:.0%}), probabilities move by up to {proof.max_abs_dp:.2g} "
                    f"(at most {MAX_ABS_DP['fp32']:g}); flipped: {', '.join(proof.flipped[:5]) or 'none'}. "
                    "Nothing was written"
                )
            proofs.append(proof)
    return proofs


def _with_variant(spec: BundleSpec, graphs: dict[str, FileRef], proofs: list[Proof]) -> BundleSpec:
    packages = {name: version(name) for name in ("torch", "onnx", "onnxscript")}
    variant = Variant(precision="fp32", graphs=graphs, made_with=packages, proofs=proofs)
    return msgspec.structs.replace(spec, variants={**spec.variants, VARIANT: variant})


def _in_folder(file: FileRef, folder: str) -> FileRef:
    return msgspec.structs.replace(file, path=f"{folder}/{Path(file.path).name}")


def _write_check(folder: Path, real: ProofClips, logits: NDArray[np.float32]) -> FileRef:
    path = folder / CHECK_FILE
    with atomic_write(path) as stream:
        np.savez(stream, clips=real.pixels[:CHECK_CLIPS], logits=logits[:CHECK_CLIPS])
    return file_ref(folder, path)
