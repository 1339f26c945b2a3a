"""Does a position of a feature map depend on a bounded part of the image, and in the same way everywhere?

A network of convolutions, pools and pointwise layers is local by its graph alone. Any other one is probed: NaN in one
cell's step of the pixels spreads to everything that depends on them. Each operation is probed by itself, since the
receptive field of a whole network is too wide for a small image: after each one, the NaN are put back to where they
began. An operation whose NaN spread over the map, or spread otherwise when they begin one cell later (windows of
attention), is refused by the name of its layer. `reach` measures the receptive field of the whole network by NaN, too,
which operations that swallow them (comparisons, `torch.where`) pass on, and by differences of random pixels.

Averages over the whole map are told apart by their shape: one number per channel, as in squeeze-and-excitation and in
norms that take their statistics from the map. They are allowed, and named.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules import activation
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from densescore.errors import DensescoreError, NotConvolutionalError
from densescore.network.graph import (
    CROPS,
    Axes,
    axes_of,
    batch_norms,
    dependent,
    enclosing_layer,
    grown_axes,
    loaded,
    mixing,
    own_reason,
    random_pixels,
    same_convolutions,
    shape_at,
    shape_of,
    step_of,
)

_MIN_CELLS = 9  # along an axis of the probed map
_MAX_REACH = 64  # strides; a position that reaches farther is held to see everything

# Layers that are local whatever their input.
_LOCAL = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.LocalResponseNorm, nn.PixelShuffle, nn.Dropout, nn.Dropout2d, nn.Identity),
    *(getattr(activation, name) for name in ("ReLU", "ReLU6", "GELU", "SiLU", "Mish", "Hardswish", "Hardsigmoid")),
    *(getattr(activation, name) for name in ("Sigmoid", "Tanh", "LeakyReLU", "PReLU", "ELU", "SELU", "Hardtanh")),
)
_FOREIGN = "timm.layers.norm:LayerNorm2d", "timm.models.vgg:ConvMlp", "torchvision.models.convnext:LayerNorm2d"
_POINTWISE = (
    *(operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, operator.truediv, operator.neg),
    *(torch.add, torch.sub, torch.mul, torch.cat, torch.relu, torch.sigmoid, torch.tanh, F.relu, F.relu6, F.gelu),
    *(F.silu, F.hardswish, F.hardsigmoid, F.sigmoid, F.leaky_relu, F.dropout),
    *("add", "add_", "mul", "mul_", "relu", "relu_", "sigmoid", "sigmoid_", "clone", "contiguous"),
)
_LAYOUT = (torch.permute, torch.transpose, "permute", "transpose")

_POSITIONAL = "gives each position a number of its own"
_WHOLE = -1  # index of a node's own output among its operations
_aten = torch.ops.aten
# Local by definition, though they may spread far on a small map: not checked, only put back.
_BATCH_NORMS = (_aten.native_batch_norm, _aten.cudnn_batch_norm, _aten.miopen_batch_norm)
_SURELY_LOCAL = (
    *(_aten.convolution, _aten.max_pool2d_with_indices, _aten.avg_pool2d, _aten.constant_pad_nd),
    *(*_BATCH_NORMS, _aten._native_batch_norm_legit_no_training),
    *(_aten.upsample_nearest2d, _aten.upsample_bilinear2d, _aten.upsample_bicubic2d),
)
_LEVEL_NORMS = (_aten.native_group_norm, _aten._native_batch_norm_legit)


def check_local(trunk: fx.GraphModule, patch: int, stride: int, window: tuple[int, int]) -> tuple[str, ...]:
    """Refuse a trunk ``[1, 3, P + nS, P + mS]`` → ``[1, C, h + n, w + m]`` with a position of unbounded dependence.

    Returns the names of the layers that average over the whole image, which are allowed.
    """
    for node in trunk.graph.nodes:
        if _wraps(trunk, node):
            raise NotConvolutionalError(f"{enclosing_layer(node)} wraps around the image: not convolutional; {CROPS}")
    averages = _averages(trunk)

    # Probe operations that are not known to be local
    local = {node for node in trunk.graph.nodes if _surely_local(trunk, node)}
    if len(local) == len(trunk.graph.nodes):
        return averages
    down, across = (max(2 + axis, _MIN_CELLS - window[axis]) for axis in (0, 1))
    steps = (down, across + (down == across))
    small = Probe(trunk, local, (0, 0), stride)
    small.probe(random_pixels(trunk, patch, patch))
    pixels = random_pixels(trunk, patch + steps[0] * stride, patch + steps[1] * stride)
    cell = ((window[0] + steps[0]) // 2, (window[1] + steps[1]) // 2)
    first = Probe(trunk, local, steps, stride, small, cell)
    first.probe(pixels)
    Probe(trunk, local, steps, stride, small, (cell[0] + 1, cell[1] + 1), first).probe(pixels)
    return tuple(dict.fromkeys([*averages, *first.averages]))


def reach(trunk: nn.Module, patch: int, stride: int, window: tuple[int, int]) -> tuple[int, int]:
    """Receptive-field overhang of a cell, in strides (before, after): the larger of both axes."""
    steps = 4
    while steps <= _MAX_REACH:
        overhangs = [_overhang(trunk, patch, stride, window, axis, steps) for axis in (2, 3)]
        before, after = (max(axis) for axis in zip(*overhangs, strict=True))
        if max(before, after) < steps:
            return max(before, 0), max(after, 0)
        steps *= 2
    raise DensescoreError(
        "the scores of a patch depend on the whole level (squeeze-and-excitation, or a very wide receptive field): "
        "no tile gives the scores of the image in one piece; use another network"
    )


@torch.inference_mode()
def _overhang(
    trunk: nn.Module, patch: int, stride: int, window: tuple[int, int], axis: int, steps: int
) -> tuple[int, int]:
    """`reach` along an axis, seen with other pixels `steps` strides before, then after a patch."""
    size = [patch, patch]
    size[axis - 2] += 2 * steps * stride
    pixels = random_pixels(trunk, *size)
    reached = []
    for past_cut in (slice(0, steps * stride), slice(patch + steps * stride, None)):
        positions = _changed(trunk, pixels, past_cut, axis)
        if not positions:
            raise DensescoreError("the receptive field of the network cannot be measured: its features are constant")
        reached.append((positions[0], positions[-1]))
    # Had the level begun (ended) at the cut, its map would have begun at position `steps` (ended before
    # `steps + width`); all up to the last (from the first) position that changed differ there.
    return reached[0][1] + 1 - steps, steps + window[axis - 2] - reached[1][0]


def _changed(trunk: nn.Module, pixels: Tensor, past_cut: slice, axis: int) -> list[int]:
    """Positions of the map along an axis that depend on a part of the pixels: by NaN, and by two random differences."""
    others = [0, 1, 5 - axis]

    def replaced(pixels: Tensor, part: Tensor | float) -> Tensor:
        changed = pixels.clone().transpose(axis, 0)
        changed[past_cut] = part
        return trunk(changed.transpose(axis, 0))

    with _SpreadingNaN():
        changed = replaced(pixels, torch.nan).isnan()
    for scale in (1, -3):
        before, after = (
            trunk(scale * pixels),
            replaced(scale * pixels, scale * pixels.flip(2, 3).transpose(axis, 0)[past_cut]),
        )
        limit = torch.finfo(before.dtype).eps ** 0.5 * before.abs().max()  # an operation's rounding may spread farther
        changed |= (before - after).abs() > limit
    return changed.amax(others).nonzero().flatten().tolist()


class _SpreadingNaN(TorchDispatchMode):
    """Keeps NaN where operations swallow them: a tensor is marked wherever an input of its shape is."""

    def __init__(self) -> None:
        super().__init__()
        self._marks = WeakTensorKeyDictionary()  # of tensors that hold no NaN: Booleans and integers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        marks = [self._marks.get(leaf, leaf.isnan()) for leaf in inputs]  # first, since func may write into them
        output = func(*args, **(kwargs or {}))
        if not isinstance(output, Tensor) or not inputs:
            return output
        written = any(argument.alias_info and argument.alias_info.is_write for argument in func._schema.arguments)
        if not written and output.untyped_storage().data_ptr() == inputs[0].untyped_storage().data_ptr():  # a view
            if not output.is_floating_point() and marks[0].any():
                self._marks[output] = func(marks[0], *args[1:], **(kwargs or {}))
            return output
        mark = torch.zeros_like(output, dtype=torch.bool)
        for other in marks:
            if other.ndim == output.ndim and other.any():
                reduced = [axis for axis in range(other.ndim) if output.shape[axis] == 1 < other.shape[axis]]
                other = other.amax(reduced, keepdim=True) if reduced else other
            if other.ndim <= output.ndim and other.any() and _fits(other.shape, output.shape):
                mark |= other
        if output.is_floating_point():
            return output.masked_fill_(mark, torch.nan)
        self._marks[output] = mark
        return output


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a shape broadcasts to a wanted one."""
    return all(size in (1, other) for size, other in zip(reversed(shape), reversed(wanted), strict=False))


