"""Levels of many images in one pass: resized as OpenCV does, padded by reflection, normalized, placed on canvases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from densescore_kernels.checks import choose_backend
from densescore_kernels.errors import DensescoreError
from densescore_kernels.image_levels import torch_version
from densescore_kernels.operators import operator
from densescore_kernels.tiles import Tiles, tile_table

BLOCK = 256
"""Pixels of a tile."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class PlacedLevel(NamedTuple):
    """One level: the image that it is made from, its sizes, and its place in the output. All in pixels."""

    source: int  # first pixel of the image among those of all images
    image_height: int
    image_width: int
    height: int  # before padding
    width: int
    padded_height: int
    padded_width: int
    target: int  # output row of the first pixel
    row: int  # output rows from one line of pixels to the next: the width of the canvas


def image_levels(
    pixels: torch.Tensor,  # [ΣH·W, 3] of all images, row by row: uint8, or float32 in [0, 1]
    levels: Tiles,  # by `level_tiles`, on the device of `pixels`
    rows: int,  # length of the output; the pixels of a canvas lie one after another
    *,
    mean: Sequence[float],  # per channel, for pixels in [0, 1]
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,  # of the output: float32, float16 or bfloat16
    backend: str = "auto",  # "auto" (torch on a CPU, Triton on a GPU), "torch" or "triton"
) -> torch.Tensor:
    """Resize images to levels as OpenCV does, mirror past the last pixel, normalize: ``[rows, 3]``, else zero.

    Levels of uint8 images are rounded to whole numbers first, within 1 of OpenCV's; the same bits each run.

    Example:
        >>> levels = level_tiles([PlacedLevel(0, 1, 2, 1, 1, 1, 1, target=0, row=1)])  # two pixels shrunk to one
        >>> image_levels(torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0]]), levels, 1, mean=(0, 0, 0), std=(1, 1, 2))
        tensor([[0.5000, 0.0000, 0.5000]])
    """
    if pixels.ndim != 2 or pixels.shape[1] != 3 or pixels.dtype not in (torch.uint8, torch.float32):
        raise DensescoreError(f"pixels: got {list(pixels.shape)} {pixels.dtype}, expected [ΣH·W, 3] uint8 or float32")
    if dtype not in DTYPES or len(mean) != 3 or len(std) != 3 or not all(std):
        raise DensescoreError(f"image_levels: got {dtype}, mean {mean}, std {std}, expected three numbers each")
    unit = 255 if pixels.dtype == torch.uint8 else 1
    factors = [1 / (unit * one) for one in std]
    offsets = [-m / s for m, s in zip(mean, std, strict=True)]
    return _image_levels(pixels, levels.table, levels.total, rows, factors, offsets, dtype, backend)


def level_tiles(levels: Sequence[PlacedLevel]) -> Tiles:
    """Table of levels, on the CPU; `Tiles.to` copies it."""
    columns = np.array(levels, dtype=np.int64).T  # [9, L]
    return tile_table(columns, -(-columns[5] * columns[6] // BLOCK))


@operator("image_levels")
def _image_levels(
    pixels: torch.Tensor,
    table: torch.Tensor,
    tiles: int,
    rows: int,
    factors: Sequence[float],
    offsets: Sequence[float],
    dtype: torch.dtype,
    backend: str,
) -> torch.Tensor:
    out = pixels.new_zeros(rows, 3, dtype=dtype)
    version = torch_version
    if choose_backend(backend, out) == "triton":
        from densescore_kernels.image_levels import triton as version  # type: ignore[no-redef]
    version.image_levels(pixels, Tiles(table, tiles), factors, offsets, out)
    return out


@_image_levels.register_fake
def _(pixels: torch.Tensor, table: torch.Tensor, tiles: int, rows: int, *rest: Any) -> torch.Tensor:
    return pixels.new_empty(rows, 3, dtype=rest[2])
