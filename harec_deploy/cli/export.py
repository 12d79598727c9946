"""harec-deploy export: a bundle's weights become ONNX graphs, proved on real clips."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from harec_deploy.cli import console


def export(
    bundle: Annotated[Path, typer.Argument(help="The folder that training wrote.")],
    clips: Annotated[
        list[str] | None,
        typer.Option("--clips", help="Videos or folders for the proof; the held-out clips of training by default."),
    ] = None,
    precision: Annotated[Literal["fp32", "fp16", "bf16"], typer.Option(help="Types inside the graphs.")] = "fp32",
    lstm: Annotated[
        Literal["op", "unroll"], typer.Option(help="The LSTM as one operator, or its steps written out.")
    ] = "op",
    max_clips: Annotated[int, typer.Option(min=1, help="Clips in the proof, at most.")] = 100,
    runner: Annotated[
        str, typer.Option(help="torch or torch-compile: prove the weights as they are, and write no graphs.")
    ] = "auto",
) -> None:
    """Export to ONNX. Every runner here must give PyTorch's labels on real clips, or nothing is written (exit 5)."""
    try:
        from harec_deploy.bundle import WEIGHTS_VARIANT
        from harec_deploy.export import export as export_bundle
        from harec_deploy.export import export_weights
    except ModuleNotFoundError as error:
        raise console.missing(error, "export", "harec-deploy export") from None

    if runner == "auto":
        exported = export_bundle(
            bundle, clips or (), precision=precision, lstm=lstm, max_clips=max_clips, progress=console.say
        )
        name = f"onnx-{precision}"
    else:
        exported = export_weights(bundle, clips or (), runner=runner, max_clips=max_clips, progress=console.say)
        name = WEIGHTS_VARIANT
    for proof in exported.spec.variants[name].proofs:
        verdict = "proved" if proof.passed else "not used: fails its proof"
        labels = f"{proof.top1_agreement:.1%} of {proof.clips} clips keep their label"
        way = f"{name} on {proof.runner} in {proof.precision}"
        console.say(f"{way}: {labels}, max |dp| {proof.max_abs_dp:.2g}: {verdict}")
    by_name = "" if runner == "auto" else f" --runner {runner}"
    console.say(f"written to {bundle}; next: harec-deploy label VIDEOS --bundle {bundle}{by_name}")
