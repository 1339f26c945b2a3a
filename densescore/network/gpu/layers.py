"""Layers that do an activation, a bias or a residual in the operator that computes or reads the map.

All of them run on a CPU too, where tests compare them with the layers that they replace.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from densescore.network.folding import NO_CLAMP, Clamp
from densescore.network.graph import Padding, pair
from densescore_kernels.depthwise.op import ALIGNMENT, KERNEL_SIZES, STRIDES, depthwise_conv2d
from densescore_kernels.tiles import Tiles

_REFUSED: set[tuple[object, ...]] = set()
"""Convolutions that cuDNN does not fuse: for some dtypes, numbers of channels and groups it has no engine."""


@torch.library.custom_op("densescore::convolution_relu", mutates_args=())
def convolution_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """``relu(conv(x) + bias + residual)``: one operator of cuDNN's on a GPU; a CPU and float64 take three."""
    geometry = (list(stride), list(padding), list(dilation), groups)
    kind = (x.dtype, tuple(weight.shape), residual is None, str(geometry))
    if x.is_cuda and x.dtype != torch.float64 and kind not in _REFUSED:
        try:
            if residual is None:
                return torch.cudnn_convolution_relu(x, weight, bias, *geometry)
            return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, *geometry)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _REFUSED.add(kind)
            logging.getLogger("densescore").info("three operators for one that cuDNN lacks, %s: %s", kind, error)
    output = torch.convolution(x, weight, bias, *geometry[:3], False, [0, 0], groups)
    return (output if residual is None else output.add_(residual)).relu_()


@convolution_relu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, *geometry: Any) -> Tensor:
    stride, padding, dilation, groups = geometry
    return torch.convolution(x, weight, bias, list(stride), list(padding), list(dilation), False, [0, 0], groups)


class Convolution(nn.Module):
    """A convolution, clamped from below at 0 or not at all: ``[N, C, h, w]`` → ``[N, F, h', w']``."""

    def __init__(
        self,
        weight: Tensor,  # [F, C / groups, r, s]
        bias: Tensor | None,  # [F]
        clamp: Clamp = NO_CLAMP,
        pads: Padding = Padding(),  # noqa: B008 (a tuple)
        stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> None:
        super().__init__()
        # Unequal padding by taps that are zero: padding apart would be a pass of its own
        left, right, top, bottom = pads.sides
        down, across = (bottom - top) // dilation[0], (right - left) // dilation[1]
        weight = F.pad(weight.detach(), (max(across, 0), max(-across, 0), max(down, 0), max(-down, 0)))
        left, top = max(left, right), max(top, bottom)
        self.pads = Padding(left, left, top, top)
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
        bias = weight.new_zeros(len(weight)) if bias is None and clamp != NO_CLAMP else bias
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._clamp, self._geometry = clamp, (stride, (top, left), dilation, groups)
        # Algorithms that transform tiles of a map (Winograd's) let NaN spread over a tile
        self.mixes = stride == (1, 1) and weight.shape[2:].numel() > 1

    @classmethod
    def of(cls, layer: nn.Conv2d, clamp: Clamp, pads: Padding) -> Self:
        """A layer with its clamp, and with its padding as it is for levels."""
        return cls(layer.weight, layer.bias, clamp, pads, pair(layer.stride), pair(layer.dilation), layer.groups)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve, add the residual (with a clamp only), and clamp."""
        if self.bias is None or self._clamp == NO_CLAMP:
            return F.conv2d(x, self.weight, self.bias, *self._geometry)
        output = convolution_relu(x, self.weight, self.bias, residual, *self._geometry)
        return output if self._clamp[1] is None else output.clamp_(max=self._clamp[1])


class Rows(nn.Module):
    """A linear layer, with ReLU if asked for, in one matrix product: ``[…, C]`` → ``[…, F]``."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, relu: bool) -> None:
        super().__init__()
        weight, bias = layer.weight, layer.bias
        self.weight = nn.Parameter(weight.detach().flatten(1), requires_grad=False)  # [F, C]
        bias = weight.new_zeros(len(weight)) if bias is None and relu else bias
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Multiply, and clamp."""
        rows = x.flatten(0, -2)
        if self._relu:
            assert self.bias is not None
            rows = torch._addmm_activation(self.bias, rows, self.weight.T)  # cuBLAS adds and clamps as it writes
        else:
            rows = F.linear(rows, self.weight, self.bias)
        return rows.view(*x.shape[:-1], -1)


class Pointwise(Rows):
    """A 1×1 convolution as such a product over all positions: ``[N, C, h, w]`` → ``[N, F, h, w]``, channels last."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply, and clamp."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Depthwise(nn.Module):
    """A depthwise convolution with clamps before and after: ``[N, C, h, w]`` → ``[N, C, h', w']``, channels last."""

    def __init__(self, layer: nn.Conv2d, pads: Padding, input_clamp: Clamp, clamp: Clamp) -> None:
        super().__init__()
        dtype = torch.promote_types(layer.weight.dtype, torch.float32)
        weight = layer.weight.detach()[:, 0].permute(1, 2, 0).to(dtype).contiguous()  # [k, k, C]
        bias = weight.new_zeros(layer.out_channels) if layer.bias is None else layer.bias.detach().to(dtype)
        # Buffers: parameters have the dtype of the maps
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.pads, self.taps, self.stride = pads, layer.weight.shape[2], pair(layer.stride)[0]
        self._clamps = _limits(input_clamp), _limits(clamp)

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Top, bottom, left, right."""
        return self.pads.top, self.pads.bottom, self.pads.left, self.pads.right

    def forward(self, x: Tensor, regions: Tiles | None = None) -> Tensor:
        """Clamp, convolve and clamp the whole maps, or those of the regions alone."""
        input_clamp, clamp = self._clamps
        return depthwise_conv2d(
            x, self.weight, self.bias, stride=self.stride, padding=self.padding,
            input_clamp=input_clamp, clamp=clamp, regions=regions,
        )  # fmt: skip


def is_depthwise(layer: nn.Conv2d) -> bool:
    """Whether `Depthwise` computes such a convolution."""
    (down, across), stride = pair(layer.kernel_size), pair(layer.stride)
    return (
        layer.groups == layer.in_channels == layer.out_channels > 1
        and down == across in KERNEL_SIZES
        and stride[0] == stride[1] in STRIDES
        and pair(layer.dilation) == (1, 1)
        and layer.in_channels * layer.weight.itemsize % ALIGNMENT == 0
    )


def is_convolution(layer: nn.Conv2d, pads: Padding) -> bool:
    """Whether `Convolution` computes it: unequal padding must differ by whole taps."""
    down, across = pair(layer.dilation)
    return (pads.bottom - pads.top) % down == 0 == (pads.right - pads.left) % across


def is_pointwise(layer: nn.Conv2d, pads: Padding) -> bool:
    """Whether `Pointwise` computes such a convolution."""
    sizes = {*map(pair, (layer.kernel_size, layer.stride))}
    return sizes == {(1, 1)} and layer.groups == 1 and not any(pads.sides)


def _limits(clamp: Clamp) -> tuple[float, float]:
    low, high = clamp
    return -math.inf if low is None else low, math.inf if high is None else high
