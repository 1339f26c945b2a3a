"""Which version of an operation runs: torch or Triton."""

from __future__ import annotations

import torch

from densescore_kernels.errors import DensescoreError

NAMES = ("auto", "torch", "triton")
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OLDEST = (8, 0)  # CUDA compute capability of the oldest GPU that the kernels are compiled for


def choose(backend: str, tensor: torch.Tensor) -> str:
    """Resolve ``backend`` for ``tensor`` to ``"torch"`` or ``"triton"``.

    ``"auto"`` takes Triton for a tensor on a GPU where Triton is found to work, and torch elsewhere. A backend that is
    asked for by name is the one that runs: it never falls back.

    Raises:
        DensescoreError: for an unknown name, or for ``"triton"`` where it cannot run, with the reason.
    """
    if backend not in NAMES:
        raise DensescoreError(f"backend: got {backend!r}, expected one of {', '.join(NAMES)}")
    if backend == "torch" or (backend == "auto" and tensor.device.type == "cpu"):
        return "torch"
    obstacle = why_not_triton(tensor)
    if obstacle is None:
        return "triton"
    if backend == "auto":
        return "torch"
    raise DensescoreError(f"backend: got 'triton', which cannot run here: {obstacle}")


def why_not_triton(tensor: torch.Tensor) -> str | None:
    """Probe whether the Triton kernels can run on ``tensor``: the obstacle, or None when there is none."""
    try:
        from triton import knobs
    except ImportError as error:
        return f"the package triton cannot be imported ({error})"
    if tensor.dtype not in TRITON_DTYPES:
        return f"the tensor is {tensor.dtype}, the kernels take {', '.join(str(dtype) for dtype in TRITON_DTYPES)}"
    if knobs.runtime.interpret:
        return None
    if tensor.device.type != "cuda":
        return f"the tensor is on {tensor.device}, not on a GPU, and TRITON_INTERPRET=1 was not set before the import"
    if torch.version.hip is None and torch.cuda.get_device_capability(tensor.device) < OLDEST:
        return f"the GPU has compute capability {torch.cuda.get_device_capability(tensor.device)}, below {OLDEST}"
    return None
