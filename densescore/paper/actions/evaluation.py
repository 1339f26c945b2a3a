"""Average precision per action, as PASCAL VOC counts it: persons are ranked, not images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError
from densescore.evaluation.average_precision import average_precision, precision_recall
from densescore.io.files import atomic_write
from densescore.io.names import label_file_names
from densescore.paper.actions.voc import ActionSet


@dataclass(frozen=True)
class ActionResult:
    """Average precision of one action."""

    action: str
    persons: int  # who do it
    ap: float | None  # by VOC's rule of 2010; None without persons


def evaluate_persons(actions: ActionSet, scores: NDArray[np.float64], labels: tuple[str, ...]) -> list[ActionResult]:
    """AP of every action of a set from scores ``[N, outputs]``; labels are the outputs' names."""
    missing = [action for action in actions.actions if action not in labels]
    if missing:
        raise DensescoreError(f"the network knows no {', '.join(missing)}, which the set has")
    truth = actions.truth()
    rows = []
    for column, action in enumerate(actions.actions):
        count = int(truth[:, column].sum())
        ranked = precision_recall(scores[:, labels.index(action)], truth[:, column]) if count else None
        rows.append(ActionResult(action, count, None if ranked is None else average_precision(ranked)))
    return rows


def mean_ap(rows: list[ActionResult]) -> float:
    """Mean over the actions that have persons."""
    return float(np.mean([row.ap for row in rows if row.ap is not None]))


RESULTS = "results on persons"
"""Mark of the folders that `write_action_results` wrote."""


def write_action_results(
    actions: ActionSet, scores: NDArray[np.float64], labels: tuple[str, ...], folder: Path, *, overwrite: bool = False
) -> None:
    """VOC's result files: ``comp10_action_<set>_<action>.txt``, a line per person: image, object, score."""
    names = label_file_names(actions.actions)
    with atomic_write(folder, overwrite=overwrite, folder=RESULTS) as temporary:
        for action, name in zip(actions.actions, names, strict=True):
            column = scores[:, labels.index(action)]
            lines = [
                f"{person.image} {person.index} {score:.17g}\n"
                for person, score in zip(actions.persons, column, strict=True)
            ]
            path = temporary / f"comp10_action_{actions.name}_{name}.txt"
            path.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")  # file names as they are
