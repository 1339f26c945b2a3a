"""Layers for a CPU: clamps done in convolutions and linear layers, weights packed, Cook–Toom."""

import torch
from torch import Tensor, fx, nn

from densescore.models.efficientnet_lite import pad_same
from densescore.network.cpu.onednn import PackedConv2d, PackedLinear
from densescore.network.cpu.winograd import CookToom, tiling_of
from densescore.network.folding import NO_CLAMP, Clamp, clamp_after, folded, is_plain, layer_of, replace
from densescore.network.graph import members, pair, same_convolutions

MIN_CHANNELS = 32
"""Channels per group; below, Cook–Toom's transforms cost more than the products that they save."""

_MIN_POSITIONS = 900  # of an output map; below, the same


class FusedConv2d(nn.Module):
    """A convolution with a clamp, packed: ``[N, C, h, w]`` → ``[N, F, h', w']``.

    A map that fills its tiles goes by Cook–Toom, where kernel and dtype allow it.
    """

    def __init__(self, convolution: nn.Conv2d, clamp: Clamp = NO_CLAMP) -> None:
        super().__init__()
        weight, bias, groups = convolution.weight, convolution.bias, convolution.groups
        stride, dilation = pair(convolution.stride), pair(convolution.dilation)
        # Padding with zeros: computed from the input's size (`same`: kernel, stride, dilation), or fixed
        self._same: tuple[list[int], list[int], list[int]] | None = None
        self._padding = (0, 0)
        if isinstance(convolution, same_convolutions()):
            self._same = (list(pair(convolution.kernel_size)), list(stride), list(dilation))
        elif convolution.padding != "valid":
            self._padding = pair(convolution.padding)
        self._taps = weight.shape[2]
        self._packed = PackedConv2d(
            weight, bias, stride=stride, padding=self._padding, dilation=dilation, groups=groups, clamp=clamp
        )
        square = weight.shape[2] == weight.shape[3] and stride == dilation == (1, 1)
        tiling = tiling_of(weight.shape[2], weight.dtype) if square else None
        self._cook_toom: CookToom | None = None
        if tiling is not None and weight.shape[1] >= MIN_CHANNELS:
            self._cook_toom = CookToom(weight, bias, tiling, groups=groups, clamp=clamp)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, and clamp."""
        x = x if self._same is None else pad_same(x, *self._same)
        grid = (x.shape[2] + 2 * self._padding[0] - self._taps + 1, x.shape[3] + 2 * self._padding[1] - self._taps + 1)
        direct = len(x) > 1 or grid[0] * grid[1] < _MIN_POSITIONS
        if self._cook_toom is None or direct or not self._cook_toom.saves([grid]):
            return self._packed(x)
        output = torch.empty(*grid, self._cook_toom.width, dtype=x.dtype)
        self._cook_toom([x], [output], self._padding)
        return output[None].permute(0, 3, 1, 2)  # channels last, as pooling likes it


def fuse(part: nn.Module) -> fx.GraphModule:
    """A graph with the same outputs, to rounding, in fewer passes over memory; on a CPU, without gradients.

    Layers that are not replaced are shared with `part`.
    """
    part = folded(part)
    graph, layers = part.graph, members(part)
    names: dict[tuple[nn.Module, Clamp], str] = {}  # a graph of several phases runs a layer in each
    for node in list(graph.nodes):
        layer = layer_of(layers, node)
        if not (is_plain(layer) or type(layer) is nn.Linear):
            continue
        last, clamp = clamp_after(layers, node)
        node.target = names.setdefault((layer, clamp), f"fused_{node.name}")
        if node.target not in layers:
            fused = FusedConv2d(layer, clamp) if is_plain(layer) else PackedLinear(layer.weight, layer.bias, clamp)
            layers[node.target] = fused
        replace(last, node)
    return fx.GraphModule(layers, graph)
