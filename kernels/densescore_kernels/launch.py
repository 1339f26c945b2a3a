"""Launch configurations: a kernel runs only in one that the ahead-of-time compiler has checked.

A configuration fixes everything that a compiled kernel depends on: argument types, constants and threads. Integers and
floats are never specialized on (``do_not_specialize`` in each kernel) and every pointer is 16-byte aligned (``aligned``
below), so the configurations that an operation lists are all the machine code that it can ever run.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

TYPE_NAMES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
}
ALIGNMENT = 16  # bytes: one 128-bit load
WARP = 32 if torch.version.hip is None else 64  # threads


class Budget(NamedTuple):
    """Most that a kernel may use in any launch configuration, on any target."""

    wide: int  # registers a thread, with 128-bit loads
    single: int  # registers a thread, for rows that are not aligned
    shared: int  # bytes of shared memory
    always_wide: bool = False  # rows are padded to whole vectors: 128-bit loads whatever VEC is


@dataclass(frozen=True)
class Config:
    """One launch configuration of a kernel."""

    kernel: Any  # a triton.jit function
    arguments: tuple[str, ...]  # "*fp16", "i32", "fp32"...
    constants: tuple[tuple[str, int], ...]
    threads: int

    @property
    def key(self) -> tuple[Any, ...]:
        """Everything that a launch must match."""
        return (self.kernel.__name__, self.arguments, self.constants)


class Configs:
    """Launch configurations of one operation, and the budget of each of its kernels by name."""

    def __init__(self, configs: Iterable[Config], budgets: dict[str, Budget]) -> None:
        self.by_key = {config.key: config for config in configs}
        self.budgets = budgets

    def launch(self, kernel: Any, programs: tuple[int, ...], *arguments: Any, **constants: int) -> None:
        """Run ``kernel`` on a grid of ``programs``, on the device of the first argument.

        A configuration that is not listed, whose code was never compiled ahead of time, raises an error.
        """
        key = (kernel.__name__, tuple(map(_type_name, arguments)), tuple(constants.items()))
        config = self.by_key.get(key)
        if config is None:
            raise RuntimeError(
                f"launch configuration {key} is not among the {len(self.by_key)} that are compiled ahead of time"
            )
        device = arguments[0].device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            kernel[programs](*arguments, **constants, num_warps=config.threads // WARP)


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, contiguous and on a 16-byte boundary: itself, or a copy."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def vector(dtype: torch.dtype, row: int) -> int:
    """Elements of a 128-bit load when rows of ``row`` elements allow it, else 1.

    Example:
        >>> vector(torch.float32, 1000), vector(torch.float16, 1000), vector(torch.float32, 21)
        (4, 8, 1)
    """
    elements = ALIGNMENT // dtype.itemsize
    return elements if row % elements == 0 else 1


def vectors(dtype: torch.dtype) -> tuple[int, int]:
    """All values of :func:`vector`."""
    return (1, ALIGNMENT // dtype.itemsize)


def _type_name(argument: Any) -> str:
    if isinstance(argument, torch.Tensor):
        return "*" + TYPE_NAMES[argument.dtype]
    return "fp32" if isinstance(argument, float) else "i32"
