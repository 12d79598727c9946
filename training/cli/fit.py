"""The commands that train: fit, and run for a whole recipe; models lists what can be trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harec_deploy.cli import console
from harec_deploy.errors import EXIT_INTERRUPTED, UsageError
from training.cli import options
from training.cli.data import write_prepared
from training.cli.evaluate import evaluate_run

if TYPE_CHECKING:
    from training.fit import Report
    from training.recipes import RecipeFile


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


def fit(
    manifest: Annotated[Path, typer.Argument(help="What prepare wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")] = Path("runs/run"),
    recipe: options.RecipeName = "",
    architecture: options.Architecture = None,
    encoder_weights: options.EncoderWeights = None,
    finetune: Annotated[bool | None, typer.Option("--finetune", help="Train a pre-trained encoder too.")] = None,
    finetune_stages: Annotated[
        int | None, typer.Option(min=0, help="Train this many of its last stages, and freeze the others.")
    ] = None,
    frames: options.Frames = None,
    size: options.FrameSize = None,
    resize: options.Resize = None,
    span: options.Span = None,
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
    jitter: Annotated[
        str | None,
        typer.Option(help="Shift clips in time: clip, all frames alike, frame, each by itself, or none; clip."),
    ] = None,
    crop: options.Crop = None,
    aspect: options.Aspect = None,
    colour: options.Colour = None,
    hue: options.Hue = None,
    folds: Annotated[
        int | None, typer.Option(help="Train this many models, each without one fold of the groups.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, batches and folds; 0.")] = None,
    cache: options.Cache = None,
    devices: Annotated[
        str, typer.Option(help="GPUs that share each batch, or processes on a CPU without one; auto: all GPUs.")
    ] = "1",
    nodes: Annotated[int, typer.Option(help="Machines that run this command together; they share a disk.")] = 1,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log for TensorBoard too.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an earlier run, or fail.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget an earlier run in this folder.")] = False,
) -> None:
    """Train and write a bundle. Interrupted, the same command goes on from the step where it stopped."""
    given = _as_recipe(locals())
    try:
        from training import recipes
        from training.trainer import Launch
    except ModuleNotFoundError as error:
        raise console.missing(error, "train", "training") from None
    count = console.count(devices, "--devices")
    launch = Launch(devices="auto" if count is None else count, nodes=nodes, tensorboard=tensorboard)
    how: dict[str, Any] = {"resume": resume, "restart": restart, "launch": launch}
    _fit(manifest, recipes.read(recipe, given), out, cache, name=Path(recipe).stem, **how)


def _fit(manifest: Path, written: "RecipeFile", out: Path, cache: Path | None, **how: Any) -> list[Path]:
    from training.fit import fit_all
    from training.recipes import to_recipe

    recipe = to_recipe(written)
    cache = cache or manifest.parent / "cache"
    try:
        with _report() as report:
            bundles = fit_all(manifest, recipe, out, report, folds=written.folds, cache=cache, **how)
    except KeyboardInterrupt as interrupt:  # which typer would end without a word
        console.say("interrupted; the same command goes on where it stopped")
        raise typer.Exit(interrupt.args[0] if interrupt.args else EXIT_INTERRUPTED) from None
    console.say(f"written to {', '.join(map(str, bundles))}; next: harec-deploy export {bundles[0]}")
    return bundles


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
    if smoke and (videos is not None or encoder_weights is not None):
        raise UsageError("--smoke generates its videos and weights: leave --data and --encoder-weights out")
    folder = out or Path("runs") / Path(recipe).stem
    written = recipes.read(recipe, {"encoder_weights": encoder_weights}, smoke=smoke)
    recipes.to_recipe(written)  # what it does not allow is told before videos are rendered or looked at
    if smoke:
        with console.counted("rendering") as step:
            videos = recipes.smoke_data(written.data.layout, folder.with_name(f"{folder.name}-data"), step)
        written = recipes.with_random_weights(written, videos.parent)
    if videos is None:
        raise UsageError(f"--data: name the folder of the data set ({written.data.layout}), or try it with --smoke")
    manifest = folder.with_name(f"{folder.name}.csv")
    manifest.parent.mkdir(parents=True, exist_ok=True)
    write_prepared(videos, manifest, written.data, seed=written.seed)
    name = Path(recipe).stem + (" --smoke" if smoke else "")
    _fit(manifest, written, folder, None, restart=restart, name=name)
    for one in run_folders([folder]):
        evaluate_run(one, "test", one / "evaluation")


# What a recipe keeps in tables: field -> option. The other options stand in it under their own names.
_TABLES = {
    "sampling": {"frames": "frames", "span": "span"},
    "size": {"width": "size", "height": "size", "mode": "resize"},
    "head": {name: name for name in "hidden layers bidirectional dropout dense pool".split()},
    "optimisation": {
        name: name
        for name in (
            "epochs batch optimizer learning_rate encoder_rate weight_decay label_smoothing class_weights schedule "
            "warmup_epochs step_epochs step_factor clip_gradient patience amp"
        ).split()
    },
    "augmentation": {name: name for name in "crop aspect colour hue".split()},
}
_NOT_OF_A_RECIPE = set("manifest out recipe cache devices nodes tensorboard resume restart".split())


def _as_recipe(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of fit in the form of a recipe file, None for those that were not given."""
    tables = {table: {field: given[option] for field, option in fields.items()} for table, fields in _TABLES.items()}
    elsewhere = _NOT_OF_A_RECIPE.union(*(fields.values() for fields in _TABLES.values()))
    return tables | {name: value for name, value in given.items() if name not in elsewhere}


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
