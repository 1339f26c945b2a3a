"""Turn a classifier that sees P×P pixels into one that slides: the surgery.

A classifier is traced and cut in four:

    trunk        pixels → feature map, stride S: everything up to where the spatial extent ends
    project      windows of the map → one row each: FC6 after a flatten, or a global average pool
    embed        rows → features: FC7, or what follows the pool up to the last linear layer
    classifier   features → logits: the last linear layer (FC8), or an adaptation head put in its place

A fully connected layer over windows of a map *is* a convolution whose kernel is the window, so the layers are run on
the windows of all cells at once: one matrix product each, and the same arithmetic as the original network's. Nothing
is copied: the parts share the module's parameters.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import get_notrace_functions, get_notrace_modules
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from densescore.errors import DensescoreError
from densescore.network.dense_network import DenseNetwork
from densescore.network.tracing import Tracer
from densescore.network.windows import AveragedWindows, FlattenedWindows, LinearWindows

# What mixes positions other than by convolution or pooling; a network with one of these does not slide.
_NOT_CONVOLUTIONAL = ("attention", "matmul", "bmm", "einsum", "roll", "cumsum", "fft")


def to_dense(module: nn.Module, patch: int) -> DenseNetwork:
    """Cut a classifier into the parts of a `DenseNetwork`.

    Args:
        module: a classifier of ``[N, 3, patch, patch]`` pixels that ends in flatten → linear layers (AlexNet, VGG) or
            in global average pooling → … → linear (ResNet, ConvNeXt, MobileNet, EfficientNet). It must return logits.
            Adaptive pooling to the very size the map already has (torchvision's AlexNet and VGG) is the identity on a
            patch, and is taken out, or it would shrink a larger map.
        patch: P, side of the network's input in pixels.

    Returns:
        The same network, in evaluation mode, sharing the module's parameters.

    Raises:
        DensescoreError: the module cannot slide; the message names the layer that stands in the way.

    Note:
        Squeeze-and-excitation blocks average over all that the trunk sees: over a level, not over a patch. Such a
        network slides, and agrees with the original on one patch, but its cells share the level's context.

    Example:
        >>> import torchvision
        >>> network = to_dense(torchvision.models.resnet18().eval(), 224)
        >>> network.stride, network.window, network.feature_width
        (32, (7, 7), 512)
    """
    module = module.eval()
    graph = _trace(module, patch)
    _take_out_identity_pools(graph)
    head, collapse, source = _find_head(graph)
    _check_convolutional(graph, source)

    linears = [node for node in head if _is_linear(graph, node)]
    if not linears:
        raise DensescoreError(f"no linear layer follows {_name(graph, collapse)}: nothing classifies its output")
    features = linears[-1].args[0]
    assert isinstance(features, fx.Node)

    trunk = _subgraph(graph, list(graph.graph.nodes), None, source)
    channels, height, width = _shape(source)[1:]
    window, projected = (height, width), collapse
    project: nn.Module
    if _shape(collapse)[1] == channels:  # also where the window is one position, which is its own average
        project = AveragedWindows(window, tuple(_shape(collapse)[1:]))
    elif len(linears) > 1 and all(_is_idle(graph, node) for node in head[: head.index(linears[0])]):
        projected = linears[0]
        project = LinearWindows(window, graph.get_submodule(str(projected.target)))
    else:
        project = FlattenedWindows(window)
    return DenseNetwork(
        trunk,
        project,
        _subgraph(graph, head, projected, features),
        _subgraph(graph, head, features, head[-1]),
        patch=patch,
        stride=_stride(graph, trunk, patch, window),
        window=window,
        window_width=channels if isinstance(project, AveragedWindows) else channels * height * width,
        feature_width=_shape(features)[1],
        classes=_shape(head[-1])[1],
    ).eval()


class _Tracer(Tracer):
    """Stops at layers, also where timm subclasses them, and at what timm marks as not traceable."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        layers = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm)
        self._leaves = (*layers, *get_notrace_modules())
        self.current = "its forward"

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._is_own():
            self.current = f"{self.path_of_module(m)} ({type(m).__name__})"
        return super().call_module(m, forward, args, kwargs)


def _trace(module: nn.Module, patch: int) -> fx.GraphModule:
    """The module as a graph whose nodes know their shapes on one patch."""
    tracer = _Tracer()
    try:
        graph = fx.GraphModule(module, tracer.trace(module))
    except Exception as error:  # tracing runs the user's own forward
        raise DensescoreError(f"{type(module).__name__} cannot be traced: {tracer.current}: {error}") from error
    parameter = next(module.parameters(), torch.empty(0))
    try:
        with torch.inference_mode():
            sample = torch.zeros(1, 3, patch, patch, dtype=parameter.dtype, device=parameter.device)
            ShapeProp(graph).propagate(sample)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise DensescoreError(
            f"{type(module).__name__} cannot be run on {patch}×{patch} pixels (patch_size={patch}): {reason}"
        ) from error
    return graph


def _take_out_identity_pools(graph: fx.GraphModule) -> None:
    """Adaptive pooling from h×w to h×w does nothing on a patch, and would undo density on a level."""
    for node in list(graph.graph.nodes):
        pool = graph.get_submodule(node.target) if node.op == "call_module" else node.target
        adaptive = isinstance(pool, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d) or pool is F.adaptive_avg_pool2d
        if not adaptive or not _is_spatial(node):
            continue
        before, after = (_shape(at)[2:] for at in (node.args[0], node))
        if before != after:
            raise DensescoreError(
                f"{_name(graph, node)} makes a {before[0]}×{before[1]} map {after[0]}×{after[1]}, whatever the input's "
                "size: it can slide only at the patch_size where both are the same"
            )
        node.replace_all_uses_with(node.args[0])
        graph.graph.erase_node(node)


def _find_head(graph: fx.GraphModule) -> tuple[list[fx.Node], fx.Node, fx.Node]:
    """Walk back from the logits to where the spatial extent ended.

    Returns:
        The nodes after the collapse in order, the collapse (a pool or a flatten), and the map that it takes. Where a
        convolution as large as the map ends it (timm's VGG), the convolution belongs to the trunk: both are its node.
    """
    output = next(node for node in reversed(graph.graph.nodes) if node.op == "output").args[0]
    if not isinstance(output, fx.Node) or len(_shape(output)) != 2:
        raise DensescoreError("the network must return one [N, classes] tensor of logits")
    head: list[fx.Node] = []
    node = output
    while True:
        inputs = [source for source in node.all_input_nodes if _shape(source) and source.op != "get_attr"]
        maps = [source for source in inputs if _is_spatial(source)]
        if len(inputs) != 1:
            raise DensescoreError(
                f"{_name(graph, node)} joins {len(inputs)} tensors after the feature map: only networks that end in "
                "flatten → linear layers or in global average pooling → linear layers can slide"
            )
        if maps:
            break
        head.insert(0, node)
        node = inputs[0]
        if node.op == "placeholder":
            raise DensescoreError("no layer turns a feature map into a vector: not a convolutional classifier")
    source, collapse = maps[0], node
    channels, height, width = _shape(source)[1:]
    flattened = _shape(collapse) == (1, channels * height * width)
    averaged = _is_average(graph, collapse) and _shape(collapse)[1:] in ((channels,), (channels, 1, 1))
    if _has_convolution(graph, collapse) and len(_shape(collapse)) == 4:
        source = collapse
    elif not (flattened or averaged):
        raise DensescoreError(
            f"{_name(graph, collapse)} turns a {_shape(source)} map into {_shape(collapse)}; only a flatten or a "
            "global average pool can slide"
        )
    return head, collapse, source


def _check_convolutional(graph: fx.GraphModule, source: fx.Node) -> None:
    for node in graph.graph.nodes:
        kind = type(graph.get_submodule(node.target)) if node.op == "call_module" else node.target
        kind_name = getattr(kind, "__name__", str(kind)).lower()
        if node.op.startswith("call") and any(word in kind_name for word in _NOT_CONVOLUTIONAL):
            raise DensescoreError(f"{_name(graph, node)} mixes positions other than by convolution; it cannot slide")
        if node is source:
            return


def _stride(graph: fx.GraphModule, trunk: nn.Module, patch: int, window: tuple[int, int]) -> int:
    """S: the step of input that adds exactly one cell, tried on the trunk itself."""
    parameter = next(graph.parameters())
    sizes: dict[int, tuple[int, int]] = {}
    for stride in (32, 16, 8, 64, 4, 2, 1):
        for steps in (1, 2, 3):
            side = patch + steps * stride
            if side not in sizes:
                sample = torch.zeros(1, 3, patch, side, dtype=parameter.dtype, device=parameter.device)
                try:
                    with torch.inference_mode():
                        sizes[side] = tuple(trunk(sample).shape[2:])
                except Exception as error:
                    reason = str(error).strip().splitlines()[-1]
                    raise DensescoreError(
                        f"the trunk runs on {patch}×{patch} pixels but not on {patch}×{side}: {reason}"
                    ) from error
            if sizes[side] != (window[0], window[1] + steps):
                break
        else:
            return stride
    raise DensescoreError(f"the trunk's map does not grow with its input by one cell per stride: {sizes}")


def _subgraph(graph: fx.GraphModule, nodes: list[fx.Node], start: fx.Node | None, end: fx.Node) -> fx.GraphModule:
    """The part of a graph from `start`'s output (None: the network's input) to `end`'s."""
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    if start is not None:
        copies[start] = part.placeholder("x")
    if start is not end:
        first = nodes.index(start) + 1 if start in nodes else 0
        for node in nodes[first : nodes.index(end) + 1]:
            copies[node] = part.node_copy(node, lambda old: copies[old])
    part.output(copies[end])
    module = fx.GraphModule(graph, part)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _is_average(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        pool = graph.get_submodule(str(node.target))
        kind = getattr(pool, "pool_type", "avg")  # timm's SelectAdaptivePool2d
        return "avg" in type(pool).__name__.lower() or ("pool" in type(pool).__name__.lower() and kind == "avg")
    names = (torch.mean, F.adaptive_avg_pool2d, F.avg_pool2d, "mean")
    return node.target in names or getattr(node.target, "__name__", "") in ("mean", "avg_pool2d", "adaptive_avg_pool2d")


def _is_idle(graph: fx.GraphModule, node: fx.Node) -> bool:
    """A layer that does nothing in evaluation mode."""
    if node.op != "call_module":
        return False
    return isinstance(graph.get_submodule(str(node.target)), nn.Dropout | nn.Identity)


def _has_convolution(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    return any(isinstance(part, nn.Conv2d) for part in graph.get_submodule(str(node.target)).modules())


def _is_linear(graph: fx.GraphModule, node: fx.Node) -> bool:
    """A linear layer, or the 1×1 convolution of a pooled map that is one."""
    return node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), nn.Linear | nn.Conv2d)


def _shape(node: Any) -> tuple[int, ...]:
    """The node's shape on one patch; empty for what is not a tensor."""
    return tuple(getattr(node.meta.get("tensor_meta"), "shape", ())) if isinstance(node, fx.Node) else ()


def _is_spatial(node: Any) -> bool:
    """A map, channels first or last: more than one of its axes has an extent."""
    shape = _shape(node)
    return len(shape) == 4 and sum(size > 1 for size in shape[1:]) > 1


def _name(graph: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "call_module":
        return f"layer {node.target} ({type(graph.get_submodule(str(node.target))).__name__})"
    return f"operation {getattr(node.target, '__name__', node.target)}"
