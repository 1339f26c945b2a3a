"""Launches of the response map kernels: tables, tiles, and the list of forms."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from densescore_kernels.backends import TRITON_DTYPES
from densescore_kernels.errors import DensescoreError
from densescore_kernels.grid import Grid, Ints, run_starts
from densescore_kernels.response_map.triton_kernels import COUNT_BITS, spread, window_sums
from densescore_kernels.triton_forms import NAMES, Form, Forms, aligned, vector, vectors

WINDOW_CLASSES = 32
SPREAD_COLUMNS = 256
SPREAD_CLASSES = (4, 8)  # 8 for more than 4 classes: whole 32-byte sectors of L2
THREADS = 128
TALLEST = 32  # pixel rows that one program fills at most, so that long runs are shared out
BITS = int(COUNT_BITS.value)


class Plan(NamedTuple):
    """The tables of one call: a few hundred KB, kept on the device for the next call on images of the same sizes."""

    places: torch.Tensor  # [4, V] int32: of each window, its first cell, rows, columns, cells between two rows
    tasks: torch.Tensor  # [N, 9] int64: pixels before, H·W, W, y, rows, x, levels, first row code, first column code
    row_codes: torch.Tensor  # int64: for each run and level, its first window and the cells along y
    col_codes: torch.Tensor  # int32: for each image, level and pixel column, segment << BITS | cells along x
    tall: int  # most rows of cells in a window
    wide: int


def window_rows(VEC: int) -> int:
    """Windows that one program sums: so many that a thread has one 128-bit load (or 4 single ones) a cell."""
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
    V, VEC = at.places.shape[1], vector(scores.dtype, C) if classes is None else 1
    windows = scores.new_empty(V, width, dtype=torch.float32)
    FORMS.launch(
        window_sums, (-(-V // window_rows(VEC)), -(-width // WINDOW_CLASSES)),
        scores, at.tasks if classes is None else aligned(classes), at.places, windows,
        V, C // VEC, K, width, at.tall, at.wide,
        VEC=VEC, CHOSEN=int(classes is not None), BLOCK_V=window_rows(VEC), BLOCK_K=WINDOW_CLASSES,
    )  # fmt: skip
    FORMS.launch(
        spread, (len(at.tasks), blocks), windows, at.tasks, at.row_codes, at.col_codes, out, K, blocks,
        VEC=4 if all(grid.width % 4 == 0 for grid in grids) else 1, BLOCK_X=SPREAD_COLUMNS, BLOCK_K=BLOCK_K,
    )  # fmt: skip


@lru_cache(maxsize=16)
def plan(grids: tuple[Grid, ...], device: torch.device) -> Plan:
    """The tables of a call."""
    places, tasks, row_codes, col_codes = [], [], [], []
    cell = window = pixel = rows_seen = cols_seen = tall = wide = 0
    for grid in grids:
        levels = range(len(grid.levels))
        down, across = [grid.down(number) for number in levels], [grid.across(number) for number in levels]
        starts = run_starts(*(axis.segment for axis in down))  # [Y]
        codes = np.empty((starts.size, len(levels), 2), dtype=np.int64)
        for number, (level, y, x) in enumerate(zip(grid.levels, down, across, strict=True)):
            first = cell + y.first[:, None] * level.cols + x.first  # [y segments, x segments]
            shape = first.shape
            places.append(
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
        for run, (start, stop) in enumerate(zip(starts, (*starts[1:], grid.height), strict=True)):
            at = (len(levels), rows_seen + run * codes[0].size, cols_seen)
            tasks += [
                (pixel, grid.height * grid.width, grid.width, top, min(TALLEST, stop - top), left, *at)
                for top in range(start, stop, TALLEST)
                for left in range(0, grid.width, SPREAD_COLUMNS)
            ]
        pixel += grid.height * grid.width
        rows_seen += codes.size
        cols_seen += len(levels) * grid.width
    return Plan(
        places=torch.from_numpy(np.concatenate(places, 1).astype(np.int32)).to(device),
        tasks=torch.from_numpy(np.array(tasks, dtype=np.int64)).to(device),
        row_codes=torch.from_numpy(np.concatenate(row_codes)).to(device),
        col_codes=torch.from_numpy(np.concatenate(col_codes)).to(device),
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


def _forms() -> Iterator[Form]:
    for dtype in TRITON_DTYPES:
        arguments = ("*" + NAMES[dtype], "*i64", "*i32", "*fp32", *["i32"] * 6)
        for VEC, chosen in ((1, 0), (vectors(dtype)[1], 0), (1, 1)):
            tile = (("VEC", VEC), ("CHOSEN", chosen), ("BLOCK_V", window_rows(VEC)), ("BLOCK_K", WINDOW_CLASSES))
            yield Form(window_sums, arguments, tile, THREADS)
    for dtype in (torch.float32, torch.float16):
        arguments = ("*fp32", "*i64", "*i64", "*i32", "*" + NAMES[dtype], "i32", "i32")
        for VEC in (1, 4):
            for classes in SPREAD_CLASSES:
                constants = (("VEC", VEC), ("BLOCK_X", SPREAD_COLUMNS), ("BLOCK_K", classes))
                yield Form(spread, arguments, constants, THREADS)


FORMS = Forms(_forms())
