"""harec-deploy bench: how fast a bundle runs on this machine, and where the time goes."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from harec_deploy.cli import console
from harec_deploy.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from harec_deploy.bench.engine import Settings
    from harec_deploy.bench.result import Result
    from harec_deploy.bench.videos import VideoSettings

AnySettings = TypeVar("AnySettings", "Settings", "VideoSettings")

bench = typer.Typer(name="bench", no_args_is_help=True, help="Measure: latency, throughput, decoding, labelling; pick.")

Bundle = Annotated[Path, typer.Argument(help="The exported model.")]
Videos = Annotated[list[str], typer.Argument(help="Videos, folders, globs or @list.txt.")]
Clips = Annotated[
    list[str] | None, typer.Option("--clips", help="Videos or folders; the bundle's check clips by default.")
]
Compare = Annotated[
    str, typer.Option(help="onnx-fp32,onnx-int8 or openvino:bf16,torch or 'onnx-fp32 on onnx in fp32'; all by default.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda:N.")]
MaxClips = Annotated[int, typer.Option(min=1, help="Clips or videos taken, at most; spread evenly.")]
Within = Annotated[str, typer.Option(help="Measure until the 95 % interval of each median is so narrow.")]
Seconds = Annotated[float, typer.Option(help="Of measuring, at most; in a sweep, of each step.")]
Out = Annotated[list[Path] | None, typer.Option("--out", "-o", help="Write .json, .md or .png; may be repeated.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown instead of the table.")]


Batch = Annotated[str, typer.Option(help="Clips in a call: 1,4,16.")]
Streams = Annotated[str, typer.Option(help="Recognisers side by side, each with its share of the cores: 1,2.")]


@bench.command()
def latency(
    bundle: Bundle,
    clips: Clips = None,
    compare: Compare = "",
    device: Device = "auto",
    batch: Batch = "1",
    streams: Streams = "1",
    max_clips: MaxClips = 100,
    within: Within = "2%",
    seconds: Seconds = 30.0,
    out: Out = None,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Measure the time of a call: percentiles, mean, histogram; all ways, batches and streams take turns."""
    from harec_deploy.bench import engine

    settings = engine.Settings(
        compare=_names(compare),
        device=device,
        clips=clips or (),
        max_clips=max_clips,
        batches=_counts(batch, "--batch"),
        streams=_counts(streams, "--streams"),
    )
    _show(
        partial(engine.latency, bundle),
        settings,
        within,
        seconds,
        out,
        as_json=as_json,
        as_markdown=as_markdown,
    )


@bench.command()
def throughput(
    bundle: Bundle,
    clips: Clips = None,
    compare: Compare = "",
    device: Device = "auto",
    streams: Streams = "1",
    max_clips: MaxClips = 100,
    within: Within = "2%",
    seconds: Seconds = 30.0,
    out: Out = None,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Measure clips a second with ever larger batches, until twice as large a one brings nothing more."""
    from harec_deploy.bench import engine

    settings = engine.Settings(
        compare=_names(compare),
        device=device,
        clips=clips or (),
        max_clips=max_clips,
        streams=_counts(streams, "--streams"),
    )
    _show(
        partial(engine.throughput, bundle),
        settings,
        within,
        seconds,
        out,
        as_json=as_json,
        as_markdown=as_markdown,
    )


@bench.command()
def decode(
    videos: Videos,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", "-b", help="Ask for its frames; 16 of 224x224 by default.")
    ] = None,
    compare: Annotated[str, typer.Option(help="Decoders: pyav,dali; by default those that are installed.")] = "",
    device: Device = "auto",
    max_clips: MaxClips = 100,
    within: Within = "2%",
    seconds: Seconds = 30.0,
    out: Out = None,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Measure each decoder on the videos of each codec and size, one video after the other in this process."""
    from harec_deploy.bench import videos as of_videos

    settings = of_videos.VideoSettings(
        compare=_names(compare),
        device=device,
        max_videos=max_clips,
    )
    _show(
        partial(of_videos.decode, videos, bundle),
        settings,
        within,
        seconds,
        out,
        as_json=as_json,
        as_markdown=as_markdown,
    )


@bench.command()
def label(
    bundle: Bundle,
    videos: Videos,
    compare: Compare = "",
    device: Device = "auto",
    decoder: Annotated[str, typer.Option(help="auto, pyav, dali, or both from one queue.")] = "auto",
    workers: Annotated[str, typer.Option(metavar="N|auto", help="Videos decoded at a time.")] = "auto",
    max_clips: MaxClips = 100,
    within: Within = "2%",
    seconds: Seconds = 30.0,
    out: Out = None,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Measure whole labelling runs, and what each stage takes. The rows are thrown away."""
    from harec_deploy.bench import videos as of_videos

    settings = of_videos.VideoSettings(
        compare=_names(compare),
        device=device,
        max_videos=max_clips,
        workers=console.count(workers, "--workers"),
        decoder=decoder,
    )
    _show(
        partial(of_videos.label, bundle, videos),
        settings,
        within,
        seconds,
        out,
        as_json=as_json,
        as_markdown=as_markdown,
    )


@bench.command()
def pick(
    bundle: Bundle,
    clips: Videos,
    compare: Compare = "",
    device: Device = "auto",
    max_clips: MaxClips = 100,
    within: Within = "2%",
    seconds: Seconds = 30.0,
    out: Out = None,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Measure every way that passed its proof; from then on --runner auto takes the fastest on this machine."""
    from harec_deploy.bench import engine

    settings = engine.Settings(
        compare=_names(compare),
        device=device,
        clips=clips,
        max_clips=max_clips,
    )
    result = _show(
        partial(engine.pick, bundle), settings, within, seconds, out, as_json=as_json, as_markdown=as_markdown
    )
    console.say(f"{result.about['picked']} is what --runner auto takes from now on; in {result.about['stored_in']}")


def _show(
    measure: "Callable[[AnySettings], Result]",
    settings: "AnySettings",
    within: str,
    seconds: float,
    out: list[Path] | None,
    *,
    as_json: bool,
    as_markdown: bool,
) -> "Result":
    """Measure, print and write."""
    from harec_deploy.bench import output
    from harec_deploy.bench.measure import Budget

    output.check(out or ())
    budget = Budget(within=_share(within), seconds=seconds)
    with console.progress_bar("measuring, in rounds") as (bar, task):
        step = partial(_step, bar, task)
        result = measure(replace(settings, budget=budget, announce=console.say, progress=step))
    if as_json or as_markdown:
        text = output.as_json(result) if as_json else output.as_markdown(result)
        console.out.print(text, markup=False, end="")
    else:
        console.out.print(output.as_table(result))
        for note in result.notes:
            console.say(f"note: {note}")
    for path in out or ():
        output.write(result, path)
        console.say(f"written to {path}")
    return result


def _step(bar: "Bar", task: "TaskID", rounds: int) -> None:
    bar.update(task, completed=rounds)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _counts(text: str, option: str) -> list[int]:
    """Return the numbers of a list such as "1,4,16". Raises UsageError."""
    numbers = [int(word) if word.isdecimal() else 0 for word in map(str.strip, text.split(","))]
    if min(numbers) < 1:
        raise UsageError(f"{option} {text}: allowed are whole numbers from 1 on, with commas between: 1,4,16")
    return list(dict.fromkeys(numbers))


def _share(text: str) -> float:
    """Return 0.02 for "2%". Raises UsageError."""
    try:
        return float(text.removesuffix("%")) / 100
    except ValueError:
        raise UsageError(f"--within {text}: allowed are shares such as 2%") from None
