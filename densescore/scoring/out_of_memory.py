"""Recognize that memory ran out, and try again in smaller parts."""

import gc
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from densescore.errors import DensescoreWarning, OutOfMemoryError, reason_of

PARTS = 8
"""An image that ran out of memory is scored again in parts so many times smaller."""

Result = TypeVar("Result")


def in_memory(work: Callable[[int], Result], size: str) -> tuple[Result, int]:
    """Call ``work(1)``. If memory runs out, warn, and call ``work(PARTS)``.

    Args:
        work: is called with the number of parts into which it divides what it does.
        size: describes what it works on, for messages.

    Returns:
        The result and the number of parts.

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
            warnings.warn(
                f"out of memory on {size}: scoring it again in smaller parts ({reason})",
                DensescoreWarning,
                stacklevel=5,
            )
    raise OutOfMemoryError(
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
