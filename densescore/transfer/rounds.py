"""What a training says of itself after each of its rounds."""

from collections.abc import Callable
from typing import NamedTuple

from densescore.transfer.recipe import Objective


class Round(NamedTuple):
    """A round of a training that is done.

    Attributes:
        stage: number of the stage, from 1.
        stages: of the whole training.
        round: number of the round in its stage, from 1.
        rounds: most rounds of the stage. A stage on labeled patches ends earlier when the loss no longer falls.
        loss: mean over the round.
        of: what the loss is of.

    Example:
        >>> print(Round(1, 5, 2, 4, 0.6931, "binary cross-entropy of a patch"))
        stage 1 of 5, round 2 of up to 4: loss 0.6931 (binary cross-entropy of a patch)
    """

    stage: int
    stages: int
    round: int
    rounds: int
    loss: float
    of: str

    def __str__(self) -> str:
        return (
            f"stage {self.stage} of {self.stages}, round {self.round} of up to {self.rounds}: "
            f"loss {self.loss:.4g} ({self.of})"
        )


Callback = Callable[[Round], None]
"""Called after each round."""

PATCH_LOSS: dict[Objective, str] = {
    "softmax": "cross-entropy of a patch over classes and background",
    "multilabel": "binary cross-entropy of a patch, summed over classes",
}
IMAGE_LOSS = "binary cross-entropy of an image's confidence, summed over classes"


def within(callback: Callback, before: int, stages: int | None = None) -> Callback:
    """A callback for a part of a training: `before` stages come before its own, and there are `stages` in all."""
    return lambda done: callback(done._replace(stage=before + done.stage, stages=stages or done.stages))
