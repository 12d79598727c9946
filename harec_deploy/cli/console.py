"""What every command shares: where words go, how progress looks, how an error ends."""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from harec_deploy.errors import (
    EXIT_BROKEN_PIPE,
    EXIT_INTERRUPTED,
    FileSystemError,
    HarecError,
    MissingDependency,
    UsageError,
)

if TYPE_CHECKING:
    from threading import Event

    from rich.progress import Progress, TaskID


class _Console(Console):
    """Ends the command when whoever reads its words has gone."""

    def on_broken_pipe(self) -> None:
        """Let what Python still holds for the reader go nowhere, and exit like a program that SIGPIPE ended."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        raise SystemExit(EXIT_BROKEN_PIPE)


err = _Console(stderr=True, highlight=False, soft_wrap=True)
# Tables in a file or pipe are not cut to a terminal's width.
out = _Console(highlight=False, soft_wrap=True, width=None if sys.stdout and sys.stdout.isatty() else 240)


def say(text: str) -> None:
    """Tell the person one line, on stderr; names in it are shown as they are, control characters escaped."""
    err.print(printable(text), markup=False)


def printable(text: str) -> str:
    """Return ``text`` with control characters and lone surrogates written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def progress_bar(what: str, total: int | None = None) -> Iterator[tuple["Progress", "TaskID"]]:
    """Show a bar on a terminal, and nothing where stderr is a file."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as progress:
        yield progress, progress.add_task(what, total=total, note="")


@contextmanager
def counted(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar; yield what it is told by: how many are done, and of how many."""
    with progress_bar(what) as (progress, task):
        yield lambda done, total: progress.update(task, completed=done, total=total)


class Signals:
    """The signals that end a run: the first sets ``stop`` and says ``told``, another ends the process at once.

    One that is ignored from outside, as SIGHUP under nohup, stays ignored. Use as a context manager.
    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(
        self, stop: "Event", told: str = "stopping: what is decoded will be labelled; once more to stop at once"
    ) -> None:
        self.stop = stop
        self.told = told
        self.number = 0

    @property
    def exit_status(self) -> int:
        """What a run that was ended by the signal exits with: 130, 143 or 129."""
        return 128 + self.number

    def __enter__(self) -> "Signals":
        heard = [number for number in self.NUMBERS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._take) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, _: FrameType | None) -> None:
        if self.stop.is_set():
            err.show_cursor()
            os._exit(128 + number)
        self.number = number
        self.stop.set()
        if self.told:
            _say_at_once(self.told)


def _say_at_once(text: str) -> None:
    """Tell one line from a signal's handler, past Rich: interrupted in the middle of a line, it would write that again.

    A progress bar, which is one line too, is overwritten, and drawn anew below.
    """
    clear = "\r\x1b[2K" if err.is_terminal else ""
    try:
        os.write(sys.stderr.fileno(), f"{clear}{text}\n".encode())
    except (OSError, ValueError):
        pass  # nobody reads it: a run ends in good order all the same


_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """Return the seconds that "4", "4s", "250ms", "1.5m" or "1h" mean. Raises UsageError."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(ms|s|m|h|)", text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no length of time; allowed are such as 4s, 250ms, 1.5m, 1h")
    return float(match[1]) * _UNITS[match[2]]


def count(text: str, option: str) -> int | None:
    """Return the number, or None for "auto". Raises UsageError."""
    if text != "auto" and not text.isdecimal():
        raise UsageError(f"{option} {text}: allowed are auto, or a number from 1 on")
    return None if text == "auto" else int(text)


def missing(error: ModuleNotFoundError, extra: str, purpose: str) -> Exception:
    """Return the error to raise for an import that failed: the pip line, unless the package is our own."""
    name = error.name or "?"
    return error if name.startswith("harec_deploy") else MissingDependency(name, extra, purpose)


def _check_folder() -> None:
    """Raise UsageError where the current folder is gone: nothing relative could be found."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UsageError("the current folder was removed: go to one that is there") from None


_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_LIMITS = (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)


def _refusal(error: OSError) -> HarecError:
    """Return what a person is told of the system's refusal. Raises the error itself where it is another one."""
    if error.errno in _LIMITS:
        return HarecError(
            f"the system refuses more: {error.strerror}: use fewer --workers, or raise its limits (ulimit)"
        )
    if error.errno not in _REFUSALS:
        raise error
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return FileSystemError(f"{where}{error.strerror}: make room or get the right to write, and give the command again")


def _open_streams() -> None:
    """Give the standard streams that are closed a place, and let a terminal show what it has no letters for.

    Whatever is opened first would get the number of a stream that is closed, and what is written to that.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_app(app: typer.Typer, arguments: list[str] | None = None) -> None:
    """Run a command line and exit; an error raised on purpose, or by the file system, becomes one line and a status."""
    _open_streams()
    try:
        _check_folder()
        app(args=arguments)
    except (HarecError, OSError) as error:
        told = error if isinstance(error, HarecError) else _refusal(error)
        say(f"error [{told.code}]: {told}")
        sys.exit(told.exit_status)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on where it stopped")
        sys.exit(EXIT_INTERRUPTED)
