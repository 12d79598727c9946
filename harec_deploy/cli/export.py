"""harec-deploy export: a bundle's weights become ONNX graphs, proved on real clips."""

from pathlib import Path
from typing import Annotated

import typer

from harec_deploy.cli import console


def export(
    bundle: Annotated[Path, typer.Argument(help="The folder that training wrote.")],
    clips: Annotated[
        list[str] | None,
        typer.Option("--clips", help="Videos or folders for the proof; the held-out clips of training by default."),
    ] = None,
    max_clips: Annotated[int, typer.Option(min=1, help="Clips in the proof, at most.")] = 100,
) -> None:
    """Export to ONNX. Every runner here must give PyTorch's labels on real clips, or nothing is written (exit 5)."""
    try:
        from harec_deploy.export import export as export_bundle
    except ModuleNotFoundError as error:
        raise console.missing(error, "export", "harec-deploy export") from None

    exported = export_bundle(bundle, clips or (), max_clips=max_clips, progress=console.say)
    for name, variant in exported.spec.variants.items():
        for proof in variant.proofs:
            verdict = "proved" if proof.passed else "not used: fails its proof"
            labels = f"{proof.top1_agreement:.1%} of {proof.clips} clips keep their label"
            way = f"{name} on {proof.runner} in {proof.precision}"
            console.say(f"{way}: {labels}, max |dp| {proof.max_abs_dp:.2g}: {verdict}")
    console.say(f"written to {bundle}; next: harec-deploy label VIDEOS --bundle {bundle}")
