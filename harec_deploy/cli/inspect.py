"""harec-deploy inspect: everything a person wants to know of a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harec_deploy.cli import console

if TYPE_CHECKING:
    from harec_deploy.spec import BundleSpec


def inspect(
    bundle: Annotated[Path, typer.Argument(help="The folder that training or export wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print bundle.json as it is.")] = False,
) -> None:
    """Verify a bundle and show its model, classes, training, variants and proofs."""
    from harec_deploy.bundle import SPEC_FILE, load

    spec = load(bundle).spec
    if as_json:
        console.out.print((bundle / SPEC_FILE).read_text(), markup=False, end="")
        return
    _print_model(bundle, spec)
    _print_variants(spec)
    _print_decoders(spec)
    _print_reuse(spec)


def _print_model(bundle: Path, spec: "BundleSpec") -> None:
    from rich.markup import escape
    from rich.table import Table

    size, sampling, head = spec.size, spec.sampling, spec.head
    table = Table(title=f"bundle {escape(str(bundle))}: all files verified", show_header=False, title_justify="left")
    directions = "bidirectional " if head.bidirectional else ""
    lstm = f"{head.layers} x {directions}LSTM({head.hidden}), {head.pool} over time, "
    if head.dense:
        lstm += f"dense layer of {head.dense}, "
    if spec.architecture == "convlstm":  # it has no LSTM behind its encoder
        lstm = ""
    rows = {
        "architecture": spec.architecture,
        "head": f"{lstm}dropout {head.dropout:g}",
        "classes": f"{len(spec.classes)}: {', '.join(spec.classes)}",
        "clip": f"{sampling.frames} frames of {size.width}x{size.height} ({size.mode}), central {sampling.span:.0%}",
        "weights": f"{spec.weights.path}, {spec.weights.size / 1e6:.1f} MB",
        **{f"training {name}": _short(value) for name, value in spec.training.items()},
    }
    for name, value in rows.items():
        table.add_row(console.printable(name), escape(console.printable(value)))
    console.out.print(table)


def _print_variants(spec: "BundleSpec") -> None:
    from rich.table import Table

    if not spec.variants:
        console.out.print("no variant yet; next: harec-deploy export")
        return
    table = Table("variant", "runner", "precision", "size", "proof", title="variants", title_justify="left")
    for name, variant in spec.variants.items():
        megabytes = f"{spec.variant_bytes(name) / 1e6:.1f} MB"
        for proof in variant.proofs:
            labels = f"{proof.top1_agreement:.1%} of {proof.clips} labels, max |dp| {proof.max_abs_dp:.2g}"
            verdict = labels if proof.passed else f"FAILED: {labels}"
            table.add_row(name, f"{proof.runner} {proof.runner_version}", proof.precision, megabytes, verdict)
    console.out.print(table)
    for name, variant in spec.variants.items():
        if made := variant.quantisation:
            kept = ", ".join(made.kept_float) or "none"
            told = f"{name}: calibrated by {made.method} on {made.frames} frames of {made.clips} clips"
            console.out.print(f"{told}; layers in float, of {made.layers}: {kept}", markup=False)


def _print_decoders(spec: "BundleSpec") -> None:
    from rich.table import Table

    if not spec.decoders:
        return
    table = Table("decoder", "device", "clips", "labels kept", "levels, mean", "most", title="decoders")
    for proof in spec.decoders:
        kept = f"{proof.top1_agreement:.1%}" if proof.passed else f"FAILED: {proof.top1_agreement:.1%}"
        levels = f"{proof.mean_level_difference:.2f}", str(proof.max_level_difference)
        where = proof.hardware or proof.device
        table.add_row(f"{proof.decoder} {proof.decoder_version}", where, str(proof.clips), kept, *levels)
    console.out.print(table)


def _print_reuse(spec: "BundleSpec") -> None:
    from rich.table import Table

    if not spec.reuse:
        return
    columns = ("variant", "threshold", "windows", "labels kept", "max |dp|")
    table = Table(*columns, "frames reused", "encoder time saved", "times faster", title="reuse of features")
    for proof in spec.reuse:
        kept = f"{proof.top1_agreement:.1%}" if proof.passed else f"FAILED: {proof.top1_agreement:.1%}"
        length = f" of {proof.window_s:g} s" if proof.window_s else ""
        shares = f"{proof.share_reused:.0%}", f"{proof.encoder_saved:.0%}", f"{proof.times_faster:.2f}"
        row = (f"{proof.threshold:g} levels", f"{proof.windows}{length}", kept, f"{proof.max_abs_dp:.2g}", *shares)
        table.add_row(proof.variant, *row)
    console.out.print(table)


def _short(value: object) -> str:
    """Return a value in a few words: of a long list the first entry, of a file on some machine its name."""
    if isinstance(value, list) and len(value) > 3:
        return f"{len(value)} entries, the first {_short(value[0])}"
    if isinstance(value, list):
        return ", ".join(map(_short, value)) or "none"
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return str(value)
