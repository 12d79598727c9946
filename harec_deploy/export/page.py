"""A comparison with the reference as one HTML page."""

import math
from pathlib import Path

from harec_deploy.export.differences import ClassRow, Comparison, Share
from harec_deploy.export.stages import Stage
from harec_deploy.page import bar, facts, page, section, table, text, tiles, write
from harec_deploy.spec import Flip

MAX_FLIPS = 500  # rows
STEPS = {
    "decode": "the decoder's pictures in the video's own size, then the reference's resize",
    "resize": "what the clips differ by beside that: how the decoder scales",
    "encoder": "its features of the reference's clips, then the reference's head",
    "head": "its logits of the reference's features",
    "model": "its logits of the reference's clips",
}


def write_page(told: Comparison, path: Path) -> None:
    """Write the page; it appears whole or not at all. Raises OutputError."""
    parts = [_facts(told), _tiles(told), _verdict(told), _stages(told), _decoder(told), _classes(told), _flips(told)]
    write(path, page(f"Verification of {told.what}", parts))


def _facts(told: Comparison) -> str:
    return facts(
        {
            "runner": f"{told.runner} {told.runner_version}",
            "decoder": f"{told.decoder} {told.decoder_version}",
            "device": told.hardware or told.device,
            "reference": f"torch {told.torch} in fp32 with pyav's frames",
        }
    )


def _tiles(told: Comparison) -> str:
    shown = [
        ("ok" if told.passed else "failed", "passed" if told.passed else "failed", "the gate"),
        ("", f"{told.agreement.share:.1%}", f"of labels kept, {_interval(told.agreement)}"),
        ("", f"{told.agreement.count:,}", "clips"),
        ("", f"{told.max_abs_dp:.2g}", f"|Δp| at most, {told.mean_abs_dp:.2g} on average"),
    ]
    for share, whose in ((told.reference_accuracy, "reference's "), (told.accuracy, "")):
        if share:
            shown.append(("", f"{share.share:.1%}", f"{whose}accuracy on {share.count:,} clips, {_interval(share)}"))
    return tiles(shown)


def _interval(share: Share) -> str:
    return f"95 % between {share.low:.1%} and {share.high:.1%}"


def _verdict(told: Comparison) -> str:
    if told.passed:
        return ""
    items = "".join(f"<li>{text(failure)}</li>" for failure in told.failures)
    return section("verdict", "Why it does not pass", "", f'<ul class="failures">{items}</ul>')


def _stages(told: Comparison) -> str:
    most = max((stage.mean_abs_dp for stage in told.stages if math.isfinite(stage.mean_abs_dp)), default=0.0)
    source = f"Most of it comes from: {told.source}." if told.source else "Nothing differs."
    note = f"Each step alone in the reference's place. {source}"
    columns = ("step", "put in the reference's place", "", "mean |Δp|:", "max |Δp|:", "flipped:", "clips:", "it gives")
    return section("steps", "Where it comes from", note, table(columns, [_stage(each, most) for each in told.stages]))


def _stage(stage: Stage, most: float) -> list[str]:
    share = stage.mean_abs_dp / most if most and math.isfinite(stage.mean_abs_dp) else 0.0
    numbers = f"{stage.mean_abs_dp:.2g}", f"{stage.max_abs_dp:.2g}", f"{stage.flipped:,}", f"{stage.clips:,}"
    return [stage.name, STEPS[stage.name], bar(share), *numbers, text(stage.told())]


def _decoder(told: Comparison) -> str:
    proof = told.decoder_proof
    if proof is None:
        return ""
    row = [
        text(f"{proof.decoder} {proof.decoder_version}"),
        f"{proof.top1_agreement:.1%}",
        f"{proof.clips:,}",
        f"{proof.refused:,}",
        f"{proof.mean_level_difference:.2f}",
        str(proof.max_level_difference),
        f"{proof.max_abs_dp:.2g}",
    ]
    columns = ("decoder", "labels kept:", "clips:", "left to the reference:", "levels, mean:", "most:", "max |Δp|:")
    note = "The same runner on the frames of either decoder; this is the proof that the bundle keeps."
    return section("decoder", "The decoder alone", note, table(columns, [row]))


def _classes(told: Comparison) -> str:
    columns = ("class", "by the reference:", "kept:", "", "labelled:", "reference right:", "right:")
    note = "Clips that the reference gives each class, and those whose folder is named after it."
    return section("classes", "By class", note, table(columns, map(_class, told.classes)))


def _class(row: ClassRow) -> list[str]:
    kept = f"{row.clips:,}", f"{row.kept:,}", bar(row.kept / row.clips) if row.clips else ""
    right = (f"{row.reference_right:,}", f"{row.right:,}") if row.labelled else ("", "")
    return [text(row.name), *kept, f"{row.labelled:,}" if row.labelled else "", *right]


def _flips(told: Comparison) -> str:
    if not told.flipped:
        return ""
    columns = ("clip", "truth", "reference", "score:", "label", "score:")
    more = len(told.flipped) - MAX_FLIPS
    note = f"The first {MAX_FLIPS:,}; {more:,} more differ." if more > 0 else ""
    return section(
        "flipped", "Labels that differ", note, table(columns, [_flip(flip) for flip in told.flipped[:MAX_FLIPS]])
    )


def _flip(flip: Flip) -> list[str]:
    labels = text(flip.wanted), f"{flip.wanted_score:.3f}", text(flip.got), f"{flip.got_score:.3f}"
    return [text(flip.clip), text(flip.truth or ""), *labels]
