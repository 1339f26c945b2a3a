"""Linear layers and convolutions whose weights oneDNN has laid out once, not at each call.

On a CPU torch multiplies float32 matrices by MKL, which reaches less than half of what oneDNN does on processors that
are not Intel's, and less than oneDNN with weights in its own layout on all. These are the operators that
``torch.compile`` lowers to; they are used directly, since compiling would take longer than scoring hundreds of images.
"""

from math import inf

import torch
from torch import Tensor, nn

Clamp = tuple[float | None, float | None]
"""Lowest and highest output; None for no bound. (0, None) is a ReLU, (0, 6) a ReLU6."""


def available() -> bool:
    """Whether this build of torch has oneDNN's packed linear operators."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class PackedLinear(nn.Module):
    """``x Wᵀ + b``, clamped: ``[N, in]`` → ``[N, out]``, on a CPU, without gradients.

    Args:
        weight: ``[out, in]``, float32 or bfloat16.
        bias: ``[out]``, or None.
        clamp: of the outputs.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, clamp: Clamp = (None, None)) -> None:
        super().__init__()
        # Attributes, not buffers: a packed weight can be neither moved, cast, nor saved.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self._bias = None if bias is None else bias.detach()
        self._clamp = post_operation(clamp)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply, and clamp."""
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, *self._clamp, "")


class PackedConv2d(nn.Module):
    """A convolution, clamped: ``[N, C, h, w]`` → ``[N, F, h', w']``, channels last, on a CPU, without gradients.

    Args:
        weight: ``[F, C / groups, r, s]``, float32 or bfloat16.
        bias: ``[F]``, or None.
        stride: in both directions.
        padding: with zeros, on either side.
        dilation: in both directions.
        groups: of channels.
        clamp: of the outputs.
        size: (h, w) of typical maps: the weights are laid out for it. For maps of very different sizes oneDNN would
            lay them out again at each call, and slower than from their plain layout: give None then.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        clamp: Clamp = (None, None),
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self._geometry = (list(padding), list(stride), list(dilation), groups)
        self._clamp = post_operation(clamp)
        self._weight = weight.detach().contiguous(memory_format=torch.channels_last)
        if size is not None:
            shape = [1, weight.shape[1] * groups, *size]
            self._weight = torch.ops.mkldnn._reorder_convolution_weight(self._weight, *self._geometry, shape)
        self._bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, and clamp."""
        return torch.ops.mkldnn._convolution_pointwise(x, self._weight, self._bias, *self._geometry, *self._clamp, "")


def post_operation(clamp: Clamp) -> tuple[str, list[float]]:
    """A clamp as oneDNN's operators name it."""
    if clamp == (None, None):
        return "none", []
    if clamp == (0, None):
        return "relu", []
    low, high = clamp
    return "hardtanh", [-inf if low is None else low, inf if high is None else high]
