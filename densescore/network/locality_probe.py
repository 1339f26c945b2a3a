"""Runs a trunk with NaN in one cell's step of its input, and sees how far each operation spreads them."""

import math
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from densescore.errors import NotConvolutionalError
from densescore.network.graph import (
    CROPS,
    Axes,
    axes_of,
    dependent,
    enclosing_layer,
    grown_axes,
    mixing,
    own_reason,
    random_pixels,
    shape_at,
    shape_of,
    step_of,
)

_WHOLE = -1  # number of a node's own result among those of its operations
_aten = torch.ops.aten
# Operations that are local by definition, and may spread far on a small map: not checked, only put back.
_SURELY_LOCAL = (
    *(_aten.convolution, _aten.max_pool2d_with_indices, _aten.avg_pool2d, _aten.constant_pad_nd),
    *(_aten.native_batch_norm, _aten._native_batch_norm_legit_no_training, _aten.cudnn_batch_norm),
    *(_aten.upsample_nearest2d, _aten.upsample_bilinear2d, _aten.upsample_bicubic2d),
)
_LEVEL_NORMS = (_aten.native_group_norm, _aten._native_batch_norm_legit)


class _Operations(TorchDispatchMode):
    """Hands every operation's result, with its inputs, to a probe."""

    def __init__(self, probe: "Probe") -> None:
        super().__init__()
        self._probe = probe

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        if isinstance(given, Tensor):
            return self._probe.after(func, args, given)
        if isinstance(given, tuple) and given and isinstance(given[0], Tensor):
            return type(given)((self._probe.after(func, args, given[0]), *given[1:]))
        return given


