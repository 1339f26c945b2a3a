"""Where a training stands: its stages, when one is over, and the checkpoint after each round."""

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

from densescore.io.checkpoint import read_checkpoint, write_checkpoint
from densescore.transfer.recipe import Recipe

_COUNTERS = ("stage", "round", "total", "_best", "_stale")


class Schedule:
    """Where a training stands, in memory and on disk.

    Attributes:
        stage: stages done.
        round: rounds done in this stage.
        total: rounds done in all.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, fingerprint: str, head: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        self._path = None if path is None else Path(path)
        self._fingerprint, self._head, self._optimizer = fingerprint, head, optimizer
        self.stage, self.round, self.total = 0, 0, 0
        self._best, self._stale = float("inf"), 0

    def advance(self, loss: float, tolerance: float, patience: int, max_rounds: int) -> None:
        """Record a round's loss, move to the next stage if this one is over, and write the checkpoint.

        Args:
            loss: mean of the round.
            tolerance: a round that brings the loss less than this share below the best before is stale.
            patience: stale rounds in a row that end a stage.
            max_rounds: of a stage.
        """
        self._stale = self._stale + 1 if loss > self._best * (1 - tolerance) else 0
        self._best = min(self._best, loss)
        self.round, self.total = self.round + 1, self.total + 1
        if self._stale >= patience or self.round >= max_rounds:
            self.stage, self.round, self._best, self._stale = self.stage + 1, 0, float("inf"), 0
        if self._path is not None:
            counters = {name: getattr(self, name) for name in _COUNTERS}
            state = {"head": self._head.state_dict(), "optimizer": self._optimizer.state_dict(), "counters": counters}
            write_checkpoint(self._path, state, self._fingerprint)

    def resume(self) -> None:
        """Take up where the checkpoint stands, if there is one."""
        state = None if self._path is None else read_checkpoint(self._path, self._fingerprint)
        if state is None:
            return
        self._head.load_state_dict(state["head"])
        self._optimizer.load_state_dict(state["optimizer"])
        for name, value in state["counters"].items():
            setattr(self, name, value)


def fingerprint(recipe: Recipe, seed: int, *data: NDArray[Any]) -> str:
    """A digest that tells one training from another: settings, seed and all data, since any row changes the weights."""
    digest = hashlib.sha256(json.dumps([asdict(recipe), seed]).encode())
    for array in data:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
