"""The depthwise kernel and its launch.

A program computes 8 × 8 output positions of one map for 32 channels: 128-bit loads along the channels, every tap of a
tile from L1, halos between tiles from L2, so that device memory is read about once and written once. Sums are float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl

from densescore_kernels.checks import TRITON_DTYPES
from densescore_kernels.depthwise.op import BLOCK_H, BLOCK_W, KERNEL_SIZES, STRIDES
from densescore_kernels.launch import TYPE_NAMES, Budget, Config, Configs, aligned, vector
from densescore_kernels.region_search import find_region, search_steps
from densescore_kernels.tiles import Tiles

BLOCK_C = 32
UNROLL = tl.constexpr(4)  # taps whose loads are in flight at once; with 5, AMD's compiler spills masks
THREADS = 256


@triton.jit(
    do_not_specialize=[
        "L", "steps", "units", "H", "W", "OH", "OW", "top", "left", "in_low", "in_high", "low", "high", "pad_value",
    ]
)  # fmt: skip
def depthwise(
    x: tl.tensor,  # [N, H, W, C]
    weight: tl.tensor,  # [K, K, C] float32
    bias: tl.tensor,  # [C] float32
    regions: tl.tensor,  # [10, L] int32, see op.region_tiles
    out: tl.tensor,  # [N, OH, OW, C]
    L: tl.int32,
    steps: tl.int32,
    units: tl.int32,  # C / VEC
    H: tl.int32,
    W: tl.int32,
    OH: tl.int32,
    OW: tl.int32,
    top: tl.int32,  # padding
    left: tl.int32,
    in_low: tl.float32,
    in_high: tl.float32,
    low: tl.float32,
    high: tl.float32,
    pad_value: tl.float32,
    VEC: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Convolve one tile of one map."""
    C = units * VEC
    tile = tl.program_id(0)
    region = regions + find_region(regions + 9 * L, L, steps, tile)
    n = tl.load(region)
    y0 = tl.load(region + L)
    x0 = tl.load(region + 2 * L)
    height = tl.load(region + 3 * L)
    width = tl.load(region + 4 * L)
    out_y = tl.load(region + 5 * L)
    out_x = tl.load(region + 6 * L)
    out_height = tl.load(region + 7 * L)
    out_width = tl.load(region + 8 * L)
    tile -= tl.load(region + 9 * L)

    across = (out_width + BLOCK_W - 1) // BLOCK_W
    position = tl.arange(0, BLOCK_H * BLOCK_W)
    i = tile // across * BLOCK_H + position // BLOCK_W  # [P]
    j = tile % across * BLOCK_W + position % BLOCK_W
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    wanted = c < C
    total = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], tl.float32)
    for tap in tl.range(K * K, loop_unroll_factor=UNROLL):
        y = i * STRIDE - top + tap // K
        column = j * STRIDE - left + tap % K
        inside = ((y >= 0) & (y < height) & (column >= 0) & (column < width))[:, None]  # [P, 1]
        at = (n * H + y0 + y).to(tl.int64) * W + x0 + column
        value = tl.load(x + at[:, None] * C + c[None, :], inside & wanted[None, :], other=0.0).to(tl.float32)
        value = tl.maximum(value, in_low, propagate_nan=tl.PropagateNan.ALL)
        value = tl.minimum(value, in_high, propagate_nan=tl.PropagateNan.ALL)
        value = tl.where(inside, value, pad_value)
        total += value * tl.load(weight + tap * C + c, wanted, other=0.0)[None, :]
    total += tl.load(bias + c, wanted, other=0.0)[None, :]
    total = tl.maximum(total, low, propagate_nan=tl.PropagateNan.ALL)
    total = tl.minimum(total, high, propagate_nan=tl.PropagateNan.ALL)
    at = (n * OH + out_y + i).to(tl.int64) * OW + out_x + j
    written = (i < out_height) & (j < out_width)
    tl.store(out + at[:, None] * C + c[None, :], total.to(out.dtype.element_ty), written[:, None] & wanted[None, :])


def depthwise_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    stride: int,
    padding: Sequence[int],
    limits: Sequence[float],
    regions: Tiles,
    out: torch.Tensor,
) -> None:
    """Launch the kernel; see `densescore_kernels.depthwise.torch_version`."""
    x, C = aligned(x.permute(0, 2, 3, 1)), x.shape[1]  # [N, H, W, C]
    H, W, OH, OW = x.shape[1], x.shape[2], out.shape[2], out.shape[3]
    CONFIGS.launch(
        depthwise, (regions.total, -(-C // BLOCK_C)),
        x, aligned(weight), aligned(bias), regions.table, out.permute(0, 2, 3, 1),
        regions.table.shape[1], search_steps(regions), C // vector(x.dtype, 0), H, W, OH, OW, padding[0], padding[2],
        *map(float, limits),
        VEC=vector(x.dtype, 0), K=weight.shape[0], STRIDE=stride, BLOCK_H=BLOCK_H, BLOCK_W=BLOCK_W, BLOCK_C=BLOCK_C,
    )  # fmt: skip


def _configs() -> Iterator[Config]:
    for dtype in TRITON_DTYPES:
        map_ = "*" + TYPE_NAMES[dtype]
        arguments = (map_, "*fp32", "*fp32", "*i32", map_, *["i32"] * 9, *["fp32"] * 5)
        for K in KERNEL_SIZES:
            for stride in STRIDES:
                tile = (("BLOCK_H", BLOCK_H), ("BLOCK_W", BLOCK_W), ("BLOCK_C", BLOCK_C))
                constants = (("VEC", vector(dtype, 0)), ("K", K), ("STRIDE", stride), *tile)
                yield Config(depthwise, arguments, constants, THREADS)


CONFIGS = Configs(_configs(), {"depthwise": Budget(wide=168, single=168, shared=0)})
