"""Layers for a CPU: batch norms folded into convolutions, clamps done in them, weights packed, Cook–Toom."""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from timm.layers.padding import pad_same
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from densescore.network.cpu.onednn import Clamp, PackedConv2d, PackedLinear
from densescore.network.cpu.winograd import CookToom, tiling_of
from densescore.network.graph import members
from densescore.network.tracing import symbolic_trace

_CLAMPS: dict[type[nn.Module], Clamp] = {nn.ReLU: (0, None), nn.ReLU6: (0, 6)}
_NONE: Clamp = (None, None)

_RELU = nn.ReLU()
_RELUS = (F.relu, torch.relu, "relu", "relu_")

FEWEST_CHANNELS = 32
"""Of a group. With fewer, Cook–Toom's transforms cost more than the products that they save."""

_SMALLEST_MAP = 900
"""Output positions. On smaller maps, too, Cook–Toom's transforms cost more than they save."""


class FoldedConv2d(nn.Module):
    """A convolution, the batch norm after it and the activation after that, as one: `fuse` makes a layer of it.

    Args:
        convolution: with zero padding.
        norm: in evaluation mode; None for none.
        activation: done inside the convolution if it is a clamp; None for none.

    Attributes:
        weight: ``[F, C / groups, r, s]``, the norm folded into it.
        bias: ``[F]``, or None.
        stride: in both directions.
        pad: of the input, by what its size asks for; takes the ``value`` to pad with, too.
        padding: with zeros, on either side, after that.
        dilation: in both directions.
        groups: of channels.
        clamp: of the outputs.
        activation: what is left to do after the clamp.
    """

    def __init__(
        self, convolution: nn.Conv2d, norm: nn.BatchNorm2d | None = None, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        weight, bias = convolution.weight, convolution.bias
        if norm is not None:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            weight, bias = fuse_conv_bn_weights(
                weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.clamp = _NONE if activation is None else _CLAMPS.get(type(activation), _NONE)
        self.activation = nn.Identity() if activation is None or self.clamp != _NONE else activation
        self.pad: Callable[..., Tensor] = _as_it_is
        self.padding = (0, 0)
        if isinstance(convolution, Conv2dSame):
            sizes = (convolution.kernel_size, convolution.stride, convolution.dilation)
            kernel_size, stride, dilation = (list(pair(size)) for size in sizes)
            self.pad = partial(pad_same, kernel_size=kernel_size, stride=stride, dilation=dilation)
        elif convolution.padding != "valid":
            self.padding = pair(convolution.padding)
        self.stride, self.dilation = pair(convolution.stride), pair(convolution.dilation)
        self.groups = convolution.groups


class FusedConv2d(nn.Module):
    """A folded convolution, packed: ``[N, C, h, w]`` → ``[N, F, h', w']``.

    A map that fills its tiles goes by Cook–Toom, where kernel and dtype allow it.
    """

    def __init__(self, folded: FoldedConv2d) -> None:
        super().__init__()
        weight, self._pad, self._activation = folded.weight, folded.pad, folded.activation
        self._padding, self._taps = folded.padding, weight.shape[2]
        self._packed = PackedConv2d(
            weight,
            folded.bias,
            stride=folded.stride,
            padding=folded.padding,
            dilation=folded.dilation,
            groups=folded.groups,
            clamp=folded.clamp,
        )
        square = weight.shape[2] == weight.shape[3] and folded.stride == folded.dilation == (1, 1)
        tiling = tiling_of(weight.shape[2], weight.dtype) if square else None
        self._cook_toom: CookToom | None = None
        if tiling is not None and weight.shape[1] >= FEWEST_CHANNELS:
            self._cook_toom = CookToom(weight, folded.bias, tiling, groups=folded.groups, clamp=folded.clamp)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalize and activate."""
        x = self._pad(x)
        grid = (x.shape[2] + 2 * self._padding[0] - self._taps + 1, x.shape[3] + 2 * self._padding[1] - self._taps + 1)
        direct = len(x) > 1 or grid[0] * grid[1] < _SMALLEST_MAP
        if self._cook_toom is None or direct or not self._cook_toom.saves([grid]):
            return self._activation(self._packed(x))
        output = torch.empty(*grid, self._cook_toom.width, dtype=x.dtype)
        self._cook_toom([x], [output], self._padding)
        return self._activation(output[None].permute(0, 3, 1, 2))  # channels last, as pooling likes it


def fuse(part: fx.GraphModule) -> fx.GraphModule:
    """A part of a network with the same outputs, to rounding, in fewer passes over memory.

    For a CPU, without gradients. Layers that are not replaced are shared with the original.

    Args:
        part: left as it is.
    """
    graph = copy.deepcopy(part.graph)
    layers = members(part)
    made: dict[tuple[nn.Module | None, ...], str] = {}  # a graph of several phases runs a layer in each
    for node in list(graph.nodes):
        first = layer_of(layers, node)
        if not (_packs(first) or type(first) is nn.Linear):
            continue
        norm: nn.BatchNorm2d | None = None
        activation: nn.Module | None = None
        absorbed = []
        for follower in _followers(node):
            layer = layer_of(layers, follower)
            if _is_norm(layer) and isinstance(first, nn.Conv2d) and norm is None and activation is None:
                norm, activation = layer, getattr(layer, "act", None)
            elif type(layer) in _CLAMPS and activation is None:
                activation = layer
            elif type(layer) not in (nn.Identity, nn.Dropout):
                break
            absorbed.append(follower)
        node.target = made.setdefault((first, norm, activation), f"fused_{node.name}")
        if node.target in layers:
            pass
        elif isinstance(first, nn.Conv2d):
            layers[node.target] = FusedConv2d(FoldedConv2d(first, norm, activation))
        elif isinstance(first, nn.Linear):
            clamp = _NONE if activation is None else _CLAMPS[type(activation)]
            layers[node.target] = PackedLinear(first.weight, first.bias, clamp)
        for follower in reversed(absorbed):
            follower.replace_all_uses_with(node)
            graph.erase_node(follower)
    return fx.GraphModule(layers, graph)


def traced(part: nn.Module) -> fx.GraphModule:
    """A part that is not yet a graph is an adaptation head."""
    return part if isinstance(part, fx.GraphModule) else symbolic_trace(part)


def layer_of(layers: Mapping[str, Any], node: fx.Node) -> nn.Module | None:
    """The layer that a node calls, a ReLU that is a function included; None for anything else."""
    if node.op == "call_module":
        layer: nn.Module = layers[str(node.target)]
        return layer
    return _RELU if node.op.startswith("call") and node.target in _RELUS else None


def _packs(layer: nn.Module | None) -> bool:
    """Exactly these types: what derives from them may compute its weights."""
    if not isinstance(layer, nn.Conv2d) or type(layer) not in (nn.Conv2d, Conv2dSame):
        return False
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _is_norm(layer: nn.Module | None) -> TypeGuard[nn.BatchNorm2d]:
    """With statistics of its own: without, it would take the map's."""
    return type(layer) in (nn.BatchNorm2d, BatchNormAct2d) and getattr(layer, "running_mean", None) is not None


def _followers(node: fx.Node) -> Iterator[fx.Node]:
    """What alone takes the node's output, then what alone takes that one's, and so on."""
    while len(node.users) == 1:
        (node,) = node.users
        yield node


def _as_it_is(x: Tensor, value: float = 0) -> Tensor:
    return x


def pair(size: Any) -> tuple[int, int]:
    """A size that torch takes as one number for both directions, or as two."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
