"""The definition, as plain float64 loops. Slow and obvious: never edited to match a kernel."""

from __future__ import annotations

import itertools

import torch


def depthwise_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    stride: int,
    padding: tuple[int, int, int, int],
    input_clamp: tuple[float, float],
    clamp: tuple[float, float],
    pad_value: float,
) -> torch.Tensor:
    """One map ``[C, h, w]``, weight ``[k, k, C]``, bias ``[C]``, padding (top, bottom, left, right) → float64."""
    (C, h, w), k = x.shape, weight.shape[0]
    top, bottom, left, right = padding
    height, width = (h + top + bottom - k) // stride + 1, (w + left + right - k) // stride + 1
    out = torch.zeros(C, height, width, dtype=torch.float64)
    for c, i, j in itertools.product(range(C), range(height), range(width)):
        total = float(bias[c])
        for dy, dx in itertools.product(range(k), range(k)):
            y, column = i * stride - top + dy, j * stride - left + dx
            value = pad_value
            if 0 <= y < h and 0 <= column < w:
                value = min(max(float(x[c, y, column]), input_clamp[0]), input_clamp[1])
            total += value * float(weight[dy, dx, c])
        out[c, i, j] = min(max(total, clamp[0]), clamp[1])
    return out
