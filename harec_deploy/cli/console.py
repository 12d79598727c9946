"""What every command shares: where words go, how progress looks, how an error ends."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from harec_deploy.errors import EXIT_INTERRUPTED, HarecError, MissingDependency

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

err = Console(stderr=True, highlight=False, soft_wrap=True)
# Tables in a file or pipe are not cut to a terminal's width.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 240)


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


def missing(error: ModuleNotFoundError, extra: str, purpose: str) -> Exception:
    """Return the error to raise for an import that failed: the pip line, unless the package is our own."""
    name = error.name or "?"
    return error if name.startswith("harec_deploy") else MissingDependency(name, extra, purpose)


def run_app(app: typer.Typer, arguments: list[str] | None = None) -> None:
    """Run a command line and exit; an error raised on purpose becomes one line and its exit status."""
    try:
        app(args=arguments)
    except HarecError as error:
        say(f"error [{error.code}]: {error}")
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on where it stopped")
        sys.exit(EXIT_INTERRUPTED)
