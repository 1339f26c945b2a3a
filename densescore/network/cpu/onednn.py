"""Linear layers and convolutions whose weights oneDNN has laid out once, not at each call.

On a CPU torch multiplies float32 matrices by MKL, which reaches less than half of what oneDNN does on processors that
are not Intel's, and less than oneDNN with weights in its own layout on all. These are the operators that
``torch.compile`` lowers to; they are used directly, since compiling would take longer than scoring hundreds of images.
"""

from math import inf

import torch
from torch import Tensor, nn

from densescore.network.folding import Clamp


def available(dtype: torch.dtype) -> bool:
    """Whether oneDNN's packed operators take this dtype here; bfloat16 needs a processor that computes in it."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Module):
    """``x Wᵀ + b``, clamped: ``[N, in]`` → ``[N, out]`` in float32 or bfloat16, on a CPU, without gradients."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, clamp: Clamp = (None, None)) -> None:
        super().__init__()
        # Attributes, not buffers: a packed weight can be neither moved, cast, nor saved.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self._bias = None if bias is None else bias.detach()
        self._clamp = _post_operation(clamp)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply, and clamp."""
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, *self._clamp, "")


class PackedConv2d(nn.Module):
    """A convolution, clamped: ``[N, C, h, w]`` → ``[N, F, h', w']``, channels last, on a CPU, without gradients.

    Weights are laid out for maps of `size` (h, w), if given; with other sizes oneDNN would do so again at each call.
    """

    def __init__(
        self,
        weight: Tensor,  # [F, C / groups, r, s], float32 or bfloat16
        bias: Tensor | None = None,  # [F]
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
        self._clamp = _post_operation(clamp)
        self._weight = weight.detach().contiguous(memory_format=torch.channels_last)
        if size is not None:
            shape = [1, weight.shape[1] * groups, *size]
            self._weight = torch.ops.mkldnn._reorder_convolution_weight(self._weight, *self._geometry, shape)
        self._bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, and clamp."""
        return torch.ops.mkldnn._convolution_pointwise(x, self._weight, self._bias, *self._geometry, *self._clamp, "")


def _post_operation(clamp: Clamp) -> tuple[str, list[float]]:
    """A clamp by its name and arguments in oneDNN's operators."""
    if clamp == (None, None):
        return "none", []
    if clamp == (0, None):
        return "relu", []
    low, high = clamp
    return "hardtanh", [-inf if low is None else low, inf if high is None else high]
