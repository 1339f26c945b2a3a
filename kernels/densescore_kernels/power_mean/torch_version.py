"""The power mean in torch: what a CPU runs, and the documentation of the kernels.

Rows are taken in blocks that stay in cache. Powers are float32 and summed in float32 within a block (torch's cascade
sum); the blocks are summed in float64, so a million rows lose no more than a few thousand do. Float64 scores are
computed in float64 throughout.

A score of 1e-8 is an ordinary probability among 21,841 classes, and its fifth power, 1e-40, is below 2^-126 where
float32 loses digits. So each score is first scaled by 2^scale_exponent, which is exact; the mean of the scaled powers
is multiplied by 2^(-scale_exponent·k) once, at the end. With scale_exponent = floor(60 / k), and 60 for an exponent
below 1, a term keeps all its digits down to about y^k = 2^-186 (a little higher where 60 / k is not whole, and from
k = 61 on there is no scaling), so a mean of at least 2^-126 loses to underflow, for the default k = 5, less than 2^-60
of itself. A mean below 2^-126 is rounded to the nearest subnormal number, and below 2^-149 it is 0, as in any float32.
The price is at the other end: the sum of y^k over an image must stay below 2^68, which probabilities do.

Whole k up to 16 is a repeated multiplication: relative error below k·2^-24, and 0^k = 0, 0^0 = 1. Any other k is
exp2(k·log2 y): log2 0 = -inf and exp2(-inf) = 0, so y = 0 needs no case of its own. The rounding of k·log2 y', with y'
the scaled score, becomes a relative error of |k·log2 y'|·2^-24; |k·log2 y'| is below 60 + k·|log2 y|.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch

MAX_EXPONENT = 60  # bits by which a power is scaled at most
MAX_INTEGER_POWER = 16  # exponents up to here are repeated multiplications
BLOCK = 1 << 17  # elements of a block: 512 KiB of float32


def power_mean(scores: torch.Tensor, bounds: tuple[int, ...], k: float) -> torch.Tensor:
    """``[M, C]`` scores → ``[B, C]``."""
    dtype, bits = working_dtype(scores), scale_exponent(k)
    total = scores.new_zeros(len(bounds) - 1, scores.shape[1], dtype=torch.float64)  # [B, C]
    for image, rows in _blocks(bounds, scores.shape[1]):
        y = scores[rows].to(dtype) * 2.0**bits  # [rows, C]
        total[image] += _power(y, k).sum(0)
    return (total * 2.0 ** (-bits * k) / _counts(bounds, total)).to(dtype)


def power_mean_backward(grad: torch.Tensor, scores: torch.Tensor, bounds: tuple[int, ...], k: float) -> torch.Tensor:
    """Gradient of the scores, ``k/M_b · g · y^(k-1)``: ``[B, C]`` → ``[M, C]``."""
    dtype, bits = working_dtype(scores), scale_exponent(k - 1)
    row_grad = grad.to(dtype) * k / _counts(bounds, grad.to(dtype))  # [B, C]
    out = torch.empty_like(scores, memory_format=torch.contiguous_format)
    for image, rows in _blocks(bounds, scores.shape[1]):
        y = scores[rows].to(dtype) * 2.0**bits  # [rows, C]
        out[rows] = (_power(y, k - 1) * row_grad[image]) * 2.0 ** (-bits * (k - 1))
    return out


def working_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Float64 for float64, float32 for everything else."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def integer_power(exponent: float) -> int | None:
    """``exponent`` as a number of multiplications, or None when it is taken by exp2 and log2.

    Example:
        >>> integer_power(5.0), integer_power(2.5), integer_power(40.0)
        (5, None, None)
    """
    return int(exponent) if exponent == int(exponent) and exponent <= MAX_INTEGER_POWER else None


def scale_exponent(exponent: float) -> int:
    """Bits by which a score is scaled before it is raised to ``exponent``.

    Example:
        >>> scale_exponent(5.0), scale_exponent(1.0), scale_exponent(0.25), scale_exponent(0.0), scale_exponent(100.0)
        (12, 60, 60, 0, 0)
    """
    return int(MAX_EXPONENT / max(exponent, 1.0)) if exponent > 0 else 0


def _power(y: torch.Tensor, exponent: float) -> torch.Tensor:
    """``y`` to the power of ``exponent`` at least 0, for y at least 0."""
    multiplications = integer_power(exponent)
    if multiplications is None:
        return y.pow(exponent)
    power = torch.ones_like(y)
    for _ in range(multiplications):
        power *= y
    return power


def _blocks(bounds: tuple[int, ...], C: int) -> Iterator[tuple[int, slice]]:
    """Image and rows of each block, in order."""
    step = max(1, BLOCK // C)
    for image, (start, stop) in enumerate(pairwise(bounds)):
        for first in range(start, stop, step):
            yield image, slice(first, min(first + step, stop))


def _counts(bounds: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Number of rows of each image, ``[B, 1]``."""
    return torch.tensor(bounds, dtype=like.dtype, device=like.device).diff().unsqueeze(1)
