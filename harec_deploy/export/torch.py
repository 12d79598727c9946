"""The weights as a variant: nothing to write, only to prove."""

from collections.abc import Callable, Sequence
from importlib.metadata import version

import msgspec
import numpy as np
from numpy.typing import NDArray

from harec_deploy.bundle import Bundle
from harec_deploy.errors import BundleError
from harec_deploy.export.verify import ProofClips, failure, prove
from harec_deploy.recognizer import Recognizer
from harec_deploy.runners import Execution, Runner
from harec_deploy.spec import WEIGHTS_VARIANT, Proof, Variant


def prove_weights(
    bundle: Bundle,
    runners: Sequence[Runner],
    real: ProofClips,
    logits: NDArray[np.float32],
    progress: Callable[[str], None],
    *,
    asked: bool = False,
) -> Bundle:
    """Return the bundle with proofs of its weights on those of ``runners`` that take them; nothing is written.

    A new proof takes the place of the old one of the same runner, precision and kind of device.
    asked: somebody named the runner, so that one that cannot even run in fp32 is an error.

    Raises:
        BundleError: a runner that was asked for cannot run the weights.
        ProofError: fp32 gives other labels than the reference; a coarser precision that does is noted and not used.
    """
    # The bundle's check clips are of its old variants.
    trial = Bundle(bundle.folder, msgspec.structs.replace(bundle.spec, check=None))
    weights = bundle.spec.ways()[WEIGHTS_VARIANT]
    proofs = {_way(proof): proof for proof in weights.proofs}
    for runner in runners:
        for precision in runner.precisions(weights):
            execution = Execution(WEIGHTS_VARIANT, runner, precision)
            progress(f"proving {execution}")
            try:
                proof = prove(Recognizer(trial, execution), real, logits)
            except BundleError as error:
                if asked and precision == weights.precision:
                    raise
                progress(f"{execution} is left out: {error}")
                continue
            if not proof.passed and precision == weights.precision:
                raise failure(execution, proof)
            proofs[_way(proof)] = proof
    if not proofs:
        return bundle
    packages = {"torch": version("torch")}
    proved = Variant(precision=weights.precision, graphs={}, made_with=packages, proofs=list(proofs.values()))
    variants = {**bundle.spec.variants, WEIGHTS_VARIANT: proved}
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.spec, variants=variants))


def _way(proof: Proof) -> tuple[str, str, str]:
    return proof.runner, proof.precision, proof.device
