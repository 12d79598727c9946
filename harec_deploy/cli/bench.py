"""harec-deploy bench: how fast a bundle runs on this machine, and where the time goes."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, wraps
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

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
Batch = Annotated[str, typer.Option(help="Clips in a call: 1,4,16.")]
Streams = Annotated[str, typer.Option(help="Recognisers side by side, each with its share of the cores: 1,2.")]


@dataclass(frozen=True, slots=True)
class Common:
    """The options that every command has, with their defaults."""

    compare: Annotated[
        str,
        typer.Option(help="onnx-fp32,onnx-int8 or openvino:bf16,torch or 'onnx-fp32 on onnx in fp32'; else all."),
    ] = ""
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto"
    max_clips: Annotated[int, typer.Option(min=1, help="Clips or videos taken, at most; spread evenly.")] = 100
    within: Annotated[str, typer.Option(help="Measure until the 95 % interval of each median is so narrow.")] = "2%"
    seconds: Annotated[float, typer.Option(help="Of measuring, at most; in a sweep, of each step.")] = 30.0
    out: Annotated[
        list[Path] | None, typer.Option("--out", "-o", help="Write .json, .md or .png; may be repeated.")
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown instead of the table.")] = False

    def names(self) -> list[str]:
        """Return what is compared, [] for all."""
        return [name.strip() for name in self.compare.split(",") if name.strip()]

    def of_engine(self, **more: Any) -> dict[str, Any]:
        """Return what engine.Settings takes of them."""
        return {"compare": self.names(), "device": self.device, "max_clips": self.max_clips, **more}

    def of_videos(self, **more: Any) -> dict[str, Any]:
        """Return what videos.VideoSettings takes of them."""
        return {"compare": self.names(), "device": self.device, "max_videos": self.max_clips, **more}


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function whose last parameter is a Common, in whose place its options are on the line.

    An option of Common that the function has a parameter for has the words of that.
    """
    own = [each for name, each in signature(function).parameters.items() if name != "common"]
    shared = signature(Common).parameters
    named = {each.name for each in own}

    @wraps(function)
    def command(**given: Any) -> None:
        common = Common(**{name: given[name] for name in shared})
        function(**{name: given[name] for name in named - shared.keys()}, common=common)

    every = [*own, *(each for name, each in shared.items() if name not in named)]
    command.__signature__ = Signature(every)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in every}
    return bench.command()(command)


@_command
def latency(bundle: Bundle, clips: Clips = None, batch: Batch = "1", streams: Streams = "1", *, common: Common) -> None:
    """Measure the time of a call: percentiles, mean, histogram; all ways, batches and streams take turns."""
    from harec_deploy.bench import engine

    counts = {"batches": _counts(batch, "--batch"), "streams": _counts(streams, "--streams")}
    _show(partial(engine.latency, bundle), engine.Settings(**common.of_engine(clips=clips or (), **counts)), common)


@_command
def throughput(bundle: Bundle, clips: Clips = None, streams: Streams = "1", *, common: Common) -> None:
    """Measure clips a second with ever larger batches, until twice as large a one brings nothing more."""
    from harec_deploy.bench import engine

    asked = common.of_engine(clips=clips or (), streams=_counts(streams, "--streams"))
    _show(partial(engine.throughput, bundle), engine.Settings(**asked), common)


@_command
def decode(
    videos: Videos,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", "-b", help="Ask for its frames; 16 of 224x224 by default.")
    ] = None,
    compare: Annotated[str, typer.Option(help="Decoders: pyav,dali; by default those that are installed.")] = "",
    *,
    common: Common,
) -> None:
    """Measure each decoder on the videos of each codec and size, one video after the other in this process."""
    from harec_deploy.bench import videos as of_videos

    _show(partial(of_videos.decode, videos, bundle), of_videos.VideoSettings(**common.of_videos()), common)


@_command
def label(
    bundle: Bundle,
    videos: Videos,
    decoder: Annotated[str, typer.Option(help="auto, pyav, dali, or both from one queue.")] = "auto",
    workers: Annotated[str, typer.Option(metavar="N|auto", help="Videos decoded at a time.")] = "auto",
    *,
    common: Common,
) -> None:
    """Measure whole labelling runs, and what each stage takes. The rows are thrown away."""
    from harec_deploy.bench import videos as of_videos

    asked = common.of_videos(workers=console.count(workers, "--workers"), decoder=decoder)
    _show(partial(of_videos.label, bundle, videos), of_videos.VideoSettings(**asked), common)


@_command
def pick(bundle: Bundle, clips: Videos, *, common: Common) -> None:
    """Measure every way that passed its proof; from then on --runner auto takes the fastest on this machine."""
    from harec_deploy.bench import engine

    result = _show(partial(engine.pick, bundle), engine.Settings(**common.of_engine(clips=clips)), common)
    console.say(f"{result.about['picked']} is what --runner auto takes from now on; in {result.about['stored_in']}")


def _show(measure: "Callable[[AnySettings], Result]", settings: "AnySettings", common: Common) -> "Result":
    """Measure, print and write."""
    from harec_deploy.bench import output
    from harec_deploy.bench.measure import Budget

    output.check(common.out or ())
    budget = Budget(within=_share(common.within), seconds=common.seconds)
    with console.progress_bar("measuring, in rounds") as (bar, task):
        step = partial(_step, bar, task)
        result = measure(replace(settings, budget=budget, announce=console.say, progress=step))
    if common.as_json or common.as_markdown:
        text = output.as_json(result) if common.as_json else output.as_markdown(result)
        console.out.print(text, markup=False, end="")
    else:
        console.out.print(output.as_table(result))
        for note in result.notes:
            console.say(f"note: {note}")
    for path in common.out or ():
        output.write(result, path)
        console.say(f"written to {path}")
    return result


def _step(bar: "Bar", task: "TaskID", rounds: int) -> None:
    bar.update(task, completed=rounds)


def _counts(text: str, option: str) -> list[int]:
    """Return the numbers of a list such as "1,4,16". Raises UsageError."""
    numbers = [int(word) if word.isdecimal() else 0 for word in map(str.strip, text.split(","))]
    if min(numbers) < 1:
        raise UsageError(f"{option} {text}: allowed are whole numbers from 1 on, with commas between: 1,4,16")
    return list(dict.fromkeys(numbers))


def _share(text: str) -> float:
    """Return 0.02 for "2%". Raises UsageError."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+) ?%", text.strip())
    if match is None or not 0 < float(match[1]) < 100:
        raise UsageError(f"--within {text}: allowed are shares such as 2%")
    return float(match[1]) / 100
