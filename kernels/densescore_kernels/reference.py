"""The definitions, as plain float64 loops. Slow and obvious: never edited to match a kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch

from densescore_kernels.grid import Grid


def power_mean(scores: torch.Tensor, offsets: Sequence[int], k: float) -> torch.Tensor:
    """Mean of the k-th powers of each image's scores: ``[M, C]`` → ``[B, C]`` float64."""
    rows = scores.double().tolist()  # [M][C]
    means = []
    for start, stop in pairwise(offsets):
        powers = [[y**k for y in row] for row in rows[start:stop]]
        means.append([math.fsum(column) / (stop - start) for column in zip(*powers, strict=True)])
    return torch.tensor(means, dtype=torch.float64)


def softmax(logits: torch.Tensor) -> torch.Tensor:
    """Softmax of each row: ``[M, C]`` → ``[M, C]`` float64."""
    rows = []
    for row in logits.double().tolist():
        top = max(row)
        total = math.fsum(math.exp(z - top) for z in row)
        rows.append([math.exp(z - top) / total for z in row])
    return torch.tensor(rows, dtype=torch.float64)


def softmax_power_mean(logits: torch.Tensor, offsets: Sequence[int], k: float) -> torch.Tensor:
    """Power mean of the softmax of each row: ``[M, C]`` → ``[B, C]`` float64."""
    return power_mean(softmax(logits), offsets, k)


def response_map(scores: torch.Tensor, grid: Grid, classes: Sequence[int] | None = None) -> torch.Tensor:
    """Mean score of the cells of all levels that hold each pixel's centre: ``[M, C]`` → ``[K, H, W]`` float64."""
    chosen = scores.double() if classes is None else scores.double()[:, list(classes)]  # [M, K]
    total = torch.zeros(chosen.shape[1], grid.height, grid.width, dtype=torch.float64)
    count = torch.zeros(grid.height, grid.width, dtype=torch.float64)
    cell = 0
    for level in grid.levels:
        held_y = [_held(grid, grid.height, level.height, i) for i in range(level.rows)]
        held_x = [_held(grid, grid.width, level.width, j) for j in range(level.cols)]
        for i in range(level.rows):
            for j in range(level.cols):
                for y in held_y[i]:
                    total[:, y, held_x[j]] += chosen[cell][:, None]
                    count[y, held_x[j]] += 1
                cell += 1
    return total / count


def _held(grid: Grid, pixels: int, length: int, cell: int) -> list[int]:
    """The pixels whose centre lies in the window of ``cell``, along one axis of one level."""
    start, stop = cell * grid.stride, cell * grid.stride + grid.patch  # level pixels
    return [x for x in range(pixels) if 2 * pixels * start <= (2 * x + 1) * length < 2 * pixels * stop]
