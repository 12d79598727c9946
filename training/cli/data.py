"""The commands that make and look at data sets: synthesize, prepare, show, frames."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harec_deploy.cli import console
from harec_deploy.errors import UsageError

if TYPE_CHECKING:
    from training.datasets.layouts import DataSettings


SPAN_HELP = "Central share of a video that is sampled: 0.5, or as 0.25:0.75; all of it by default."


def span_of(text: str) -> float:
    """Return the central share that "0.5" or "0.25:0.75" means. Raises UsageError for one that is not central."""
    try:
        ends = [float(part) for part in text.split(":")]
    except ValueError:
        ends = []
    if len(ends) == 2 and abs(ends[0] + ends[1] - 1) < 1e-6:
        return round(ends[1] - ends[0], 9)
    if len(ends) != 1:
        raise UsageError(
            f"--span {text}: allowed are a share, such as 0.5, or its two ends around the middle, 0.25:0.75"
        )
    return ends[0]


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
    from training.datasets import inspect, write_manifest
    from training.datasets.layouts import scan
    from training.splits import split, subset

    found = scan(videos, how.layout, official=how.official, group_regex=group_regex)
    chosen = subset(found.samples, how.classes, how.per_class, seed)
    with console.counted("decoding" if check else "looking") as step:
        readable, problems = inspect(chosen, whole=check, progress=step)
    for path, error in problems.items():
        console.say(f"left out: {path}: {error.kind}: {error}")
    samples, told = split(readable, (how.val, how.test), seed, how.split_by)
    write_manifest(manifest, samples, f"python -m training {shlex.join(sys.argv[1:])}", problems)
    names = len({sample.label for sample in samples})
    console.say(f"{found.layout}: {len(samples)} videos of {names} classes; {told}")


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
    with console.counted("classes") as step:
        shown = samples_sheet(data, folder / "samples.png", step)
    numbers(data, folder / "numbers.png")
    more = "" if shown == len(data.classes) else f" ({len(data.classes) - shown} classes more are not on the sheet)"
    console.say(f"written to {folder / 'samples.png'} and {folder / 'numbers.png'}{more}")


def frames(
    manifest: Annotated[Path, typer.Argument(help="What prepare wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for a folder of JPEG files a video.")],
    count: Annotated[int, typer.Option("--frames", help="Frames of each video.")] = 16,
    size: Annotated[int, typer.Option(help="Width and height in pixels.")] = 224,
    resize: Annotated[str, typer.Option(help="stretch, or crop: shorter side and centre crop.")] = "stretch",
    span: Annotated[str, typer.Option(help=SPAN_HELP)] = "1",
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
        sampling = msgspec.convert({"frames": count, "span": span_of(span)}, ClipSampling)
        wanted = msgspec.convert({"width": size, "height": size, "mode": resize}, Size)
    except msgspec.ValidationError as error:
        raise UsageError(str(error)) from None
    data = read_manifest(manifest)
    with console.counted("extracting") as step:
        problems = extract(data, out, sampling, wanted, step)
    for path, problem in problems.items():
        console.say(f"left out: {path}: {problem.kind}: {problem}")
    console.say(f"{len(data.samples) - len(problems)} videos in {out}")
