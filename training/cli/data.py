"""The commands that make and look at data sets: synthesize, prepare, show, frames."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harec_deploy.cli import console
from harec_deploy.errors import UsageError
from training.cli import options

if TYPE_CHECKING:
    from training.datasets.layouts import DataSettings

SAID = 20  # videos left out that are told one by one; the manifest lists all


def synthesize(
    out: Annotated[Path, typer.Argument(help="Folder to write the videos to, a folder a class.")],
    actors: Annotated[int, typer.Option(help="People, each with a body, a camera and a background.")] = 10,
    clips: Annotated[int, typer.Option(help="Videos of each actor and action.")] = 4,
    seed: Annotated[int, typer.Option(help="Another seed gives other people.")] = 0,
) -> None:
    """Render a small data set of stick figures, real .mp4 and .avi files, whose actions one frame cannot tell apart."""
    from training.synthetic import synthesize as render_all

    with console.counted("rendering") as step:
        videos = render_all(out, actors=actors, clips_per_action=clips, seed=seed, progress=step)
    console.say(f"{len(videos)} videos in {out}; next: python -m training prepare {out}")


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
    write_prepared(videos, manifest, settings, seed=seed, group_regex=group_regex, check=check)
    console.say(f"written to {manifest}; next: python -m training fit {manifest}")


def write_prepared(
    videos: Path, manifest: Path, how: "DataSettings", *, seed: int, group_regex: str = "", check: bool = False
) -> None:
    """Look at a data set, choose of it, split it and write the manifest; say what was left out."""
    import msgspec

    from training.datasets import inspect, write_manifest
    from training.datasets.layouts import scan
    from training.splits import split, subset

    found = scan(videos, how.layout, official=how.official, group_regex=group_regex)
    if found.told:
        console.say(f"{found.told}; --layout names another")
    chosen = subset(found.samples, how.classes, how.per_class, seed)
    with console.counted("decoding" if check else "looking") as step:
        readable, problems = inspect(chosen, whole=check, progress=step)
    left_out = {path: f"{error.kind}: {error}" for path, error in problems.items()}
    labels = {sample.label for sample in chosen}
    left_out |= {one.path: why for one, why in found.left_out if one.label in labels or not how.classes}
    for path, why in list(left_out.items())[:SAID]:
        console.say(f"left out: {path}: {why}")
    if len(left_out) > SAID:
        console.say(f"left out: {len(left_out) - SAID} more; all are listed in {manifest}")
    samples, told = split(readable, (how.val, how.test), seed, how.split_by)
    data = msgspec.to_builtins(how) | {"layout": found.layout, "group_regex": console.printable(group_regex)}
    data |= {"seed": seed, "check": check, "split": told}
    write_manifest(manifest, samples, f"python -m training {shlex.join(sys.argv[1:])}", left_out, data)
    names = len({sample.label for sample in samples})
    console.say(f"{found.layout}: {len(samples)} videos of {names} classes; {told}")


def show(
    manifest: Annotated[Path, typer.Argument(help="What prepare wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the pictures; the manifest's by default.")
    ] = None,
    crop: options.Crop = None,
    aspect: options.Aspect = None,
    colour: options.Colour = None,
    hue: options.Hue = None,
) -> None:
    """Draw a data set: samples.png, frames of each class; numbers.png, counts by class and split, lengths, sizes.

    With --crop, --colour or --hue augmented.png shows what fit with these makes of clips.
    """
    try:
        from training.show import numbers, samples_sheet
    except ModuleNotFoundError as error:
        raise console.missing(error, "train", "pictures") from None
    from training.datasets import read_manifest

    data, folder = read_manifest(manifest), out or manifest.parent
    folder.mkdir(parents=True, exist_ok=True)
    with console.counted("classes") as step:
        shown = samples_sheet(data, folder / "samples.png", step)
    numbers(data, folder / "numbers.png")
    changes = {"crop": crop, "aspect": aspect, "colour": colour, "hue": hue}
    if any(value is not None for value in changes.values()):
        from training import recipes
        from training.show_augmented import augmented_sheet

        recipe = recipes.to_recipe(recipes.read("", {"augmentation": changes}))
        augmented_sheet(data, recipe.augmentation, folder / "augmented.png")
        console.say(f"written to {folder / 'augmented.png'}")
    more = "" if shown == len(data.classes) else f" ({len(data.classes) - shown} classes more are not on the sheet)"
    console.say(f"written to {folder / 'samples.png'} and {folder / 'numbers.png'}{more}")


def frames(
    manifest: Annotated[Path, typer.Argument(help="What prepare wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for a folder of JPEG files a video.")],
    count: Annotated[int, typer.Option("--frames", help="Frames of each video.")] = 16,
    size: Annotated[int, typer.Option(help="Width and height in pixels.")] = 224,
    resize: Annotated[str, typer.Option(help="stretch, or crop: shorter side and centre crop.")] = "stretch",
    span: options.Span = None,
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
        sampling = msgspec.convert({"frames": count, "span": 1.0 if span is None else span}, ClipSampling)
        wanted = msgspec.convert({"width": size, "height": size, "mode": resize}, Size)
    except msgspec.ValidationError as error:
        raise UsageError(str(error)) from None
    data = read_manifest(manifest)
    with console.counted("extracting") as step:
        problems = extract(data, out, sampling, wanted, step)
    for path, problem in problems.items():
        console.say(f"left out: {path}: {problem.kind}: {problem}")
    console.say(f"{len(data.samples) - len(problems)} videos in {out}")
