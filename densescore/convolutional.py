"""Turn a classifier that sees P×P pixels into one that slides: the surgery.

A classifier is traced and cut in three:

    trunk        pixels → feature map, stride S: everything up to where the spatial extent ends
    embed        one window of the map → features: FC6, FC7 after a flatten, or what follows a global average pool
    classifier   features → logits: the last linear layer (FC8), or an adaptation head put in its place

A fully connected layer over windows of a map *is* a convolution whose kernel is the window, so embed and classifier
are run unchanged on the windows of all cells at once: one matrix product each, and the same arithmetic as the
original network's. Nothing is copied: the three parts share the module's parameters.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from densescore_kernels.errors import DensescoreError
from einops import rearrange
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

# What mixes positions other than by convolution or pooling; a network with one of these does not slide.
_NOT_CONVOLUTIONAL = ("attention", "matmul", "bmm", "einsum", "roll", "cumsum", "fft")


class DenseNetwork(nn.Module):
    """A classifier in three parts that can slide over an image.

    Attributes:
        trunk: ``[1, 3, P + nS, P + mS]`` pixels → ``[1, C, h + n, w + m]`` feature map.
        embed: ``[N, *embed_shape]`` windows, as `windows` gives them → ``[N, D]`` features.
        classifier: ``[N, D]`` features → ``[N, classes]`` logits.
        patch: P, side of the network's input in pixels.
        stride: S, pixels of input per step of the feature map.
        window: (h, w) of the feature map that one patch gives.
        embed_shape: one window as the original head received it: ``(C·h·w,)``, or ``(C, 1, 1)`` after a pool.
        feature_width: D, the width of the features: FC7's, or the pooled channels'.
        classes: number of logits.
    """

    def __init__(
        self,
        trunk: nn.Module,
        embed: nn.Module,
        classifier: nn.Module,
        patch: int,
        stride: int,
        window: tuple[int, int],
        pooled: bool,
        embed_shape: tuple[int, ...],
        feature_width: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.trunk, self.embed, self.classifier = trunk, embed, classifier
        self.patch, self.stride, self.window = patch, stride, window
        self.feature_width, self.classes = feature_width, classes
        self._pooled = pooled
        self.embed_shape = embed_shape

    def replace_classifier(self, head: nn.Module, features: int, classes: int) -> None:
        """Put an adaptation head (FCa, FCb) in the place of FC8.

        Raises:
            DensescoreError: the head takes features of another width than this network gives.
        """
        if features != self.feature_width:
            raise DensescoreError(f"the head takes {features} features, but the network gives {self.feature_width}")
        self.classifier, self.classes = head, classes

    def windows(self, feature_map: Tensor, rows: range, cols: range) -> Tensor:
        """The windows of a block of cells of one level, cell by cell: ``[cells, …]`` for `embed`.

        Args:
            feature_map: ``[1, C, h + n, w + m]``, what the trunk made of a padded level of (n+1) × (m+1) cells.
            rows: rows of cells.
            cols: columns of cells.
        """
        height, width = self.window
        block = feature_map[:, :, rows.start : rows.stop + height - 1, cols.start : cols.stop + width - 1]
        if self._pooled:
            cells = rearrange(F.avg_pool2d(block, self.window, stride=1), "1 c rows cols -> (rows cols) c")
        else:
            views = block.unfold(2, height, 1).unfold(3, width, 1)  # [1, C, rows, cols, h, w], no copy
            cells = rearrange(views, "1 c rows cols h w -> (rows cols) (c h w)")
        return cells.reshape(-1, *self.embed_shape)

    def forward(self, crops: Tensor) -> Tensor:
        """Score crops as the original network does: ``[N, 3, P, P]`` → ``[N, classes]`` logits."""
        return self.classifier(self.embed_crops(crops))

    def embed_crops(self, crops: Tensor) -> Tensor:
        """Features of crops: ``[N, 3, P, P]`` → ``[N, D]``."""
        maps = self.trunk(crops)
        cells = maps.mean((2, 3)) if self._pooled else maps.flatten(1)
        return self.embed(cells.reshape(-1, *self.embed_shape))


def to_dense(module: nn.Module, patch: int) -> DenseNetwork:
    """Cut a classifier into trunk, embed and classifier.

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

    last_linear = next((node for node in reversed(head) if _is_linear(graph, node)), None)
    if last_linear is None:
        raise DensescoreError(f"no linear layer follows {_name(graph, collapse)}: nothing classifies its output")
    features = last_linear.args[0]
    assert isinstance(features, fx.Node)

    trunk_nodes = list(graph.graph.nodes)
    trunk = _subgraph(graph, trunk_nodes, None, source)
    embed = _subgraph(graph, head, collapse, features)
    classifier = _subgraph(graph, head, features, head[-1])
    height, width = _shape(source)[2:]
    return DenseNetwork(
        trunk,
        embed,
        classifier,
        patch,
        _stride(graph, trunk, patch, (height, width)),
        (height, width),
        pooled=_shape(collapse)[1] == _shape(source)[1],
        embed_shape=tuple(_shape(collapse)[1:]),
        feature_width=_shape(features)[1],
        classes=_shape(head[-1])[1],
    ).eval()


class _Tracer(fx.Tracer):
    """Stops at layers, also where timm subclasses them, and at what timm marks as not traceable."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        layers = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm)
        self._leaves = (*layers, *get_notrace_modules())
        self.current = "its forward"

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
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
    sample = torch.zeros(1, 3, patch, patch, dtype=parameter.dtype, device=parameter.device)
    try:
        with torch.inference_mode():
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
