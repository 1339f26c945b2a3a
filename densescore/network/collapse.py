"""Where a classifier's spatial extent ends: the one node that turns its feature map into a vector, and how."""

import torch
from torch import Tensor, fx

from densescore.errors import NotConvolutionalError
from densescore.network.graph import CROPS, GROWTH, axes_of, dependent, enclosing_layer, name_of, shape_of, subgraph


def find_collapse(
    graph: fx.GraphModule, output: fx.Node, failed: tuple[fx.Node, str] | None
) -> tuple[fx.Node, fx.Node]:
    """Walk back from the logits to where the spatial extent ends.

    Args:
        graph: of a classifier, with the shapes that `note_shapes` and `note_growth` noted.
        output: gives the logits.
        failed: the node at which a larger image failed, and why.

    Returns:
        The one node that takes a feature map and gives none, and the map.

    Raises:
        NotConvolutionalError: there is no such node, or there are several; the message names them.
    """
    on_input = dependent(graph.graph)
    found: set[tuple[fx.Node, fx.Node]] = set()
    seen = {output}
    waiting = [output]
    while waiting:
        node = waiting.pop()
        if node.op == "placeholder":
            raise NotConvolutionalError(f"no layer turns a feature map into a vector; {CROPS}")
        for source in node.all_input_nodes:
            if source not in on_input or not shape_of(source) or source in seen:
                continue
            if axes_of(source):
                found.add((node, source))
            else:
                seen.add(source)
                waiting.append(source)
    for node, _ in found:
        _check_even(graph, node)
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    joined = sorted(found, key=lambda pair: order[pair[0]])
    collapse, source = joined[0]
    if failed and order[failed[0]] < order[collapse]:
        node, reason = failed
        reason = "" if "Proxy(" in reason else f": {reason}"  # sizes that the trace knows only as proxies
        raise NotConvolutionalError(f"{enclosing_layer(node)} takes no larger image than a patch{reason}; {CROPS}")
    if len(joined) > 1:
        raise NotConvolutionalError(
            f"{len(joined)} layers take a feature map to the logits, first {name_of(graph, collapse)}, then "
            f"{name_of(graph, joined[1][0])}: one flatten or global average pool must; {CROPS}"
        )
    if axes_of(source) not in ((2, 3), (1, 2)) or len(shape_of(source)) != 4:
        raise NotConvolutionalError(f"{name_of(graph, source)} gives no [N, C, h, w] map; {CROPS}")
    return collapse, source


def _check_even(graph: fx.GraphModule, node: fx.Node) -> None:
    """A map that gets larger with the image, but not by the same number of cells for each so many pixels.

    Raises:
        NotConvolutionalError: the node gives such a map.
    """
    small, large = shape_of(node), node.meta.get("larger_shape", ())
    grown = [more - fewer for fewer, more in zip(small, large, strict=False) if more != fewer]
    if len(small) == len(large) == 4 and len(grown) == 2 and min(grown) > 0 and not axes_of(node):
        raise NotConvolutionalError(uneven(graph, node, *grown))


def uneven(graph: fx.GraphModule, node: fx.Node, down: int, across: int) -> str:
    """Why a map that grows by so many cells cannot be scored densely."""
    return (
        f"the map of {name_of(graph, node)} grows by {down}×{across} cells where the image grows by "
        f"{GROWTH[0]}×{GROWTH[1]} pixels: dense scores need a stride that divides {GROWTH[0]}; {CROPS}"
    )


def follow_collapse(
    graph: fx.GraphModule, source: fx.Node, collapse: fx.Node, channels_last: bool
) -> tuple[fx.Node, bool]:
    """The node at which the map is flattened or averaged, and whether it is averaged: tried on a random map.

    Pooling may take several nodes, as in ``x.flatten(2).mean(2)``.

    Raises:
        NotConvolutionalError: neither is so.
    """
    generator = torch.Generator().manual_seed(0)
    parameter = next(graph.parameters(), torch.empty(0))
    sample = torch.rand(shape_of(source), generator=generator).to(parameter.device, parameter.dtype)
    average = sample.mean((1, 2) if channels_last else (2, 3))[0]  # [C]
    node = collapse
    while True:
        given = subgraph(graph, source, node)(sample)
        if given.numel() == average.numel() and _alike(given.flatten(), average):
            return node, True
        if given.shape == (1, sample.numel()) and torch.equal(given[0], sample.flatten()) and not channels_last:
            return node, False
        if len(node.users) != 1 or len(next(iter(node.users)).all_input_nodes) != 1:
            break
        (node,) = node.users
        if node.op not in ("call_method", "call_function"):
            break
    raise NotConvolutionalError(
        f"{name_of(graph, collapse)} turns a {shape_of(source)} map into {shape_of(collapse)}; only a flatten or a "
        f"global average pool may; {CROPS}"
    )


def _alike(given: Tensor, expected: Tensor) -> bool:
    tolerance = 64 * torch.finfo(expected.dtype).eps
    return torch.allclose(given.to(expected.dtype), expected, rtol=tolerance, atol=tolerance)
