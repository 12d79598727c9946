"""The command ``harec-deploy``."""

from typing import Annotated

import typer

from harec_deploy import __version__
from harec_deploy.cli import console
from harec_deploy.cli.bench import bench
from harec_deploy.cli.doctor import doctor
from harec_deploy.cli.export import export
from harec_deploy.cli.inspect import inspect
from harec_deploy.cli.label import label
from harec_deploy.cli.merge import merge
from harec_deploy.cli.report import report
from harec_deploy.cli.verify import verify

app = typer.Typer(
    name="harec-deploy",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        console.out.print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Human action recognition put to work: export with proof, label folders of video.

    Exit status: 0 all done, 1 the run could not go on, 2 usage, 3 some videos failed, 4 output
    locked by a live run, 5 proof failed, 130 or 143 interrupted and to be resumed.
    """


for _command in (export, verify, label, merge, report, inspect, doctor):
    app.command()(_command)
app.add_typer(bench)


def main() -> None:
    """Run the command line."""
    console.run_app(app)


if __name__ == "__main__":
    main()
