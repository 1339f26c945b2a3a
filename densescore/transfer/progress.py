"""A training's state on disk, written after each round, so that one that was killed goes on."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from densescore.files import written_whole
from densescore.transfer.recipe import Recipe
from densescore_kernels.errors import DensescoreError


class Progress:
    """Where a training stands, in memory and on disk.

    Attributes:
        stage: stages done.
        round: rounds done in this stage.
        total: rounds done in all.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, fingerprint: str, head: nn.Module, optimiser: torch.optim.Optimizer
    ) -> None:
        self._path = None if path is None else Path(path)
        self._fingerprint, self._head, self._optimiser = fingerprint, head, optimiser
        self.stage, self.round, self.total = 0, 0, 0
        self._best, self._stale = float("inf"), 0

    def advance(self, loss: float, settled: float, patience: int, most_rounds: int) -> None:
        """Note a round's loss, go on to the next stage if this one is over, and write the checkpoint.

        Args:
            loss: mean of the round.
            settled: a round that brings the loss less than this share below the best before is stale.
            patience: stale rounds in a row that end a stage.
            most_rounds: of a stage.
        """
        self._stale = self._stale + 1 if loss > self._best * (1 - settled) else 0
        self._best = min(self._best, loss)
        self.round, self.total = self.round + 1, self.total + 1
        if self._stale >= patience or self.round >= most_rounds:
            self.stage, self.round, self._best, self._stale = self.stage + 1, 0, float("inf"), 0
        if self._path is not None:
            counters = {name: getattr(self, name) for name in ("stage", "round", "total", "_best", "_stale")}
            state: dict[str, Any] = {"fingerprint": self._fingerprint, "counters": counters}
            state |= {"head": self._head.state_dict(), "optimiser": self._optimiser.state_dict()}
            with written_whole(self._path, overwrite=True) as temporary:
                torch.save(state, temporary)

    def resume(self) -> None:
        """Take up where the checkpoint stands, if there is one."""
        if self._path is None or not self._path.is_file():
            return
        try:
            state = torch.load(self._path, weights_only=True)
            fingerprint = state["fingerprint"]
        except Exception as error:  # a foreign or damaged file fails in many ways
            raise DensescoreError(f"{self._path}: cannot be read as a checkpoint; delete it to start anew") from error
        if fingerprint != self._fingerprint:
            raise DensescoreError(
                f"{self._path}: belongs to a training with other data or settings; finish that one with its own "
                "settings, or delete the file to start anew"
            )
        self._head.load_state_dict(state["head"])
        self._optimiser.load_state_dict(state["optimiser"])
        for name, value in state["counters"].items():
            setattr(self, name, value)


def fingerprint(recipe: Recipe, seed: int, *data: NDArray[Any]) -> str:
    """A digest that tells one training from another: settings, seed and data (of features, a sample will do)."""
    digest = hashlib.sha256(json.dumps([asdict(recipe), seed]).encode())
    for array in data:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
