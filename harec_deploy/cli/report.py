"""harec-deploy report: a labelling run as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from harec_deploy.cli import console


def report(
    journal: Annotated[Path, typer.Argument(help="What label wrote (.jsonl).")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page; beside the journal by default.", show_default=False)
    ] = None,
    root: Annotated[Path, typer.Option(help="Where the journal's relative paths begin.")] = Path(),
    max_thumbnails: Annotated[int, typer.Option(help="Videos shown of each class; 0 for a page without pictures.")] = 6,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")] = False,
) -> None:
    """Write a labelling run as one HTML page with pictures, for people who would rather look than read."""
    from harec_deploy.label.report import write_report

    page = out or journal.with_suffix(".html")
    with console.counted("taking pictures") as step:
        write_report(journal, page, root=root, thumbnails=max_thumbnails, progress=step)
    if not quiet:
        console.say(f"written to {page}")
