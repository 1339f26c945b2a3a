"""Eight-bit integers for a CPU: a network's layers quantized after training, with ranges seen on a few images.

Between two layers of `densescore.network.cpu.int8_layers` values stay integers wherever only those layers and pools
take them. Sums of branches, averages, and activations that are no clamps are computed in float32.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from densescore.errors import DensescoreError
from densescore.network.cpu.fusion import FoldedConv2d, FoldedLinear, fuse, layer_of, traced
from densescore.network.cpu.int8_layers import (
    Int8Conv2d,
    Int8Linear,
    Int8MaxPool2d,
    Int8ReLU,
    Int8Windows,
    Quantization,
    Range,
    Values,
)
from densescore.network.dense_network import DenseNetwork
from densescore.network.graph import members
from densescore.network.windows import LinearWindows


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
def quantize_network(network: DenseNetwork, levels: Iterable[Tensor]) -> list[float]:
    """Replace the layers of a float32 network by eight-bit ones.

    Args:
        network: changed in place, as `speed_up` does; its `trunk`, for crops, stays float32.
        levels: of images like those to come, ``[1, 3, h, w]``, normalized. They set the ranges.

    Returns:
        Scales and zeros of all tensors, in order. Together with the weights they determine the scores.
    """
    project = network.project
    slides = isinstance(project, LinearWindows)
    trunk = _Quantizer(network.level_trunk)
    projected = _Quantizer(network.embed)
    classifier = _Quantizer(network.classifier)
    lowest, highest = float("inf"), -float("inf")
    for level in levels:
        feature_map = trunk.see(level)
        side = [size - window + 1 for size, window in zip(feature_map.shape[2:], network.window, strict=True)]
        rows = project([network.block(feature_map, range(side[0]), range(side[1]))])
        lowest, highest = min(lowest, float(rows.min())), max(highest, float(rows.max()))
        classifier.see(projected.see(rows))
    network.fast_trunk, quantization = trunk.quantized(None, emit=slides)
    middle: Quantization | None = None
    if isinstance(project, LinearWindows):
        quantization = quantization or Quantization.over(trunk.seen)
        assert isinstance(project.linear, nn.Linear)
        middle = Quantization.over((projected.lower_bound(lowest), highest))
        network.project = Int8Windows(project.window, project.linear, quantization, middle)
    network.embed, last = projected.quantized(middle, emit=True)
    network.to_features = nn.Identity() if last is None else Values(last)
    network.classifier, _ = classifier.quantized(last, emit=False)
    made = [quantization, middle, *trunk.quantizations, *projected.quantizations, *classifier.quantizations]
    return [number for each in made if each is not None for number in each]


class _Quantizer:
    """A part of a network: what it gives in float32, and then in eight bits."""

    def __init__(self, part: nn.Module) -> None:
        self._float = fuse(traced(part))
        self._part = fuse(traced(part), lambda folded: folded, FoldedLinear)  # with nodes of the same names
        self._layers = members(self._part)
        self._ranges: dict[str, Range] = {}  # by node
        self.quantizations: list[Quantization] = []

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

    def quantized(self, source: Quantization | None, emit: bool) -> tuple[nn.Module, Quantization | None]:
        """The part in eight bits.

        Args:
            source: of its input; None for float32.
            emit: give integers, if a layer is last whose output can be: the second result is their quantization.
        """
        graph = self._part.graph
        (start,) = (node for node in graph.nodes if node.op == "placeholder")
        if source and not self._wanted(start, emit):
            self._give_values(start, source)
        found: dict[fx.Node, Quantization | None] = {}
        layers = dict(self._layers)
        for node in graph.nodes:
            layer = self._layer(node)
            if node.op == "placeholder":
                found[node] = source
            elif isinstance(layer, FoldedConv2d | FoldedLinear):
                (before,) = node.all_input_nodes
                given = found[before] or Quantization.over(self._ranges[before.name])
                target = Quantization.over(self._ranges[node.name]) if self._stays(node, emit) else None
                kind: Callable[..., nn.Module] = Int8Conv2d if isinstance(layer, FoldedConv2d) else Int8Linear
                node.target = f"int8_{node.name}"  # of its own: a layer that is called twice has two inputs
                layers[node.target] = kind(layer, given, target)
                self.quantizations += [given] + ([target] if target else [])
                found[node] = target
            elif self._keeps(node) and (quantization := found[node.all_input_nodes[0]]):
                found[node] = quantization
                if isinstance(layer, nn.MaxPool2d | nn.ReLU):
                    node.op, node.args, node.kwargs = "call_module", tuple(node.all_input_nodes), {}
                    node.target = f"int8_{node.name}"
                    layers[node.target] = (
                        Int8MaxPool2d(layer) if isinstance(layer, nn.MaxPool2d) else Int8ReLU(quantization)
                    )
            else:
                found[node] = None
        (output,) = (node for node in graph.nodes if node.op == "output")
        return fx.GraphModule(layers, graph), found[output.all_input_nodes[0]]

    def _give_values(self, start: fx.Node, quantization: Quantization) -> None:
        """Make floats of the part's integers, for what cannot take those."""
        self._layers["values"] = Values(quantization)
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
        """Whether an operation's outputs are quantized as its input is."""
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
