"""harec-deploy merge: the journals of several machines or folders as one."""

from pathlib import Path
from typing import Annotated

import typer

from harec_deploy.cli import console


def merge(
    out: Annotated[Path, typer.Argument(help="The journal to write, or a table with the journal beside it.")],
    journals: Annotated[list[Path], typer.Argument(help="What label wrote (.jsonl), of each shard or folder.")],
    partial: Annotated[bool, typer.Option("--partial", help="Do without shards that are not named.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> None:
    """Join the journals of shards, or of folders that were labelled alike: each video once, or not at all."""
    from harec_deploy.label.merge import merge as merge_journals

    merged = merge_journals(out, journals, partial=partial, announce=(lambda _: None) if quiet else console.say)
    if not quiet:
        counts = ", ".join(f"{merged.statuses[status]} {status}" for status in ("ok", "partial", "failed"))
        console.say(f"{merged.statuses.total()} videos of {len(journals)} journals: {counts}")
        console.say(f"written to {out}")
