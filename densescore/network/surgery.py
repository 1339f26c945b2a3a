"""Turn a classifier of P×P pixels into a network that runs over a whole image: the surgery.

A classifier is traced and cut into four parts:

    trunk        pixels → feature map, stride S: everything up to where the spatial extent ends
    project      windows of the map → one row each: FC6 after a flatten, or a global average pool
    embed        rows → features: FC7, or what follows the pool up to the last linear layer
    classifier   features → logits: the last linear layer (FC8), or an adaptation head put in its place

A fully connected layer over windows of a map *is* a convolution whose kernel is the window. The layers are run on the
windows of all cells at once: one matrix product each, and the same arithmetic as the original network's. The parts
share the module's parameters.

Behavior decides, not the names of layers: a map is a tensor that grows with the image, a pool is an operation whose
output is a map's averages, and `densescore.network.locality` probes whether a position depends on a bounded part of the
image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from densescore.errors import DensescoreError, NotConvolutionalError
from densescore.network.dense_network import AveragedWindows, DenseNetwork, FlattenedWindows, LinearWindows
from densescore.network.graph import (
    CROPS,
    GROWTH,
    axes_of,
    dependent,
    enclosing_layer,
    mixing,
    name_of,
    note_growth,
    note_shapes,
    own_reason,
    random_pixels,
    shape_of,
    subgraph,
    trace,
)
from densescore.network.locality import check_local


def to_dense(module: nn.Module, patch: int) -> DenseNetwork:
    """Cut a classifier of ``[N, 3, patch, patch]`` pixels into the parts of a `DenseNetwork`, which share its weights.

    Raises NotConvolutionalError, by the name of a layer; or DensescoreError: no P×P pixels taken, or no logits given.
    """
    module = module.eval()
    with torch.inference_mode(mode=False), torch.no_grad():
        graph = trace(module)
        try:
            logits = note_shapes(graph, patch)
        except DensescoreError as error:
            _check_traced(module, graph, patch, error)
            raise
        output = _logits(graph)
        try:
            _take_out_identity_pools(graph)
            network = _cut(graph, output, note_growth(graph, patch), patch)
            _check_equal(network, logits, type(module).__name__)
        except NotConvolutionalError as error:
            raise _with_attention(error, graph) from error
    return network


def _check_traced(module: nn.Module, graph: fx.GraphModule, patch: int, error: DensescoreError) -> None:
    """NotConvolutionalError if the module takes P×P pixels that its trace does not take."""
    try:
        module(random_pixels(module, patch, patch))
    except Exception:
        return
    failure = NotConvolutionalError(f"{type(module).__name__} cannot be traced: {error}; {CROPS}")
    raise _with_attention(failure, graph) from error


def _cut(graph: fx.GraphModule, output: fx.Node, failed: tuple[fx.Node, str] | None, patch: int) -> DenseNetwork:
    # Where the spatial extent ends
    collapse, source = _find_collapse(graph, output, failed)
    axes = axes_of(source)
    assert axes is not None
    channels_last = axes == (1, 2)
    window = (shape_of(source)[axes[0]], shape_of(source)[axes[1]])
    channels = math.prod(shape_of(source)) // math.prod(window)
    collapse, averages = _follow_collapse(graph, source, collapse, channels_last)

    # Features: the input of the last linear layer
    head = _between(graph, collapse, output)
    linears = [node for node in head if _is_linear(graph, node)]
    if not linears:
        raise NotConvolutionalError(
            f"no linear layer follows {name_of(graph, collapse)}: nothing classifies its output; {CROPS}"
        )
    features = _features(head, linears[-1], collapse)

    # Trunk: everything up to the map
    trunk = subgraph(graph, None, source)
    if channels_last:
        _put_channels_first(trunk)

    # Projection of windows: an average, FC6, or a flatten
    first = linears[0]
    projected = collapse
    project: nn.Module
    if averages:  # also where the window is one position, which is its own average
        project = AveragedWindows(window, shape_of(collapse)[1:])
    elif first is not linears[-1] and _reached_idly(graph, collapse, first):
        projected = first
        project = LinearWindows(window, graph.get_submodule(str(first.target)))
    else:
        project = FlattenedWindows(window)
    stride = _stride(graph, trunk, source, patch)
    return DenseNetwork(
        trunk,
        project,
        subgraph(graph, projected, features),
        subgraph(graph, features, output),
        patch=patch,
        stride=stride,
        window=window,
        window_width=channels if averages else channels * window[0] * window[1],
        feature_width=math.prod(shape_of(features)[1:]),
        classes=shape_of(output)[1],
        level_context=check_local(trunk, patch, stride, window),
    ).eval()


def _find_collapse(
    graph: fx.GraphModule, output: fx.Node, failed: tuple[fx.Node, str] | None
) -> tuple[fx.Node, fx.Node]:
    """Walk back from the logits to where the spatial extent ends: the one node from a map to a vector, and its map.

    `failed` is the node at which a larger image failed, and why.
    """
    # Nodes that take a map, and maps that they take
    on_input = dependent(graph.graph)
    pairs: set[tuple[fx.Node, fx.Node]] = set()
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
                pairs.add((node, source))
            else:
                seen.add(source)
                waiting.append(source)

    # Exactly one, whose map is [N, C, h, w] and grows with the image
    for node, _ in pairs:
        _check_even(graph, node)
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    joined = sorted(pairs, key=lambda pair: order[pair[0]])
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
    """Refuse a map that grows with the image, but not by a whole number of cells per `GROWTH`."""
    small, large = shape_of(node), node.meta.get("larger_shape", ())
    grown = [more - fewer for fewer, more in zip(small, large, strict=False) if more != fewer]
    if len(small) == len(large) == 4 and len(grown) == 2 and min(grown) > 0 and not axes_of(node):
        raise NotConvolutionalError(_uneven(graph, node, *grown))


def _uneven(graph: fx.GraphModule, node: fx.Node, down: int, across: int) -> str:
    """Message on a map that grows by so many cells where the image grows by `GROWTH`."""
    return (
        f"the map of {name_of(graph, node)} grows by {down}×{across} cells where the image grows by "
        f"{GROWTH[0]}×{GROWTH[1]} pixels: dense scores need a stride that divides {GROWTH[0]}; {CROPS}"
    )


def _follow_collapse(
    graph: fx.GraphModule, source: fx.Node, collapse: fx.Node, channels_last: bool
) -> tuple[fx.Node, bool]:
    """The node at which a random map is flattened or averaged, and whether it is averaged.

    Pooling may take several nodes, as in ``x.flatten(2).mean(2)``.
    """
    generator = torch.Generator().manual_seed(0)
    parameter = next(graph.parameters(), torch.empty(0))
    sample = torch.rand(shape_of(source), generator=generator).to(parameter.device, parameter.dtype)
    average = sample.mean((1, 2) if channels_last else (2, 3))[0]  # [C]
    node = collapse
    while True:
        output = subgraph(graph, source, node)(sample)
        if output.numel() == average.numel() and _alike(output.flatten(), average):
            return node, True
        if output.shape == (1, sample.numel()) and torch.equal(output[0], sample.flatten()) and not channels_last:
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


def _alike(actual: Tensor, expected: Tensor) -> bool:
    tolerance = 64 * torch.finfo(expected.dtype).eps
    return torch.allclose(actual.to(expected.dtype), expected, rtol=tolerance, atol=tolerance)


def _logits(graph: fx.GraphModule) -> fx.Node:
    """The node of the logits, ``[N, classes]``."""
    (end,) = (node for node in graph.graph.nodes if node.op == "output")
    output = end.args[0]
    if isinstance(output, fx.Node) and len(shape_of(output)) == 2:
        return output
    kind = f"a tensor of shape {[*shape_of(output)]}" if shape_of(output) else f"a {type(output).__name__}"
    kind = f"a dict of {', '.join(map(repr, output))}" if isinstance(output, dict) else kind
    raise DensescoreError(f"the network must return one [N, classes] tensor of logits, and returns {kind}")


def _take_out_identity_pools(graph: fx.GraphModule) -> None:
    """Remove adaptive pools from h×w to h×w, which do nothing to a patch and would shrink a level."""
    for node in list(graph.graph.nodes):
        pool = graph.get_submodule(node.target) if node.op == "call_module" else node.target
        adaptive = isinstance(pool, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d) or pool is F.adaptive_avg_pool2d
        if not adaptive or max(shape_of(node)[2:], default=1) == 1:
            continue
        before, after = (shape_of(at)[2:] for at in (node.args[0], node))
        if before != after:
            raise NotConvolutionalError(
                f"{name_of(graph, node)} makes a {before[0]}×{before[1]} map {after[0]}×{after[1]}, whatever the "
                f"input's size: it is convolutional only at the patch_size where both are the same; {CROPS}"
            )
        node.replace_all_uses_with(node.args[0])
        graph.graph.erase_node(node)


def _between(graph: fx.GraphModule, start: fx.Node, end: fx.Node) -> list[fx.Node]:
    """The nodes after `start`, `end` included, that depend on it and that `end` depends on."""
    after: set[fx.Node] = {start}
    for node in graph.graph.nodes:
        if any(source in after for source in node.all_input_nodes):
            after.add(node)
    before = {end}
    for node in reversed(graph.graph.nodes):
        if any(user in before for user in node.users):
            before.add(node)
    return [node for node in graph.graph.nodes if node in after and node in before and node is not start]


def _features(head: list[fx.Node], last: fx.Node, collapse: fx.Node) -> fx.Node:
    """The last node before the last linear layer that all paths pass through: two heads may share it."""
    order = [collapse, *head]
    farthest = {node: max((order.index(user) for user in node.users if user in head), default=0) for node in order}
    passed = collapse
    reached = 0
    for index, node in enumerate(order[: order.index(last)]):
        if reached <= index:  # no edge goes past this node
            passed = node
        reached = max(reached, farthest[node])
    return passed


def _reached_idly(graph: fx.GraphModule, node: fx.Node, linear: fx.Node) -> bool:
    """Whether only dropout and identities lie between a node and a linear layer."""
    while node is not linear:
        if len(node.users) != 1:
            return False
        (node,) = node.users
        idle = node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), nn.Dropout | nn.Identity)
        if node is not linear and not idle:
            return False
    return isinstance(graph.get_submodule(str(linear.target)), nn.Linear)


def _put_channels_first(trunk: fx.GraphModule) -> None:
    (end,) = (node for node in trunk.graph.nodes if node.op == "output")
    with trunk.graph.inserting_before(end):
        permuted = trunk.graph.call_method("permute", (end.args[0], 0, 3, 1, 2))
    end.args = (permuted,)
    trunk.recompile()


def _stride(graph: fx.GraphModule, trunk: nn.Module, source: fx.Node, patch: int) -> int:
    """S: pixels of input that add exactly one cell, tried on the trunk itself."""
    axes = axes_of(source) or ()
    small, large = ([shape[axis] for axis in axes] for shape in (shape_of(source), source.meta["larger_shape"]))
    stride, rest = divmod(GROWTH[0], large[0] - small[0])
    if rest:
        raise NotConvolutionalError(_uneven(graph, source, large[0] - small[0], large[1] - small[1]))
    sizes = {(patch, patch): tuple(small), (patch + GROWTH[0], patch + GROWTH[1]): tuple(large)}
    step = (patch + stride, patch + 3 * stride)
    try:
        sizes[step] = tuple(trunk(random_pixels(trunk, *step)).shape[2:])
    except Exception as error:
        raise NotConvolutionalError(
            f"the trunk runs on {patch}×{patch} pixels but not on {step[0]}×{step[1]}: {own_reason(error)}; {CROPS}"
        ) from error
    if sizes[step] == (small[0] + 1, small[1] + 3):
        return stride
    raise NotConvolutionalError(
        f"the feature map of {name_of(graph, source)} does not grow with its input by one cell per stride: {sizes}; "
        f"{CROPS}"
    )


def _check_equal(network: DenseNetwork, logits: Tensor, name: str) -> None:
    """Refuse parts whose logits differ from the whole's; infinite ones are refused later, by their cause."""
    if not logits.isfinite().all():
        return
    actual = network(random_pixels(network.trunk, network.patch, network.patch))
    tolerance = 32 * torch.finfo(logits.dtype).eps ** 0.75
    if not torch.allclose(actual, logits, rtol=tolerance, atol=tolerance * float(logits.abs().max())):
        raise NotConvolutionalError(f"cut into parts, {name} gives other scores than in one piece; {CROPS}")


def _with_attention(error: NotConvolutionalError, graph: fx.GraphModule) -> NotConvolutionalError:
    """The error, with the name of the first attention layer if it names none."""
    layers = [enclosing_layer(node) for node in graph.graph.nodes if mixing(graph, node)]
    if not layers or any(layer in str(error) for layer in layers):
        return error
    return NotConvolutionalError(f"{layers[0]} combines positions by attention, not by convolution ({error})")


def _is_linear(graph: fx.GraphModule, node: fx.Node) -> bool:
    """A linear layer, or the 1×1 convolution of a pooled map that is one."""
    return node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), nn.Linear | nn.Conv2d)
