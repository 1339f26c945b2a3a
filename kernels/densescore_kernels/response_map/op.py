"""Response maps: at each pixel, the mean score of the patches that hold it.

They are the response maps of Oquab et al., "Learning and Transferring Mid-Level Image Representations using
Convolutional Neural Networks" (CVPR 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch

from densescore_kernels.checks import check_matrix, choose_backend
from densescore_kernels.errors import DensescoreError
from densescore_kernels.grid import Grid, GridLevel
from densescore_kernels.operators import operator
from densescore_kernels.response_map import torch_version

OUT_DTYPES = (torch.float32, torch.float16)


@overload
def response_map(
    scores: torch.Tensor,
    grid: Grid,
    classes: Sequence[int] | torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> torch.Tensor: ...


@overload
def response_map(
    scores: torch.Tensor,
    grid: Sequence[Grid],
    classes: Sequence[int] | torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> list[torch.Tensor]: ...


def response_map(
    scores: torch.Tensor,
    grid: Grid | Sequence[Grid],
    classes: Sequence[int] | torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> torch.Tensor | list[torch.Tensor]:
    """Mean score of the cells of all levels that hold each pixel's center (Oquab et al., CVPR 2014).

    Args:
        scores: ``[M, C]`` float32, float16, bfloat16 or float64, no unit: for each image, for each of its levels, the
            ``rows·cols`` cells in row-major order. A NaN reaches the pixels that its cell holds, and no others.
        grid: the cells of one image, or of several images of any sizes, which then share their launches.
        classes: the classes to map, ``[K]`` int64 between 0 and C - 1; None means all, K = C.
        dtype: of the map, float32 or float16; the sums are float32 (float64 for float64 scores).
        backend: ``"auto"`` (torch on a CPU, Triton on a GPU), ``"torch"`` or ``"triton"``.

    Returns:
        ``[K, H, W]`` in image pixels, never rescaled; a list of them for a sequence of grids. The same bits each run.
        Not differentiable.

    Raises:
        DensescoreError: for a wrong shape or dtype, a class out of range, or a backend that cannot run.

    Example:
        >>> grid = Grid(1, 2, patch=1, stride=1, levels=(GridLevel(1, 2, rows=1, cols=2),))
        >>> response_map(torch.tensor([[3.0], [4.0]]), grid)
        tensor([[[3., 4.]]])
    """
    grids = (grid,) if isinstance(grid, Grid) else tuple(grid)
    check_matrix("scores", scores)
    if not grids or not all(isinstance(one, Grid) for one in grids):
        raise DensescoreError(f"grid: got {grid!r}, expected a Grid or a sequence of at least one")
    cells = sum(one.cells for one in grids)
    if scores.shape[0] != cells:
        raise DensescoreError(f"scores: got {scores.shape[0]} rows, expected {cells}, one for each cell of the grid")
    if dtype not in OUT_DTYPES:
        raise DensescoreError(f"dtype: got {dtype}, expected one of {', '.join(map(str, OUT_DTYPES))}")
    indices = _class_indices(classes)
    K = scores.shape[1] if indices is None else indices.shape[0]
    packed = _response_map(scores, _pack(grids), indices, dtype, backend)
    maps, start = [], 0
    for one in grids:
        size = K * one.height * one.width
        maps.append(packed[start : start + size].view(K, one.height, one.width))
        start += size
    return maps[0] if isinstance(grid, Grid) else maps


def _class_indices(classes: Sequence[int] | torch.Tensor | None) -> torch.Tensor | None:
    if classes is None:
        return None
    indices = classes if isinstance(classes, torch.Tensor) else torch.tensor(list(classes))
    if indices.ndim != 1 or indices.shape[0] < 1 or indices.dtype not in (torch.int32, torch.int64):
        raise DensescoreError(f"classes: got {classes!r}, expected at least one whole number")
    return indices.long()


def _pack(grids: Sequence[Grid]) -> list[int]:
    """The grids as one list of integers, which is what an operator of torch can take."""
    numbers = []
    for one in grids:
        numbers += [one.height, one.width, one.patch, one.stride, len(one.levels)]
        for level in one.levels:
            numbers += [level.height, level.width, level.rows, level.cols]
    return numbers


def _unpack(numbers: Sequence[int]) -> tuple[Grid, ...]:
    """The inverse of :func:`_pack`."""
    grids, at = [], 0
    while at < len(numbers):
        height, width, patch, stride, count = numbers[at : at + 5]
        stop = at + 5 + 4 * count
        levels = tuple(GridLevel(*numbers[first : first + 4]) for first in range(at + 5, stop, 4))
        grids.append(Grid(height, width, patch, stride, levels))
        at = stop
    return tuple(grids)


@operator("response_map")
def _response_map(
    scores: torch.Tensor, geometry: Sequence[int], classes: torch.Tensor | None, dtype: torch.dtype, backend: str
) -> torch.Tensor:
    grids, C = _unpack(geometry), scores.shape[1]
    if classes is not None and not 0 <= int(classes.min()) <= int(classes.max()) < C:
        raise DensescoreError(f"classes: got {classes.tolist()}, expected numbers between 0 and {C - 1}")
    K = C if classes is None else classes.shape[0]
    indices = None if classes is None else classes.to(scores.device)
    out = scores.new_empty(K * sum(one.height * one.width for one in grids), dtype=dtype)
    if choose_backend(backend, scores) == "triton":
        from densescore_kernels.response_map import triton as triton_version

        triton_version.response_maps(scores, grids, indices, out)
        return out
    cell = start = 0
    for one in grids:
        size = K * one.height * one.width
        image = out[start : start + size].view(K, one.height, one.width)
        torch_version.response_map(scores[cell : cell + one.cells], one, indices, image)
        cell, start = cell + one.cells, start + size
    return out


@_response_map.register_fake
def _(
    scores: torch.Tensor, geometry: Sequence[int], classes: torch.Tensor | None, dtype: torch.dtype, backend: str
) -> torch.Tensor:
    K = scores.shape[1] if classes is None else classes.shape[0]
    pixels = sum(one.height * one.width for one in _unpack(geometry))
    return scores.new_empty(K * pixels, dtype=dtype)
