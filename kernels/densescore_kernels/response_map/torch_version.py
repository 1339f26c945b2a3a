"""Response maps in torch: what a CPU runs, and the documentation of the kernels.

Along each axis the cells that hold a pixel change only between runs of pixels (``grid.py``). So

1. the window of each segment of a level is summed once, first along y, then along x;
2. a run of pixel rows and a run of pixel columns share one value: a sum of one window for each level, over the count;
3. that value is spread over the run.

Every sum is a plain sum of the few cells that hold the pixel (at most ceil(P/S) along an axis, then one term for each
level): nothing is subtracted, as a summed-area table would, so for scores of one sign the relative error is below
(2·ceil(P/S) + levels + 2)·2^-24 whatever the size of the map. NaN stays within the patch that it came from.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from densescore_kernels.grid import Grid, Ints, run_starts
from densescore_kernels.power_mean.torch_version import working_dtype

BAND = 1 << 18  # elements of a band of rows before it is spread: 1 MiB of float32


class Bags(NamedTuple):
    """Ragged lists of rows, as ``embedding_bag`` takes them: each bag is summed to one row."""

    members: torch.Tensor  # [members] int64
    starts: torch.Tensor  # [bags] int64


class Plan(NamedTuple):
    """Index tables of one grid."""

    down: Bags  # cells → (level, y segment, column)
    across: Bags  # (level, y segment, column) → (level, y segment, x segment): the windows
    window_row: torch.Tensor  # [Y, L] first window of the y segment of each run of pixel rows
    window_col: torch.Tensor  # [X, L] x segment of each run of pixel columns
    cells: torch.Tensor  # [Y, X] number of cells that hold a pixel of the runs
    run_y: torch.Tensor  # [H] run of each pixel row
    run_x: torch.Tensor  # [W] run of each pixel column
    starts_y: tuple[int, ...]  # [Y + 1] first pixel row of each run, and H


def response_map(scores: torch.Tensor, grid: Grid, classes: torch.Tensor | None, out: torch.Tensor) -> None:
    """Write the response map of ``[M, C]`` scores into ``out``, ``[K, H, W]``."""
    selected = scores if classes is None else scores.index_select(1, classes)
    selected = selected.to(working_dtype(scores)).contiguous()  # [M, K]
    K, W = selected.shape[1], grid.width
    at = plan(grid, scores.device)

    # Sum the window of each segment, first along y, then along x
    columns = embedding_bag(at.down.members, selected, at.down.starts, mode="sum")
    windows = embedding_bag(at.across.members, columns, at.across.starts, mode="sum")  # [windows, K]

    # Per band of runs: mean over the levels, then spread over pixels
    Y, X = at.cells.shape
    step = max(1, BAND // (K * W))
    for a in range(0, Y, step):
        b = min(a + step, Y)
        held = (at.window_row[a:b, None] + at.window_col).flatten(0, 1)  # [(b - a)·X, L]
        mean = embedding_bag(held, windows, mode="sum") / at.cells[a:b].reshape(-1, 1)  # [(b - a)·X, K]
        mean = mean.to(out.dtype).view(b - a, X, K).permute(2, 0, 1)  # [K, b - a, X]
        spread = mean.index_select(2, at.run_x)  # [K, b - a, W]
        top, bottom = at.starts_y[a], at.starts_y[b]
        torch.index_select(spread, 1, at.run_y[top:bottom] - a, out=out[:, top:bottom])


@lru_cache(maxsize=16)
def plan(grid: Grid, device: torch.device) -> Plan:
    """Index tables of a grid, cached for the next image of the same size."""
    levels = range(len(grid.levels))
    down, across = [grid.down(number) for number in levels], [grid.across(number) for number in levels]
    starts_y = run_starts(*(axis.segment for axis in down))
    starts_x = run_starts(*(axis.segment for axis in across))

    # Members of each sum, level by level
    first_y, count_y, first_x, count_x, window_row = [], [], [], [], []
    cell = column = window = 0
    for level, y, x in zip(grid.levels, down, across, strict=True):
        columns = np.arange(level.cols)
        first_y.append(cell + (y.first[:, None] * level.cols + columns).ravel())
        count_y.append(np.repeat(y.cells, level.cols))
        segments = np.arange(y.first.size)[:, None]
        first_x.append(column + (segments * level.cols + x.first).ravel())
        count_x.append(np.tile(x.cells, y.first.size))
        window_row.append(window + y.segment[starts_y] * x.first.size)
        cell += level.rows * level.cols
        column += y.first.size * level.cols
        window += y.first.size * x.first.size

    # Number of cells over each pixel of a run
    strides = np.repeat([level.cols for level in grid.levels], [first.size for first in first_y])
    held_y = np.stack([axis.cells[axis.segment[starts_y]] for axis in down], 1)  # [Y, L]
    held_x = np.stack([axis.cells[axis.segment[starts_x]] for axis in across], 1)  # [X, L]

    def tensor(values: Ints) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    def bags(first: Ints, count: Ints, stride: Ints) -> Bags:
        starts = np.cumsum(count) - count
        place = np.arange(count.sum()) - np.repeat(starts, count)  # place of each member in its bag
        return Bags(tensor(np.repeat(first, count) + place * np.repeat(stride, count)), tensor(starts))

    return Plan(
        down=bags(np.concatenate(first_y), np.concatenate(count_y), strides),
        across=bags(np.concatenate(first_x), np.concatenate(count_x), np.ones(window, dtype=np.int64)),
        window_row=tensor(np.stack(window_row, 1)),
        window_col=tensor(np.stack([axis.segment[starts_x] for axis in across], 1)),
        cells=tensor(held_y @ held_x.T),
        run_y=tensor(np.repeat(np.arange(starts_y.size), np.diff(starts_y, append=grid.height))),
        run_x=tensor(np.repeat(np.arange(starts_x.size), np.diff(starts_x, append=grid.width))),
        starts_y=(*starts_y.tolist(), grid.height),
    )
