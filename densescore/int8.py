"""Eight-bit integers for a CPU: a network's layers quantised after training, with ranges seen on a few images.

A tensor holds q in 0..255 for the value scale · (q - zero), one scale and zero per tensor; weights are -127..127, one
scale per output; products are added up exactly, in 32 bits. (Jacob et al., CVPR 2018; Krishnamoorthi, 2018.) Between
two layers values stay integers wherever only those layers, and pools, take them; sums of branches, averages and
activations that are no clamps are computed in float32.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from densescore.dense_network import DenseNetwork
from densescore.fused import FoldedConv2d, FoldedLinear, fuse, layer_of, traced
from densescore.windows import Blocks, LinearWindows
from densescore_kernels.errors import DensescoreError

Range = tuple[float, float]

# oneDNN wants weights in one layout for maps of some sizes and in another for others, and lays them out again at each
# call if they are in the wrong one: up to ten times slower. These sides have been seen to want each of them.
_SIDES = (8, 64, 128)


class Grid(NamedTuple):
    """The values that eight bits stand for: ``scale · (q - zero)``, q in 0..255."""

    scale: float
    zero: int

    @classmethod
    def over(cls, values: Range) -> "Grid":
        """The grid from the lowest value to the highest, and over zero, which padding needs exact."""
        low, high = min(values[0], 0.0), max(values[1], 0.0)
        scale = (high - low) / 255
        if scale < 1e-30:  # nothing but zeros, or what float32 takes for that
            return cls(1.0, 0)
        return cls(scale, round(-low / scale))

    def quantise(self, x: Tensor) -> Tensor:
        """Float32 to the nearest on the grid, uint8; what is on it already stays."""
        if x.dtype == torch.uint8:
            return x
        return (x * (1 / self.scale)).add_(self.zero).round_().clamp_(0, 255).to(torch.uint8)


def check_int8(network: DenseNetwork, device: torch.device, calibration: Sequence[Any], runtime: str) -> None:
    """Refuse what cannot be scored in eight bits.

    Raises:
        DensescoreError: no images to calibrate with; another runtime; a network made finer; or not a CPU with VNNI
            instructions, without which sums of products may saturate.
    """
    if not len(calibration):
        raise DensescoreError("dtype 'int8' needs calibration: a few images like those to come")
    if runtime == "openvino":
        raise DensescoreError("runtime 'openvino' cannot be had with dtype 'int8', which torch runs")
    if network.phases > 1:
        raise DensescoreError("dtype 'int8' needs the network's own stride")
    if device.type != "cpu" or not torch.cpu._is_vnni_supported() or not torch.backends.mkldnn.is_available():
        raise DensescoreError(f"dtype 'int8' needs a CPU with AVX-512 VNNI instructions and oneDNN; device is {device}")


@torch.inference_mode()
def quantise_network(network: DenseNetwork, levels: Iterable[Tensor]) -> list[float]:
    """Put eight-bit layers in the place of a float32 network's.

    Args:
        network: changed in place, as `densescore.cpu.speed_up` does; its `trunk`, for crops, stays float32.
        levels: of images like those to come, ``[1, 3, h, w]``, normalised. They set the ranges.

    Returns:
        Scales and zeros of all grids, in order: with the weights, all that scores follow from.
    """
    project = network.project
    slides = isinstance(project, LinearWindows)
    trunk = _Quantiser(network.level_trunk)
    projected = _Quantiser(network.embed)
    classifier = _Quantiser(network.classifier)
    lowest, highest = float("inf"), -float("inf")
    for level in levels:
        feature_map = trunk.see(level)
        side = [size - window + 1 for size, window in zip(feature_map.shape[2:], network.window, strict=True)]
        rows = project([network.block(feature_map, range(side[0]), range(side[1]))])
        lowest, highest = min(lowest, float(rows.min())), max(highest, float(rows.max()))
        classifier.see(projected.see(rows))
    network.fast_trunk, grid = trunk.quantised(None, emit=slides)
    middle: Grid | None = None
    if isinstance(project, LinearWindows):
        grid = grid or Grid.over(trunk.seen)
        assert isinstance(project.linear, nn.Linear)
        middle = Grid.over((projected.lower_bound(lowest), highest))
        network.project = Int8Windows(project.window, project.linear, grid, middle)
    network.embed, last = projected.quantised(middle, emit=True)
    network.to_features = nn.Identity() if last is None else Values(last)
    network.classifier, _ = classifier.quantised(last, emit=False)
    grids = [grid, middle, *trunk.grids, *projected.grids, *classifier.grids]
    return [number for made in grids if made is not None for number in made]


class _Quantiser:
    """A part of a network: what it gives in float32, and then in eight bits."""

    def __init__(self, part: nn.Module) -> None:
        self._float = fuse(traced(part))
        self._part = fuse(traced(part), lambda folded: folded, FoldedLinear)  # with nodes of the same names
        self._layers = dict(self._part.named_modules())
        self._ranges: dict[str, Range] = {}  # by node
        self.grids: list[Grid] = []

    def see(self, x: Tensor) -> Tensor:
        """The part's output; the range of each value on the way is noted."""
        return _Observer(self._float, self._ranges).run(x)

    @property
    def seen(self) -> Range:
        """Of the part's output."""
        return self._ranges["output"]

    def lower_bound(self, low: float) -> float:
        """`low`, or zero if a ReLU is the first thing done to the part's input."""
        (node,) = (node for node in self._part.graph.nodes if node.op == "placeholder")
        while len(node.users) == 1:
            (node,) = node.users
            layer = self._layer(node)
            if isinstance(layer, nn.ReLU | nn.ReLU6):
                return max(low, 0.0)
            if type(layer) not in _IDLE and node.target not in _SHAPES:
                break
        return low

    def quantised(self, source: Grid | None, emit: bool) -> tuple[nn.Module, Grid | None]:
        """The part in eight bits.

        Args:
            source: of its input; None for float32.
            emit: give integers, if a layer is last whose output can be: the second result is their grid.
        """
        graph = self._part.graph
        (start,) = (node for node in graph.nodes if node.op == "placeholder")
        if source and not self._wanted(start, emit):
            self._give_values(start, source)
        found: dict[fx.Node, Grid | None] = {}
        layers = dict(self._layers)
        for node in graph.nodes:
            layer = self._layer(node)
            if node.op == "placeholder":
                found[node] = source
            elif isinstance(layer, FoldedConv2d | FoldedLinear):
                (before,) = node.all_input_nodes
                given = found[before] or Grid.over(self._ranges[before.name])
                target = Grid.over(self._ranges[node.name]) if self._stays(node, emit) else None
                kind: Callable[..., nn.Module] = Int8Conv2d if isinstance(layer, FoldedConv2d) else Int8Linear
                node.target = f"int8_{node.name}"  # of its own: a layer that is called twice has two inputs
                layers[node.target] = kind(layer, given, target)
                self.grids += [given] + ([target] if target else [])
                found[node] = target
            elif self._keeps(node) and (grid := found[node.all_input_nodes[0]]):
                found[node] = grid
                if isinstance(layer, nn.MaxPool2d | nn.ReLU):
                    node.op, node.args, node.kwargs = "call_module", tuple(node.all_input_nodes), {}
                    node.target = f"int8_{node.name}"
                    layers[node.target] = Int8MaxPool2d(layer) if isinstance(layer, nn.MaxPool2d) else Int8ReLU(grid)
            else:
                found[node] = None
        (output,) = (node for node in graph.nodes if node.op == "output")
        return fx.GraphModule(layers, graph), found[output.all_input_nodes[0]]

    def _give_values(self, start: fx.Node, grid: Grid) -> None:
        """Make floats of the part's integers, for what cannot take those."""
        self._layers["values"] = Values(grid)
        with start.graph.inserting_after(start):
            values = start.graph.create_node("call_module", "values", (start,))
        self._ranges[values.name] = self._ranges[start.name]
        start.replace_all_uses_with(values, delete_user_cb=lambda user: user is not values)

    def _stays(self, node: fx.Node, emit: bool) -> bool:
        """Whether all that take a layer's output take integers."""
        layer = self._layer(node)
        if isinstance(layer, FoldedConv2d) and not isinstance(layer.activation, nn.Identity):
            return False
        return self._wanted(node, emit)

    def _wanted(self, node: fx.Node, emit: bool) -> bool:
        for user in node.users:
            layer = self._layer(user)
            if isinstance(layer, FoldedConv2d | FoldedLinear) or (user.op == "output" and emit):
                continue
            if not (self._keeps(user) and self._wanted(user, emit)):
                return False
        return True

    def _keeps(self, node: fx.Node) -> bool:
        """Whether an operation's outputs are on its input's grid."""
        layer = self._layer(node)
        pools = isinstance(layer, nn.MaxPool2d) and layer.dilation in (1, (1, 1)) and not layer.return_indices
        return pools or type(layer) in (nn.ReLU, *_IDLE) or node.target in _SHAPES

    def _layer(self, node: fx.Node) -> nn.Module | None:
        """Before it is replaced."""
        return layer_of(self._layers, node)


