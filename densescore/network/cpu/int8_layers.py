"""Layers in eight bits: exact sums of integers, between values in 0..255.

A tensor holds q in 0..255 for the value scale · (q - zero), one scale and zero per tensor; weights are -127..127, one
scale per output; products are added up exactly, in 32 bits. (Jacob et al., CVPR 2018; Krishnamoorthi, 2018.)
"""

import math
import time
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from densescore.network.cpu.fusion import FoldedConv2d, FoldedLinear, pair
from densescore.network.cpu.onednn import Clamp, post_operation
from densescore.network.windows import Blocks

Range = tuple[float, float]
"""The lowest and the highest value of a tensor."""

# oneDNN wants weights in one layout for maps of some sizes and in another for others, and lays them out again at each
# call if they are in the wrong one: up to ten times slower. These sides have been seen to want each of them.
_SIDES = (8, 64, 128)


class Quantization(NamedTuple):
    """The values that eight bits stand for: ``scale · (q - zero)``, q in 0..255."""

    scale: float
    zero: int

    @classmethod
    def over(cls, values: Range) -> "Quantization":
        """The finest that holds the lowest value, the highest, and zero, which padding needs exactly."""
        low, high = min(values[0], 0.0), max(values[1], 0.0)
        scale = (high - low) / 255
        if scale < 1e-30:  # nothing but zeros, or what float32 takes for that
            return cls(1.0, 0)
        return cls(scale, round(-low / scale))

    def quantize(self, x: Tensor) -> Tensor:
        """Float32 to the nearest uint8; uint8 is returned as it is."""
        if x.dtype == torch.uint8:
            return x
        return (x * (1 / self.scale)).add_(self.zero).round_().clamp_(0, 255).to(torch.uint8)


class _Int8Weights:
    """What layers share: the weight in eight bits, one scale per output ``[F, …]``, and how a sum becomes a value."""

    def __init__(self, weight: Tensor, bias: Tensor | None, source: Quantization, target: Quantization | None) -> None:
        self.scales = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
        shape = (-1, *[1] * (weight.ndim - 1))
        self.integers = (weight / self.scales.view(shape)).round_().to(torch.int8)
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.bias = torch.zeros(len(weight)) if bias is None else bias
        self.source = source
        given = Quantization(1.0, 0) if target is None else target
        self.output = (given.scale, given.zero, torch.float32 if target is None else torch.uint8)


def _post_operation(clamp: Clamp, target: Quantization | None) -> tuple[str, list[float], str]:
    """A clamp as the operators name it. Where outputs are integers, their range already clamps them."""
    return (*post_operation((None, None) if target else clamp), "")


