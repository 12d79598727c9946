"""The command ``python -m training``: from folders of video to a bundle with known accuracy."""

import typer

from harec_deploy.cli import console
from training.cli.compare import compare
from training.cli.data import frames, prepare, show, synthesize
from training.cli.evaluate import evaluate
from training.cli.features import features
from training.cli.fit import fit, models, run

app = typer.Typer(
    name="python -m training",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train action recognisers: make or prepare a data set, fit, evaluate. The result is a bundle to export.",
)

for _command in (synthesize, prepare, show, frames, features, models, fit, run, evaluate, compare):
    app.command()(_command)


if __name__ == "__main__":
    console.run_app(app)