_IDLE = (nn.Identity, nn.Dropout)
_SHAPES = (torch.flatten, "flatten")


class _Observer(fx.Interpreter):
    """Runs a graph and widens the range of each of its float tensors."""

    def __init__(self, part: fx.GraphModule, ranges: dict[str, Range]) -> None:
        super().__init__(part)
        self._ranges = ranges

    def run_node(self, n: fx.Node) -> Any:
        """Run, and note."""
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point():
            low, high = self._ranges.get(n.name, (float("inf"), -float("inf")))
            least, most = value.aminmax()
            self._ranges[n.name] = min(low, float(least)), max(high, float(most))
        return value


class _Int8Weights:
    """What layers share: the weight in eight bits, one scale per output ``[F, …]``, and how a sum becomes a value."""

    def __init__(self, weight: Tensor, bias: Tensor | None, source: Grid, target: Grid | None) -> None:
        self.scales = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
        shape = (-1, *[1] * (weight.ndim - 1))
        self.integers = (weight / self.scales.view(shape)).round_().to(torch.int8)
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.bias = torch.zeros(len(weight)) if bias is None else bias
        self.source = source
        grid = Grid(1.0, 0) if target is None else target
        self.output = (grid.scale, grid.zero, torch.float32 if target is None else torch.uint8)


