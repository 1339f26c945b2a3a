"""The rows of a packed tensor that belong to each image."""

from __future__ import annotations

from itertools import pairwise

import torch

from densescore_kernels.errors import DensescoreError


def check_matrix(name: str, tensor: torch.Tensor) -> None:
    """Raise unless ``tensor`` is a floating-point ``[M, C]`` with at least one class."""
    if tensor.ndim != 2 or tensor.shape[1] < 1:
        raise DensescoreError(f"{name}: got shape {list(tensor.shape)}, expected [M, C] with C of at least 1")
    if not tensor.is_floating_point():
        raise DensescoreError(f"{name}: got {tensor.dtype}, expected a floating-point tensor")


def check_offsets_shape(offsets: torch.Tensor | None) -> None:
    """Raise unless ``offsets`` is None or an int64 ``[B + 1]`` with at least one image."""
    if offsets is None:
        return
    if offsets.ndim != 1 or offsets.shape[0] < 2:
        raise DensescoreError(f"offsets: got shape {list(offsets.shape)}, expected [B + 1] with B of at least 1")
    if offsets.dtype != torch.int64:
        raise DensescoreError(f"offsets: got {offsets.dtype}, expected torch.int64")


def image_bounds(offsets: torch.Tensor | None, rows: int) -> tuple[int, ...]:
    """First row of each image and, at the end, the number of rows. ``offsets`` None is a single image.

    Reading offsets that live on a GPU waits for the GPU; offsets on the CPU cost nothing.

    Raises:
        DensescoreError: when the bounds do not run from 0 to ``rows``, or when an image has no row.

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
