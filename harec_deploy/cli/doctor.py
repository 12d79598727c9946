"""harec-deploy doctor: what is there, what is missing, and what `auto` would choose."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harec_deploy import __version__
from harec_deploy.cli import console

if TYPE_CHECKING:
    from harec_deploy.doctor import Finding

MAX_WIDTH, PIPE_WIDTH = 110, 80  # characters
_STYLES = {"missing": "yellow", "broken": "red", "unknown": "yellow"}


def doctor(
    bundle: Annotated[
        Path | None, typer.Argument(help="Tell what auto chooses for this one, after measuring it.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what this machine has for labelling, what is missing and how to get it, and what auto would choose.

    The exit status is 0, whatever is found.
    """
    import msgspec

    from harec_deploy.doctor import examine

    findings = examine(bundle)
    if as_json:
        facts = {"harec_deploy": __version__, "findings": findings}
        console.out.print(msgspec.json.format(msgspec.json.encode(facts), indent=2).decode(), markup=False)
        return
    _print(findings)


def _print(findings: "list[Finding]") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("", "", box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
    for found in findings:
        cell = Text("\n".join(map(console.printable, found.told.split("\n"))))
        if found.state != "ok":
            word = Text(found.state, style=_STYLES[found.state])
            cell = word if found.told == "not installed" else Text.assemble(word, ": ", cell)
        if found.remedy:
            cell.append(f"\n{found.remedy}", style="bold")
        table.add_row(Text(found.name), cell)
    width = min(console.out.width, MAX_WIDTH) if console.out.is_terminal else PIPE_WIDTH
    console.out.print(table, width=width, soft_wrap=False)