class Int8Conv2d(nn.Module):
    """A folded convolution in eight bits: ``[N, C, h, w]`` → ``[N, F, h', w']``, channels last.

    Args:
        folded: in float32.
        source: of the input, which is quantized if it is float32.
        target: of the output; None for float32.
    """

    def __init__(self, folded: FoldedConv2d, source: Quantization, target: Quantization | None) -> None:
        super().__init__()
        self._weights = weights = _Int8Weights(folded.weight, folded.bias, source, target)
        self._pad, self._activation = folded.pad, folded.activation
        self._geometry = (list(folded.stride), list(folded.padding), list(folded.dilation), folded.groups)
        shapes = [[1, folded.weight.shape[1] * folded.groups, side, side] for side in _SIDES]
        self._packings = [
            torch.ops.onednn.qconv_prepack(weights.integers, weights.scales, *source, *self._geometry, shape)
            for shape in shapes
        ]
        self._fastest: dict[int, int] = {}  # packing by size of the map
        self._post = _post_operation(folded.clamp, target)
        del weights.integers

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; uint8 or float32 → the same."""
        source = self._weights.source
        x = self._pad(source.quantize(x), value=source.zero).contiguous(memory_format=torch.channels_last)
        size = round(4 * math.log2(x.shape[2] * x.shape[3]))
        if size not in self._fastest:
            self._fastest[size] = min(range(len(self._packings)), key=lambda packing: self._seconds(x, packing))
        return self._activation(self._convolve(x, self._fastest[size]))

    def _convolve(self, x: Tensor, packing: int) -> Tensor:
        own = self._weights
        return torch.ops.onednn.qconv2d_pointwise(
            x,
            *own.source,
            self._packings[packing],
            own.scales,
            own.zeros,
            own.bias,
            *self._geometry,
            *own.output,
            *self._post,
        )

    def _seconds(self, x: Tensor, packing: int) -> float:
        self._convolve(x, packing)  # the first call for a size makes the code for it
        start = time.perf_counter()
        self._convolve(x, packing)
        return time.perf_counter() - start


class Int8Linear(nn.Module):
    """A linear layer in eight bits: ``[N, in]`` → ``[N, out]``; arguments as of `Int8Conv2d`."""

    def __init__(self, folded: FoldedLinear, source: Quantization, target: Quantization | None) -> None:
        super().__init__()
        self._weights = weights = _Int8Weights(folded.weight, folded.bias, source, target)
        self._packed = torch.ops.onednn.qlinear_prepack(weights.integers, None)
        self._post = _post_operation(folded.clamp, target)
        del weights.integers

    def forward(self, x: Tensor) -> Tensor:
        """Multiply; uint8 or float32 → the same."""
        own = self._weights
        return torch.ops.onednn.qlinear_pointwise(
            own.source.quantize(x), *own.source, self._packed, own.scales, own.zeros, own.bias, *own.output, *self._post
        )


class Int8Windows(nn.Module):
    """FC6 at every window of maps of integers: blocks → ``[cells, width of FC6]``, integers."""

    def __init__(self, window: tuple[int, int], linear: nn.Linear, source: Quantization, target: Quantization) -> None:
        super().__init__()
        self.window = window
        # Channels last, as they lie in the maps: gathering rows of a few hundred bytes costs nothing.
        weight = linear.weight.detach().unflatten(1, (-1, *window)).permute(0, 2, 3, 1).flatten(1)
        self.linear = Int8Linear(FoldedLinear(weight, linear.bias), source, target)

    def forward(self, blocks: Blocks) -> Tensor:
        """FC6 of each window, cell by cell."""
        height, width = self.window
        views = [block.unfold(2, height, 1).unfold(3, width, 1)[0] for block in blocks]  # [C, rows, cols, h, w]
        return self.linear(torch.cat([view.permute(1, 2, 3, 4, 0).flatten(2).flatten(0, 1) for view in views]))


class Values(nn.Module):
    """Integers → the float32 values that they stand for."""

    def __init__(self, quantization: Quantization) -> None:
        super().__init__()
        self._quantization = quantization

    def forward(self, x: Tensor) -> Tensor:
        """uint8 → float32."""
        return (x.float() - self._quantization.zero) * self._quantization.scale


class Int8MaxPool2d(nn.Module):
    """A maximum over windows of integers, which torch's own pool does not take: as one of shifted maps."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        kernel, stride, padding = (pair(size) for size in (pool.kernel_size, pool.stride, pool.padding))
        self._axes = list(zip(kernel, stride, padding, strict=True))
        self._ceil = pool.ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, h, w]`` → ``[N, C, h', w']``."""
        for axis, (kernel, stride, padding) in enumerate(self._axes, start=2):
            size = x.shape[axis] + 2 * padding - kernel
            steps = size // stride
            if self._ceil and size % stride and (steps + 1) * stride < x.shape[axis] + padding:
                steps += 1  # the last window begins inside the map, or its padding on the left
            past = max(0, steps * stride + kernel - padding - x.shape[axis])
            pads = (padding, past) if axis == 3 else (0, 0, padding, past)
            x = nn.functional.pad(x, pads) if padding or past else x  # 0 is the lowest value there is
            shifted = [x.narrow(axis, at, steps * stride + 1) for at in range(kernel)]
            strided = [part[:, :, ::stride] if axis == 2 else part[..., ::stride] for part in shifted]
            x = reduce(torch.maximum, strided)
        return x


class Int8ReLU(nn.Module):
    """Integers, none below that of zero."""

    def __init__(self, quantization: Quantization) -> None:
        super().__init__()
        self._zero = quantization.zero

    def forward(self, x: Tensor) -> Tensor:
        """uint8 → uint8."""
        return x.clamp(min=self._zero) if self._zero else x
