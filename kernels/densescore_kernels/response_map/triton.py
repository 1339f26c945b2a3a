"""Response maps in Triton: kernels, tables, launches and launch configurations.

Two launches, whatever the number of images. The first sums the window of each segment of each level (a few MB, which
stay in L2). The second is a gather for each tile of the output: one window for each level, over the shared count,
stored to every row of the run that the tile belongs to. Fusing them would sum each window again in each
tile that touches it, about 49 additions for each level and pixel instead of one. No atomics, same bits on each run.

The rounding error is bounded because nothing is ever subtracted: a value is a sum of at most ceil(P/S)^2 scores for
each level, so for scores of one sign its relative error is below (ceil(P/S)^2 + levels + 4)·2^-24, whatever the size
of the map. A summed-area table subtracts numbers that grow with the map, and loses digits with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from densescore_kernels.checks import TRITON_DTYPES
from densescore_kernels.errors import DensescoreError
from densescore_kernels.grid import Grid, Ints, run_starts
from densescore_kernels.launch import TYPE_NAMES, Budget, Config, Configs, aligned, vector, vectors

# Kernels

COUNT_BITS = tl.constexpr(10)  # low bits of a column code: cells that hold the pixel; the rest: its segment
COUNT_MASK = tl.constexpr((1 << 10) - 1)


@triton.jit(do_not_specialize=["V", "row_vectors", "K", "width", "tall", "wide"])
def window_sums(
    scores: tl.tensor,  # [M, C]
    classes: tl.tensor,  # [K] int64, read when SELECT
    window_cells: tl.tensor,  # [4, V] int32: first cell, rows of cells, columns of cells, cells between two rows
    windows: tl.tensor,  # [V, width], width at least K
    V: tl.int32,
    row_vectors: tl.int32,  # C / VEC
    K: tl.int32,
    width: tl.int32,
    tall: tl.int32,  # most rows of cells in a window
    wide: tl.int32,
    VEC: tl.constexpr,
    SELECT: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Sum the window of each segment: neighbors share most of their cells, which the L1 cache serves."""
    row_length = row_vectors * VEC
    v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    first = tl.load(window_cells + v, v < V, other=0)  # [BLOCK_V]
    rows = tl.load(window_cells + V + v, v < V, other=0)
    cols = tl.load(window_cells + 2 * V + v, v < V, other=0)
    step = tl.load(window_cells + 3 * V + v, v < V, other=0)
    if SELECT:
        channel = tl.load(classes + k, k < K, other=0)
        wanted = k < K
    else:
        channel = k
        wanted = k < row_length
    total = tl.zeros([BLOCK_V, BLOCK_K], tl.float32)
    for i in range(tall):
        for j in range(wide):
            inside = ((i < rows) & (j < cols))[:, None] & wanted[None, :]
            at = (first + i * step + j).to(tl.int64)[:, None] * row_length + channel[None, :]
            total += tl.load(scores + at, inside, other=0.0).to(tl.float32)
    at = v.to(tl.int64)[:, None] * width + k[None, :]
    tl.store(windows + at, total, (v < V)[:, None] & (k < width)[None, :])


