"""harec-deploy verify: another decoder beside the reference, on real clips."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harec_deploy.cli import console
from harec_deploy.errors import ProofError, UsageError

if TYPE_CHECKING:
    from harec_deploy.bundle import DecoderProof


def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle that was exported.")],
    clips: Annotated[list[str], typer.Argument(help="Videos, folders, globs or @list.txt.")],
    decoder: Annotated[str, typer.Option(help="The decoder to hold against the reference.")],
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    runner: Annotated[str, typer.Option(help="What labels both; auto or the name of a runner.")] = "auto",
    precision: Annotated[str, typer.Option(help="What it computes in.")] = "auto",
    max_clips: Annotated[int, typer.Option(min=1, help="Clips to compare, at most.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was measured as JSON.")] = False,
) -> None:
    """Compare a decoder's pixels and labels with the reference decoder's, and store the proof in the bundle.

    Exit status 5 if too many labels differ.
    """
    import msgspec

    from harec_deploy.devices import resolve
    from harec_deploy.export.decoders import prove_decoder
    from harec_deploy.export.verify import REFERENCE
    from harec_deploy.label.decoders import choose_decoders
    from harec_deploy.recognizer import load

    if decoder == REFERENCE:
        raise UsageError(f"--decoder {decoder} is the reference itself: name another")
    where = choose_decoders(decoder, device).device if decoder == "dali" else resolve(device)[0]
    recognizer = load(bundle, runner=runner, precision=precision, device=device)
    with console.progress_bar("comparing") as (progress, task):
        proof = prove_decoder(
            recognizer,
            clips,
            decoder,
            device=where,
            max_clips=max_clips,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if as_json:
        console.out.print(msgspec.json.encode(proof).decode(), markup=False)
    console.say(f"{decoder} {proof.decoder_version} on {proof.device} beside {REFERENCE}: {_told(proof)}")
    if not proof.passed:
        flipped = ", ".join(proof.flipped[:5]) or "none, but the probabilities are not finite"
        raise ProofError(f"decoder {decoder} does not give the labels of {REFERENCE}; flipped: {flipped}")


def _told(proof: "DecoderProof") -> str:
    refused = f", {proof.refused} more left to the reference" if proof.refused else ""
    kept = f"{proof.top1_agreement:.1%} of {proof.clips} clips keep their label{refused}"
    levels = f"{proof.mean_level_difference:.2f} levels on average, {proof.max_level_difference} at most"
    return f"{kept}; max |dp| {proof.max_abs_dp:.2g}; pixels differ by {levels}"
