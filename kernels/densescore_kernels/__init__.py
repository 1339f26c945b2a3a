"""Power mean and response maps: one operation, three ways.

Each operation is a folder of four files, behind one public function that is registered with ``torch.library``:

    op.py             argument checks, fake tensors, gradients, and the choice of a backend
    reference.py      definition: plain float64 loops, never edited to match a kernel
    torch_version.py  vectorized torch: runs on a CPU, and documents the kernels
    triton.py         kernels, their launches, launch configurations and compile budgets: runs on a GPU

A new operation is such a folder, a name in ``_MODULES`` and a module in ``aot.OPERATIONS``.
The functions are imported when they are first used, so that ``densescore_kernels.errors`` does not load torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densescore_kernels.errors import DensescoreError
    from densescore_kernels.grid import Grid, GridLevel
    from densescore_kernels.power_mean.op import power_mean
    from densescore_kernels.response_map.op import response_map

__all__ = ["DensescoreError", "Grid", "GridLevel", "power_mean", "response_map"]

_MODULES = {
    "DensescoreError": "errors",
    "Grid": "grid",
    "GridLevel": "grid",
    "power_mean": "power_mean.op",
    "response_map": "response_map.op",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]


class _Package(ModuleType):
    """The package: ``power_mean`` and ``response_map`` are its functions, not the folders of the same names."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
