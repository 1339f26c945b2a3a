"""The image score: the mean of a power of the patch scores.

Oquab et al., "Learning and Transferring Mid-Level Image Representations using Convolutional Neural Networks"
(CVPR 2014), eq. (1): ``score(c) = 1/M Σ_i y(c | P_i)^k``. The root is not taken.
"""

from __future__ import annotations

from typing import Any

import torch

from densescore_kernels.checks import check_exponent, check_matrix, check_offsets_shape, choose_backend, image_bounds
from densescore_kernels.operators import operator
from densescore_kernels.power_mean import torch_version


def power_mean(
    scores: torch.Tensor, offsets: torch.Tensor | None = None, k: float = 5.0, backend: str = "auto"
) -> torch.Tensor:
    """Mean of the k-th power of each image's patch scores (eq. (1) of Oquab et al., CVPR 2014; no root).

    Args:
        scores: ``[M, C]`` float32, float16, bfloat16 or float64; at least 0, no unit. The sum of ``y^k`` over an
            image must stay below 2^68. A NaN makes its class's score NaN. Rows that are not contiguous are copied.
        offsets: ``[B + 1]`` int64, from 0 to M, best kept on the CPU: image b has rows ``offsets[b]`` to
            ``offsets[b + 1]``. None means one image.
        k: exponent, at least 1. Whole k up to 16 multiplies; other k go through exp2 and log2, with a relative error
            below ``(64 + k·(1 + |log2 y|))·2^-22``: the rounding of log2 y is multiplied by k.
        backend: ``"auto"`` (torch on a CPU, Triton on a GPU), ``"torch"`` or ``"triton"``.

    Returns:
        ``[B, C]`` float32, or float64 for float64 scores. The same bits on each run.

    Raises:
        DensescoreError: for a wrong shape or dtype, k below 1, an image without rows, or a backend that cannot run.

    Example:
        >>> power_mean(torch.tensor([[0.5], [1.0]]), k=2)
        tensor([[0.6250]])
    """
    check_matrix("scores", scores)
    check_offsets_shape(offsets)
    return _power_mean(scores, offsets, check_exponent(k), backend)


@operator("power_mean")
def _power_mean(scores: torch.Tensor, offsets: torch.Tensor | None, k: float, backend: str) -> torch.Tensor:
    bounds = image_bounds(offsets, scores.shape[0])
    return _version(backend, scores).power_mean(scores, bounds, k)


@_power_mean.register_fake
def _(scores: torch.Tensor, offsets: torch.Tensor | None, *_: object) -> torch.Tensor:
    images = 1 if offsets is None else offsets.shape[0] - 1
    return scores.new_empty(images, scores.shape[1], dtype=torch_version.working_dtype(scores))


@operator("power_mean_backward")
def _power_mean_backward(
    grad: torch.Tensor, scores: torch.Tensor, offsets: torch.Tensor | None, k: float, backend: str
) -> torch.Tensor:
    bounds = image_bounds(offsets, scores.shape[0])
    return _version(backend, scores).power_mean_backward(grad, scores, bounds, k)


@_power_mean_backward.register_fake
def _(grad: torch.Tensor, scores: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


def _version(backend: str, scores: torch.Tensor) -> Any:
    """The module that runs: the torch version or the Triton one."""
    if choose_backend(backend, scores) == "torch":
        return torch_version
    from densescore_kernels.power_mean import triton as triton_version

    return triton_version


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    scores, offsets, ctx.k, ctx.backend = inputs
    ctx.save_for_backward(scores, offsets)


def _differentiate(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    scores, offsets = ctx.saved_tensors
    return _power_mean_backward(grad, scores, offsets, ctx.k, ctx.backend), None, None, None


_power_mean.register_autograd(_differentiate, setup_context=_save_for_backward)
