"""Argument checks that the operations share, and the choice between torch and Triton."""

from __future__ import annotations

from itertools import pairwise
from numbers import Real

import torch

from densescore_kernels.errors import DensescoreError

BACKENDS = ("auto", "torch", "triton")
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MIN_CAPABILITY = (8, 0)  # CUDA compute capability of the oldest GPU that the kernels are compiled for
MAX_K = 10_000  # where the k-th root is within log(M) / k, 0.1 % for M = 20,000 patches, of the best patch


def check_matrix(name: str, tensor: torch.Tensor) -> None:
    """Raise unless ``tensor`` is a floating-point ``[M, C]`` with at least one class."""
    if tensor.ndim != 2 or tensor.shape[1] < 1:
        raise DensescoreError(f"{name}: got shape {list(tensor.shape)}, expected [M, C] with C of at least 1")
    if not tensor.is_floating_point():
        raise DensescoreError(f"{name}: got {tensor.dtype}, expected a floating-point tensor")


def check_exponent(k: float) -> float:
    """Return ``k`` as a float, or raise when it is not a number from 1 to `MAX_K`."""
    if isinstance(k, bool) or not isinstance(k, Real) or not 1 <= k <= MAX_K:
        raise DensescoreError(f"k: got {k!r}, expected a number from 1 to {MAX_K:,}")
    return float(k)


def check_offsets_shape(offsets: torch.Tensor | None) -> None:
    """Raise unless ``offsets`` is None or an int64 ``[B + 1]`` with at least one image."""
    if offsets is None:
        return
    if offsets.ndim != 1 or offsets.shape[0] < 2:
        raise DensescoreError(f"offsets: got shape {list(offsets.shape)}, expected [B + 1] with B of at least 1")
    if offsets.dtype != torch.int64:
        raise DensescoreError(f"offsets: got {offsets.dtype}, expected torch.int64")


def image_bounds(offsets: torch.Tensor | None, rows: int) -> tuple[int, ...]:
    """First row of each image, then the number of rows; ``offsets`` None is one image.

    Reading offsets that live on a GPU waits for the GPU; offsets on the CPU cost nothing.

    Example:
        >>> image_bounds(None, 7)
        (0, 7)
    """
    bounds = (0, rows) if offsets is None else tuple(offsets.tolist())
    if bounds[0] != 0 or bounds[-1] != rows:
        raise DensescoreError(f"offsets: got {bounds[0]} to {bounds[-1]}, expected 0 to the number of rows, {rows}")
    for image, (start, stop) in enumerate(pairwise(bounds)):
        if stop <= start:
            raise DensescoreError(
                f"offsets: got rows {start} to {stop} for image {image}, expected at least one row: "
                "the mean over no patch is not defined"
            )
    return bounds


def choose_backend(backend: str, tensor: torch.Tensor) -> str:
    """Resolve ``backend`` to ``"torch"`` or ``"triton"``.

    ``"auto"`` takes Triton for a tensor on a GPU where Triton works, else torch. An explicit backend never falls back.
    """
    if backend not in BACKENDS:
        raise DensescoreError(f"backend: got {backend!r}, expected one of {', '.join(BACKENDS)}")
    if backend == "torch" or (backend == "auto" and tensor.device.type == "cpu"):
        return "torch"
    obstacle = triton_obstacle(tensor)
    if obstacle is None:
        return "triton"
    if backend == "auto":
        return "torch"
    raise DensescoreError(f"backend: got 'triton', which cannot run here: {obstacle}")


def triton_obstacle(tensor: torch.Tensor) -> str | None:
    """Why the Triton kernels cannot run on ``tensor``, or None when they can."""
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
    if torch.version.hip is None and torch.cuda.get_device_capability(tensor.device) < MIN_CAPABILITY:
        return (
            f"the GPU has compute capability {torch.cuda.get_device_capability(tensor.device)}, below {MIN_CAPABILITY}"
        )
    return None