class Probe(fx.Interpreter):
    """Runs a trunk with NaN in one cell's step of its input.

    Args:
        trunk: the graph.
        local: nodes that need no probe; a random map is taken for what they give.
        steps: cells, down and across, that its input has more than a patch.
        stride: S.
        small: the run on one patch, from which it is seen how shapes grow; None for that run itself.
        cell: row and column of the step of pixels that is spoilt.
        before: the run with NaN one cell earlier, which must spread alike.
    """

    def __init__(
        self,
        trunk: fx.GraphModule,
        local: set[fx.Node],
        steps: tuple[int, int],
        stride: int,
        small: "Probe | None" = None,
        cell: tuple[int, int] = (0, 0),
        before: "Probe | None" = None,
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
        self._astray: set[fx.Node] = set()

    def probe(self, pixels: Tensor) -> None:
        """Run the trunk.

        Raises:
            NotConvolutionalError: NaN spread where they must not, or a layer does not take images of this size.
        """
        try:
            self.run(pixels)
        except (RuntimeError, AssertionError) as error:
            assert self._node is not None
            size = f"{pixels.shape[2]}×{pixels.shape[3]}"
            raise NotConvolutionalError(
                f"{enclosing_layer(self._node)} does not take {size} pixels: {own_reason(error)}; {CROPS}"
            ) from error

    def run_node(self, n: fx.Node) -> Any:
        """Run a node with all its operations watched."""
        self._node = n
        self.seen[n] = []
        shape = shape_of(n)
        if n in self._local and shape and n.op not in ("get_attr", "output"):
            return self._instead(n)
        if not shape or n.op in ("get_attr", "output"):
            return super().run_node(n)
        with _Operations(self):
            given = super().run_node(n)
        axes = axes_of(n)
        if self._small is None or axes is None:
            return given
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        step = step_of(n)
        self._check(n, _WHOLE, [*args, *kwargs.values()], given, axes, step)
        return self._spoil(given.nan_to_num(0.5), axes, step)

    def _instead(self, node: fx.Node) -> Tensor:
        """A random tensor in the shape of a local node's, spoilt where a map is."""
        shape, axes = shape_at(node, (self._steps[0] * self._stride, self._steps[1] * self._stride)), axes_of(node)
        given = random_pixels(self._trunk, 1, -(-math.prod(shape) // 3)).flatten()[: math.prod(shape)].view(shape)
        if self._small is None or axes is None:
            return given
        return self._spoil(given, axes, step_of(node))

    def after(self, func: Any, args: Any, given: Tensor) -> Tensor:
        """Check how far NaN have spread in an operation's result, and put them back to their place."""
        node = self._node
        assert node is not None
        index = len(self.seen[node])
        self.seen[node].append((func, tuple(given.shape)))
        if self._small is None or not given.is_floating_point():
            return given
        seen = self._small.seen[node][index:]
        shape = seen[0][1] if seen else ()
        if not seen or seen[0][0] is not func or node in self._astray:
            self._astray.add(node)  # from here on it does other things than with one patch; its result is checked
            return given
        views = any(argument.alias_info is not None for argument in func._schema.returns)
        axes = grown_axes(shape, tuple(given.shape), self._steps)
        if axes is None:
            if shape == tuple(given.shape) and is_vector(shape) and not views:
                if given.isnan().any():
                    self.averages.append(enclosing_layer(node))
                return given.nan_to_num(0.5)
            return self._attend(func, args, given)
        step = self._steps[0] * self._stride // (given.shape[axes[0]] - shape[axes[0]])
        if step > self._stride or self._stride % step:
            return given
        if func.overloadpacket is _aten.roll:
            self._refuse(node, "wraps around the image")
        if func.overloadpacket in _LEVEL_NORMS:
            self.averages.append(enclosing_layer(node))
        elif func.overloadpacket not in _SURELY_LOCAL:
            self._check(node, index, args, given, axes, step)
        return given if views else self._spoil(given.nan_to_num(0.5), axes, step)

    def _spoil(self, feature_map: Tensor, axes: Axes, step: int) -> Tensor:
        """NaN in the step of one cell; `step` is the map's own in pixels."""
        spoilt = feature_map.clone()
        size = self._stride // step
        part = spoilt
        for axis, cell in zip(axes, self._cell, strict=True):
            start = min(cell * size, part.shape[axis] - 1)
            part = part.narrow(axis, start, min(size, part.shape[axis] - start))
        part.fill_(torch.nan)
        return spoilt

    def _check(self, node: fx.Node, index: int, args: Any, given: Tensor, axes: Axes, step: int) -> None:
        spoilt = given.isnan()
        others = [axis for axis in range(given.ndim) if axis not in axes]
        spoilt = spoilt.any(dim=others) if others else spoilt  # [rows, cols]
        if not spoilt.any():
            if not _any_nan(args) and _varies(given, axes):
                self._refuse(node, "gives each position a number of its own")
            return
        size = self._stride // step
        spread: list[int] = []
        for axis in (0, 1):
            (found,) = spoilt.any(dim=1 - axis).nonzero(as_tuple=True)
            first, last = int(found[0]), int(found[-1])
            if last - first + 1 == spoilt.shape[axis] > size:
                self._refuse(node, "makes each position depend on the whole image")
            spread += [first - self._cell[axis] * size, last - self._cell[axis] * size]
        self.spread[node, index] = tuple(spread)
        if self._before and self._before.spread.get((node, index)) != tuple(spread):
            self._refuse(node, "treats positions differently, depending on where they lie in the image")

    def _attend(self, func: Any, args: Any, given: Tensor) -> Tensor:
        """Attention in one operation, whose arithmetic may pass over NaN: each item that holds one is spoilt whole."""
        if "scaled_dot_product" not in str(func):
            return given
        items = torch.stack([tensor.isnan().flatten(2).any(2) for tensor in args[:3]]).any(0)  # [N, heads]
        return given.masked_fill(items[..., None, None], torch.nan)

    def _refuse(self, node: fx.Node, what: str) -> None:
        blamed = self._mixing_before(node)
        attention = " by attention" if mixing(self._trunk, blamed) else ""
        raise NotConvolutionalError(f"{enclosing_layer(blamed)} {what}{attention}: not convolutional; {CROPS}")

    def _mixing_before(self, node: fx.Node) -> fx.Node:
        """The nearest node, back to the last map, that combines positions by its name; else the node itself."""
        waiting, seen = [node], {node}
        while waiting:
            found = waiting.pop(0)
            if mixing(self._trunk, found):
                return found
            for source in found.all_input_nodes:
                if source not in seen and source in self._dependent and len(seen) < 200:
                    seen.add(source)
                    waiting.append(source)
        return node


def _any_nan(args: Any) -> bool:
    if isinstance(args, Tensor):
        return args.is_floating_point() and bool(args.isnan().any())
    return isinstance(args, list | tuple) and any(map(_any_nan, args))


def _varies(given: Tensor, axes: Axes) -> bool:
    finite = given.nan_to_num()
    return bool((finite.amax(axes) != finite.amin(axes)).any())


def is_vector(shape: tuple[int, ...]) -> bool:
    """One number per channel, or per group of them."""
    return len(shape) > 1 and sum(size > 1 for size in shape[1:]) <= 1