def _post_operation(clamp: tuple[float | None, float | None], target: Grid | None) -> tuple[str, list[float], str]:
    """A clamp as the operators name it; where outputs are integers, the ends of their grid are clamp enough."""
    low, high = clamp
    if (low, high) == (None, None) or target is not None:
        return "none", [], ""
    if (low, high) == (0, None):
        return "relu", [], ""
    return "hardtanh", [-torch.inf if low is None else low, torch.inf if high is None else high], ""


class Int8Conv2d(nn.Module):
    """A folded convolution in eight bits: ``[N, C, h, w]`` → ``[N, F, h', w']``, channels last.

    Args:
        folded: in float32.
        source: of the input; float32 is put on it.
        target: of the output; None for float32.
    """

    def __init__(self, folded: FoldedConv2d, source: Grid, target: Grid | None) -> None:
        super().__init__()
        self._weights = weights = _Int8Weights(folded.weight, folded.bias, source, target)
        self._pad, self._activation = folded.pad, folded.activation
        self._geometry = (list(folded.stride), list(folded.padding), list(folded.dilation), folded.groups)
        shapes = [[1, folded.weight.shape[1] * folded.groups, side, side] for side in _SIDES]
        self._packings = [
            torch.ops.onednn.qconv_prepack(weights.integers, weights.scales, *source, *self._geometry, shape)
            for shape in shapes
        ]
        self._fastest: dict[int, int] = {}  # packing by size of the map
        self._post = _post_operation(folded.clamp, target)
        del weights.integers

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; uint8 or float32 → the same."""
        source = self._weights.source
        x = self._pad(source.quantise(x), value=source.zero).contiguous(memory_format=torch.channels_last)
        size = round(4 * math.log2(x.shape[2] * x.shape[3]))
        if size not in self._fastest:
            self._fastest[size] = min(range(len(self._packings)), key=lambda packing: self._seconds(x, packing))
        return self._activation(self._convolve(x, self._fastest[size]))

    def _convolve(self, x: Tensor, packing: int) -> Tensor:
        own = self._weights
        return torch.ops.onednn.qconv2d_pointwise(
            x,
            *own.source,
            self._packings[packing],
            own.scales,
            own.zeros,
            own.bias,
            *self._geometry,
            *own.output,
            *self._post,
        )

    def _seconds(self, x: Tensor, packing: int) -> float:
        self._convolve(x, packing)  # the first call for a size makes the code for it
        start = time.perf_counter()
        self._convolve(x, packing)
        return time.perf_counter() - start


class Int8Linear(nn.Module):
    """A linear layer in eight bits: ``[N, in]`` → ``[N, out]``; arguments as of `Int8Conv2d`."""

    def __init__(self, folded: FoldedLinear, source: Grid, target: Grid | None) -> None:
        super().__init__()
        self._weights = weights = _Int8Weights(folded.weight, folded.bias, source, target)
        self._packed = torch.ops.onednn.qlinear_prepack(weights.integers, None)
        self._post = _post_operation(folded.clamp, target)
        del weights.integers

    def forward(self, x: Tensor) -> Tensor:
        """Multiply; uint8 or float32 → the same."""
        own = self._weights
        return torch.ops.onednn.qlinear_pointwise(
            own.source.quantise(x), *own.source, self._packed, own.scales, own.zeros, own.bias, *own.output, *self._post
        )


class Int8Windows(nn.Module):
    """FC6 at every window of maps of integers: blocks → ``[cells, width of FC6]``, integers."""

    def __init__(self, window: tuple[int, int], linear: nn.Linear, source: Grid, target: Grid) -> None:
        super().__init__()
        self.window = window
        # Channels last, as they lie in the maps: gathering rows of a few hundred bytes costs nothing.
        weight = linear.weight.detach().unflatten(1, (-1, *window)).permute(0, 2, 3, 1).flatten(1)
        self.linear = Int8Linear(FoldedLinear(weight, linear.bias), source, target)

    def forward(self, blocks: Blocks) -> Tensor:
        """FC6 of each window, cell by cell."""
        height, width = self.window
        views = [block.unfold(2, height, 1).unfold(3, width, 1)[0] for block in blocks]  # [C, rows, cols, h, w]
        return self.linear(torch.cat([view.permute(1, 2, 3, 4, 0).flatten(2).flatten(0, 1) for view in views]))


class Values(nn.Module):
    """Integers → the float32 values that they stand for."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self._grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """uint8 → float32."""
        return (x.float() - self._grid.zero) * self._grid.scale


class Int8MaxPool2d(nn.Module):
    """A maximum over windows of integers, which torch's own pool does not take: as one of shifted maps."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        kernel, stride, padding = (_pair(size) for size in (pool.kernel_size, pool.stride, pool.padding))
        self._axes = list(zip(kernel, stride, padding, strict=True))
        self._ceil = pool.ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, h, w]`` → ``[N, C, h', w']``."""
        for axis, (kernel, stride, padding) in enumerate(self._axes, start=2):
            size = x.shape[axis] + 2 * padding - kernel
            steps = size // stride
            if self._ceil and size % stride and (steps + 1) * stride < x.shape[axis] + padding:
                steps += 1  # the last window begins inside the map, or its padding on the left
            past = max(0, steps * stride + kernel - padding - x.shape[axis])
            pads = (padding, past) if axis == 3 else (0, 0, padding, past)
            x = nn.functional.pad(x, pads) if padding or past else x  # 0 is the lowest value there is
            shifted = [x.narrow(axis, at, steps * stride + 1) for at in range(kernel)]
            strided = [part[:, :, ::stride] if axis == 2 else part[..., ::stride] for part in shifted]
            x = reduce(torch.maximum, strided)
        return x


class Int8ReLU(nn.Module):
    """Integers from that of zero on."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self._zero = grid.zero

    def forward(self, x: Tensor) -> Tensor:
        """uint8 → uint8."""
        return x.clamp(min=self._zero) if self._zero else x


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
