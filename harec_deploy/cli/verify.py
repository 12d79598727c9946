"""harec-deploy verify: a variant, its runner and a decoder beside the reference, on real clips."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harec_deploy.cli import console
from harec_deploy.errors import ProofError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harec_deploy.export.differences import Comparison
    from harec_deploy.recognizer import Recognizer
    from harec_deploy.sampling import Windowing
    from harec_deploy.spec import DecoderProof, Flip, ReuseProof


def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle that was exported.")],
    clips: Annotated[list[str], typer.Argument(help="Videos, folders, globs or @list.txt.")],
    runner: Annotated[str, typer.Option(help="What is verified: auto, the fastest here, or a runner.")] = "auto",
    precision: Annotated[str, typer.Option(help="What it computes in.")] = "auto",
    variant: Annotated[str, typer.Option(help="Which of the bundle's variants, such as onnx-fp16.")] = "auto",
    decoder: Annotated[str, typer.Option(help="What gives it the frames; pyav is the reference.")] = "pyav",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    max_clips: Annotated[int, typer.Option(min=1, help="Clips to compare, at most.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was measured as JSON.")] = False,
    reuse_threshold: Annotated[
        float | None,
        typer.Option(metavar="LEVELS", help="Compare labels with and without features reused as in label, instead."),
    ] = None,
    window: Annotated[
        float | None, typer.Option(parser=console.seconds, metavar="TIME", help="For that, windows as in label: 4s.")
    ] = None,
    stride: Annotated[
        float | None, typer.Option(parser=console.seconds, metavar="TIME", help="Between them: a quarter of one.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write what was measured as one HTML page.", show_default=False)
    ] = None,
) -> None:
    """Compare labels with PyTorch's on the reference decoder's frames, and find where a difference comes from.

    Where folders are named after classes, accuracy is compared too. The proof of a decoder is stored in the bundle, and
    that of a --reuse-threshold if it passes. Exit status 5 if too many labels differ.
    """
    from importlib.util import find_spec

    from harec_deploy.devices import resolve
    from harec_deploy.export.decoders import prove_decoder
    from harec_deploy.export.differences import compare
    from harec_deploy.export.verify import REFERENCE
    from harec_deploy.label.decoders import choose_decoders
    from harec_deploy.loading import load

    how_run: dict[str, Any] = {"runner": runner, "precision": precision, "device": device, "variant": variant}
    if reuse_threshold is not None:
        if decoder != REFERENCE or html:
            raise UsageError("--reuse-threshold is verified on its own: leave --decoder and --html out")
        windowing = _windowing(window, stride)
        _verify_reuse(load(bundle, **how_run), clips, reuse_threshold, windowing, max_clips, as_json=as_json)
        return
    if window is not None or stride is not None:
        raise UsageError("--window and --stride are for --reuse-threshold: give it, or leave them out")
    where = choose_decoders(decoder, device).device if decoder == "dali" else resolve(device)[0]
    decoder_only = decoder != REFERENCE and not html and find_spec("torch") is None
    recognizer = load(bundle, **how_run, on_trial=not decoder_only)
    with console.progress_bar("comparing") as (progress, task):
        how: dict[str, Any] = {
            "device": where,
            "max_clips": max_clips,
            "progress": lambda done, total: progress.update(task, completed=done, total=total),
        }
        if decoder_only:
            proof = prove_decoder(recognizer, clips, decoder, **how)
        else:
            told = compare(recognizer, clips, decoder=decoder, **how)
    if decoder_only:
        _end_with_decoder(proof, as_json=as_json)
    else:
        _end(told, as_json=as_json, html=html)


def _windowing(window_s: float | None, stride_s: float | None) -> "Windowing | None":
    """Return the windows to look at, None for each video as a whole. Raises UsageError."""
    from harec_deploy.sampling import Windowing

    if window_s is None:
        if stride_s is not None:
            raise UsageError("--stride is between windows: give --window too")
        return None
    return Windowing(window_s=window_s, stride_s=window_s / 4 if stride_s is None else stride_s)


def _verify_reuse(
    recognizer: "Recognizer",
    clips: list[str],
    threshold: float,
    windowing: "Windowing | None",
    max_clips: int,
    *,
    as_json: bool,
) -> None:
    """Compare labels with and without reuse, and store the proof. Raises ProofError where it does not pass."""
    from harec_deploy.export.reuse import kept, prove_reuse, saved, store

    with console.counted("comparing") as progress:
        proof = prove_reuse(recognizer, clips, threshold, windowing=windowing, max_clips=max_clips, progress=progress)
    if as_json:
        _print_json(proof)
    else:
        _print_flips(proof.flips)
    moved = f"|dp| {proof.mean_abs_dp:.2g} on average, {proof.max_abs_dp:.2g} at most"
    console.say(
        f"{recognizer.execution} with frames reused at {threshold:g} levels beside without: {kept(proof)}; {moved}"
    )
    console.say(saved(proof))
    store(recognizer.bundle, proof)
    console.say(f"proved and stored: harec-deploy label --reuse-threshold may be up to {threshold:g} on such videos")


def _end(told: "Comparison", *, as_json: bool, html: Path | None) -> None:
    """Show what was measured. Raises ProofError where it does not pass."""
    if html:
        from harec_deploy.export.page import write_page

        write_page(told, html)
    if as_json:
        _print_json(told)
    else:
        _print_tables(told)
    _say(told)
    if not told.passed:
        raise told.failure()


def _end_with_decoder(proof: "DecoderProof", *, as_json: bool) -> None:
    """Show what was measured where there is no PyTorch to hold labels against. Raises ProofError."""
    from harec_deploy.export.decoders import failure_of

    console.say("only the decoder was compared: the rest needs PyTorch, pip install 'harec-deploy[torch]'")
    if as_json:
        _print_json(proof)
    _say_decoder(proof)
    if why := failure_of(proof):
        raise ProofError(f"{why}; flipped: {', '.join(proof.flipped[:5]) or 'none'}")


def _say(told: "Comparison") -> None:
    """Say in a few lines how it went."""
    undecodable = f"; {told.undecodable} more cannot be decoded" if told.undecodable else ""
    moved = f"|dp| {told.mean_abs_dp:.2g} on average, {told.max_abs_dp:.2g} at most"
    source = f"most of it comes from: {told.source}" if told.source else "that is rounding"
    console.say(f"{told.what} beside PyTorch: labels kept {told.agreement}{undecodable}; {moved}; {source}")
    if told.accuracy:
        console.say(f"accuracy {told.accuracy}; the reference's {told.reference_accuracy}")
    if told.decoder_proof:
        _say_decoder(told.decoder_proof)


def _say_decoder(proof: "DecoderProof") -> None:
    from harec_deploy.export.verify import REFERENCE

    refused = f", {proof.refused} more left to the reference" if proof.refused else ""
    kept = f"{proof.top1_agreement:.1%} of {proof.clips} clips keep their label{refused}"
    levels = f"{proof.mean_level_difference:.2f} levels on average, {proof.max_level_difference} at most"
    beside = f"{proof.decoder} {proof.decoder_version} on {proof.device} beside {REFERENCE}"
    console.say(f"{beside}: {kept}; max |dp| {proof.max_abs_dp:.2g}; pixels differ by {levels}")


def _print_json(told: "Comparison | DecoderProof | ReuseProof") -> None:
    import msgspec

    console.out.print(msgspec.json.encode(told).decode(), markup=False)


def _print_tables(told: "Comparison") -> None:
    """Print a table of the steps, of the classes, and of the clips whose label differs."""
    from msgspec.structs import astuple

    _print_table(
        "each step alone in the reference's place",
        ("step", "clips", "flipped", "mean |dp|", "max |dp|", "it gives"),
        [(*astuple(each)[:-1], each.told()) for each in told.stages],
    )
    _print_table(
        "clips by class",
        ("class", "by the reference", "kept", "labelled", "reference right", "right"),
        map(astuple, told.classes),
    )
    _print_flips(told.flipped)


def _print_flips(flips: "Sequence[Flip]") -> None:
    from msgspec.structs import astuple

    if flips:
        columns = ("clip", "truth", "reference", "score", "label", "score")
        _print_table("labels that differ", columns, map(astuple, flips))


def _print_table(title: str, columns: tuple[str, ...], rows: "Iterable[tuple[Any, ...]]") -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        told = (f"{cell:.3g}" if isinstance(cell, float) else "" if cell is None else str(cell) for cell in row)
        table.add_row(*(escape(console.printable(each)) for each in told))
    console.out.print(table)
