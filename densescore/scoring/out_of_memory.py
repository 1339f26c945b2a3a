"""Running out of memory: what it looks like, and the answer to it."""

import gc
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from densescore.errors import DensescoreError, reason_of

PARTS = 8
"""How much smaller the parts are in which an image that ran out of memory is scored once more."""

Result = TypeVar("Result")


def in_memory(work: Callable[[int], Result], size: str) -> tuple[Result, int]:
    """``work(1)``; or, where that runs out of memory, a warning and ``work(PARTS)``.

    Args:
        work: takes into how many parts to divide what it does at a time.
        size: what it works on, for messages.

    Returns:
        The result, and into how many parts it was divided.

    Raises:
        DensescoreError: memory ran out both times.
    """
    for parts in (1, PARTS):
        try:
            return work(parts), parts
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = reason_of(error)
        free_memory()
        if parts == 1:
            warnings.warn(f"out of memory on {size}: scoring it once more in smaller parts ({reason})", stacklevel=5)
    raise DensescoreError(
        f"out of memory on {size}, in small parts, too ({reason}): use fewer or smaller scales, or score_huge"
    )


def free_memory() -> None:
    """Give back what failed work held; to be called past its ``except`` block, which holds it, too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: CUDA's, numpy's, or that of torch's allocator on a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
