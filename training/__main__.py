"""The command ``python -m training``: from folders of video to a bundle with known accuracy."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harec_deploy.cli import console
from harec_deploy.errors import UsageError

if TYPE_CHECKING:
    from training.datasets.layouts import DataSettings
    from training.fit import Report
    from training.metrics import Evaluation
    from training.recipes import RecipeFile

app = typer.Typer(
    name="python -m training",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train action recognisers: make or prepare a data set, fit, evaluate. The result is a bundle to export.",
)


@app.command()
def synthesize(
    out: Annotated[Path, typer.Argument(help="Folder to write the videos to, a folder a class.")],
    actors: Annotated[int, typer.Option(help="People, each with a body, a camera and a background.")] = 10,
    clips: Annotated[int, typer.Option(help="Videos of each actor and action.")] = 4,
    seed: Annotated[int, typer.Option(help="Another seed gives other people.")] = 0,
) -> None:
    """Render a small data set of stick figures, real .mp4 and .avi files, whose actions one frame cannot tell apart."""
    from training.synthetic import synthesize as render_all

    with _counted("rendering") as step:
        videos = render_all(out, actors=actors, clips_per_action=clips, seed=seed, progress=step)
    console.say(f"{len(videos)} videos in {out}; next: python -m training prepare {out}")


@app.command()
def prepare(
    videos: Annotated[Path, typer.Argument(help="The folder of a data set.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The manifest; VIDEOS/manifest.csv by default.")
    ] = None,
    layout: Annotated[
        str, typer.Option(help="ucf101, ucf50, ucf11, hmdb51, kinetics, folders; auto looks what is there.")
    ] = "auto",
    official: Annotated[int | None, typer.Option(help="Take this one of the official splits: 1, 2 or 3.")] = None,
    split_by: Annotated[str, typer.Option(help="auto, group or random.")] = "auto",
    group_regex: Annotated[
        str, typer.Option(help="Finds the group in a file name, by its parentheses; UCF's gNN by default.")
    ] = "",
    classes: Annotated[str, typer.Option(help="So many classes drawn at random, or their names: Biking,Diving.")] = "",
    per_class: Annotated[int, typer.Option(help="Videos of each class, at most; 0: all.")] = 0,
    val: Annotated[float, typer.Option(help="Share of the validation split.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of the test split.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the split and of what is drawn.")] = 0,
    check: Annotated[bool, typer.Option("--check", help="Decode every frame and leave damaged videos out.")] = False,
) -> None:
    """Write a manifest of a data set: UCF-101, UCF-50, UCF-11, HMDB-51, Kinetics, or a folder for each class."""
    from training.datasets.layouts import DataSettings

    settings = DataSettings(
        layout=layout,
        official=official,
        split_by=split_by,
        classes=classes,
        per_class=per_class,
        val=val,
        test=test,
    )
    manifest = out or videos / "manifest.csv"
    _prepare(videos, manifest, settings, seed=seed, group_regex=group_regex, check=check)
    console.say(f"written to {manifest}; next: python -m training fit {manifest}")


def _prepare(
    videos: Path, manifest: Path, how: "DataSettings", *, seed: int, group_regex: str = "", check: bool = False
) -> None:
    from training.datasets import inspect, write_manifest
    from training.datasets.layouts import scan
    from training.splits import split, subset

    found = scan(videos, how.layout, official=how.official, group_regex=group_regex)
    chosen = subset(found.samples, how.classes, how.per_class, seed)
    with _counted("decoding" if check else "looking") as step:
        readable, problems = inspect(chosen, whole=check, progress=step)
    for path, error in problems.items():
        console.say(f"left out: {path}: {error.kind}: {error}")
    samples, told = split(readable, (how.val, how.test), seed, how.split_by)
    write_manifest(manifest, samples, f"python -m training {shlex.join(sys.argv[1:])}", problems)
    names = len({sample.label for sample in samples})
    console.say(f"{found.layout}: {len(samples)} videos of {names} classes; {told}")


@app.command()
def show(
    manifest: Annotated[Path, typer.Argument(help="What prepare wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the pictures; the manifest's by default.")
    ] = None,
) -> None:
    """Draw a data set: samples.png, frames of each class; numbers.png, counts by class and split, lengths, sizes."""
    try:
        from training.show import numbers, samples_sheet
    except ModuleNotFoundError as error:
        raise console.missing(error, "train", "pictures") from None
    from training.datasets import read_manifest

    data, folder = read_manifest(manifest), out or manifest.parent
    folder.mkdir(parents=True, exist_ok=True)
    with _counted("classes") as step:
        shown = samples_sheet(data, folder / "samples.png", step)
    numbers(data, folder / "numbers.png")
    more = "" if shown == len(data.classes) else f" ({len(data.classes) - shown} classes more are not on the sheet)"
    console.say(f"written to {folder / 'samples.png'} and {folder / 'numbers.png'}{more}")


@app.command()
def frames(
    manifest: Annotated[Path, typer.Argument(help="What prepare wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for a folder of JPEG files a video.")],
    count: Annotated[int, typer.Option("--frames", help="Frames of each video.")] = 16,
    size: Annotated[int, typer.Option(help="Width and height in pixels.")] = 224,
    resize: Annotated[str, typer.Option(help="stretch, or crop: shorter side and centre crop.")] = "stretch",
    span: Annotated[float, typer.Option(help="Central share of a video that is sampled.")] = 1.0,
) -> None:
    """Write the frames that a model would be given as JPEG files, for tools that want those."""
    import msgspec

    try:
        from training.frames import extract
    except ModuleNotFoundError as error:
        raise console.missing(error, "train", "frames") from None
    from harec_deploy.decode import Size
    from harec_deploy.sampling import ClipSampling
    from training.datasets import read_manifest

    try:
        sampling = msgspec.convert({"frames": count, "span": span}, ClipSampling)
        wanted = msgspec.convert({"width": size, "height": size, "mode": resize}, Size)
    except msgspec.ValidationError as error:
        raise UsageError(str(error)) from None
    data = read_manifest(manifest)
    with _counted("extracting") as step:
        problems = extract(data, out, sampling, wanted, step)
    for path, problem in problems.items():
        console.say(f"left out: {path}: {problem.kind}: {problem}")
    console.say(f"{len(data.samples) - len(problems)} videos in {out}")


@app.command()
def models(
    classes: Annotated[int, typer.Option(min=2, help="Classes of the data set.")] = 101,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """List the architectures with parameters, arithmetic and the clip that each takes unless told otherwise."""
    try:
        from training.costs import all_costs, as_rows, to_json
    except ModuleNotFoundError as error:
        raise console.missing(error, "train", "training") from None
    costs = all_costs(classes)
    if as_json:
        console.out.print(to_json(costs, classes), markup=False)
        return
    from rich.table import Table

    columns, rows = as_rows(costs)
    table = Table(*columns, title=f"architectures, for {classes} classes", title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.out.print(table)
    console.say("GFLOPs count a multiply-add as two, in convolutions and matrix products; 10^9, for one clip")


@app.command()
def fit(
    manifest: Annotated[Path, typer.Argument(help="What prepare wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")] = Path("runs/run"),
    recipe: Annotated[
        str, typer.Option(help="A TOML file, or a recipe's name (see run); the options below go on top of it.")
    ] = "",
    architecture: Annotated[
        str | None, typer.Option(help="One that python -m training models lists; resnet50_lstm by default.")
    ] = None,
    encoder_weights: Annotated[
        str | None, typer.Option(help="imagenet, or a file with the encoder's state dict.")
    ] = None,
    finetune: Annotated[bool | None, typer.Option("--finetune", help="Train a pre-trained encoder too.")] = None,
    finetune_stages: Annotated[
        int | None, typer.Option(min=0, help="Train this many of its last stages, and freeze the others.")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a clip; the architecture's by default.")] = None,
    size: Annotated[int | None, typer.Option(help="Width and height of a frame in pixels.")] = None,
    resize: Annotated[str | None, typer.Option(help="stretch, or crop: shorter side and centre crop.")] = None,
    span: Annotated[float | None, typer.Option(help="Central share of a video that is sampled; 1.")] = None,
    hidden: Annotated[int | None, typer.Option(help="Width of the LSTM.")] = None,
    layers: Annotated[int | None, typer.Option(help="Layers of the LSTM.")] = None,
    bidirectional: Annotated[bool | None, typer.Option("--bidirectional", help="Read the clip both ways.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Before the classifier and between layers.")] = None,
    dense: Annotated[int | None, typer.Option(help="Width of a layer behind the LSTM; 0 for none.")] = None,
    pool: Annotated[str | None, typer.Option(help="max, mean or last: how the LSTM's outputs are read.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training videos; 40.")] = None,
    batch: Annotated[int | None, typer.Option(help="Clips of a step; 32.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw, adam or sgd.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the head, at its highest; 0.001.")] = None,
    encoder_rate: Annotated[float | None, typer.Option(help="The encoder's, as a share of the head's; 1.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="0.01 by default.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="0.1 by default.")] = None,
    class_weights: Annotated[
        bool | None, typer.Option("--class-weights", help="Small classes count as much as large ones.")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="onecycle, cosine, step, plateau or none.")] = None,
    warmup_epochs: Annotated[int | None, typer.Option(help="Epochs in which the rate rises; 0.")] = None,
    step_epochs: Annotated[int | None, typer.Option(help="Epochs to a step, or that a plateau lasts; 10.")] = None,
    step_factor: Annotated[float | None, typer.Option(help="What the rate is multiplied by then; 0.1.")] = None,
    clip_gradient: Annotated[float | None, typer.Option(help="Longest gradient; 1, or 0 for any.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without a better val loss; 0: never.")
    ] = None,
    amp: Annotated[str | None, typer.Option(help="auto, none, fp16 or bf16.")] = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", help="Mirror half of the clips; yes.")] = None,
    folds: Annotated[
        int | None, typer.Option(help="Train this many models, each without one fold of the groups.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, batches and folds; 0.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where decoded frames and features are kept.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Forget an earlier run in this folder.")] = False,
) -> None:
    """Train and write a bundle. Interrupted, the same command goes on from its last epoch."""
    try:
        from training import recipes
    except ModuleNotFoundError as error:
        raise console.missing(error, "train", "training") from None
    given = {
        "architecture": architecture,
        "encoder_weights": encoder_weights,
        "finetune": finetune,
        "finetune_stages": finetune_stages,
        "sampling": {"frames": frames, "span": span},
        "size": {"width": size, "height": size, "mode": resize},
        "head": {
            "hidden": hidden,
            "layers": layers,
            "bidirectional": bidirectional,
            "dropout": dropout,
            "dense": dense,
            "pool": pool,
        },
        "optimisation": {
            "epochs": epochs,
            "batch": batch,
            "optimizer": optimizer,
            "learning_rate": learning_rate,
            "encoder_rate": encoder_rate,
            "weight_decay": weight_decay,
            "label_smoothing": label_smoothing,
            "class_weights": class_weights,
            "schedule": schedule,
            "warmup_epochs": warmup_epochs,
            "step_epochs": step_epochs,
            "step_factor": step_factor,
            "clip_gradient": clip_gradient,
            "patience": patience,
            "amp": amp,
        },
        "flip": flip,
        "folds": folds,
        "seed": seed,
    }
    _fit(manifest, recipes.read(recipe, given), out, cache, restart=restart)


def _fit(manifest: Path, written: "RecipeFile", out: Path, cache: Path | None, *, restart: bool) -> list[Path]:
    from training.fit import fit_all
    from training.recipes import to_recipe

    recipe = to_recipe(written)
    with _report() as report:
        bundles = fit_all(
            manifest,
            recipe,
            out,
            report,
            folds=written.folds,
            cache=cache or manifest.parent / "cache",
            restart=restart,
        )
    console.say(f"written to {', '.join(map(str, bundles))}; next: harec-deploy export {bundles[0]}")
    return bundles


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or TOML file; without one they are listed.")] = "",
    videos: Annotated[Path | None, typer.Option("--data", help="The folder of the data set.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run; runs/RECIPE by default.")] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Try it in minutes: generated videos in the same layout, a small model.")
    ] = False,
    encoder_weights: Annotated[str | None, typer.Option(help="Instead of the recipe's.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Forget an earlier run in this folder.")] = False,
) -> None:
    """Prepare, fit and evaluate in one go, as a recipe says."""
    try:
        from training import recipes
        from training.evaluate import run_folders
    except ModuleNotFoundError as error:
        raise console.missing(error, "train", "training") from None
    if not recipe:
        for name in recipes.names():
            console.out.print(f"{name}: {recipes.read(name).about}", markup=False)
        return
    folder = out or Path("runs") / Path(recipe).stem
    written = recipes.read(recipe, {"encoder_weights": encoder_weights}, smoke=smoke)
    if smoke:
        with _counted("rendering") as step:
            videos = recipes.smoke_data(written.data.layout, folder.with_name(f"{folder.name}-data"), step)
        written = recipes.with_random_weights(written, videos.parent)
    if videos is None:
        raise UsageError(f"--data: name the folder of the data set ({written.data.layout}), or try it with --smoke")
    manifest = folder.with_name(f"{folder.name}.csv")
    manifest.parent.mkdir(parents=True, exist_ok=True)
    _prepare(videos, manifest, written.data, seed=written.seed)
    _fit(manifest, written, folder, None, restart=restart)
    for one in run_folders([folder]):
        _evaluate(one, "test", one / "evaluation")


@app.command()
def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or one with fold-0, fold-1, ... inside.")],
    split: Annotated[str, typer.Option(help="Which split of the run's manifest.")] = "test",
    test_views: Annotated[int, typer.Option(help="Average over this many shifted and mirrored views, 1 to 6.")] = 1,
    journal: Annotated[
        Path | None, typer.Option(help="Take the labels from what harec-deploy label wrote instead.")
    ] = None,
    runner: Annotated[
        str, typer.Option(help="Measure an exported variant: auto, openvino, onnx; the PyTorch weights by default.")
    ] = "",
    precision: Annotated[str, typer.Option(help="What the variant computes in.")] = "auto",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for tables and pictures.")] = None,
) -> None:
    """Measure accuracy and calibration: a page, tables as CSV and JSON, confusion matrix and more as PNG."""
    try:
        from training.evaluate import run_folders
        from training.metrics import summed_up
    except ModuleNotFoundError as error:
        raise console.missing(error, "train", "training") from None
    if journal is not None and (len(runs) != 1 or runner):
        raise UsageError("--journal goes with one run, and takes the place of --runner")
    every = [
        _evaluate(
            one,
            split,
            out if out and len(runs) == 1 else one / "evaluation",
            views=test_views,
            journal=journal,
            runner=runner,
            precision=precision,
        )
        for one in run_folders(runs)
    ]
    predictions = [prediction for evaluation in every for prediction in evaluation.predictions]
    _print_evaluation(summed_up(every[0].classes, predictions))


def _evaluate(one: Path, split: str, folder: Path, **how: Any) -> "Evaluation":
    from training.evaluate import scored

    with _counted(f"labelling {one}") as step:
        evaluation = scored(one, split, progress=step, **how)
    _write_evaluation(evaluation, one, folder)
    console.say(f"{one}: {evaluation.correct} of {len(evaluation.predictions)} right; written to {folder}")
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
    write_page(evaluation, f"{run}: {evaluation.correct} of {len(evaluation.predictions)} right", folder)


def _print_evaluation(evaluation: "Evaluation") -> None:
    from rich.markup import escape
    from rich.table import Table

    from training.metrics import wilson

    table = Table("class", "precision", "recall", "F1", "videos")
    for score in evaluation.by_class():
        cells = (f"{value:.3f}" for value in (score.precision, score.recall, score.f1))
        table.add_row(escape(score.name), *cells, str(score.count))
    console.out.print(table)
    count = len(evaluation.predictions)
    low, high = wilson(evaluation.correct, count)
    console.out.print(
        f"accuracy {evaluation.accuracy:.1%} ({evaluation.correct} of {count}, 95 % between {low:.1%} and {high:.1%})"
    )
    low, high = evaluation.interval()
    groups, top_5 = len(evaluation.by_group()), evaluation.top_5
    told = "" if top_5 is None else f"; {top_5:.1%} in the best five"
    macro, weighted = evaluation.macro(), evaluation.weighted()
    console.out.print(
        f"drawing {f'{groups} groups' if groups > 1 else 'videos'} anew: between {low:.1%} and {high:.1%}{told}; "
        f"F1 {macro.f1:.3f} over classes, {weighted.f1:.3f} over videos"
    )
    for pair in evaluation.most_confused(3):
        console.out.print(escape(f"{pair.truth} taken for {pair.label}: {pair.count} ({pair.share:.0%})"))
    after, before = evaluation.reliability(), evaluation.reliability(calibrated=False)
    if after:
        told = f" (at temperature 1: {before.ece:.1%})" if before else ""
        console.out.print(f"expected calibration error {after.ece:.1%}{told}")


@contextmanager
def _counted(what: str) -> Iterator[Callable[[int, int], None]]:
    with console.progress_bar(what) as (progress, task):
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def _report() -> Iterator["Report"]:
    from training.fit import Report

    with console.progress_bar("videos") as (progress, task):

        def epoch(number: int, epochs: int, facts: dict[str, float]) -> None:
            told = ", ".join(
                f"{name} {facts[name]:.3f}" for name in sorted(facts) if name.endswith(("loss", "accuracy"))
            )
            progress.update(task, description="epochs", completed=number, total=epochs, note=told)
            if number == epochs or number % max(epochs // 10, 1) == 0:
                console.say(f"epoch {number} of {epochs}: {told}")

        yield Report(
            say=console.say,
            step=lambda done, total: progress.update(task, completed=done, total=total),
            epoch=epoch,
        )


if __name__ == "__main__":
    console.run_app(app)
