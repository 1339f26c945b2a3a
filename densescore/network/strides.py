"""Cells closer together than the network's stride: OverFeat's offset pooling, for pools and convolutions alike.

A network of stride S scores a patch every S pixels, because its strided layers keep every t-th position. If such a
layer is run again from each of the positions that it skips, the layers after it give the scores of the patches in
between. This makes t² *phases*: each is an ordinary map of stride S that begins some pixels further down and across
(Sermanet et al., "OverFeat", ICLR 2014, Section 3.3 and Figure 3, where the layer is the last pool). Layers before it
are shared; those after it are computed t² times.

A layer that begins late still sees the pixels above it and to its left, so a network with padding meets zeros only past
the level's own border, as at stride S. The phase at pixel 0 is the unmodified network: the same scores at shared cells.
All this equals layers at stride 1 with dilated ones after them ("à trous"), but needs no dilated layers, and holds for
squeeze-and-excitation too, which averages over each phase by itself.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from densescore.errors import DensescoreError
from densescore.network.graph import (
    call_arguments,
    name_of,
    note_growth,
    note_shapes,
    padding_of,
    same_convolutions,
    shape_of,
    step_of,
)

Phase = tuple[int, int]
"""Pixels, down and across, at which a map begins."""

Pads = tuple[int, int, int, int]
"""Padding of a map: left, right, top, bottom, as `F.pad` takes it."""


def with_phases(trunk: fx.GraphModule, patch: int, stride: int, finer: int) -> fx.GraphModule:
    """The trunk with the maps of all phases, row by row, for cells `finer` pixels apart; it shares its parameters.

    ``[1, 3, P + nS, P + mS]`` → ``[(S / finer)², C, h + n, w + m]``; maps that begin past pixel 0 end with zeros.
    """
    if finer < 1 or stride % finer:
        ways = ", ".join(str(way) for way in range(stride, 0, -1) if stride % way == 0)
        raise DensescoreError(f"stride must divide the network's own: one of {ways}; got {finer}")
    root, graph = fx.GraphModule(trunk, trunk.graph), fx.Graph()
    steps: dict[fx.Node, int] = {}  # pixels per position of a map, or of the maps in a tuple; 0 for other nodes
    copies: dict[fx.Node, dict[Phase, fx.Node]] = {}
    for node in trunk.graph.nodes:
        sources = node.all_input_nodes
        phases = sorted({phase for source in sources for phase in copies[source]}) or [(0, 0)]
        before = max((steps[source] for source in sources), default=0) or 1
        steps[node] = step_of(node) if shape_of(node) else max((steps[source] for source in sources), default=0)
        if node.op == "output":
            if len(phases) != (stride // finer) ** 2:
                raise _refused(trunk, sources[0], finer, "has not all phases")
            graph.output(graph.call_function(stack_phases, ([copies[sources[0]][phase] for phase in phases],)))
        elif steps[node] > max(before, finer):
            # A strided node: once from each position that it skips
            starts = range(0, steps[node], max(before, finer))
            late = _late(trunk, node, copies, root, graph)
            copies[node] = {
                (y + dy, x + dx): late((y, x), dy // before, dx // before)
                for y, x in phases
                for dy in starts
                for dx in starts
            }
        elif any(steps[source] and set(copies[source]) != set(phases) for source in sources):
            raise _refused(trunk, node, finer, "joins maps that begin at different pixels")
        elif len(phases) > 1 and 0 < steps[node] < before:
            raise _refused(trunk, node, finer, "enlarges its map")
        else:
            copies[node] = {phase: _copy_of(node, phase, copies, graph) for phase in phases}
    in_phases = fx.GraphModule(root, graph).eval()
    if failed := note_growth(in_phases, patch):  # branches of unlike layers, which begin late by unlike amounts
        raise _refused(trunk, failed[0], finer, f"joins maps of different sizes: {failed[1]}")
    note_shapes(in_phases, patch)  # an error where a level of one cell cannot be run
    return in_phases


def _refused(trunk: fx.GraphModule, node: fx.Node, finer: int, what: str) -> DensescoreError:
    return DensescoreError(f"stride {finer} is too fine for this network: {name_of(trunk, node)} {what}")


def static_padding(trunk: fx.GraphModule) -> fx.GraphModule:
    """The trunk with fixed padding where convolutions compute it from the size of their input, for P + nS pixels."""
    root, graph = fx.GraphModule(trunk, trunk.graph), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in trunk.graph.nodes:
        if node.op == "call_module" and isinstance(trunk.get_submodule(str(node.target)), same_convolutions()):
            (source,) = node.all_input_nodes
            root.add_module(f"static_{node.name}", LateLayer(*_strided_layer(trunk, node), (0, 0)))
            copies[node] = graph.call_module(f"static_{node.name}", (copies[source], copies[source], 0, 0))
        else:
            copies[node] = graph.node_copy(node, lambda source: copies[source])
    return fx.GraphModule(root, graph).eval()


def _copy_of(node: fx.Node, phase: Phase, copies: dict[fx.Node, dict[Phase, fx.Node]], graph: fx.Graph) -> fx.Node:
    """`node` in a phase; a constant, or an average of a map before the phases, is shared by all."""
    return graph.node_copy(node, lambda source: copies[source].get(phase) or copies[source][0, 0])


def _late(
    trunk: fx.GraphModule,
    node: fx.Node,
    copies: dict[fx.Node, dict[Phase, fx.Node]],
    root: fx.GraphModule,
    graph: fx.Graph,
) -> Callable[[Phase, int, int], fx.Node]:
    """A function of a phase and of positions down and across that adds `node`, beginning there, to the graph."""
    source = node.all_input_nodes[0]
    size = shape_of(source)[2:]
    functions = (torch.conv2d, F.max_pool2d, F.avg_pool2d)  # blur pools, among others
    unpadded = not any(padding_of(trunk, node).sides) and not call_arguments(node).get("ceil_mode", False)
    if node.target not in functions or not unpadded:
        name = f"late_{node.name}"
        root.add_module(name, LateLayer(*_strided_layer(trunk, node), size))
        return lambda phase, down, across: graph.call_module(
            name, (copies[source][phase], copies[source][0, 0], down, across)
        )

    def begun(phase: Phase, down: int, across: int) -> fx.Node:
        arguments = (copies[source][phase], copies[source][0, 0], down, across, size)
        begin = graph.call_function(begin_at, arguments)
        return graph.node_copy(
            node, lambda old: begin if old is source else copies[old].get(phase) or copies[old][0, 0]
        )

    return begun


def missing(first: Tensor, down: int, across: int, size: tuple[int, ...]) -> Pads:
    """Zeros at the end of a map that begins late on a level of one cell, which is none of its own.

    With them it has a patch's `size`, so all layers run; nothing reads its cells. `first` is the map of phase 0.
    """
    height, width = first.shape[2:]  # without branches, which a runtime's tracer would not see
    return 0, across * (size[1] // width), 0, down * (size[0] // height)


def begin_at(feature_map: Tensor, first: Tensor, down: int, across: int, size: tuple[int, ...]) -> Tensor:
    """The part of a map from a position on."""
    return F.pad(feature_map[:, :, down:, across:], missing(first, down, across, size))


class LateLayer(nn.Module):
    """A strided ``Conv2d``, ``MaxPool2d`` or ``AvgPool2d`` that may begin late, and still sees pixels before that."""

    def __init__(self, layer: nn.Module, pads: Pads, size: tuple[int, ...]) -> None:
        super().__init__()
        self.layer, self.pads, self.size = layer, pads, size

    def forward(self, x: Tensor, first: Tensor, down: int, across: int) -> Tensor:
        """Outputs from `down` and `across` positions of the input on: ``[1, C, h, w]`` → ``[1, D, …]``."""
        left, right, top, bottom = self.pads
        pads, layer = (left - across, right, top - down, bottom), self.layer  # a negative pad crops
        if any(self.size):  # not the static padding of `static_padding`
            x = F.pad(x, missing(first, down, across, self.size))
        if isinstance(layer, nn.Conv2d):
            x = F.pad(x, pads)
            return F.conv2d(x, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)
        if isinstance(layer, nn.MaxPool2d):
            x = F.pad(x, pads, value=-torch.inf)
            return F.max_pool2d(x, layer.kernel_size, layer.stride, 0, layer.dilation)
        assert isinstance(layer, nn.AvgPool2d)
        return F.avg_pool2d(F.pad(x, pads), layer.kernel_size, layer.stride, divisor_override=layer.divisor_override)


def stack_phases(maps: list[Tensor]) -> Tensor:
    """Maps of all phases → one tensor, each filled up to the size of the first with zeros."""
    height, width = maps[0].shape[2:]
    return torch.cat([F.pad(at, (0, width - at.shape[3], 0, height - at.shape[2])) for at in maps])


def _strided_layer(trunk: fx.GraphModule, node: fx.Node) -> tuple[nn.Module, Pads]:
    """The layer of a node that can begin late, and its padding."""
    layer: Any = trunk.get_submodule(str(node.target)) if node.op == "call_module" else None
    pads = padding_of(trunk, node).sides
    if isinstance(layer, same_convolutions()) or (type(layer) is nn.Conv2d and layer.padding_mode == "zeros"):
        return layer, pads
    if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d) and not layer.ceil_mode:
        counts_padding = getattr(layer, "count_include_pad", True)
        if type(layer) in (nn.MaxPool2d, nn.AvgPool2d) and (counts_padding or not any(pads)):
            return layer, pads
    raise DensescoreError(
        f"a finer stride needs {name_of(trunk, node)} to begin late, which only a Conv2d, MaxPool2d or "
        "AvgPool2d can that pads with zeros and rounds its output's size down"
    )
