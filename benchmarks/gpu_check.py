"""What a machine with a GPU does with harec-deploy: its GPU tests, then engine, decoders and whole runs, measured.

    make gpu-check                                                  (or python3 -m benchmarks.gpu_check)
    python3 -m benchmarks.gpu_check --device cpu --seconds 60 --tiny          the same code where there is no GPU

Needs Python 3.10 or later, numpy, msgspec, typer, rich and PyAV, no network and no installation. What else can be
imported is used (PyTorch with torchvision and safetensors, ONNX Runtime, TensorRT, DALI, OpenCV, pytest), and what
cannot is named. Where only safetensors is missing, its place is taken by benchmarks/stand_in.

Each section is a process of its own, so a crash, a hang or a poisoned GPU costs that section only. A section that ends
early leaves its time to those that follow, and none goes beyond the deadline. Every figure is in the JSON as soon as it
is known.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from harec_deploy import __version__
from harec_deploy.devices import cuda_devices
from harec_deploy.files import atomic_write

OUT = Path(__file__).parent / "results" / "gpu_check.json"
STAND_IN = Path(__file__).parent / "stand_in"
WORK = Path(tempfile.gettempdir()) / "harec_gpu_check"
SECONDS = 520.0  # of the 9 minutes that are allowed; the rest is for ending what hangs
# In the order in which they run: where each is, and its weight when what is left of the time is shared out.
SECTIONS = {
    "machine": ("benchmarks.gpu_machine:machine", 3.0),
    "prepare": ("benchmarks.gpu_videos:prepare", 8.0),
    "tests": ("benchmarks.gpu_machine:tests", 5.0),
    "engine": ("benchmarks.gpu_engine:engine", 6.0),
    "decode": ("benchmarks.gpu_runs:decode", 5.0),
    "end_to_end": ("benchmarks.gpu_runs:end_to_end", 5.0),
}
SOFT = 0.85  # of a section's time after which it begins nothing new


@dataclass(frozen=True)
class Setup:
    """What a section is told.

    target: "module:function". soft_s, hard_s: when it should end, and when it is ended, in seconds from its start.
    """

    section: str
    target: str
    device: str
    work: Path
    out: Path
    tiny: bool
    soft_s: float = 60.0
    hard_s: float = 60.0
    begun: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Seconds until the section should end."""
        return self.begun + self.soft_s - time.monotonic()

    @property
    def bundle(self) -> Path:
        """The folder of the recogniser that is measured."""
        return self.work / ("bundle_tiny" if self.tiny else "bundle")

    def rows(self, section: str) -> list[dict[str, Any]]:
        """Return what an earlier section found."""
        content = json.loads(self.out.read_text())
        rows: list[dict[str, Any]] = content["sections"].get(section, {}).get("rows", [])
        return rows


Row = dict[str, Any]
Section = Callable[[Setup], Iterator[Row]]


@dataclass
class Report:
    """All that is known so far; ``save`` writes it whole."""

    out: Path
    content: dict[str, Any]

    def save(self) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.out) as stream:
            stream.write(json.dumps(self.content, indent=1).encode() + b"\n")

    def begin(self, name: str) -> Row:
        section = self.content["sections"][name] = {"state": "running", "seconds": 0.0, "rows": []}
        self.save()
        return section


def run_section(setup: Setup, report: Report, console: Console) -> None:
    """Run a section in a process of its own and take its rows as they come."""
    section = report.begin(setup.section)
    console.rule(f"{setup.section}: {setup.hard_s:.0f} s at most", align="left")
    with _started(setup) as child:
        left_over = b""
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
            while (left_s := setup.begun + setup.hard_s - time.monotonic()) > 0:
                if not selector.select(left_s):
                    continue
                data = os.read(child.stdout.fileno(), 1 << 16)  # type: ignore[union-attr]
                if not data:
                    break
                *lines, left_over = (left_over + data).split(b"\n")
                for line in lines:
                    section["rows"].append(row := json.loads(line))
                    console.print(told(row), markup=False, highlight=False, soft_wrap=True)
                report.save()
        section["state"] = _ended(child, left_s, setup)
    section["seconds"] = round(time.monotonic() - setup.begun, 1)
    if section["state"] != "ok":
        console.print(f"{setup.section}: {section['state']}", markup=False, style="red")
    report.save()


