"""harec-deploy export: a bundle's weights become ONNX graphs or TensorRT plans, proved on real clips."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harec_deploy.cli import console
from harec_deploy.errors import UsageError

if TYPE_CHECKING:
    from harec_deploy.bundle import Bundle
    from harec_deploy.decode import Decoder


PLAN_OPTIONS = ("decoder", "workspace_gib", "optimization_level", "hardware_compatible", "version_compatible")
INT8_OPTIONS = ("calibrate", "calibration", "keep_float")


def export(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="The folder that training wrote.")],
    clips: Annotated[
        list[str] | None,
        typer.Option("--clips", help="Videos or folders for the proof; the held-out clips of training by default."),
    ] = None,
    precision: Annotated[str, typer.Option(help="Types in the graphs: fp32, fp16, bf16, int8.")] = "fp32",
    calibrate: Annotated[
        list[str] | None,
        typer.Option("--calibrate", help="Clips for the ranges of int8; clips of training by default."),
    ] = None,
    calibration: Annotated[str, typer.Option(help="How ranges are chosen: minmax, entropy, percentile.")] = "minmax",
    keep_float: Annotated[
        str,
        typer.Option(help="Layers of int8 graphs left in float: none, NAME,NAME, or auto: until the proof passes."),
    ] = "auto",
    lstm: Annotated[
        str | None,
        typer.Option(help="op, one operator, or unroll, its steps written out; unroll for plans, else op."),
    ] = None,
    fused: Annotated[
        bool, typer.Option("--fused", help="Also both graphs in one model.onnx, for other programs.")
    ] = False,
    max_clips: Annotated[int, typer.Option(min=1, help="Clips in the proof, at most.")] = 100,
    device: Annotated[str, typer.Option(help="Where it is proved, and plans are built: auto, cpu, cuda:N.")] = "auto",
    runner: Annotated[
        str, typer.Option(help="torch or torch-compile: prove the weights as they are, and write no graphs.")
    ] = "auto",
    tensorrt: Annotated[
        bool, typer.Option("--tensorrt", help="Build TensorRT plans for the GPU that is here.")
    ] = False,
    decoder: Annotated[
        str, typer.Option(help="What decodes the clips that plans are proved on: auto as in label, pyav or dali.")
    ] = "auto",
    workspace_gib: Annotated[
        float | None,
        typer.Option(min=0, help="Scratch memory of a plan's kernels, at most; all of the GPU's by default."),
    ] = None,
    optimization_level: Annotated[int, typer.Option(help="0 to 5: more builds longer, and may run faster.")] = 3,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Plans for every GPU from Ampere on; slower.")
    ] = False,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Plans for later TensorRT versions too; slower.")
    ] = False,
) -> None:
    """Export to ONNX or TensorRT. It must give PyTorch's labels on real clips, or nothing is written (exit 5)."""
    if tensorrt and runner != "auto":
        raise UsageError("--tensorrt builds plans, --runner proves the weights as they are: give one of them")
    if fused and (tensorrt or runner != "auto"):
        raise UsageError("--fused is about ONNX files: leave --tensorrt and --runner out")
    if not tensorrt:
        _refuse(context, PLAN_OPTIONS, "is about plans: add --tensorrt, or leave it out")
    if runner != "auto":
        _refuse(context, ("precision", "lstm"), f"is about graphs, and --runner {runner} writes none: leave one out")
    if tensorrt or runner != "auto" or precision != "int8":
        _refuse(context, INT8_OPTIONS, "is about int8 graphs: it needs --precision int8, and no --tensorrt or --runner")
    how: dict[str, Any] = {"max_clips": max_clips, "device": device, "progress": console.say}
    try:
        if tensorrt:
            plan = {
                "workspace_bytes": None if workspace_gib is None else int(workspace_gib * (1 << 30)),
                "optimization_level": optimization_level,
                "hardware_compatible": hardware_compatible,
                "version_compatible": version_compatible,
                "decoder": _decoder(decoder, device),
            }
            exported = _export_plans(bundle, clips or [], precision, lstm or "unroll", {**how, **plan})
        elif runner == "auto":
            from harec_deploy.export import export as export_graphs
            from harec_deploy.export.int8 import Int8Options

            int8 = Int8Options(calibrate or (), calibration, keep_float) if precision == "int8" else None
            exported = export_graphs(
                bundle, clips or (), precision=precision, lstm=lstm or "op", int8=int8, fused=fused, **how
            )
        else:
            from harec_deploy.export import export_weights

            exported = export_weights(bundle, clips or (), runner=runner, **how)
    except ModuleNotFoundError as error:
        raise console.missing(error, "export", "harec-deploy export") from None
    made = f"tensorrt-{precision}-" if tensorrt else f"onnx-{precision}" if runner == "auto" else "torch"
    _say_proofs(exported, made)
    by_name = "" if runner == "auto" else f" --runner {runner}"
    console.say(f"written to {bundle}; next: harec-deploy label VIDEOS --bundle {bundle}{by_name}")


def _refuse(context: typer.Context, options: Sequence[str], why: str) -> None:
    """Raise UsageError for an option that was given and would do nothing."""
    for name in options:
        if (given := context.get_parameter_source(name)) and given.name != "DEFAULT":
            raise UsageError(f"--{name.replace('_', '-')} {why}")


def _export_plans(bundle: Path, clips: list[str], precision: str, lstm: str, how: dict[str, Any]) -> "Bundle":
    from harec_deploy.export.tensorrt import export_tensorrt

    with console.progress_bar("building", 100) as (shown, task):
        return export_tensorrt(
            bundle,
            clips,
            precision=precision,
            lstm=lstm,
            bar=lambda share, note: shown.update(task, completed=int(100 * share), note=note),
            **how,
        )


def _decoder(asked: str, device: str) -> "Decoder | None":
    """Return the decoder that labelling would use beside the reference, if any."""
    from harec_deploy.decode import choose
    from harec_deploy.label.decoders import choose_decoders

    choice = choose_decoders(asked, device)
    return choose("dali", choice.device) if choice.name != "pyav" else None


def _say_proofs(exported: "Bundle", made: str) -> None:
    """Say how the variants of this name, or whose names begin with it, were proved."""
    from harec_deploy.export.verify import measured

    for name, variant in exported.spec.variants.items():
        if name.startswith(made) and variant.quantisation and (kept := variant.quantisation.kept_float):
            console.say(f"{name} keeps {len(kept)} of {variant.quantisation.layers} layers in float: {', '.join(kept)}")
        for proof in variant.proofs if name.startswith(made) else ():
            verdict = "proved" if proof.passed else "not used: fails its proof"
            frames = "" if proof.decoder == "pyav" else f" with {proof.decoder}'s frames"
            way = f"{name} on {proof.runner} in {proof.precision}{frames}"
            console.say(f"{way}: {measured(proof)}: {verdict}")
            if not proof.passed:
                console.say(f"flipped: {', '.join(map(str, proof.flips)) or 'none'}")
