"""Does a position of a feature map depend on a bounded part of the image, and in the same way everywhere?

A network of convolutions, pools and layers that treat each position by itself is known to be so from its graph alone.
Any other one is probed: NaN in one cell's step of the pixels spreads to whatever depends on them. Each operation is
probed by itself, since the receptive field of a whole network is too wide for a small image: after each one, the NaN
are put back to where they began. What spreads over the map, or spreads otherwise when the NaN begin one cell later
(windows of attention), is refused by the name of its layer.

Averages over the whole map are told apart: they have one number per channel, as those of squeeze-and-excitation and
of norms that take their statistics from the map. They are allowed, and named.
"""

import operator

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm import LayerNorm, LayerNorm2d
from timm.layers.norm_act import BatchNormAct2d
from timm.models.vgg import ConvMlp
from torch import fx, nn
from torch.nn.modules import activation
from torchvision.models.convnext import LayerNorm2d as TorchvisionLayerNorm2d
from torchvision.ops import stochastic_depth

from densescore.errors import NotConvolutionalError
from densescore.network.graph import (
    CROPS,
    axes_of,
    enclosing_layer,
    random_pixels,
    shape_of,
)
from densescore.network.locality_probe import Probe, is_vector

_FEWEST_CELLS = 9  # along an axis of the probed map

# Layers of which each position depends on its surroundings only, whatever their input.
_LOCAL = (
    *(nn.BatchNorm2d, BatchNormAct2d, nn.MaxPool2d, nn.AvgPool2d, nn.LocalResponseNorm, nn.PixelShuffle),
    *(nn.Dropout, nn.Dropout2d, nn.Identity, ConvMlp, LayerNorm2d, TorchvisionLayerNorm2d),
    *(getattr(activation, name) for name in ("ReLU", "ReLU6", "GELU", "SiLU", "Mish", "Hardswish", "Hardsigmoid")),
    *(getattr(activation, name) for name in ("Sigmoid", "Tanh", "LeakyReLU", "PReLU", "ELU", "SELU", "Hardtanh")),
)
_POINTWISE = (
    *(operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, operator.truediv, operator.neg),
    *(torch.add, torch.sub, torch.mul, torch.cat, torch.relu, torch.sigmoid, torch.tanh, F.relu, F.relu6, F.gelu),
    *(F.silu, F.hardswish, F.hardsigmoid, F.sigmoid, F.leaky_relu, F.dropout, stochastic_depth),
    *("add", "add_", "mul", "mul_", "relu", "relu_", "sigmoid", "sigmoid_", "clone", "contiguous"),
)
_LAYOUT = (torch.permute, torch.transpose, "permute", "transpose")


def check_local(trunk: fx.GraphModule, patch: int, stride: int, window: tuple[int, int]) -> tuple[str, ...]:
    """Refuse a trunk of which a position depends on an unbounded part of the image.

    Args:
        trunk: ``[1, 3, P + nS, P + mS]`` → ``[1, C, h + n, w + m]``.
        patch: P.
        stride: S.
        window: (h, w).

    Returns:
        The names of the layers that average over the whole image, which are allowed.

    Raises:
        NotConvolutionalError: a layer does not treat all positions alike, each with its surroundings.
    """
    for node in trunk.graph.nodes:
        if _wraps(trunk, node):
            raise NotConvolutionalError(f"{enclosing_layer(node)} wraps around the image: not convolutional; {CROPS}")
    averages = _averages(trunk)
    local = {node for node in trunk.graph.nodes if _surely_local(trunk, node)}
    if len(local) == len(trunk.graph.nodes):
        return averages
    steps = [max(2 + axis, _FEWEST_CELLS - window[axis]) for axis in (0, 1)]
    steps[1] += steps[0] == steps[1]
    small = Probe(trunk, local, (0, 0), stride)
    small.probe(random_pixels(trunk, patch, patch))
    pixels = random_pixels(trunk, patch + steps[0] * stride, patch + steps[1] * stride)
    cell = ((window[0] + steps[0]) // 2, (window[1] + steps[1]) // 2)
    first = Probe(trunk, local, (steps[0], steps[1]), stride, small, cell)
    first.probe(pixels)
    Probe(trunk, local, (steps[0], steps[1]), stride, small, (cell[0] + 1, cell[1] + 1), first).probe(pixels)
    return tuple(dict.fromkeys([*averages, *first.averages]))


def _wraps(trunk: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node pads a map by its other end, or rolls it."""
    if node.op == "call_module":
        parts = trunk.get_submodule(str(node.target)).modules()
        return any(getattr(part, "padding_mode", "") == "circular" for part in parts)
    return node.target in (torch.roll, "roll") or "circular" in (*node.args, *node.kwargs.values())


def _averages(trunk: fx.GraphModule) -> tuple[str, ...]:
    """The layers that make one number per channel of a map."""
    nodes = [node for node in trunk.graph.nodes if is_vector(shape_of(node)) and axes_of(node) is None]
    return tuple(enclosing_layer(node) for node in nodes if any(axes_of(source) for source in node.all_input_nodes))


def _surely_local(trunk: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node's operation is known to be local, or its output has no spatial extent."""
    shape, axes = shape_of(node), axes_of(node)
    if node.op in ("placeholder", "output", "get_attr") or not shape or (is_vector(shape) and axes is None):
        return True
    sources = [source for source in node.all_input_nodes if source.op != "get_attr" and shape_of(source)]
    if axes is None or not all(axes_of(source) or is_vector(shape_of(source)) for source in sources):
        return False
    if node.op != "call_module":
        return node.target in _POINTWISE or node.target in _LAYOUT
    layer = trunk.get_submodule(str(node.target))
    if type(layer) in (nn.Conv2d, Conv2dSame):
        return True
    if type(layer) in (nn.Linear, nn.LayerNorm, LayerNorm):  # of the last axis, which must be the channels
        return axes[1] < len(shape) - 1 and (not isinstance(layer, nn.LayerNorm) or len(layer.normalized_shape) == 1)
    return type(layer) in _LOCAL and getattr(layer, "track_running_stats", True)