def _nan_range(tensor: Tensor, axis: int) -> tuple[int, int]:
    """First and last position along an axis that holds NaN."""
    others = [other for other in range(tensor.ndim) if other != axis]
    (positions,) = tensor.isnan().float().amax(others).nonzero(as_tuple=True)
    return int(positions[0]), int(positions[-1])


def _wraps(trunk: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node pads a map circularly, or rolls it."""
    if node.op == "call_module":
        parts = trunk.get_submodule(str(node.target)).modules()
        return any(getattr(part, "padding_mode", "") == "circular" for part in parts)
    return node.target in (torch.roll, "roll") or "circular" in (*node.args, *node.kwargs.values())


def _averages(trunk: fx.GraphModule) -> tuple[str, ...]:
    """The layers that average a map to one number per channel."""
    nodes = [node for node in trunk.graph.nodes if is_vector(shape_of(node)) and axes_of(node) is None]
    return tuple(enclosing_layer(node) for node in nodes if any(map(_grows, node.all_input_nodes)))


def _grows(node: fx.Node) -> bool:
    """Whether a node's tensor is larger for a larger image, along any axis."""
    return bool(node.meta.get("larger_shape", shape_of(node)) != shape_of(node))


def _surely_local(trunk: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node's operation is known to be local, or its output has no spatial extent."""
    shape, axes = shape_of(node), axes_of(node)
    if node.op in ("placeholder", "output", "get_attr") or not shape or (is_vector(shape) and not _grows(node)):
        return True
    sources = [source for source in node.all_input_nodes if source.op != "get_attr" and shape_of(source)]
    if axes is None or not all(axes_of(source) or is_vector(shape_of(source)) for source in sources):
        return False
    if node.op != "call_module":
        return node.target in (*_POINTWISE, *_LAYOUT, *loaded("torchvision.ops:stochastic_depth"))
    layer = trunk.get_submodule(str(node.target))
    if type(layer) in (nn.Conv2d, *same_convolutions()):
        return True
    # Of the last axis, which must be the channels
    if type(layer) in (nn.Linear, nn.LayerNorm, *loaded("timm.layers.norm:LayerNorm")):
        return axes[1] < len(shape) - 1 and (not isinstance(layer, nn.LayerNorm) or len(layer.normalized_shape) == 1)
    is_local = type(layer) in (*_LOCAL, *batch_norms(), *loaded(*_FOREIGN))
    return is_local and getattr(layer, "track_running_stats", True)


class _Operations(TorchDispatchMode):
    """Hands every operation's result, with its inputs, to a probe."""

    def __init__(self, probe: "Probe") -> None:
        super().__init__()
        self._probe = probe

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            return self._probe.after(func, args, output)
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            return type(output)((self._probe.after(func, args, output[0]), *output[1:]))
        return output


class Probe(fx.Interpreter):
    """Runs a trunk with NaN in one cell's step of its input, and refuses operations that spread them too far."""

    def __init__(
        self,
        trunk: fx.GraphModule,
        local: set[fx.Node],  # need no probe: their outputs are replaced by random maps
        steps: tuple[int, int],  # cells, down and across, that the input has more than a patch
        stride: int,
        small: "Probe | None" = None,  # the run on one patch, which shows how shapes grow; None for that run itself
        cell: tuple[int, int] = (0, 0),  # row and column of the cell with NaN
        before: "Probe | None" = None,  # the run with NaN one cell earlier, which must spread alike
    ) -> None:
        super().__init__(trunk)
        self.extra_traceback = False
        self._trunk, self._local, self._steps, self._stride = trunk, local, steps, stride
        self._small, self._cell, self._before = small, cell, before
        self._node: fx.Node | None = None
        self._dependent = dependent(trunk.graph)
        self.seen: dict[fx.Node, list[tuple[Any, tuple[int, ...]]]] = {}
        self.spread: dict[tuple[fx.Node, int], tuple[int, ...]] = {}
        self.averages: list[str] = []
        self._diverged: set[fx.Node] = set()
        self._marked = WeakTensorKeyDictionary()  # Booleans and integers that NaN went into

    def probe(self, pixels: Tensor) -> None:
        """Run the trunk; NotConvolutionalError where NaN spread too far, or a layer takes no images of this size."""
        try:
            self.run(pixels)
        except (RuntimeError, AssertionError) as error:
            assert self._node is not None
            size = f"{pixels.shape[2]}×{pixels.shape[3]}"
            raise NotConvolutionalError(
                f"{enclosing_layer(self._node)} does not take {size} pixels: {own_reason(error)}; {CROPS}"
            ) from error

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, with a check of each of its operations."""
        self._node = n
        self.seen[n] = []
        shape = shape_of(n)
        if n in self._local and shape and n.op not in ("get_attr", "output"):
            return self._random_map(n)
        if not shape or n.op in ("get_attr", "output"):
            return super().run_node(n)
        with _Operations(self):
            output = super().run_node(n)
        axes = axes_of(n)
        if self._small is None or axes is None:
            return output
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        step = step_of(n)
        self._check(n, _WHOLE, [*args, *kwargs.values()], output, axes, step)
        if not output.is_floating_point():
            return output
        return self._poison(output.nan_to_num(0.5), axes, step)

    def _random_map(self, node: fx.Node) -> Tensor:
        """A random tensor of a local node's shape, with NaN if it is a map."""
        shape, axes = shape_at(node, (self._steps[0] * self._stride, self._steps[1] * self._stride)), axes_of(node)
        output = random_pixels(self._trunk, 1, -(-math.prod(shape) // 3)).flatten()[: math.prod(shape)].view(shape)
        if self._small is None or axes is None:
            return output
        return self._poison(output, axes, step_of(node))

    def after(self, func: Any, args: Any, output: Tensor) -> Tensor:
        """Check how far NaN have spread in an operation's output, and put them back to their place."""
        node = self._node
        assert node is not None
        index = len(self.seen[node])
        self.seen[node].append((func, tuple(output.shape)))
        if self._small is None:
            return output
        seen = self._small.seen[node][index:]
        shape = seen[0][1] if seen else ()
        if not seen or seen[0][0] is not func or node in self._diverged:
            # Other operations than with one patch from here on: the node's own output is checked instead
            self._diverged.add(node)
            return output
        grown = (
            [axis for axis, size in enumerate(shape) if size != output.shape[axis]] if len(shape) == output.ndim else []
        )
        positional = len(grown) == 1 or (len(grown) == 2 and "upsample" in str(func))
        if positional and not (self._sees_nan(args) or output.isnan().any()) and _varies(output, grown):
            self._refuse(node, _POSITIONAL)
        if not output.is_floating_point():
            if self._sees_nan(args):
                self._marked[output] = True
            return output
        views = any(argument.alias_info is not None for argument in func._schema.returns)
        axes = grown_axes(shape, tuple(output.shape), self._steps)
        if axes is None:
            if shape == tuple(output.shape) and is_vector(shape) and not views:
                if output.isnan().any():
                    self.averages.append(enclosing_layer(node))
                return output.nan_to_num(0.5)
            return self._poison_attention(func, args, output)
        step = self._steps[0] * self._stride // (output.shape[axes[0]] - shape[axes[0]])
        if step > self._stride or self._stride % step:
            return output
        if func.overloadpacket is _aten.roll:
            self._refuse(node, "wraps around the image")
        batch_statistics = func.overloadpacket in _BATCH_NORMS and args[5]
        if func.overloadpacket in _LEVEL_NORMS or batch_statistics:
            self.averages.append(enclosing_layer(node))
        elif func.overloadpacket not in _SURELY_LOCAL:
            self._check(node, index, args, output, axes, step)
        return output if views else self._poison(output.nan_to_num(0.5), axes, step)

    def _poison(self, feature_map: Tensor, axes: Axes, step: int) -> Tensor:
        """NaN in the step of one cell of a map; `step` is the map's, in pixels."""
        poisoned = feature_map.clone()
        size = self._stride // step
        part = poisoned
        for axis, cell in zip(axes, self._cell, strict=True):
            start = min(cell * size, part.shape[axis] - 1)
            part = part.narrow(axis, start, min(size, part.shape[axis] - start))
        part.fill_(torch.nan)
        return poisoned

    def _check(self, node: fx.Node, index: int, args: Any, output: Tensor, axes: Axes, step: int) -> None:
        if not output.isnan().any():
            if not self._sees_nan(args) and _varies(output, axes):
                self._refuse(node, _POSITIONAL)
            return
        size = self._stride // step
        spread: list[int] = []
        for axis, cell in zip(axes, self._cell, strict=True):
            first, last = _nan_range(output, axis)
            if last - first + 1 == output.shape[axis] > size:
                self._refuse(node, "makes each position depend on the whole image")
            spread += [first - cell * size, last - cell * size]
        self.spread[node, index] = tuple(spread)
        if self._before and self._before.spread.get((node, index)) != tuple(spread):
            self._refuse(node, "treats positions differently, depending on where they lie in the image")

    def _sees_nan(self, args: Any) -> bool:
        """Whether arguments hold NaN, or were computed from such."""
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        return any(tensor in self._marked or bool(tensor.isnan().any()) for tensor in tensors)

    def _poison_attention(self, func: Any, args: Any, output: Tensor) -> Tensor:
        """Fused attention, whose arithmetic may pass over NaN: NaN in all of each item that holds one."""
        if "scaled_dot_product" not in str(func):
            return output
        items = torch.stack([tensor.isnan().flatten(2).any(2) for tensor in args[:3]]).any(0)  # [N, heads]
        return output.masked_fill(items[..., None, None], torch.nan)

    def _refuse(self, node: fx.Node, what: str) -> None:
        blamed = self._mixing_before(node)
        attention = " by attention" if mixing(self._trunk, blamed) else ""
        raise NotConvolutionalError(f"{enclosing_layer(blamed)} {what}{attention}: not convolutional; {CROPS}")

    def _mixing_before(self, node: fx.Node) -> fx.Node:
        """The nearest ancestor that combines positions, to judge by its name; else the node itself."""
        waiting, seen = [node], {node}
        while waiting:
            ancestor = waiting.pop(0)
            if mixing(self._trunk, ancestor):
                return ancestor
            for source in ancestor.all_input_nodes:
                if source not in seen and source in self._dependent and len(seen) < 200:
                    seen.add(source)
                    waiting.append(source)
        return node


def _varies(output: Tensor, axes: Sequence[int]) -> bool:
    finite = output.nan_to_num() if output.dtype != torch.bool else output
    return bool((finite.amax(tuple(axes)) != finite.amin(tuple(axes))).any())


def is_vector(shape: tuple[int, ...]) -> bool:
    """Whether a tensor has one number per channel, or per group of them."""
    return len(shape) > 1 and sum(size > 1 for size in shape[1:]) <= 1
