"""harec-deploy label: a label for every video of files, folders and lists."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harec_deploy.cli import console
from harec_deploy.errors import EXIT_SOME_VIDEOS_FAILED

if TYPE_CHECKING:
    from harec_deploy.label.journal import Row
    from harec_deploy.label.run import Summary

TABLE_ROWS = 40


def label(
    inputs: Annotated[list[str], typer.Argument(help="Videos, folders, globs, or @list.txt with a path a line.")],
    bundle: Annotated[Path, typer.Option("--bundle", "-b", help="The exported model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The journal, or a .csv written beside it.")] = Path(
        "labels.jsonl"
    ),
    runner: Annotated[str, typer.Option(help="auto, openvino or onnx.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    workers: Annotated[int | None, typer.Option(help="Videos decoded at a time; all cores by default.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that decoding one video may take.")] = 120.0,
    top_k: Annotated[int, typer.Option(help="Classes kept in each row.")] = 5,
    all_files: Annotated[bool, typer.Option("--all-files", help="Take files of any suffix in folders.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget the journal and begin anew.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Do failed videos again.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Print the labels as a table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")] = False,
) -> None:
    """Label videos: one row each, whatever happens. The same command again does what is missing."""
    from harec_deploy.label.child import Limits
    from harec_deploy.label.run import Options
    from harec_deploy.label.run import label as label_videos

    with console.progress_bar("labelling") as (progress, task):

        def advance(done: int, total: int, row: "Row") -> None:
            note = f"last: {console.printable(row.label or row.status)}"
            progress.update(task, completed=done, total=total, note=note)

        options = Options(
            out=out,
            runner=runner,
            precision=precision,
            top_k=top_k,
            workers=workers,
            limits=Limits(seconds=timeout),
            all_files=all_files,
            restart=restart,
            retry_failed=retry_failed,
            announce=(lambda text: None) if quiet else console.say,
            progress=advance,
        )
        summary = label_videos(bundle, inputs, options)
    if table:
        _print_table(summary)
    if as_json:
        _print_json(summary)
    if not quiet:
        _say_summary(summary, out)
    if summary.statuses["failed"]:
        raise typer.Exit(EXIT_SOME_VIDEOS_FAILED)


def _say_summary(summary: "Summary", out: Path) -> None:
    counts = ", ".join(f"{summary.statuses[status]} {status}" for status in ("ok", "partial", "failed"))
    skipped = len(summary.rows) - summary.done
    console.say(f"{counts}" + (f"; {skipped} were done before" if skipped else ""))
    for code, count in summary.errors.most_common():
        example = next(row for row in summary.rows if row.error and row.error["code"] == code)
        console.say(f"  {code}: {count}, e.g. {example.path}: {(example.error or {})['message']}")
    for what, count in summary.ignored.items():
        console.say(f"  passed over: {count} {what}")
    if summary.done:
        speed = f"{summary.videos_per_s:.1f} videos/s, {summary.times_real_time:.0f} times real time"
        console.say(f"{speed}; {summary.stages.bound_by()}")
    console.say(f"written to {out}")


def _print_table(summary: "Summary") -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(Column("video", overflow="fold"), "label", "score", "status")
    for row in summary.rows[:TABLE_ROWS]:
        score = "" if row.score is None else f"{row.score:.3f}"
        status = row.error["code"] if row.error else row.status
        table.add_row(escape(console.printable(row.path)), escape(row.label or "-"), score, status)
    console.out.print(table)
    if len(summary.rows) > TABLE_ROWS:
        console.out.print(f"and {len(summary.rows) - TABLE_ROWS} more in the journal")


def _print_json(summary: "Summary") -> None:
    import msgspec

    facts = {
        "statuses": summary.statuses,
        "errors": summary.errors,
        "done": summary.done,
        "videos_per_s": summary.videos_per_s,
        "times_real_time": summary.times_real_time,
        "bound_by": summary.stages.bound_by(),
        "stages": summary.stages,
    }
    console.out.print(msgspec.json.encode(facts).decode(), markup=False)
