"""A dense network with equal values whose layers suit a GPU: folded, channels last, each map written and read once.

A GPU's time goes into moving maps. Depthwise convolutions clamp what they read and what they write, cuDNN adds bias and
residual and clamps inside its convolution, 1×1 convolutions and FC7 are matrix products that do so too, and FC6 is one
convolution over the map instead of a product over copied windows.
"""

import operator
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from densescore.network.dense_network import DenseNetwork, LinearWindows, Windows, replaced
from densescore.network.folding import (
    NO_CLAMP,
    Clamp,
    clamp_after,
    clamp_of,
    folded,
    is_plain,
    layer_of,
    only_user,
    replace,
    source_of,
)
from densescore.network.gpu.layers import (
    Convolution,
    Depthwise,
    Pointwise,
    Rows,
    is_convolution,
    is_depthwise,
    is_pointwise,
)
from densescore.network.graph import members, padding_of, shape_of

_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")


class ConvolvedWindows(Windows):
    """FC6 of each window, as a convolution over the map: blocks → ``[cells, width of FC6]``."""

    def __init__(self, window: tuple[int, int], linear: nn.Linear, clamp: Clamp) -> None:
        super().__init__(window)
        self.convolution = Convolution(linear.weight.unflatten(1, (-1, *window)), linear.bias, clamp)

    def grid(self, maps: Tensor) -> Tensor:
        """``[N, rows, cols, width]``."""
        return self.convolution(maps).permute(0, 2, 3, 1)

    def rows(self, windows: Tensor) -> Tensor:
        """The windows are the rows."""
        return windows


def accelerated_on_gpu(network: DenseNetwork) -> DenseNetwork:
    """The network in the form that a GPU runs; the scores stay the same, to rounding."""
    trunk = gpu_form(network.trunk)
    level_trunk = trunk if network.level_trunk is network.trunk else gpu_form(network.level_trunk)
    embed, project = gpu_form(network.embed), network.project
    fields: dict[str, Any] = {}
    if isinstance(project, LinearWindows):
        assert isinstance(project.linear, nn.Linear)
        # FC6, and the ReLU after it
        (start,) = embed.graph.find_nodes(op="placeholder")
        last, clamp = clamp_after(members(embed), start)
        replace(last, start)
        embed.recompile()
        fields["project"] = ConvolvedWindows(project.window, project.linear, clamp)
        fields["window_width"] = project.linear.out_features
    fields |= {"trunk": trunk, "level_trunk": level_trunk, "fast_trunk": level_trunk}
    return replaced(network, embed=embed, classifier=gpu_form(network.classifier), **fields)


def gpu_form(part: nn.Module) -> fx.GraphModule:
    """A graph with the same outputs, to rounding, of a GPU's layers; layers that are not replaced are shared."""
    part = folded(part)
    graph, layers = part.graph, members(part)
    names: dict[Hashable, str] = {}  # a graph of several phases runs a layer in each

    def put(node: fx.Node, last: fx.Node, make: Callable[..., nn.Module], *key: Any) -> None:
        """Have `node` call what `make` builds from `key`, once for each key, and stand for `last` too."""
        node.target = names.setdefault((make, *key), f"gpu_{node.name}")
        if node.target not in layers:
            layers[node.target] = make(*key)
        replace(last, node)

    for node in list(graph.nodes):
        layer = layer_of(layers, node)
        last, clamp = clamp_after(layers, node)
        if type(layer) is nn.Linear and clamp == (0, None):
            put(node, last, Rows, layer, True)
        elif is_plain(layer) and is_depthwise(layer):
            # A clamp before it, unless others take its input, which it may change in place
            (before,) = node.all_input_nodes
            input_clamp = clamp_of(layers, before)
            if input_clamp != NO_CLAMP and only_user(before) == node and only_user(source_of(before)) == before:
                replace(before, source_of(before))
            else:
                input_clamp = NO_CLAMP
            put(node, last, Depthwise, layer, padding_of(part, node), input_clamp, clamp)
        elif is_plain(layer) and is_convolution(layer, pads := padding_of(part, node)):
            # A sum with another map before the clamp
            add = only_user(node) if clamp == NO_CLAMP else None
            other = None if add is None else _other_summand(add, node)
            if add is not None and other is not None and clamp_after(layers, add)[1] != NO_CLAMP:
                last, clamp = clamp_after(layers, add)
                node.args = (*node.args, other)
                add.prepend(node)
                replace(add, node)
            # A depthwise convolution clamps what it reads: only cuDNN's bias needs the ReLU
            reader = layer_of(layers, only_user(last) or last)
            clamps = is_plain(reader) and is_depthwise(reader)
            if is_pointwise(layer, pads) and len(node.args) == 1 and (clamps or clamp in (NO_CLAMP, (0, None))):
                put(node, node if clamps else last, Pointwise, layer, clamp != NO_CLAMP and not clamps)
            elif clamps and clamp != NO_CLAMP:
                put(node, node, Convolution.of, layer, (0, None), pads)
            else:
                put(node, last, Convolution.of, layer, clamp, pads)
    for node in graph.nodes:
        _add_in_place(layers, node)
    return fx.GraphModule(layers, graph)


def _other_summand(add: fx.Node, node: fx.Node) -> fx.Node | None:
    """The map of the same shape that is added to a convolution's, if it may run only after that map is known."""
    if add.target not in _ADDS or add.kwargs or len(add.all_input_nodes) != 2:
        return None
    (other,) = (source for source in add.all_input_nodes if source is not node)
    movable = other < node or only_user(source_of(node)) is node  # nobody changes its input in between
    return other if movable and shape_of(other) == shape_of(node) != () else None


def _add_in_place(layers: Mapping[str, Any], node: fx.Node) -> None:
    """Add to a map that one of these layers made, and that nobody else takes."""
    shapes = {*map(shape_of, node.args)}
    if node.target not in _ADDS or node.kwargs or len(node.args) != 2 or len(shapes) != 1 or () in shapes:
        return
    for fresh, other in (node.args, node.args[::-1]):
        assert isinstance(fresh, fx.Node)
        if isinstance(layer_of(layers, fresh), Convolution | Pointwise | Depthwise) and only_user(fresh) is node:
            node.op, node.target, node.args = "call_method", "add_", (fresh, other)
            return
