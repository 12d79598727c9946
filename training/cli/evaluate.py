"""The command that measures what was trained: evaluate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harec_deploy.cli import console
from harec_deploy.errors import UsageError

if TYPE_CHECKING:
    from training.metrics import Evaluation


def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or one with fold-0, fold-1, ... inside.")],
    split: Annotated[str, typer.Option(help="Which split of the run's manifest.")] = "test",
    test_clips: Annotated[int, typer.Option(help="Average over this many clips of a video, 1 to 30.")] = 1,
    test_views: Annotated[int, typer.Option(help="Average over this many shifted and mirrored views, 1 to 6.")] = 1,
    journal: Annotated[
        Path | None, typer.Option(help="Take the labels from what harec-deploy label wrote instead.")
    ] = None,
    runner: Annotated[
        str, typer.Option(help="Measure an exported variant: auto, openvino, onnx; the PyTorch weights by default.")
    ] = "",
    precision: Annotated[str, typer.Option(help="What the variant computes in.")] = "auto",
    variant: Annotated[
        str, typer.Option(help="Measure this exported variant: onnx-fp32, or another that harec-deploy inspect lists.")
    ] = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for tables and pictures, of all runs together.")
    ] = None,
) -> None:
    """Measure accuracy and calibration: a page, tables as CSV and JSON, confusion matrix and more as PNG."""
    try:
        from training.evaluate import run_folders
        from training.metrics import pooled
    except ModuleNotFoundError as error:
        raise console.missing(error, "train", "training") from None
    how = {"clips": test_clips, "views": test_views, "runner": runner, "precision": precision, "variant": variant}
    folders = run_folders(runs)
    if journal is not None:
        if len(folders) != 1 or list(how.values()) != [1, 1, "", "auto", "auto"]:
            raise UsageError("--journal goes with one run, and without options that say how its videos are labelled")
        how = {}
    if len(folders) == 1:
        _print_evaluation(evaluate_run(folders[0], split, out or folders[0] / "evaluation", journal=journal, **how))
        return
    every = [evaluate_run(one, split, one / "evaluation", **how) for one in folders]
    together = pooled(every)
    if out or len(runs) == 1:
        _write_evaluation(together, runs[0] if len(runs) == 1 else runs[0].parent, out or runs[0] / "evaluation")
    _print_evaluation(together)


def evaluate_run(one: Path, split: str, folder: Path, **how: Any) -> "Evaluation":
    """Measure one run and write its page, tables and pictures to ``folder``."""
    from training.evaluate import scored

    with console.counted(f"labelling {one}") as step:
        evaluation = scored(one, split, progress=step, **how)
    _write_evaluation(evaluation, one, folder)
    return evaluation


def _write_evaluation(evaluation: "Evaluation", run: Path, folder: Path) -> None:
    from training import plots
    from training.evaluate import write
    from training.module import read_metrics
    from training.page import write_page

    write(evaluation, folder)
    plots.confusion(evaluation, folder / "confusion.png")
    plots.reliability(evaluation, folder / "reliability.png")
    plots.contact_sheet(evaluation.predictions, folder / "contact_sheet.png")
    if history := read_metrics(run / "metrics.csv"):
        plots.curves(history, folder / "curves.png")
    told = f"{run}: {evaluation.correct} of {len(evaluation.predictions)} right"
    write_page(evaluation, told, folder)
    console.say(f"{told} ({evaluation.about}); written to {folder}")


def _print_evaluation(evaluation: "Evaluation") -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("class", "precision", "recall", "F1", "videos")
    for score in evaluation.by_class():
        cells = (f"{value:.3f}" for value in (score.precision, score.recall, score.f1))
        table.add_row(escape(score.name), *cells, str(score.count))
    console.out.print(table)
    count = len(evaluation.predictions)
    low, high = evaluation.wilson()
    console.out.print(
        f"accuracy {evaluation.accuracy:.1%} ({evaluation.correct} of {count}, 95 % between {low:.1%} and {high:.1%})"
    )
    groups, top_5 = len(evaluation.by_group()), evaluation.top_5
    told = "" if top_5 is None else f"; {top_5:.1%} in the best five"
    macro, weighted = evaluation.macro(), evaluation.weighted()
    drawn, sure = f"{groups} groups" if groups > 1 else "videos", "they are too few for an interval"
    if interval := evaluation.interval():
        sure = f"between {interval[0]:.1%} and {interval[1]:.1%}"
    console.out.print(
        f"drawing {drawn} anew: {sure}{told}; F1 {macro.f1:.3f} over classes, {weighted.f1:.3f} over videos"
    )
    for pair in evaluation.most_confused(3):
        console.out.print(escape(f"{pair.truth} taken for {pair.label}: {pair.count} ({pair.share:.0%})"))
    after, before = evaluation.reliability(), evaluation.reliability(calibrated=False)
    if after:
        told = f" (at temperature 1: {before.ece:.1%})" if before else ""
        console.out.print(f"expected calibration error {after.ece:.1%}{told}")
