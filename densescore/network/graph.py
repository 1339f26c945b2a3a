"""A network traced into a graph whose nodes know their shapes, at the size of a patch and at a larger one."""

import math
import operator
import sys
import threading
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from densescore.errors import DensescoreError, NotConvolutionalError, reason_of
from densescore.models.efficientnet_lite import NormReLU6, SameConv2d, same_padding

TRACING = threading.RLock()
"""Held while a network is traced or converted, by whatever tracer."""

GROWTH = (64, 128)
"""Pixels, down and across, that the larger size has more than a patch; multiples of every stride."""

Axes = tuple[int, int]
"""The axes of a tensor that run down and across the image."""

CROPS = 'context="patch" scores such a network by crops'

# Operations that combine positions in other ways than convolutions and pools do.
_MIXING = ("attention", "attn", "matmul", "bmm", "baddbmm", "einsum", "roll", "cumsum", "fft")

# Names of the arguments of operations that pad, as calls give them by position.
_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    torch.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation"),
    F.max_pool2d: ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    F.avg_pool2d: ("input", "kernel_size", "stride", "padding", "ceil_mode"),
    F.pad: ("input", "pad", "mode", "value"),
}


def loaded(*names: str) -> tuple[Any, ...]:
    """Classes and functions ``"module:name"`` of timm and torchvision, without those that no network has imported."""
    parts = [name.split(":") for name in names]
    return tuple(getattr(sys.modules[module], name) for module, name in parts if module in sys.modules)


def same_convolutions() -> tuple[type[nn.Conv2d], ...]:
    """The convolutions that pad as TensorFlow does, by the size of their input."""
    return SameConv2d, *loaded("timm.layers.conv2d_same:Conv2dSame")


def batch_norms() -> tuple[type[nn.BatchNorm2d], ...]:
    """Batch norms, some with an activation, ``act``."""
    return nn.BatchNorm2d, NormReLU6, *loaded("timm.layers.norm_act:BatchNormAct2d")


