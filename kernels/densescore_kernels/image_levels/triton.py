"""The kernel of the image levels and its launch.

A program writes 256 pixels of one padded level. It reads the few pixels of the image that each of them covers, mostly
from L2: all levels of an image are made from the one copy of it on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl

from densescore_kernels.checks import TRITON_DTYPES
from densescore_kernels.image_levels.op import BLOCK
from densescore_kernels.launch import TYPE_NAMES, Budget, Config, Configs, aligned
from densescore_kernels.region_search import find_region, search_steps
from densescore_kernels.tiles import Tiles

THREADS = 128


@triton.jit
def reflect(
    position: tl.tensor,  # [BLOCK]
    size: tl.int32,
) -> tl.tensor:
    """Mirror about the border pixels, as often as needed."""
    period = tl.maximum(2 * (size - 1), 1)
    position = position % period
    return tl.minimum(position, period - position)


@triton.jit
def tap_weight(
    first: tl.tensor,  # [BLOCK] float32: where a new pixel begins (shrinking), or its center (enlarging)
    step: tl.float32,  # old pixels per new one
    at: tl.tensor,  # [BLOCK] float32: an old pixel
    bytes_grow: tl.int1,
) -> tl.tensor:
    """Share of an old pixel in a new one; of bytes that grow, 11 bits of it, as OpenCV does."""
    overlap = tl.maximum(tl.minimum(first + step, at + 1) - tl.maximum(first, at), 0.0) / step
    near = tl.maximum(1 - tl.abs(first - at), 0.0)
    near = tl.where(bytes_grow, tl.floor(near * 2048 + 0.5) / 2048, near)
    return tl.where(step > 1, overlap, near)


@triton.jit
def row_share(
    row: tl.tensor,  # [BLOCK] float32: old pixels of a row, resized across
    weight: tl.tensor,  # [BLOCK] float32
    bytes_grow: tl.int1,
) -> tl.tensor:
    """Share of a row in new pixels; of bytes that grow, in quarters, as OpenCV does."""
    quarters = tl.floor(tl.floor(row * 128) / 128 * weight * 4) / 4
    return tl.where(bytes_grow, quarters, row * weight)


@triton.jit(do_not_specialize=["L", "steps", "factor_r", "factor_g", "factor_b", "offset_r", "offset_g", "offset_b"])
def level_pixels(
    pixels: tl.tensor,  # [ΣHW, 3]
    levels: tl.tensor,  # [10, L] int32, see op.PlacedLevel
    out: tl.tensor,  # [rows, 3]
    L: tl.int32,
    steps: tl.int32,
    factor_r: tl.float32,
    factor_g: tl.float32,
    factor_b: tl.float32,
    offset_r: tl.float32,
    offset_g: tl.float32,
    offset_b: tl.float32,
    ROUND: tl.constexpr,  # pixels are bytes
    BLOCK: tl.constexpr,
) -> None:
    """Write one tile of one level."""
    tile = tl.program_id(0)
    level = levels + find_region(levels + 9 * L, L, steps, tile)
    source = tl.load(level)
    H = tl.load(level + L)
    W = tl.load(level + 2 * L)
    height = tl.load(level + 3 * L)
    width = tl.load(level + 4 * L)
    padded_height = tl.load(level + 5 * L)
    padded_width = tl.load(level + 6 * L)
    target = tl.load(level + 7 * L)
    row = tl.load(level + 8 * L)
    position = (tile - tl.load(level + 9 * L)) * BLOCK + tl.arange(0, BLOCK)
    written = position < padded_height * padded_width
    y = position // padded_width
    x = position % padded_width

    step_y = H.to(tl.float32) / height.to(tl.float32)
    step_x = W.to(tl.float32) / width.to(tl.float32)
    new_y = reflect(y, height).to(tl.float32)
    new_x = reflect(x, width).to(tl.float32)
    start_y = tl.where(step_y > 1, new_y * step_y, (new_y + 0.5) * step_y - 0.5)
    start_x = tl.where(step_x > 1, new_x * step_x, (new_x + 0.5) * step_x - 0.5)
    taps_y = tl.where(step_y > 1, step_y.to(tl.int32), 0) + 2
    taps_x = tl.where(step_x > 1, step_x.to(tl.int32), 0) + 2
    bytes_grow = (step_y <= 1) & (step_x <= 1) & (ROUND == 1)
    red = tl.zeros([BLOCK], tl.float32)
    green = tl.zeros([BLOCK], tl.float32)
    blue = tl.zeros([BLOCK], tl.float32)
    for i in range(taps_y):
        at_y = tl.floor(start_y) + i
        weight_y = tap_weight(start_y, step_y, at_y, bytes_grow)
        old_y = tl.minimum(tl.maximum(at_y.to(tl.int32), 0), H - 1)
        row_red = tl.zeros([BLOCK], tl.float32)
        row_green = tl.zeros([BLOCK], tl.float32)
        row_blue = tl.zeros([BLOCK], tl.float32)
        for j in range(taps_x):
            at_x = tl.floor(start_x) + j
            weight = tap_weight(start_x, step_x, at_x, bytes_grow)
            old_x = tl.minimum(tl.maximum(at_x.to(tl.int32), 0), W - 1)
            pixel = pixels + (source + old_y * W + old_x).to(tl.int64) * 3
            row_red += weight * tl.load(pixel, written, other=0).to(tl.float32)
            row_green += weight * tl.load(pixel + 1, written, other=0).to(tl.float32)
            row_blue += weight * tl.load(pixel + 2, written, other=0).to(tl.float32)
        red += row_share(row_red, weight_y, bytes_grow)
        green += row_share(row_green, weight_y, bytes_grow)
        blue += row_share(row_blue, weight_y, bytes_grow)
    if ROUND:
        red = tl.floor(red + 0.5)
        green = tl.floor(green + 0.5)
        blue = tl.floor(blue + 0.5)
    at = out + (target + y * row + x).to(tl.int64) * 3
    tl.store(at, (red * factor_r + offset_r).to(out.dtype.element_ty), written)
    tl.store(at + 1, (green * factor_g + offset_g).to(out.dtype.element_ty), written)
    tl.store(at + 2, (blue * factor_b + offset_b).to(out.dtype.element_ty), written)


def image_levels(
    pixels: torch.Tensor, levels: Tiles, factors: Sequence[float], offsets: Sequence[float], out: torch.Tensor
) -> None:
    """Launch the kernel; see `densescore_kernels.image_levels.torch_version`."""
    CONFIGS.launch(
        level_pixels, (levels.total,), aligned(pixels), levels.table, out,
        levels.table.shape[1], search_steps(levels), *factors, *offsets,
        ROUND=int(pixels.dtype == torch.uint8), BLOCK=BLOCK,
    )  # fmt: skip


def _configs() -> Iterator[Config]:
    for pixels, whole in (("*u8", 1), ("*fp32", 0)):
        for dtype in TRITON_DTYPES:
            arguments = (pixels, "*i32", "*" + TYPE_NAMES[dtype], "i32", "i32", *["fp32"] * 6)
            yield Config(level_pixels, arguments, (("ROUND", whole), ("BLOCK", BLOCK)), THREADS)


CONFIGS = Configs(_configs(), {"level_pixels": Budget(wide=64, single=64, shared=0)})
