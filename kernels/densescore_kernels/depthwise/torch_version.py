"""Depthwise convolution in torch: what a CPU runs, and the documentation of the kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from densescore_kernels.tiles import Tiles


def depthwise_conv2d(
    x: torch.Tensor,  # [N, C, H, W]
    weight: torch.Tensor,  # [k, k, C]
    bias: torch.Tensor,  # [C]
    stride: int,
    padding: Sequence[int],
    limits: Sequence[float],
    regions: Tiles,
    out: torch.Tensor,  # [N, C, OH, OW]
) -> None:
    """Write the map of each region; positions of no region stay as they are."""
    top, bottom, left, right = padding
    in_low, in_high, low, high, pad_value = limits
    filters = weight.to(x.dtype).permute(2, 0, 1)[:, None]  # [C, 1, k, k]
    for n, y, x0, height, width, out_y, out_x, out_height, out_width, _ in regions.table.T.tolist():
        part = x[n, :, y : y + height, x0 : x0 + width].clamp(in_low, in_high)  # [C, h, w]
        part = F.pad(part, (left, right, top, bottom), value=pad_value)[None]
        part = F.conv2d(part, filters, bias.to(x.dtype), stride, groups=len(filters))[0].clamp(low, high)
        out[n, :, out_y : out_y + out_height, out_x : out_x + out_width] = part
