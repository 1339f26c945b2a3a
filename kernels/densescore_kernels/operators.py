"""Functions as operators of torch, which `torch.compile` and ``opcheck`` see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("densescore", "FRAGMENT")


def operator(name: str) -> Callable[[Callable[..., torch.Tensor]], Any]:
    """Register a function as ``torch.ops.densescore.<name>``: a ``CustomOpDef``.

    A CPU calls the function itself: around it, ``custom_op`` has a wrapper that imports ``torch._dynamo`` (1.3 s).
    """

    def register(function: Callable[..., torch.Tensor]) -> Any:
        definition = torch.library.custom_op(f"densescore::{name}", function, mutates_args=())
        _LIBRARY.impl(name, function, "CPU")
        return definition

    return register
