"""The power mean in torch: what a CPU runs, and the documentation of the kernels.

Rows are taken in blocks that stay in cache. Powers are float32 and summed in float32 within a block (torch's cascade
sum); the blocks are summed in float64, so a million rows lose no more than a few thousand do. Float64 scores are
computed in float64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch

from densescore_kernels.power_mean.exponents import HEADROOM, is_whole, lift

BLOCK = 1 << 17  # elements of a block: 512 KiB of float32
LOG2_E = math.log2(math.e)


def working_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Float64 for float64, float32 for everything else."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def power_mean(scores: torch.Tensor, bounds: tuple[int, ...], k: float) -> torch.Tensor:
    """``[M, C]`` scores → ``[B, C]``."""
    dtype, bits = working_dtype(scores), lift(k)
    total = scores.new_zeros(len(bounds) - 1, scores.shape[1], dtype=torch.float64)  # [B, C]
    for image, rows in _blocks(bounds, scores.shape[1]):
        y = scores[rows].to(dtype) * 2.0**bits  # [rows, C]
        total[image] += _power(y, k).sum(0)
    return (total * 2.0 ** (-bits * k) / _counts(bounds, total)).to(dtype)


def power_mean_backward(grad: torch.Tensor, scores: torch.Tensor, bounds: tuple[int, ...], k: float) -> torch.Tensor:
    """Gradient of the scores, ``k/M_b · g · y^(k-1)``: ``[B, C]`` → ``[M, C]``."""
    dtype, bits = working_dtype(scores), lift(k - 1)
    share = grad.to(dtype) * k / _counts(bounds, grad.to(dtype))  # [B, C]
    out = torch.empty_like(scores, memory_format=torch.contiguous_format)
    for image, rows in _blocks(bounds, scores.shape[1]):
        y = scores[rows].to(dtype) * 2.0**bits  # [rows, C]
        out[rows] = (_power(y, k - 1) * share[image]) * 2.0 ** (-bits * (k - 1))
    return out


def softmax_power_mean(
    logits: torch.Tensor, bounds: tuple[int, ...], k: float, return_probabilities: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """``[M, C]`` logits → ``[B, C]`` and the probabilities, ``[M, C]`` or, when they are not wanted, ``[0, C]``."""
    dtype, (M, C) = working_dtype(logits), logits.shape
    probabilities = logits.new_empty(M if return_probabilities else 0, C, dtype=dtype)
    total = logits.new_zeros(len(bounds) - 1, C, dtype=torch.float64)  # [B, C]
    for image, rows in _blocks(bounds, C):
        log_y = torch.log_softmax(logits[rows].to(dtype), dim=1)  # [rows, C]
        if return_probabilities:
            torch.exp(log_y, out=probabilities[rows])
        total[image] += log_y.mul_(k * LOG2_E).add_(HEADROOM).exp2_().sum(0)
    return (total * 2.0**-HEADROOM / _counts(bounds, total)).to(dtype), probabilities


def softmax_power_mean_backward(
    grad: torch.Tensor,
    grad_probabilities: torch.Tensor | None,
    logits: torch.Tensor,
    bounds: tuple[int, ...],
    k: float,
) -> torch.Tensor:
    """Gradient of the logits, ``t - y·Σt`` with ``t = k/M_b · g · y^k + g_y · y``: ``[B, C]`` → ``[M, C]``."""
    dtype = working_dtype(logits)
    share = grad.to(dtype) * k / _counts(bounds, grad.to(dtype))  # [B, C]
    out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    for image, rows in _blocks(bounds, logits.shape[1]):
        log_y = torch.log_softmax(logits[rows].to(dtype), dim=1)  # [rows, C]
        y = log_y.exp()
        t = (log_y * (k * LOG2_E) + HEADROOM).exp2() * share[image]
        if grad_probabilities is not None:
            t += grad_probabilities[rows].to(dtype) * y * 2.0**HEADROOM
        out[rows] = (t - y * t.sum(1, keepdim=True)) * 2.0**-HEADROOM
    return out


def _power(y: torch.Tensor, exponent: float) -> torch.Tensor:
    """``y`` to the power of ``exponent`` at least 0, for y at least 0."""
    if not is_whole(exponent):
        return y.pow(exponent)
    power = torch.ones_like(y)
    for _ in range(int(exponent)):
        power *= y
    return power


def _blocks(bounds: tuple[int, ...], C: int) -> Iterator[tuple[int, slice]]:
    """The image and the rows of each block, in order."""
    step = max(1, BLOCK // C)
    for image, (start, stop) in enumerate(pairwise(bounds)):
        for first in range(start, stop, step):
            yield image, slice(first, min(first + step, stop))


def _counts(bounds: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Number of rows of each image, ``[B, 1]``."""
    return torch.tensor(bounds, dtype=like.dtype, device=like.device).diff().unsqueeze(1)
