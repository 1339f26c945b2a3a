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
    """One action's number.

    Attributes:
        action: its name.
        persons: that do it.
        ap: in [0, 1], by the rule of 2010 and later; None where nobody does it.
    """

    action: str
    persons: int
    ap: float | None


def evaluate_persons(actions: ActionSet, scores: NDArray[np.float64], labels: tuple[str, ...]) -> list[ActionResult]:
    """AP of every action.

    Args:
        actions: the test set; a person of several actions counts for each.
        scores: ``[N, outputs]``.
        labels: of the outputs; every action of the set is among them.

    Raises:
        DensescoreError: an action of the set is not.
    """
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
    """Mean over the actions that somebody does."""
    return float(np.mean([row.ap for row in rows if row.ap is not None]))


RESULTS = "results on persons"
"""What the mark of a folder says that `write_action_results` wrote."""


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
            (temporary / f"comp10_action_{actions.name}_{name}.txt").write_text(
                "".join(lines),
                encoding="utf-8",
                errors="surrogateescape",  # file names as they are
            )
