"""harec-deploy label: a label for every video of files, folders and lists."""

import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harec_deploy.cli import console
from harec_deploy.errors import EXIT_FAILED, EXIT_SOME_VIDEOS_FAILED

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from harec_deploy.bundle import Bundle
    from harec_deploy.label.options import Progress
    from harec_deploy.label.summary import Summary

TABLE_ROWS = 40
LINE_EVERY_S = 10.0  # where there is no terminal to draw a bar on


def label(
    inputs: Annotated[
        list[str], typer.Argument(help="Videos, folders, globs, @list.txt with a path a line, - for stdin.")
    ],
    bundle: Annotated[Path, typer.Option("--bundle", "-b", help="The exported model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The journal, or a table written beside it.")] = Path(
        "labels.jsonl"
    ),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:N, cuda:all, or a list: cuda:0,cuda:2.")] = "auto",
    runner: Annotated[
        str, typer.Option(help="auto, openvino, onnx, onnx-trt, torch, torch-compile or tensorrt.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16, bf16 or int8.")] = "auto",
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build TensorRT plans again that are of another TensorRT or GPU.")
    ] = False,
    decoder: Annotated[str, typer.Option(help="auto, pyav, dali, or both from one queue.")] = "auto",
    workers: Annotated[str, typer.Option(metavar="N|auto", help="Videos decoded at a time.")] = "auto",
    timeout: Annotated[float, typer.Option(help="Seconds for decoding a video, or part of a long one.")] = 120,
    window: Annotated[
        float | None, typer.Option(parser=console.seconds, metavar="TIME", help="Label windows of this length: 4s.")
    ] = None,
    stride: Annotated[
        float | None, typer.Option(parser=console.seconds, metavar="TIME", help="Between windows: a quarter of one.")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Or windows of the model's frames at so many a second.")] = None,
    smooth: Annotated[int, typer.Option(help="Windows whose probabilities are averaged; 1 for none.")] = 3,
    min_segment: Annotated[
        float | None, typer.Option(parser=console.seconds, metavar="TIME", help="Shortest segment: half a window.")
    ] = None,
    min_score: Annotated[float, typer.Option(help="Below this probability the label is 'unknown'.")] = 0.0,
    reuse_threshold: Annotated[
        float | None,
        typer.Option(
            metavar="LEVELS", help="Frames so near to an earlier one take its features: 0 to 255, see README."
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Classes kept in each row.")] = 5,
    features: Annotated[Path | None, typer.Option(help="Write feature vectors to this .npz or .parquet.")] = None,
    vtt: Annotated[Path | None, typer.Option(help="Write captions (WebVTT) for each video to this folder.")] = None,
    annotate: Annotated[Path | None, typer.Option(help="Write copies with the labels drawn in to this folder.")] = None,
    max_errors: Annotated[str | None, typer.Option(help="Stop when so many videos failed: 20, or 5%.")] = None,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Of N machines, this is number I.")] = None,
    all_files: Annotated[bool, typer.Option("--all-files", help="Take files of any suffix in folders.")] = False,
    follow_links: Annotated[
        bool, typer.Option("--follow-symlinks", help="In folders take links too that stay inside them.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget the journal and begin anew.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Do failed videos again.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Print the labels as a table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")] = False,
) -> None:
    """Label videos: one row each, whatever happens. The same command again does what is missing."""
    import msgspec

    from harec_deploy.label.child import Limits
    from harec_deploy.label.options import Options
    from harec_deploy.label.run import label as label_videos
    from harec_deploy.shard import Shard

    announce = _say_nothing if quiet else console.say
    options = Options(
        out=out,
        device=device,
        runner=runner,
        precision=precision,
        rebuild=partial(_rebuild, announce) if rebuild else None,
        decoder=decoder,
        top_k=top_k,
        workers=console.count(workers, "--workers"),
        limits=Limits(seconds=timeout),
        window_s=window,
        stride_s=stride,
        fps=fps,
        smooth=smooth,
        min_segment_s=min_segment,
        min_score=min_score,
        reuse_threshold=reuse_threshold,
        features=features,
        vtt=vtt,
        annotate=annotate,
        max_errors=max_errors,
        shard=Shard.read(shard) if shard is not None else None,
        all_files=all_files,
        follow_links=follow_links,
        restart=restart,
        retry_failed=retry_failed,
        announce=announce,
    )
    with console.Signals(options.stop) as signals, console.progress_bar("labelling") as (bar, task):
        if not quiet:
            options = replace(options, progress=_shown(bar, task), annotating=partial(_annotating, bar, task))
        summary = label_videos(bundle, inputs, options)
    if table:
        _print_table(summary)
    if as_json:
        console.out.print(msgspec.json.encode(summary.facts()).decode(), markup=False)
    if not quiet:
        _say_summary(summary, out)
    _exit(summary, signals)


def _rebuild(announce: Callable[[str], None], bundle: "Bundle", variant: str, device: str) -> None:
    try:
        exporter = import_module("harec_deploy.export.tensorrt")
    except ModuleNotFoundError as error:
        raise console.missing(error, "tensorrt", "--rebuild") from None
    exporter.rebuild(bundle, variant, device, progress=announce)


def _say_nothing(_: object) -> None:
    """Take the place of what --quiet leaves out."""


def _shown(bar: "Bar", task: "TaskID") -> "Callable[[Progress], None]":
    """Return what draws the bar, or says a line every few seconds where there is no terminal."""
    said = time.monotonic()

    def show(progress: "Progress") -> None:
        nonlocal said
        stages = progress.stages
        note = (
            f"{progress.videos_per_s:.1f} videos/s, {progress.failed} failed; "
            f"engine {stages.engine_busy:.0%}, decode {stages.decode_busy:.0%} busy"
        )
        if stages.batch_name:
            note += f", {stages.batch_name} {stages.batch_busy:.0%}"
        bar.update(task, completed=progress.done, total=progress.total, note=note)
        if bar.disable and time.monotonic() - said >= LINE_EVERY_S:
            said = time.monotonic()
            left_s = (progress.total - progress.done) / progress.videos_per_s
            console.say(f"{progress.done}/{progress.total} videos, {note}; {_duration(left_s)} left")

    return show


def _annotating(bar: "Bar", task: "TaskID", done: int, total: int) -> None:
    bar.update(task, description="annotating", completed=done, total=total, note="")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def _exit(summary: "Summary", signals: console.Signals) -> None:
    """Exit with what the run came to."""
    if summary.stopped or signals.number:
        why = summary.stopped or "interrupted while annotating"
        console.say(f"stopped: {why}; {summary.todo} videos are left. Resume with: {_resume()}")
        raise typer.Exit(signals.exit_status if signals.number else EXIT_FAILED)
    if summary.statuses["failed"] or summary.not_annotated:
        raise typer.Exit(EXIT_SOME_VIDEOS_FAILED)


def _resume() -> str:
    """Return this command line, less what would begin anew."""
    words = [word for word in sys.argv[1:] if word != "--restart"]
    return shlex.join(["harec-deploy", *words])


def _say_summary(summary: "Summary", out: Path) -> None:
    counts = ", ".join(f"{summary.statuses[status]} {status}" for status in ("ok", "partial", "failed"))
    skipped = len(summary.rows) - summary.done
    console.say(f"{counts}" + (f"; {skipped} were done before" if skipped else ""))
    for code, count in summary.errors.most_common():
        example = summary.examples[code]
        console.say(f"  {code}: {count}, e.g. {example.path}: {(example.error or {})['message']}")
    for path, reason in summary.not_annotated:
        console.say(f"  not annotated: {path}: {reason}")
    for what, count in summary.ignored.items():
        console.say(f"  passed over: {count} {what}")
    if summary.done:
        speed = f"{summary.videos_per_s:.1f} videos/s, {summary.times_real_time:.0f} times real time"
        console.say(f"{speed}; {summary.stages.bound_by()}")
        if routes := summary.stages.routes_told():
            console.say(routes)
    if reuse := summary.stages.reuse_told():
        console.say(reuse)
    if summary.stages.videos:
        console.say("  " + ", ".join(f"{name}: {count} videos" for name, count in summary.stages.videos.items()))
    if not summary.stopped:
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
