"""Depthwise convolution with its clamps and its padding done inside, over whole maps or over regions of canvases.

A canvas holds the feature maps of several images or levels side by side. Each is convolved as if it were alone: beyond
its border lies padding, not the neighbor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike

from densescore_kernels.checks import choose_backend
from densescore_kernels.depthwise import torch_version
from densescore_kernels.errors import DensescoreError
from densescore_kernels.operators import operator
from densescore_kernels.tiles import Tiles, tile_table

ALIGNMENT = 16  # bytes
KERNEL_SIZES = (3, 5, 7)
STRIDES = (1, 2)
BLOCK_H = BLOCK_W = 8
"""Output positions of a tile."""

Clamp = tuple[float, float]
NO_CLAMP: Clamp = (-math.inf, math.inf)


def depthwise_conv2d(
    x: torch.Tensor,  # [N, C, H, W] float32, float16 or bfloat16 (float64 in torch), best channels last
    weight: torch.Tensor,  # [k, k, C] float32 (of x's dtype for float64), k 3, 5 or 7
    bias: torch.Tensor,  # [C], of weight's dtype
    *,
    stride: int = 1,  # or 2, down and across
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),  # positions above, below, left and right
    input_clamp: Clamp = NO_CLAMP,  # of the input, as ReLU6 before the convolution leaves it: (0, 6)
    clamp: Clamp = NO_CLAMP,  # of the output
    pad_value: float = 0.0,  # after `input_clamp`
    regions: Tiles | None = None,  # maps on the canvases `x`, by `region_tiles`; None: each of the N maps is whole
    backend: str = "auto",  # "auto" (torch on a CPU, Triton on a GPU), "torch" or "triton"
) -> torch.Tensor:
    """Convolve each channel by its own filter: ``clamp(conv(pad(input_clamp(x))) + bias)``, ``[N, C, OH, OW]``.

    Sums are float32, NaN passes the clamps, positions of no region are not written; the same bits each run.

    Example:
        >>> x = torch.arange(4.0).view(1, 1, 2, 2)
        >>> depthwise_conv2d(x, torch.ones(3, 3, 1), torch.zeros(1), padding=(1, 1, 1, 1), clamp=(0.0, 5.0))
        tensor([[[[5., 5.],
                  [5., 5.]]]])
    """
    if x.ndim != 4 or weight.ndim != 3 or weight.shape[0] != weight.shape[1] or weight.shape[2] != x.shape[1]:
        raise DensescoreError(
            f"depthwise_conv2d: got x {list(x.shape)} and weight {list(weight.shape)}, expected [N, C, H, W], [k, k, C]"
        )
    if weight.shape[0] not in KERNEL_SIZES or stride not in STRIDES:
        raise DensescoreError(
            f"depthwise_conv2d: got k {weight.shape[0]} and stride {stride}, expected k of {KERNEL_SIZES} and "
            f"a stride of {STRIDES}"
        )
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if weight.dtype != dtype or bias.dtype != dtype or bias.shape != weight.shape[2:]:
        raise DensescoreError(f"depthwise_conv2d: got weight {weight.dtype} and bias {bias.dtype} {list(bias.shape)}")
    if regions is None:
        regions = _whole_maps(x.shape[0], *x.shape[2:], weight.shape[0], stride, padding, x.device)
    limits = [*input_clamp, *clamp, pad_value]
    return _depthwise(x, weight, bias, stride, padding, limits, regions.table, regions.total, backend)


def region_tiles(maps: ArrayLike, k: int, stride: int, padding: Sequence[int]) -> Tiles:
    """Table of the maps that `depthwise_conv2d` convolves, on the CPU; `Tiles.to` copies it.

    `maps` ``[L, 5]``: canvas, top, left (multiples of `stride`), height and width, in positions of the input.
    """
    canvas, top, left, height, width = np.asarray(maps, dtype=np.int64).T  # [L] each
    down = (height + padding[0] + padding[1] - k) // stride + 1
    across = (width + padding[2] + padding[3] - k) // stride + 1
    if min(down.min(initial=1), across.min(initial=1)) < 1 or (top % stride).any() or (left % stride).any():
        raise DensescoreError(f"maps: got maps smaller than the filter, or that do not begin at a stride of {stride}")
    columns = np.stack([canvas, top, left, height, width, top // stride, left // stride, down, across])
    return tile_table(columns, -(-down // BLOCK_H) * -(-across // BLOCK_W))


@lru_cache(maxsize=256)
def _whole_maps(
    N: int, H: int, W: int, k: int, stride: int, padding: tuple[int, int, int, int], device: torch.device
) -> Tiles:
    return region_tiles([(n, 0, 0, H, W) for n in range(N)], k, stride, padding).to(device)


@operator("depthwise_conv2d")
def _depthwise(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    stride: int,
    padding: Sequence[int],
    limits: Sequence[float],
    table: torch.Tensor,
    tiles: int,
    backend: str,
) -> torch.Tensor:
    out = _empty(x, weight.shape[0], stride, padding)
    version, chosen = torch_version, choose_backend(backend, x)
    aligned = x.shape[1] * x.itemsize % ALIGNMENT == 0  # the kernel's loads are 128 bits wide
    if backend == "triton" and not aligned:
        raise DensescoreError(f"backend: got 'triton', which takes channels in multiples of 16 bytes, not {x.shape[1]}")
    if chosen == "triton" and aligned:
        from densescore_kernels.depthwise import triton as version  # type: ignore[no-redef]
    version.depthwise_conv2d(x, weight, bias, stride, padding, limits, Tiles(table, tiles), out)
    return out


@_depthwise.register_fake
def _(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int, padding: Sequence[int], *_: object
) -> torch.Tensor:
    return _empty(x, weight.shape[0], stride, padding)


def _empty(x: torch.Tensor, k: int, stride: int, padding: Sequence[int]) -> torch.Tensor:
    """The output, not yet written: ``[N, C, OH, OW]``, channels last."""
    N, C, H, W = x.shape
    OH, OW = (H + padding[0] + padding[1] - k) // stride + 1, (W + padding[2] + padding[3] - k) // stride + 1
    out = x.new_empty(N, OH, OW, C).permute(0, 3, 1, 2)
    return out.fill_(torch.nan) if x.dtype == torch.float64 else out  # to find out who reads positions of no region
