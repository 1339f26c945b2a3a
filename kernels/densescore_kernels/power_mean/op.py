"""The image score: the mean of a power of the patch scores.

Oquab et al., "Learning and Transferring Mid-Level Image Representations using Convolutional Neural Networks"
(CVPR 2014), eq. (1): ``score(c) = 1/M Σ_i y(c | P_i)^k``. The root is not taken.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch

from densescore_kernels.backends import choose
from densescore_kernels.checks import check_matrix, check_offsets_shape, image_bounds
from densescore_kernels.power_mean import torch_version as power_mean_torch
from densescore_kernels.power_mean.exponents import check_exponent
from densescore_kernels.power_mean.torch_version import working_dtype


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
            of about k·2^-22.
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


@overload
def softmax_power_mean(
    logits: torch.Tensor,
    offsets: torch.Tensor | None = None,
    k: float = 5.0,
    return_probabilities: Literal[False] = False,
    backend: str = "auto",
) -> torch.Tensor: ...


@overload
def softmax_power_mean(
    logits: torch.Tensor,
    offsets: torch.Tensor | None = None,
    k: float = 5.0,
    *,
    return_probabilities: Literal[True],
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]: ...


@overload
def softmax_power_mean(
    logits: torch.Tensor,
    offsets: torch.Tensor | None = None,
    k: float = 5.0,
    return_probabilities: bool = False,
    backend: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]: ...


def softmax_power_mean(
    logits: torch.Tensor,
    offsets: torch.Tensor | None = None,
    k: float = 5.0,
    return_probabilities: bool = False,
    backend: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Mean of the k-th power of the softmax of each image's rows, without writing the softmax unless it is asked for.

    Args:
        logits: ``[M, C]`` float32, float16, bfloat16 or float64, any sign. A NaN makes its image's scores NaN.
        offsets: as in :func:`power_mean`.
        k: exponent, at least 1. The relative error of a power is about ``k·(|log2 y| + 2)·2^-22``.
        return_probabilities: also return the softmax.
        backend: as in :func:`power_mean`.

    Returns:
        ``[B, C]`` float32 (float64 for float64 logits), and with ``return_probabilities`` the probabilities,
        ``[M, C]`` of the same dtype. The same bits on each run.

    Raises:
        DensescoreError: as :func:`power_mean`.

    Example:
        >>> softmax_power_mean(torch.zeros(3, 2), k=3)
        tensor([[0.1250, 0.1250]])
    """
    check_matrix("logits", logits)
    check_offsets_shape(offsets)
    means, probabilities = _softmax_power_mean(logits, offsets, check_exponent(k), return_probabilities, backend)
    return (means, probabilities) if return_probabilities else means


def _images(rows: torch.Tensor, offsets: torch.Tensor | None) -> Any:
    return 1 if offsets is None else offsets.shape[0] - 1


@torch.library.custom_op("densescore::power_mean", mutates_args=())
def _power_mean(scores: torch.Tensor, offsets: torch.Tensor | None, k: float, backend: str) -> torch.Tensor:
    bounds = image_bounds(offsets, scores.shape[0])
    if choose(backend, scores) == "torch":
        return power_mean_torch.power_mean(scores, bounds, k)
    from densescore_kernels.power_mean import triton_launch as kernels

    return kernels.power_mean(scores, bounds, k)


@_power_mean.register_fake
def _(scores: torch.Tensor, offsets: torch.Tensor | None, k: float, backend: str) -> torch.Tensor:
    return scores.new_empty(_images(scores, offsets), scores.shape[1], dtype=working_dtype(scores))


@torch.library.custom_op("densescore::power_mean_backward", mutates_args=())
def _power_mean_backward(
    grad: torch.Tensor, scores: torch.Tensor, offsets: torch.Tensor | None, k: float, backend: str
) -> torch.Tensor:
    bounds = image_bounds(offsets, scores.shape[0])
    if choose(backend, scores) == "torch":
        return power_mean_torch.power_mean_backward(grad, scores, bounds, k)
    from densescore_kernels.power_mean import triton_launch as kernels

    return kernels.power_mean_backward(grad, scores, bounds, k)


@_power_mean_backward.register_fake
def _(grad: torch.Tensor, scores: torch.Tensor, offsets: torch.Tensor | None, k: float, backend: str) -> torch.Tensor:
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


def _save_power_mean(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    scores, offsets, ctx.k, ctx.backend = inputs
    ctx.save_for_backward(scores, offsets)


def _differentiate_power_mean(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    scores, offsets = ctx.saved_tensors
    return _power_mean_backward(grad, scores, offsets, ctx.k, ctx.backend), None, None, None


_power_mean.register_autograd(_differentiate_power_mean, setup_context=_save_power_mean)


@torch.library.custom_op("densescore::softmax_power_mean", mutates_args=())
def _softmax_power_mean(
    logits: torch.Tensor, offsets: torch.Tensor | None, k: float, return_probabilities: bool, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    bounds = image_bounds(offsets, logits.shape[0])
    if choose(backend, logits) == "torch":
        return power_mean_torch.softmax_power_mean(logits, bounds, k, return_probabilities)
    from densescore_kernels.power_mean import triton_launch as kernels

    return kernels.softmax_power_mean(logits, bounds, k, return_probabilities)


@_softmax_power_mean.register_fake
def _(
    logits: torch.Tensor, offsets: torch.Tensor | None, k: float, return_probabilities: bool, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    M, C = logits.shape
    dtype = working_dtype(logits)
    means = logits.new_empty(_images(logits, offsets), C, dtype=dtype)
    return means, logits.new_empty(M if return_probabilities else 0, C, dtype=dtype)


@torch.library.custom_op("densescore::softmax_power_mean_backward", mutates_args=())
def _softmax_power_mean_backward(
    grad: torch.Tensor,
    grad_probabilities: torch.Tensor | None,
    logits: torch.Tensor,
    offsets: torch.Tensor | None,
    k: float,
    backend: str,
) -> torch.Tensor:
    bounds = image_bounds(offsets, logits.shape[0])
    if choose(backend, logits) == "torch":
        return power_mean_torch.softmax_power_mean_backward(grad, grad_probabilities, logits, bounds, k)
    from densescore_kernels.power_mean import triton_launch as kernels

    return kernels.softmax_power_mean_backward(grad, grad_probabilities, logits, bounds, k)


@_softmax_power_mean_backward.register_fake
def _(
    grad: torch.Tensor,
    grad_probabilities: torch.Tensor | None,
    logits: torch.Tensor,
    offsets: torch.Tensor | None,
    k: float,
    backend: str,
) -> torch.Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _save_softmax_power_mean(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, offsets, ctx.k, ctx.wanted, ctx.backend = inputs
    ctx.save_for_backward(logits, offsets)


def _differentiate_softmax_power_mean(
    ctx: Any, grad: torch.Tensor, grad_probabilities: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    logits, offsets = ctx.saved_tensors
    wanted = grad_probabilities if ctx.wanted else None
    return _softmax_power_mean_backward(grad, wanted, logits, offsets, ctx.k, ctx.backend), None, None, None, None


_softmax_power_mean.register_autograd(_differentiate_softmax_power_mean, setup_context=_save_softmax_power_mean)
