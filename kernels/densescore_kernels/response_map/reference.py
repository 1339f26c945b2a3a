"""The definition, as plain float64 loops. Slow and obvious: never edited to match a kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from densescore_kernels.grid import Grid


def response_map(scores: torch.Tensor, grid: Grid, classes: Sequence[int] | None = None) -> torch.Tensor:
    """Mean score of the cells of all levels that hold each pixel's center: ``[M, C]`` → ``[K, H, W]`` float64."""
    selected = scores.double() if classes is None else scores.double()[:, list(classes)]  # [M, K]
    total = torch.zeros(selected.shape[1], grid.height, grid.width, dtype=torch.float64)
    count = torch.zeros(grid.height, grid.width, dtype=torch.float64)
    cell = 0
    for level in grid.levels:
        held_y = [_held(grid, grid.height, level.height, i) for i in range(level.rows)]
        held_x = [_held(grid, grid.width, level.width, j) for j in range(level.cols)]
        for i in range(level.rows):
            for j in range(level.cols):
                for y in held_y[i]:
                    total[:, y, held_x[j]] += selected[cell][:, None]
                    count[y, held_x[j]] += 1
                cell += 1
    return total / count


def _held(grid: Grid, pixels: int, length: int, cell: int) -> list[int]:
    """The pixels whose center lies in the window of ``cell``, along one axis of one level."""
    start, stop = cell * grid.stride, cell * grid.stride + grid.patch  # level pixels
    return [x for x in range(pixels) if 2 * pixels * start <= (2 * x + 1) * length < 2 * pixels * stop]
