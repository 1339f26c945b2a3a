"""A network traced into a graph whose nodes know their shapes, at the size of a patch and at a larger one."""

import operator
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn

from densescore.errors import DensescoreError, NotConvolutionalError, reason_of
from densescore.network.tracing import Tracer

GROWTH = (64, 128)
"""Pixels, down and across, that the larger size has more than a patch; multiples of every stride."""

Axes = tuple[int, int]
"""The axes of a tensor that run down and across the image."""

CROPS = 'context="patch" scores such a network by crops'

# Operations that combine positions in other ways than convolutions and pools do.
_MIXING = ("attention", "attn", "matmul", "bmm", "baddbmm", "einsum", "roll", "cumsum", "fft")


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


def trace(module: nn.Module) -> fx.GraphModule:
    """The module as a graph.

    Raises:
        NotConvolutionalError: its ``forward`` depends on values, which a graph cannot.
    """
    tracer = _Tracer()
    try:
        return fx.GraphModule(module, tracer.trace(module))
    except Exception as error:  # tracing runs the user's own forward
        named = ((name, type(part)) for name, part in module.named_modules())
        attention = next((f"layer {name} ({kind.__name__}) is attention" for name, kind in named if _mixes(kind)), "")
        reason = f"cannot be traced: {tracer.current}: {own_reason(error)}"
        raise NotConvolutionalError(f"{type(module).__name__} {_because(attention, reason)}; {CROPS}") from error


def _because(attention: str, reason: str) -> str:
    return f"is not convolutional: {attention}" if attention else reason


class _Shapes(fx.Interpreter):
    """Runs a graph and notes in each node the shape of its tensor; remembers the node at which it fails."""

    def __init__(self, graph: fx.GraphModule, key: str) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self.current: fx.Node | None = None
        self._key = key

    def run_node(self, n: fx.Node) -> Any:
        self.current = n
        value = super().run_node(n)
        if isinstance(value, Tensor):
            n.meta[self._key] = tuple(value.shape)
        return value


def note_shapes(graph: fx.GraphModule, patch: int) -> Any:
    """Note the shapes of all tensors for one patch; see `shape_of`.

    Args:
        graph: of ``[N, 3, patch, patch]`` pixels.
        patch: P.

    Returns:
        What the network gives for `random_pixels`.

    Raises:
        DensescoreError: the network does not take P×P pixels.
    """
    try:
        return _Shapes(graph, "patch_shape").run(random_pixels(graph, patch, patch))
    except Exception as error:
        raise DensescoreError(
            f"the network cannot be run on {patch}×{patch} pixels (patch_size={patch}): {own_reason(error)}"
        ) from error


def note_growth(graph: fx.GraphModule, patch: int) -> tuple[fx.Node, str] | None:
    """Note how shapes grow with the input; see `axes_of`.

    Returns:
        The node that does not take a larger input, and why; None if all do. A linear layer after a flatten does not.
    """
    larger = _Shapes(graph, "larger_shape")
    try:
        with torch.no_grad():
            larger.run(random_pixels(graph, patch + GROWTH[0], patch + GROWTH[1]))
    except Exception as error:
        assert larger.current is not None
        return larger.current, own_reason(error)
    return None


def shape_of(node: Any) -> tuple[int, ...]:
    """The shape of a node's tensor for one patch; empty for what is not a tensor."""
    return node.meta.get("patch_shape", ()) if isinstance(node, fx.Node) else ()


def axes_of(node: Any) -> Axes | None:
    """The axes of a feature map that run down and across the image; None if the node gives no map."""
    larger = node.meta.get("larger_shape") if isinstance(node, fx.Node) else None
    return None if larger is None else grown_axes(shape_of(node), larger, GROWTH)


def step_of(node: Any) -> int:
    """Pixels of the input per position of a node's map; 0 if it gives no map."""
    axes = axes_of(node)
    return 0 if axes is None else GROWTH[0] // (node.meta["larger_shape"][axes[0]] - shape_of(node)[axes[0]])


def shape_at(node: fx.Node, growth: tuple[int, int]) -> tuple[int, ...]:
    """The shape of a node's map for an input of so many pixels more than a patch, down and across."""
    shape, axes = list(shape_of(node)), axes_of(node)
    for axis, more, noted in zip(axes or (), growth, GROWTH, strict=False):
        shape[axis] += (node.meta["larger_shape"][axis] - shape[axis]) * more // noted
    return tuple(shape)


