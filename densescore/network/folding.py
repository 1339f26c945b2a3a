"""Batch norms folded into the convolutions before them: the graph that faster layers are made of, on every device."""

import copy
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from densescore.network.graph import batch_norms, members, same_convolutions, symbolic_trace

Clamp = tuple[float | None, float | None]
"""Lowest and highest output; None for no bound. (0, None) is a ReLU, (0, 6) a ReLU6."""

NO_CLAMP: Clamp = (None, None)
_CLAMPS: dict[type[nn.Module], Clamp] = {nn.ReLU: (0, None), nn.ReLU6: (0, 6)}
_RELU, _RELU6 = nn.ReLU(), nn.ReLU6()
_FUNCTIONS: dict[Any, nn.Module] = {F.relu: _RELU, torch.relu: _RELU, "relu": _RELU, "relu_": _RELU, F.relu6: _RELU6}


def folded(part: nn.Module) -> fx.GraphModule:
    """A graph with equal outputs, to rounding, without the batch norms that follow convolutions, and without dropout.

    Layers that are not replaced are shared with `part`; an adaptation head is traced.
    """
    part = part if isinstance(part, fx.GraphModule) else symbolic_trace(part)
    graph, layers = copy.deepcopy(part.graph), members(part)
    names: dict[tuple[nn.Module, nn.Module], str] = {}  # a graph of several phases runs a layer in each
    for node in list(graph.nodes):
        layer, source = layer_of(layers, node), source_of(node)
        convolution = layer_of(layers, source)
        if type(layer) in (nn.Identity, nn.Dropout):
            replace(node, source)
        elif _is_norm(layer) and is_plain(convolution) and len(source.users) == 1:
            name = names.setdefault((convolution, layer), f"folded_{source.name}")
            source.target = name
            layers[name] = layers.get(name) or _fold(convolution, layer)
            # The activation of a batch norm takes the norm's place
            layers[f"{name}_act"] = activation = getattr(layer, "act", nn.Identity())
            node.target = f"{name}_act"
            if isinstance(activation, nn.Identity):
                replace(node, source)
    return fx.GraphModule(layers, graph)


def is_plain(layer: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Whether a convolution pads with zeros and uses its weights as they are; other subclasses may compute theirs."""
    if not isinstance(layer, nn.Conv2d) or type(layer) not in (nn.Conv2d, *same_convolutions()):
        return False
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def layer_of(layers: Mapping[str, Any], node: fx.Node) -> nn.Module | None:
    """The layer that a node calls, or a ReLU for its function; None for other operations."""
    if node.op == "call_module":
        layer: nn.Module = layers[str(node.target)]
        return layer
    return _FUNCTIONS.get(node.target) if node.op.startswith("call") else None


def clamp_of(layers: Mapping[str, Any], node: fx.Node) -> Clamp:
    """The bounds of a ReLU or a ReLU6; none for other nodes."""
    kind: Any = type(layer_of(layers, node))
    return _CLAMPS.get(kind, NO_CLAMP)


def only_user(node: fx.Node) -> fx.Node | None:
    """The only node that takes a node's output; None if several do."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def source_of(node: fx.Node) -> fx.Node:
    """The first node whose output a node takes; the node itself if there is none."""
    return next(iter(node.all_input_nodes), node)


def clamp_after(layers: Mapping[str, Any], node: fx.Node) -> tuple[fx.Node, Clamp]:
    """The ReLU or ReLU6 that alone takes a node's output, and its bounds; the node itself and none if there is none."""
    user = only_user(node)
    clamp = NO_CLAMP if user is None else clamp_of(layers, user)
    return (node, NO_CLAMP) if user is None or clamp == NO_CLAMP else (user, clamp)


def replace(node: fx.Node, other: fx.Node) -> None:
    """Have all users of a node take another one's output, and erase it."""
    if node is not other:
        node.replace_all_uses_with(other)
        node.graph.erase_node(node)


def _is_norm(layer: nn.Module | None) -> TypeGuard[nn.BatchNorm2d]:
    """Whether a batch norm has running statistics; without, it would take the map's."""
    return type(layer) in batch_norms() and getattr(layer, "running_mean", None) is not None


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution with a batch norm in its weights ``[F, C / groups, r, s]`` and its bias ``[F]``."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    both = copy.copy(convolution)
    both._parameters = {
        name: nn.Parameter(tensor.detach(), requires_grad=False)
        for name, tensor in (("weight", weight), ("bias", bias))
    }
    return both
