"""Cells closer together than the network's stride: OverFeat's offset pooling, for pools and convolutions alike.

A network of stride S scores a patch every S pixels, because its strided layers keep every t-th position. Where such a
layer is run again from each of the positions that it skips, what follows gives the scores of the patches in between:
t² *phases*, each an ordinary map of stride S that begins some pixels further down and across (Sermanet et al.,
"OverFeat", ICLR 2014, Section 3.3 and Figure 3, where the layer is the last pool). What comes before the layer is
shared; only what follows is computed t² times.

A layer that begins late still sees what lies above it and to its left, so a network with padding meets zeros only past
the level's own border, as at stride S. The phase at pixel 0 is the unmodified network: the same scores at shared cells.
All this equals layers at stride 1 with dilated ones after them ("à trous"), but needs no dilated layers, and holds for
squeeze-and-excitation too, which averages over each phase by itself.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import get_same_padding
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from densescore.errors import DensescoreError, reason_of

Phase = tuple[int, int]
"""Pixels, down and across, at which a map begins."""

Pads = tuple[int, int, int, int]
"""Of a map: left, right, top, bottom, as `F.pad` takes them."""


def with_offsets(trunk: fx.GraphModule, patch: int, stride: int, finer: int) -> fx.GraphModule:
    """A trunk that gives the maps of all phases, for cells `finer` pixels apart.

    Args:
        trunk: ``[1, 3, P + nS, P + mS]`` → ``[1, C, h + n, w + m]``; its parameters are shared.
        patch: P.
        stride: S, of the trunk.
        finer: in pixels; it divides S.

    Returns:
        ``[1, 3, P + nS, P + mS]`` → ``[(S / finer)², C, h + n, w + m]``, phases row by row. A map that begins past
        pixel 0 has a row or column less than the first, and is filled up with zeros, which no cell reads.

    Raises:
        DensescoreError: `finer` does not divide S, or a layer that makes the stride cannot begin late.
    """
    if finer < 1 or stride % finer:
        ways = ", ".join(str(way) for way in range(stride, 0, -1) if stride % way == 0)
        raise DensescoreError(f"stride must divide the network's own: one of {ways}; got {finer}")
    shapes, wide = _shapes(trunk, patch), _shapes(trunk, patch + 4 * stride)
    root, graph = fx.GraphModule(trunk, trunk.graph), fx.Graph()
    strides: dict[fx.Node, int] = {}  # of each node's map, in pixels
    copies: dict[fx.Node, dict[Phase, fx.Node]] = {}
    for node in trunk.graph.nodes:
        sources = node.all_input_nodes
        phases = sorted({phase for source in sources for phase in copies[source]}) or [(0, 0)]
        before = max((strides[source] for source in sources), default=1)
        grown = [after - at for at, after in zip(shapes.get(node, ()), wide.get(node, ()), strict=True) if after > at]
        strides[node] = 4 * stride // grown[0] if grown else before
        if node.op == "output":
            graph.output(graph.call_function(stack_phases, ([copies[sources[0]][phase] for phase in phases],)))
        elif strides[node] > max(before, finer):
            name = f"late_{node.name}"
            root.add_module(name, LateLayer(*_strided_layer(trunk, node, shapes[sources[0]])))
            starts = range(0, strides[node], max(before, finer))
            copies[node] = {
                (y + dy, x + dx): graph.call_module(name, (copies[sources[0]][y, x], dy // before, dx // before))
                for y, x in phases
                for dy in starts
                for dx in starts
            }
        else:
            copies[node] = {phase: _copy_of(node, phase, copies, graph) for phase in phases}
    offset = fx.GraphModule(root, graph).eval()
    try:
        _shapes(offset, patch)
    except RuntimeError as error:  # branches of unlike layers, which begin late by unlike amounts
        raise DensescoreError(f"stride {finer} is too fine for this network: {reason_of(error)}") from error
    return offset


def static_padding(trunk: fx.GraphModule, patch: int) -> fx.GraphModule:
    """The same trunk, where convolutions that reckon their padding from the size of their input no longer do.

    Args:
        trunk: with P + nS pixels a side, for which "same" padding comes out the same.
        patch: P.
    """
    shapes = _shapes(trunk, patch)
    root, graph = fx.GraphModule(trunk, trunk.graph), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in trunk.graph.nodes:
        if node.op == "call_module" and isinstance(trunk.get_submodule(str(node.target)), Conv2dSame):
            (source,) = node.all_input_nodes
            root.add_module(f"static_{node.name}", LateLayer(*_strided_layer(trunk, node, shapes[source])))
            copies[node] = graph.call_module(f"static_{node.name}", (copies[source], 0, 0))
        else:
            copies[node] = graph.node_copy(node, lambda source: copies[source])
    return fx.GraphModule(root, graph).eval()


def _copy_of(node: fx.Node, phase: Phase, copies: dict[fx.Node, dict[Phase, fx.Node]], graph: fx.Graph) -> fx.Node:
    """`node` in a phase; what has none, a constant, is shared."""
    return graph.node_copy(node, lambda source: copies[source].get(phase, copies[source].get((0, 0), source)))


class LateLayer(nn.Module):
    """A strided convolution or pool that may begin late, and still sees what lies above it and to its left.

    Args:
        layer: a ``Conv2d``, ``MaxPool2d`` or ``AvgPool2d``.
        pads: by which it pads its input.
    """

    def __init__(self, layer: nn.Module, pads: Pads) -> None:
        super().__init__()
        self.layer, self.pads = layer, pads

    def forward(self, x: Tensor, down: int, across: int) -> Tensor:
        """The layer's outputs from `down` and `across` positions of its input on: ``[1, C, h, w]`` → ``[1, D, …]``."""
        left, right, top, bottom = self.pads
        pads, layer = (left - across, right, top - down, bottom), self.layer  # a negative pad crops
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