def grown_axes(small: tuple[int, ...], large: tuple[int, ...], growth: tuple[int, int]) -> Axes | None:
    """The two axes that grow in the proportion in which the image grows, if just these grow."""
    if len(small) != len(large):
        return None
    grown = [axis for axis, (before, after) in enumerate(zip(small, large, strict=True)) if before != after]
    if len(grown) != 2:
        return None
    down, across = (large[axis] - small[axis] for axis in grown)
    return (grown[0], grown[1]) if down > 0 and down * growth[1] == across * growth[0] else None


@torch.no_grad()
def random_pixels(graph: nn.Module, height: int, width: int) -> Tensor:
    """``[1, 3, height, width]`` of the network's dtype and device, the same at each call."""
    parameter = next(graph.parameters(), torch.empty(0))
    pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    return pixels.to(parameter.device, parameter.dtype)


def dependent(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on the network's input: all but constants."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def members(graph: fx.GraphModule) -> dict[str, Any]:
    """All layers of a graph, and the parameters and buffers that it uses itself, by name.

    ``fx.GraphModule(members, graph.graph)`` is the graph again, with members put in or replaced.
    """
    constants = {
        str(node.target): attrgetter(str(node.target))(graph) for node in graph.graph.nodes if node.op == "get_attr"
    }
    return {**dict(graph.named_modules()), **constants}


def subgraph(graph: fx.GraphModule, start: fx.Node | None, end: fx.Node) -> fx.GraphModule:
    """The part of a graph from `start`'s output (None: the network's input) to `end`'s, with the constants it uses.

    Raises:
        NotConvolutionalError: the part uses something that comes before `start`.
    """
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {} if start is None else {start: part.placeholder("x")}
    known = dependent(graph.graph) if start is not None else set()
    nodes = list(graph.graph.nodes)
    begin = 0 if start is None else nodes.index(start) + 1
    wanted = _ancestors(end, start)

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in copies:
            if node in known and nodes.index(node) < begin:
                raise NotConvolutionalError(
                    f"{name_of(graph, end)} also takes {name_of(graph, node)}, which comes before the map; {CROPS}"
                )
            copies[node] = part.node_copy(node, copy_of)
        return copies[node]

    for node in nodes[begin : nodes.index(end) + 1]:
        if node in wanted or (_in_place(node) and node.all_input_nodes[0] in copies):
            copy_of(node)
    part.output(copy_of(end))
    return fx.GraphModule(graph, part)


def _ancestors(end: fx.Node, start: fx.Node | None) -> set[fx.Node]:
    found = {end}
    waiting = [end]
    while waiting:
        node = waiting.pop()
        for source in node.all_input_nodes if node is not start else ():
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found


def _in_place(node: fx.Node) -> bool:
    """Whether an operation changes its input, so that it counts though nothing takes its output."""
    method = node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__")
    return method or node.target is operator.setitem


def enclosing_layer(node: fx.Node) -> str:
    """The innermost layer in whose ``forward`` a node lies."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return f"operation {getattr(node.target, '__name__', node.target)}"
    path, kind = list(stack.values())[-1]
    return f"layer {path} ({getattr(kind, '__name__', kind)})"


def name_of(graph: fx.GraphModule, node: fx.Node) -> str:
    """A node as messages name it."""
    if node.op == "call_module":
        return f"layer {node.target} ({type(graph.get_submodule(str(node.target))).__name__})"
    operation = f"operation {getattr(node.target, '__name__', node.target)}"
    return f"{operation} in {enclosing_layer(node)}" if node.meta.get("nn_module_stack") else operation


def mixing(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node combines positions as attention does, to judge by its name."""
    if node.op == "call_module":
        return any(_mixes(type(part)) for part in graph.get_submodule(str(node.target)).modules())
    return node.op.startswith("call") and _mixes(node.target)


def _mixes(kind: Any) -> bool:
    name = str(getattr(kind, "__name__", kind)).lower()
    return any(word in name for word in _MIXING)


def own_reason(error: BaseException) -> str:
    """What the network itself said, below what torch's interpreter of graphs adds."""
    while error.__cause__ is not None:
        error = error.__cause__
    return reason_of(error)
