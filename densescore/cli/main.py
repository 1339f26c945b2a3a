"""The command line: all commands, by what they are for.

What a command works with is imported when it runs, so that help, a mistyped option and a mistyped class cost nothing.
"""

from typing import Annotated

import typer

from densescore.cli.actions import evaluate_actions, train_actions
from densescore.cli.classify import classify
from densescore.cli.command import register, start
from densescore.cli.demo import demo
from densescore.cli.evaluate import evaluate, tune_k
from densescore.cli.export import export
from densescore.cli.heatmap import heatmap
from densescore.cli.huge import huge
from densescore.cli.labels import labels
from densescore.cli.models import models
from densescore.cli.pretrain import convert_caffe, pretrain, source_classes
from densescore.cli.report import report
from densescore.cli.reproduce import reproduce
from densescore.cli.score import score
from densescore.cli.train import train

COMMANDS = {
    "Score images": (classify, heatmap, score, report, huge, demo),
    "Classes of your own": (labels, train, evaluate, tune_k),
    "Models": (models, export),
    "Reproducing the paper": (reproduce, source_classes, pretrain, convert_caffe, train_actions, evaluate_actions),
}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for panel, commands in COMMANDS.items():
    for each in commands:
        register(app, each, panel)


def _print_version(wanted: bool) -> None:
    if wanted:
        from densescore import __version__

        print(f"densescore {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Score every patch of an image at every scale in one fully convolutional pass."""


def run() -> None:
    """The program ``densescore``."""
    start(app, "densescore")