def _strided_layer(trunk: fx.GraphModule, node: fx.Node, shape: torch.Size) -> tuple[nn.Module, Pads]:
    """The layer of a node that takes `shape`, and how it pads.

    Raises:
        DensescoreError: it is none that can begin late.
    """
    layer: Any = trunk.get_submodule(str(node.target)) if node.op == "call_module" else None
    kind = type(layer)
    if isinstance(layer, Conv2dSame):  # depends on the size's remainder by the stride, which a level shares
        down, across = (
            get_same_padding(shape[axis + 2], layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis])
            for axis in (0, 1)
        )
        return layer, (across // 2, across - across // 2, down // 2, down - down // 2)
    padded: Any = getattr(layer, "padding", 0)
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and padded != "same":
        down, across = (0, 0) if padded == "valid" else padded
        return layer, (across, across, down, down)
    whole = not getattr(layer, "ceil_mode", False) and (not padded or getattr(layer, "count_include_pad", True))
    if isinstance(layer, nn.Module) and kind in (nn.MaxPool2d, nn.AvgPool2d) and whole:
        down, across = (padded, padded) if isinstance(padded, int) else padded
        return layer, (across, across, down, down)
    name = f"layer {node.target} ({kind.__name__})" if layer else f"operation {node.target}"
    raise DensescoreError(
        f"a finer stride needs {name} to begin late, which only a Conv2d, MaxPool2d or AvgPool2d can that pads with "
        "zeros and rounds its output's size down"
    )


@torch.inference_mode()
def _shapes(trunk: fx.GraphModule, side: int) -> dict[fx.Node, torch.Size]:
    """The shape of each node's tensor for `side` × `side` pixels."""
    parameter = next(trunk.parameters())
    ShapeProp(trunk).propagate(torch.zeros(1, 3, side, side, dtype=parameter.dtype, device=parameter.device))
    found = {node: node.meta.get("tensor_meta") for node in trunk.graph.nodes}
    return {node: meta.shape for node, meta in found.items() if hasattr(meta, "shape")}
