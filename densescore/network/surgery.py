"""Turn a classifier of P×P pixels into a network that runs over a whole image: the surgery.

A classifier is traced and cut into four parts:

    trunk        pixels → feature map, stride S: everything up to where the spatial extent ends
    project      windows of the map → one row each: FC6 after a flatten, or a global average pool
    embed        rows → features: FC7, or what follows the pool up to the last linear layer
    classifier   features → logits: the last linear layer (FC8), or an adaptation head put in its place

A fully connected layer over windows of a map *is* a convolution whose kernel is the window. The layers are run on the
windows of all cells at once: one matrix product each, and the same arithmetic as the original network's. Nothing is
copied: the parts share the module's parameters.

What the network does decides, not what its layers are called: a map is a tensor that grows with the image, a pool is
what gives the averages of a map, and `densescore.network.locality` probes whether a position depends on a bounded part
of the image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from densescore.errors import DensescoreError, NotConvolutionalError
from densescore.network.collapse import find_collapse, follow_collapse, uneven
from densescore.network.dense_network import DenseNetwork
from densescore.network.graph import (
    CROPS,
    GROWTH,
    axes_of,
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
from densescore.network.windows import AveragedWindows, FlattenedWindows, LinearWindows


def to_dense(module: nn.Module, patch: int) -> DenseNetwork:
    """Cut a classifier into the parts of a `DenseNetwork`.

    Args:
        module: a classifier of ``[N, 3, patch, patch]`` pixels that ends in flatten → linear layers (AlexNet, VGG) or
            in global average pooling → … → linear (ResNet, ConvNeXt, MobileNet, EfficientNet). It must return logits.
            Adaptive pooling to the very size that the map already has (torchvision's AlexNet and VGG) does nothing to
            a patch, and is taken out, since it would shrink a larger map.
        patch: P, side of the network's input in pixels.

    Returns:
        The same network, in evaluation mode, sharing the module's parameters.

    Raises:
        NotConvolutionalError: the module cannot be run over a whole image; the message names the layer that prevents
            it.
        DensescoreError: the module does not take P×P pixels, or does not give logits.

    Note:
        Squeeze-and-excitation blocks, and norms that take their statistics from the map, average over all that the
        trunk sees: over a level, not over a patch. Such a network is accepted and gives the original's scores on one
        patch, but its cells share the level's context; `DenseNetwork.level_context` names the layers.

    Example:
        >>> import torchvision
        >>> network = to_dense(torchvision.models.resnet18().eval(), 224)
        >>> network.stride, network.window, network.feature_width
        (32, (7, 7), 512)
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
    """Tell apart a module that does not take P×P pixels from one whose trace does not.

    Raises:
        NotConvolutionalError: the module does take them.
    """
    try:
        module(random_pixels(module, patch, patch))
    except Exception:
        return
    failure = NotConvolutionalError(f"{type(module).__name__} cannot be traced: {error}; {CROPS}")
    raise _with_attention(failure, graph) from error


def _cut(graph: fx.GraphModule, output: fx.Node, failed: tuple[fx.Node, str] | None, patch: int) -> DenseNetwork:
    collapse, source = find_collapse(graph, output, failed)
    axes = axes_of(source)
    assert axes is not None
    channels_last = axes == (1, 2)
    window = (shape_of(source)[axes[0]], shape_of(source)[axes[1]])
    channels = math.prod(shape_of(source)) // math.prod(window)
    collapse, averages = follow_collapse(graph, source, collapse, channels_last)
    head = _between(graph, collapse, output)
    linears = [node for node in head if _is_linear(graph, node)]
    if not linears:
        raise NotConvolutionalError(
            f"no linear layer follows {name_of(graph, collapse)}: nothing classifies its output; {CROPS}"
        )
    features = _features(head, linears[-1], collapse)
    trunk = subgraph(graph, None, source)
    if channels_last:
        _put_channels_first(trunk)
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
    network = DenseNetwork(
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
    ).eval()
    network.level_context = check_local(trunk, patch, stride, window)
    return network


def _logits(graph: fx.GraphModule) -> fx.Node:
    """The node that gives ``[N, classes]``."""
    (end,) = (node for node in graph.graph.nodes if node.op == "output")
    output = end.args[0]
    if not isinstance(output, fx.Node) or len(shape_of(output)) != 2:
        raise DensescoreError("the network must return one [N, classes] tensor of logits")
    return output


def _take_out_identity_pools(graph: fx.GraphModule) -> None:
    """Adaptive pooling from h×w to h×w does nothing to a patch, and would shrink a level."""
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
    """The last node before the last linear layer through which everything passes: two heads may share it."""
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
    """Whether only layers that do nothing in evaluation mode lie between a node and a linear layer."""
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
    """S: the step of input that adds exactly one cell, tried on the trunk itself."""
    axes = axes_of(source) or ()
    small, large = ([shape[axis] for axis in axes] for shape in (shape_of(source), source.meta["larger_shape"]))
    stride, rest = divmod(GROWTH[0], large[0] - small[0])
    if rest:
        raise NotConvolutionalError(uneven(graph, source, large[0] - small[0], large[1] - small[1]))
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
    """The parts give on one patch what the whole gave. Scores that are not finite are refused later, with the cause."""
    if not logits.isfinite().all():
        return
    given = network(random_pixels(network.trunk, network.patch, network.patch))
    tolerance = 32 * torch.finfo(logits.dtype).eps ** 0.75
    if not torch.allclose(given, logits, rtol=tolerance, atol=tolerance * float(logits.abs().max())):
        raise NotConvolutionalError(f"cut into parts, {name} gives other scores than in one piece; {CROPS}")


def _with_attention(error: NotConvolutionalError, graph: fx.GraphModule) -> NotConvolutionalError:
    """An error that names the attention in a network, which is why its tail is not that of a convolutional one."""
    layers = [enclosing_layer(node) for node in graph.graph.nodes if mixing(graph, node)]
    if not layers or any(layer in str(error) for layer in layers):
        return error
    return NotConvolutionalError(f"{layers[0]} combines positions by attention, not by convolution ({error})")


def _is_linear(graph: fx.GraphModule, node: fx.Node) -> bool:
    """A linear layer, or the 1×1 convolution of a pooled map that is one."""
    return node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), nn.Linear | nn.Conv2d)
