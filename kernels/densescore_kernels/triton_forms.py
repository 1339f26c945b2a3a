"""The forms of a kernel: it runs only in one that the ahead-of-time compiler has checked.

A form fixes everything that a compiled kernel depends on: the types of its arguments, its constants and its threads.
Integers and floats are never specialized on (``do_not_specialize`` in each kernel) and every pointer is 16-byte
aligned (``aligned`` below), so the forms listed by an operation are all the machine code that it can ever run.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

NAMES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
}
ALIGNMENT = 16  # bytes: one 128-bit load
LANES = 32 if torch.version.hip is None else 64  # threads of a warp


@dataclass(frozen=True)
class Form:
    """One compiled form of a kernel."""

    kernel: Any  # a triton.jit function
    arguments: tuple[str, ...]  # "*fp16", "i32", "fp32"...
    constants: tuple[tuple[str, int], ...]
    threads: int

    def warps(self, lanes: int) -> int:
        """Warps of ``lanes`` threads: 32 on NVIDIA's GPUs, 64 on AMD's."""
        return self.threads // lanes

    @property
    def key(self) -> tuple[Any, ...]:
        """What a launch must match."""
        return (self.kernel.__name__, self.arguments, self.constants)


class Forms:
    """The forms of one operation."""

    def __init__(self, forms: Iterable[Form]) -> None:
        self.listed = {form.key: form for form in forms}

    def launch(self, kernel: Any, programs: tuple[int, ...], *arguments: Any, **constants: int) -> None:
        """Run ``kernel`` on a grid of ``programs``; the first argument is a tensor and tells the device.

        Raises:
            RuntimeError: when the form is not listed, which would be code that nobody compiled before.
        """
        key = (kernel.__name__, tuple(map(_type_name, arguments)), tuple(constants.items()))
        form = self.listed.get(key)
        if form is None:
            raise RuntimeError(f"kernel form {key} is not among the {len(self.listed)} that are compiled ahead of time")
        device = arguments[0].device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            kernel[programs](*arguments, **constants, num_warps=form.warps(LANES))


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, contiguous and on a 16-byte boundary: itself, or a copy where it is not so."""
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
    """The values that :func:`vector` can have."""
    return (1, ALIGNMENT // dtype.itemsize)


def _type_name(argument: Any) -> str:
    if isinstance(argument, torch.Tensor):
        return "*" + NAMES[argument.dtype]
    return "fp32" if isinstance(argument, float) else "i32"