@contextmanager
def _started(setup: Setup) -> Iterator[subprocess.Popen[bytes]]:
    """Start a section, and in any case end it with all that it has started."""
    told_setup = json.dumps({name: str(v) if isinstance(v, Path) else v for name, v in asdict(setup).items()})
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--section", told_setup]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True, env=_environment()
    )
    try:
        yield child
    finally:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # all of them have ended
        child.wait()
        child.stdout.close()  # type: ignore[union-attr]


def _environment() -> dict[str, str]:
    """Return the environment of a section and of what it starts."""
    if find_spec("safetensors"):
        return dict(os.environ)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(STAND_IN)]))}


def _ended(child: "subprocess.Popen[bytes]", left_s: float, setup: Setup) -> str:
    """Say in words how a section ended, that has no more rows or no more time."""
    try:
        status = child.wait(timeout=max(left_s, 0.0))
    except subprocess.TimeoutExpired:
        return f"stopped: not done after {setup.hard_s:.0f} s; the rows are what it came to"
    if status < 0:
        return f"crashed: {signal.Signals(-status).name}; the rows are what it came to"
    return "ok" if status == 0 else f"failed with status {status}; the rows are what it came to"


def told(row: Row) -> str:
    """Return a row as words; "facts" are told already."""
    words = (f"{name} {_value(value)}" for name, value in row.items() if value not in (None, "") and name != "facts")
    return "  " + "  ".join(words).replace("\n", "; ")


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_value(each)}" for name, each in value.items()) + ")"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def inside(setup: Setup) -> int:
    """Be a section: rows go out as lines of JSON, and whatever libraries print goes to stderr. Return the status."""
    rows = os.dup(1)
    os.dup2(2, 1)

    def write(row: Row) -> None:
        os.write(rows, json.dumps(row).encode() + b"\n")

    module, _, name = setup.target.partition(":")
    try:
        section: Section = getattr(import_module(module), name)
        for row in section(setup):
            write(row)
    except ModuleNotFoundError as error:
        write({"not_run": f"{error.name} is not importable"})
    except Exception as error:  # noqa: BLE001 - whatever went wrong here is a result, and other sections follow
        traceback.print_exc()
        write({"failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]})
        return 1
    return 0


def _setup_of(text: str) -> Setup:
    fields = json.loads(text)
    return Setup(**fields | {name: Path(fields[name]) for name in ("work", "out")})


def check(device: str, out: Path, work: Path, *, seconds: float, tiny: bool, console: Console) -> Report:
    """Run every section within ``seconds``."""
    end = time.monotonic() + seconds
    work.mkdir(parents=True, exist_ok=True)
    begun = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    facts = {"harec_deploy": __version__, "begun": begun, "device": device, "tiny": tiny, "seconds": seconds}
    report = Report(out, {**facts, "sections": {}})
    weights = {name: weight for name, (_, weight) in SECTIONS.items()}
    for name, (target, weight) in SECTIONS.items():
        hard_s = (end - time.monotonic()) * weight / sum(weights.values())
        del weights[name]
        run_section(Setup(name, target, device, work, out, tiny, SOFT * hard_s, hard_s), report, console)
    return report


def main(
    device: Annotated[str, typer.Option(help="the GPU, or cpu to try the check itself")] = "cuda:0",
    out: Annotated[Path | None, typer.Option(help="where all figures are written", show_default=str(OUT))] = None,
    work: Annotated[Path, typer.Option(help="where videos and the model are kept")] = WORK,
    seconds: Annotated[float, typer.Option(min=1, help="the deadline")] = SECONDS,
    tiny: Annotated[bool, typer.Option("--tiny", help="small sizes: to try the check, not to measure")] = False,
    section: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    if section:
        raise typer.Exit(inside(_setup_of(section)))
    there = [str(each) for each in cuda_devices()]
    if device not in ("cpu", *there):
        found = ", ".join(there) or "no GPU"
        typer.echo(f"no {device} here: there is {found}; --device cpu --tiny tries the check itself", err=True)
        raise typer.Exit(1)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the section is ended too
    console = Console()
    out = out or (work / OUT.name if tiny or device == "cpu" else OUT)  # what is no measurement is not kept as one
    report = check(device, out, work, seconds=seconds, tiny=tiny, console=console)
    from benchmarks.gpu_tables import markdown, summary

    console.print(summary(report.content))
    page = out.with_suffix(".md")
    page.write_text(markdown(report.content))
    console.print(f"written to {out} and {page}")


if __name__ == "__main__":
    typer.run(main)
