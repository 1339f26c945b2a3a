"""How many crops to run at a time: as many as memory allows."""

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from densescore.errors import DensescoreWarning, OutOfMemoryError, reason_of
from densescore.scoring.out_of_memory import free_memory, is_out_of_memory

Result = TypeVar("Result")

# Pixels of a first batch. A CPU gains nothing beyond, and memory that runs out there may end the process at once.
_PIXELS = {"cpu": 64 * 224**2, "cuda": 512 * 224**2}


class CropBatch:
    """The size of a batch of crops: large at first, halved whenever memory runs out, for good.

    Args:
        patch: side of a crop in pixels.
        device: that runs them.
    """

    def __init__(self, patch: int, device: torch.device) -> None:
        pixels = _PIXELS.get(device.type, _PIXELS["cpu"])
        self.size = max(1, pixels // patch**2)

    def run(self, work: Callable[[int], Result], size: str) -> tuple[Result, bool]:
        """``work(crops at a time)``, again with half as many where that runs out of memory.

        Args:
            work: takes the most crops that a batch may hold.
            size: what it works on, for messages.

        Returns:
            The result, and whether it took more than one attempt.

        Raises:
            DensescoreError: memory ran out with one crop at a time.
        """
        retried = False
        while True:
            batch = self.size
            try:
                return work(batch), retried
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = reason_of(error)
            free_memory()
            if batch == 1:
                raise OutOfMemoryError(f"out of memory on {size}, with one crop at a time, too ({reason})")
            self.size = min(self.size, batch // 2)  # another thread may have halved it, too
            if not retried:
                warnings.warn(
                    f"out of memory on {size}: scoring it again in smaller parts ({reason})",
                    DensescoreWarning,
                    stacklevel=5,
                )
            retried = True
