"""The program ``densescore``.

Commands import their tools when they run, so that help and mistyped options stay fast.
"""

from cyclopts import Group

from densescore.cli.images import classify, demo, heatmap, huge
from densescore.cli.many import report, score
from densescore.cli.models import export, models
from densescore.cli.paper import (
    convert_caffe,
    evaluate_actions,
    pretrain,
    reproduce,
    source_classes,
    train_actions,
)
from densescore.cli.program import EXAMPLES, make_app, start
from densescore.cli.search import find, index
from densescore.cli.train import check, evaluate, labels, train, tune_k

PANELS = {
    "Score images": (classify, heatmap, score, report, huge, demo),
    "Search by example": (index, find),
    "Classes of your own": (labels, check, train, evaluate, tune_k),
    "Models": (models, export),
    "Reproducing the paper": (reproduce, source_classes, pretrain, convert_caffe, train_actions, evaluate_actions),
}

app = make_app("densescore", "Score every patch of an image at every scale in one fully convolutional pass.")
for number, (title, commands) in enumerate(PANELS.items()):
    panel = Group(title, sort_key=number)
    for command in commands:
        app.command(command, group=panel, help_epilogue=EXAMPLES[command], sort_key=commands.index(command))


def run() -> None:
    """Run ``densescore``."""
    start(app)