@triton.jit(do_not_specialize=["K", "blocks"])
def spread(
    windows: tl.tensor,  # [V, blocks · BLOCK_K]
    tasks: tl.tensor,  # [N, 9] int64, see Plan
    row_codes: tl.tensor,  # int64, for each run and level: first window of its row, cells along y
    col_codes: tl.tensor,  # int32, for each image, level and pixel column: segment, cells along x
    out: tl.tensor,  # the maps of all images, one after another: [K, H, W] each
    K: tl.int32,
    blocks: tl.int32,
    VEC: tl.constexpr,  # 4 when every map's width is a multiple of 4
    BLOCK_X: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Fill a few pixel rows that see the same cells, over BLOCK_X columns and BLOCK_K classes."""
    task = tasks + 9 * tl.program_id(0).to(tl.int64)
    pixel = tl.multiple_of(tl.load(task), VEC)  # pixels of the images before this one
    area = tl.multiple_of(tl.load(task + 1), VEC)  # H·W
    W = tl.multiple_of(tl.load(task + 2), VEC)
    top = tl.load(task + 3)
    height = tl.load(task + 4).to(tl.int32)
    left = tl.multiple_of(tl.load(task + 5), BLOCK_X)
    levels = tl.load(task + 6).to(tl.int32)
    row_code = row_codes + tl.load(task + 7)
    col_code = col_codes + tl.load(task + 8)
    x = left + tl.arange(0, BLOCK_X)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_X, BLOCK_K], tl.float32)
    cells = tl.zeros([BLOCK_X], tl.int32)
    for level in range(levels):
        code = tl.load(col_code + level * W + x, x < W, other=1)  # past the edge: the first segment, not stored
        window = tl.load(row_code + 2 * level) + (code >> COUNT_BITS)
        total += tl.load(windows + window[:, None] * (blocks * BLOCK_K) + k[None, :])
        cells += tl.load(row_code + 2 * level + 1).to(tl.int32) * (code & COUNT_MASK)
    mean = tl.trans(total / cells.to(tl.float32)[:, None]).to(out.dtype.element_ty)  # [BLOCK_K, BLOCK_X]
    inside = (k < K)[:, None] & (x < W)[None, :]
    at = out + pixel * K + k.to(tl.int64)[:, None] * area + top * W + x[None, :]
    for _ in range(height):
        tl.store(at, mean, inside)
        at += W


# Launches

WINDOW_CLASSES = 32
SPREAD_COLUMNS = 256
SPREAD_CLASSES = (4, 8)  # 8 for more than 4 classes: whole 32-byte sectors of L2
THREADS = 128
MAX_ROWS = 32  # pixel rows that one program fills: long runs are dealt to several
BITS = int(COUNT_BITS.value)


class Plan(NamedTuple):
    """The tables of one call: a few hundred KB, kept on the device for the next call on images of the same sizes."""

    window_cells: torch.Tensor  # [4, V] int32, per window: first cell, rows, columns, cells between two rows
    tasks: torch.Tensor  # [N, 9] int64: pixels before, H·W, W, y, rows, x, levels, first row code, first column code
    row_codes: torch.Tensor  # int64: for each run and level, its first window and the cells along y
    col_codes: torch.Tensor  # int32: for each image, level and pixel column, segment << BITS | cells along x
    tall: int  # most rows of cells in a window
    wide: int


def window_rows(VEC: int) -> int:
    """Windows that one program sums: a thread has one 128-bit load (or 4 single ones) a cell."""
    return THREADS * max(VEC, 4) // WINDOW_CLASSES


def spread_classes(K: int) -> int:
    """Classes that one program of the second launch fills."""
    return next((classes for classes in SPREAD_CLASSES if classes >= K), SPREAD_CLASSES[-1])


def response_maps(
    scores: torch.Tensor, grids: tuple[Grid, ...], classes: torch.Tensor | None, out: torch.Tensor
) -> None:
    """Write the maps of all images, ``[K, H, W]`` each, one after another into the flat ``out``."""
    scores, C = aligned(scores), scores.shape[1]
    K = C if classes is None else len(classes)
    BLOCK_K = spread_classes(K)
    blocks = -(-K // BLOCK_K)
    width = blocks * BLOCK_K
    at = plan(grids, scores.device)

    # Sum the window of each segment
    V, VEC = at.window_cells.shape[1], vector(scores.dtype, C) if classes is None else 1
    windows = scores.new_empty(V, width, dtype=torch.float32)
    CONFIGS.launch(
        window_sums, (-(-V // window_rows(VEC)), -(-width // WINDOW_CLASSES)),
        scores, at.tasks if classes is None else aligned(classes), at.window_cells, windows,
        V, C // VEC, K, width, at.tall, at.wide,
        VEC=VEC, SELECT=int(classes is not None), BLOCK_V=window_rows(VEC), BLOCK_K=WINDOW_CLASSES,
    )  # fmt: skip

    # Gather the windows of each pixel, and store the mean to all rows of its run
    CONFIGS.launch(
        spread, (len(at.tasks), blocks), windows, at.tasks, at.row_codes, at.col_codes, out, K, blocks,
        VEC=4 if all(grid.width % 4 == 0 for grid in grids) else 1, BLOCK_X=SPREAD_COLUMNS, BLOCK_K=BLOCK_K,
    )  # fmt: skip


@lru_cache(maxsize=16)
def plan(grids: tuple[Grid, ...], device: torch.device) -> Plan:
    """Tables of a call."""
    window_cells, tasks, row_codes, col_codes = [], [], [], []
    cell = window = pixel = rows_seen = cols_seen = tall = wide = 0
    for grid in grids:
        levels = range(len(grid.levels))
        down, across = [grid.down(number) for number in levels], [grid.across(number) for number in levels]
        starts = run_starts(*(axis.segment for axis in down))  # [Y]

        # Windows of each level, and their place in the gather
        codes = np.empty((starts.size, len(levels), 2), dtype=np.int64)
        for number, (level, y, x) in enumerate(zip(grid.levels, down, across, strict=True)):
            first = cell + y.first[:, None] * level.cols + x.first  # [y segments, x segments]
            shape = first.shape
            window_cells.append(
                np.stack(
                    [
                        first.ravel(),
                        np.broadcast_to(y.cells[:, None], shape).ravel(),
                        np.broadcast_to(x.cells, shape).ravel(),
                        np.full(first.size, level.cols),
                    ]
                )
            )
            segment = y.segment[starts]
            codes[:, number] = np.stack([window + segment * x.first.size, y.cells[segment]], 1)
            col_codes.append(_column_codes(x.segment, x.cells[x.segment]))
            tall, wide = max(tall, int(y.cells.max())), max(wide, int(x.cells.max()))
            cell += level.rows * level.cols
            window += first.size
        row_codes.append(codes.ravel())

        # Tiles of each run of pixel rows
        for run, (start, stop) in enumerate(zip(starts, (*starts[1:], grid.height), strict=True)):
            at = (len(levels), rows_seen + run * codes[0].size, cols_seen)
            tasks += [
                (pixel, grid.height * grid.width, grid.width, top, min(MAX_ROWS, stop - top), left, *at)
                for top in range(start, stop, MAX_ROWS)
                for left in range(0, grid.width, SPREAD_COLUMNS)
            ]
        pixel += grid.height * grid.width
        rows_seen += codes.size
        cols_seen += len(levels) * grid.width
    return Plan(
        window_cells=torch.from_numpy(np.concatenate(window_cells, 1).astype(np.int32)).to(device, non_blocking=True),
        tasks=torch.from_numpy(np.array(tasks, dtype=np.int64)).to(device, non_blocking=True),
        row_codes=torch.from_numpy(np.concatenate(row_codes)).to(device, non_blocking=True),
        col_codes=torch.from_numpy(np.concatenate(col_codes)).to(device, non_blocking=True),
        tall=tall,
        wide=wide,
    )


def _column_codes(segment: Ints, cells: Ints) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    if cells.max() >= 1 << BITS or segment.max() >= 1 << (31 - BITS):
        raise DensescoreError(
            f"grid: got {cells.max()} cells over one pixel and {segment.max() + 1} segments along an axis, "
            f"expected fewer than {1 << BITS} and {1 << (31 - BITS)} for the Triton kernels"
        )
    return (segment << BITS | cells).astype(np.int32)


# Launch configurations


def _configs() -> Iterator[Config]:
    for dtype in TRITON_DTYPES:
        arguments = ("*" + TYPE_NAMES[dtype], "*i64", "*i32", "*fp32", *["i32"] * 6)
        for VEC, select in ((1, 0), (vectors(dtype)[1], 0), (1, 1)):
            tile = (("VEC", VEC), ("SELECT", select), ("BLOCK_V", window_rows(VEC)), ("BLOCK_K", WINDOW_CLASSES))
            yield Config(window_sums, arguments, tile, THREADS)
    for dtype in (torch.float32, torch.float16):
        arguments = ("*fp32", "*i64", "*i64", "*i32", "*" + TYPE_NAMES[dtype], "i32", "i32")
        for VEC in (1, 4):
            for classes in SPREAD_CLASSES:
                constants = (("VEC", VEC), ("BLOCK_X", SPREAD_COLUMNS), ("BLOCK_K", classes))
                yield Config(spread, arguments, constants, THREADS)


CONFIGS = Configs(
    _configs(),
    {
        "window_sums": Budget(wide=48, single=64, shared=4096),
        "spread": Budget(wide=64, single=64, shared=8192, always_wide=True),
    },
)
