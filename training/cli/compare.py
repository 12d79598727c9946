"""The command that sets runs beside each other: compare."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harec_deploy.cli import console

if TYPE_CHECKING:
    from training.compare import Result


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, also of folds, that have the same test videos.")],
    split: Annotated[str, typer.Option(help="Which split of the runs' manifests.")] = "test",
    runner: Annotated[
        str, typer.Option(help="auto, openvino, onnx, torch; auto takes the fastest of each, torch if not exported.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="What it computes in.")] = "auto",
    variant: Annotated[str, typer.Option(help="Take this exported variant of each.")] = "auto",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for tables and picture.")] = Path("comparison"),
) -> None:
    """Set runs beside each other: accuracy, calibration, size, CPU speed, and which differences are significant."""
    try:
        from training import plots
        from training.compare import compare, contenders, pairs, write
    except ModuleNotFoundError as error:
        raise console.missing(error, "train", "training") from None
    with console.counted("labelling") as step:
        results = compare(contenders(runs, split), runner=runner, precision=precision, variant=variant, progress=step)
    tested = pairs(results)
    write(results, tested, split, out)
    plots.speed_accuracy(results, out / "speed_accuracy.png")
    _print_results(results, split)
    for pair in tested:
        console.out.print(str(pair), markup=False)
    if len(results[0].evaluation.by_group()) > 1:
        console.say("McNemar's test is too sure where the videos of a group are alike: see the intervals too")
    console.say(f"written to {out}")


def _print_results(results: "list[Result]", split: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    from training.compare import as_row

    evaluation = results[0].evaluation
    groups = len(evaluation.by_group())
    drawn = f"{groups} groups" if groups > 1 else "videos"
    table = Table(
        *("run", "accuracy", "95 % (Wilson)", f"95 % ({drawn} anew)", "ECE", "parameters, M", "GFLOPs a clip"),
        *("CPU clips/s", "MB of weights", "MB executed", "by"),
        title=f"{len(evaluation.predictions)} videos of split {escape(split)}",
        title_justify="left",
    )
    for row in map(as_row, results):
        ece = "unknown" if row["ece"] is None else f"{row['ece']:.1%}"
        table.add_row(
            escape(console.printable(row["run"])),
            f"{row['accuracy']:.1%}",
            f"{row['accuracy_low']:.1%} to {row['accuracy_high']:.1%}",
            "too few" if row["by_group_low"] is None else f"{row['by_group_low']:.1%} to {row['by_group_high']:.1%}",
            ece,
            *(f"{value:.3g}" for value in (row["parameters"] / 1e6, row["gflops_per_clip"], row["cpu_clips_per_s"])),
            *(f"{value:.3g}" for value in (row["weights_mb"], row["variant_mb"])),
            row["run_by"],
        )
    console.out.print(table)
