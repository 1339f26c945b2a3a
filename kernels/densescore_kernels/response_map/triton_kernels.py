"""The kernels of the response maps: one idea each, no host code.

Two launches, whatever the number of images. The first sums the window of each segment of each level (a few MB, which
stay in L2). The second is a gather for each tile of the output: one window for each level, over the shared count,
stored to every row of the run that the tile belongs to. Fusing them would sum each window again in each
tile that touches it, about 49 additions for each level and pixel instead of one. No atomics, same bits on each run.

The rounding error is bounded because nothing is ever subtracted: a value is a sum of at most ceil(P/S)^2 scores for
each level, so for scores of one sign its relative error is below (ceil(P/S)^2 + levels + 4)·2^-24, whatever the size
of the map. A summed-area table subtracts numbers that grow with the map, and loses digits with it.
"""

from __future__ import annotations

import triton
import triton.language as tl

COUNT_BITS = tl.constexpr(10)  # low bits of a column code: cells that hold the pixel; the rest: its segment
COUNT_MASK = tl.constexpr((1 << 10) - 1)


@triton.jit(do_not_specialize=["V", "units", "K", "width", "tall", "wide"])
def window_sums(
    scores: tl.tensor,  # [M, C]
    classes: tl.tensor,  # [K] int64, read when CHOSEN
    places: tl.tensor,  # [4, V] int32: first cell, rows of cells, columns of cells, cells between two rows
    windows: tl.tensor,  # [V, width], width at least K
    V: tl.int32,
    units: tl.int32,  # C / VEC
    K: tl.int32,
    width: tl.int32,
    tall: tl.int32,  # most rows of cells in a window
    wide: tl.int32,
    VEC: tl.constexpr,
    CHOSEN: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Sum the window of each segment: neighbors share most of their cells, which the L1 cache serves."""
    C = units * VEC
    v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    first = tl.load(places + v, v < V, other=0)  # [BLOCK_V]
    rows = tl.load(places + V + v, v < V, other=0)
    cols = tl.load(places + 2 * V + v, v < V, other=0)
    step = tl.load(places + 3 * V + v, v < V, other=0)
    if CHOSEN:
        channel = tl.load(classes + k, k < K, other=0)
        wanted = k < K
    else:
        channel = k
        wanted = k < C
    total = tl.zeros([BLOCK_V, BLOCK_K], tl.float32)
    for i in range(tall):
        for j in range(wide):
            inside = ((i < rows) & (j < cols))[:, None] & wanted[None, :]
            at = (first + i * step + j).to(tl.int64)[:, None] * C + channel[None, :]
            total += tl.load(scores + at, inside, other=0.0).to(tl.float32)
    at = v.to(tl.int64)[:, None] * width + k[None, :]
    tl.store(windows + at, total, (v < V)[:, None] & (k < width)[None, :])


@triton.jit(do_not_specialize=["K", "blocks"])
def spread(
    windows: tl.tensor,  # [V, blocks · BLOCK_K]
    tasks: tl.tensor,  # [N, 9] int64, see response_map_triton.Plan
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