class Tracer(fx.Tracer):
    """An fx tracer that is safe while other threads run modules or trace."""

    def trace(self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace, one thread at a time."""
        with TRACING:
            self._thread = threading.get_ident()
            return super().trace(root, concrete_args)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record a call of this thread's."""
        return super().call_module(m, forward, args, kwargs) if self._is_own() else forward(*args, **kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Record a look-up of this thread's."""
        return super().getattr(attr, attr_val, parameter_proxy_cache) if self._is_own() else attr_val

    def _is_own(self) -> bool:
        return threading.get_ident() == self._thread


def symbolic_trace(module: nn.Module) -> fx.GraphModule:
    """``fx.symbolic_trace`` by such a tracer."""
    return fx.GraphModule(module, Tracer().trace(module))


class _Tracer(Tracer):
    """Stops at layers, timm's subclasses included, and at modules that timm marks as not traceable."""

    def __init__(self) -> None:
        notrace = loaded("timm.models:get_notrace_functions", "timm.models:get_notrace_modules")
        functions, modules = (members() for members in notrace or (tuple, tuple))
        super().__init__(autowrap_functions=tuple(functions))
        layers = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm)
        self._leaves = (*layers, *modules)
        self.current = "its forward"

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._is_own():
            self.current = f"{self.path_of_module(m)} ({type(m).__name__})"
        return super().call_module(m, forward, args, kwargs)


def trace(module: nn.Module) -> fx.GraphModule:
    """The module as a graph; NotConvolutionalError where its ``forward`` depends on values."""
    tracer = _Tracer()
    try:
        return fx.GraphModule(module, tracer.trace(module))
    except Exception as error:  # tracing runs the user's own forward
        named = ((name, type(part)) for name, part in module.named_modules())
        attention = next((f"layer {name} ({kind.__name__}) is attention" for name, kind in named if _mixes(kind)), "")
        reason = f"cannot be traced: {tracer.current}: {own_reason(error)}"
        reason = f"is not convolutional: {attention}" if attention else reason
        raise NotConvolutionalError(f"{type(module).__name__} {reason}; {CROPS}") from error


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shape of each node's tensor; ``current`` is the node at which it failed."""

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
    """Note the shapes of all tensors for one patch (see `shape_of`), and return the output for `random_pixels`."""
    try:
        return _Shapes(graph, "patch_shape").run(random_pixels(graph, patch, patch))
    except Exception as error:
        raise DensescoreError(
            f"the network cannot be run on {patch}×{patch} pixels (patch_size={patch}): {own_reason(error)}"
        ) from error


def note_growth(graph: fx.GraphModule, patch: int) -> tuple[fx.Node, str] | None:
    """Note how shapes grow with the input; see `axes_of`.

    Returns the node that takes no larger input, as a linear layer after a flatten, and the reason; None if all do.
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
    """Shape of a node's tensor for one patch; empty if its output is no tensor."""
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
    """Shape of a node's map for an input `growth` pixels larger than a patch, down and across."""
    shape, axes = list(shape_of(node)), axes_of(node)
    for axis, more, noted in zip(axes or (), growth, GROWTH, strict=False):
        shape[axis] += (node.meta["larger_shape"][axis] - shape[axis]) * more // noted
    return tuple(shape)


def grown_axes(small: tuple[int, ...], large: tuple[int, ...], growth: tuple[int, int]) -> Axes | None:
    """The two axes that grow in proportion to the image, if only these grow."""
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


class Padding(NamedTuple):
    """Positions that an operation adds around its input, and the value that they have."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0
    value: float = 0.0

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """Left, right, top, bottom, as `F.pad` takes them."""
        return self[:4]


def padding_of(graph: fx.GraphModule, node: fx.Node) -> Padding:
    """Padding of a convolution, a pool or a pad, whether a layer or a function; none for other operations."""
    kind: Any = graph.get_submodule(str(node.target)) if node.op == "call_module" else node.target
    if isinstance(pads := getattr(kind, "pads", None), Padding):  # a GPU's layers
        return pads
    if isinstance(kind, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | nn.ZeroPad2d):
        arguments = vars(kind)
    elif node.op == "call_function" and kind in _ARGUMENTS:
        arguments = call_arguments(node)
    else:
        return Padding()
    lowest = isinstance(kind, nn.MaxPool2d) or kind is F.max_pool2d
    value = -math.inf if lowest else arguments.get("value") or 0.0
    padding = arguments.get("pad", arguments.get("padding", 0))
    if isinstance(kind, same_convolutions()):  # depends on the remainder of the size by the stride, which levels share
        sizes = shape_of(node.all_input_nodes[0])[2:]
        down, across = map(same_padding, sizes, kind.kernel_size, kind.stride, kind.dilation)
        padding = (across // 2, across - across // 2, down // 2, down - down // 2)
    elif padding == "same":
        kernel = arguments.get("kernel_size") or shape_of(arguments["weight"])[2:]
        down, across = (d * (k - 1) for d, k in zip(pair(arguments.get("dilation", 1)), kernel, strict=True))
        padding = (across // 2, across - across // 2, down // 2, down - down // 2)
    elif isinstance(padding, int) or (isinstance(padding, tuple | list) and len(padding) == 2 and kind is not F.pad):
        down, across = pair(padding)
        padding = (across, across, down, down)
    elif not isinstance(padding, tuple | list):  # "valid", or computed
        padding = ()
    left, right, top, bottom = (tuple(padding) + (0, 0, 0, 0))[:4]  # noqa: RUF005 (mypy: padding is Any)
    return Padding(left, right, top, bottom, value)


def call_arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments by name of a call of a function that pads; empty for other nodes."""
    return dict(zip(_ARGUMENTS.get(node.target, ()), node.args, strict=False)) | node.kwargs


def pair(size: Any) -> tuple[int, int]:
    """A size that torch takes as one number for both directions, or as two."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def peak_bytes(graph: fx.GraphModule, patch: int) -> int:
    """Peak memory of a graph on one patch: the largest sum of the tensors alive at one time."""
    parameter = next(graph.parameters())
    with torch.inference_mode():  # by zeros that are made on the device
        zeros = torch.zeros(1, 3, patch, patch, dtype=parameter.dtype, device=parameter.device)
        _Shapes(graph, "patch_shape").run(zeros)
    alive: dict[fx.Node, int] = {}
    peak = 0
    last_use = {source: node for node in graph.graph.nodes for source in node.all_input_nodes}
    for node in graph.graph.nodes:
        alive[node] = math.prod(shape_of(node)) if shape_of(node) else 0
        peak = max(peak, sum(alive.values()))
        alive = {source: size for source, size in alive.items() if last_use.get(source) is not node}
    return peak * parameter.dtype.itemsize


def dependent(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on the network's input: all but constants."""
    nodes: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(source in nodes for source in node.all_input_nodes):
            nodes.add(node)
    return nodes


def members(graph: fx.GraphModule) -> dict[str, Any]:
    """Layers of a graph, and parameters and buffers that its forward reads, by name: ``fx.GraphModule``'s root."""
    constants = {
        str(node.target): attrgetter(str(node.target))(graph) for node in graph.graph.nodes if node.op == "get_attr"
    }
    return {**dict(graph.named_modules()), **constants}


def subgraph(graph: fx.GraphModule, start: fx.Node | None, end: fx.Node) -> fx.GraphModule:
    """The part of a graph from `start`'s output (None: the network's input) to `end`'s, with the constants it uses."""
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
    ancestors = {end}
    waiting = [end]
    while waiting:
        node = waiting.pop()
        for source in node.all_input_nodes if node is not start else ():
            if source not in ancestors:
                ancestors.add(source)
                waiting.append(source)
    return ancestors


def _in_place(node: fx.Node) -> bool:
    """Whether an operation changes its input, and so has an effect though no node takes its output."""
    method = node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__")
    return method or node.target is operator.setitem


def enclosing_layer(node: fx.Node) -> str:
    """The innermost layer whose ``forward`` contains a node."""
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
    """Whether the name of a node's operation is that of attention or another mixing of positions."""
    if node.op == "call_module":
        return any(_mixes(type(part)) for part in graph.get_submodule(str(node.target)).modules())
    return node.op.startswith("call") and _mixes(node.target)


def _mixes(kind: Any) -> bool:
    name = str(getattr(kind, "__name__", kind)).lower()
    return any(word in name for word in _MIXING)


def own_reason(error: BaseException) -> str:
    """The network's own error, without the messages that torch's graph interpreter adds."""
    while error.__cause__ is not None:
        error = error.__cause__
    return reason_of(error)
