"""Linear layers whose weights oneDNN has laid out once, not at each call.

On a CPU torch multiplies float32 matrices by MKL, which reaches less than half of what oneDNN does on processors that
are not Intel's, and less than oneDNN with weights in its own layout on all. These are the operators that
``torch.compile`` lowers to; they are used directly, since compiling would take longer than scoring hundreds of images.
"""

import torch
from torch import Tensor, nn


def available() -> bool:
    """Whether this build of torch has oneDNN's packed linear operators."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class PackedLinear(nn.Module):
    """``x Wᵀ + b``: ``[N, in]`` → ``[N, out]``, on a CPU, without gradients.

    Args:
        weight: ``[out, in]``, float32 or bfloat16.
        bias: ``[out]``, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        # Attributes, not buffers: a packed weight can be neither moved, cast, nor saved.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self._bias = None if bias is None else bias.detach()

    @classmethod
    def of(cls, linear: nn.Linear) -> "PackedLinear":
        """The packed form of a layer."""
        return cls(linear.weight, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
