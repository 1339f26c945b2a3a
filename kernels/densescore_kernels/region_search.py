"""The search of a tile's region in a table of `densescore_kernels.tiles`, as the kernels do it."""

from __future__ import annotations

import triton
import triton.language as tl

from densescore_kernels.tiles import Tiles


def search_steps(tiles: Tiles) -> int:
    """Halvings after which `find_region` has one region left."""
    return int(tiles.table.shape[1] - 1).bit_length()


@triton.jit
def find_region(
    starts: tl.tensor,  # [L] int32, ascending
    L: tl.int32,
    steps: tl.int32,
    tile: tl.int32,
) -> tl.tensor:
    """Last region whose first tile is at most ``tile``."""
    low = tile * 0
    high = low + L
    for _ in range(steps):
        middle = (low + high) // 2
        before = tl.load(starts + middle) > tile
        high = tl.where(before, middle, high)
        low = tl.where(before, low, middle)
    return low
