"""Convert Caffe's reference networks, AlexNet and CaffeNet, from ONNX files to this package's weights.

ONNX files hold no code. Caffe's networks take BGR pixels in 0..255 less a mean. Both are folded into C1, and the
converted network takes normalized RGB like every other here. Their C1 has no padding, so the folding is exact.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms import v2

from densescore.errors import DensescoreError, reason_of
from densescore.models.registry import MODELS
from densescore.models.weights import load_strict

if TYPE_CHECKING:
    import onnx

CAFFE_MEAN = (104.00699, 116.66877, 122.67892)
"""Mean of ILSVRC 2012's training images, blue, green, red, in 0..255: Caffe's ``ilsvrc_2012_mean`` over pixels."""

Variant = Literal["krizhevsky-caffe", "krizhevsky-caffenet"]

_TAIL = ["Conv", "Relu", "Conv", "Relu", "Conv", "Relu", "MaxPool", "Gemm", "Relu", "Gemm", "Relu", "Gemm"]
_ORDERS: dict[Variant, list[str]] = {
    "krizhevsky-caffe": ["Conv", "Relu", "LRN", "MaxPool"] * 2 + _TAIL,
    "krizhevsky-caffenet": ["Conv", "Relu", "MaxPool", "LRN"] * 2 + _TAIL,
}
_IDLE = ("Dropout", "Reshape", "Flatten", "Identity", "Constant", "Softmax")
"""Layers without weights; only the softmax changes values (see `_probabilities`)."""

_MAX_BATCH = 64  # of a file whose batch is fixed


@dataclass(frozen=True, eq=False)
class Converted:
    """A converted network."""

    name: Variant  # the model that takes `weights`
    weights: dict[str, Tensor]
    difference: float  # largest between the networks' probabilities, over the highest probability


def convert_caffe(
    path: str | os.PathLike[str], mean: tuple[float, float, float] = CAFFE_MEAN, *, tolerance: float = 1e-4
) -> Converted:
    """Read an ONNX file of Caffe's AlexNet or CaffeNet, convert it, and compare both on the same input.

    `mean` (blue, green, red, in 0..255) is subtracted from Caffe's pixels. An error names the layer that does not fit.
    """
    # Read
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise DensescoreError(f"{error}: converting needs the extra onnx (pip install 'densescore[onnx]')") from error
    onnxruntime.disable_telemetry_events()
    try:
        model = onnx.load(os.fspath(path))
    except Exception as error:  # of protobuf or of the file system
        raise DensescoreError(f"{path}: cannot be read as ONNX: {reason_of(error)}") from error

    # Recognize and convert
    nodes = [node for node in model.graph.node if node.op_type not in _IDLE]
    order = [node.op_type for node in nodes]
    name = next((variant for variant, expected in _ORDERS.items() if order == expected), None)
    if name is None:
        raise DensescoreError(f"{path}: neither Caffe's AlexNet nor its CaffeNet: its layers are {', '.join(order)}")
    weights = _weights(model, nodes, Path(path))
    try:
        network = MODELS[name].build(weights).eval()
    except DensescoreError as error:  # shapes that do not fit
        raise DensescoreError(f"{path}: {error}") from error
    _check_attributes(nodes, network, Path(path))
    _fold_preprocessing(weights, name, mean)
    load_strict(network, weights, os.fspath(path))

    # Compare
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
        difference = _compare(session, network, name, mean)
    except Exception as error:  # onnxruntime has one for each status
        raise DensescoreError(f"{path}: cannot be run: {reason_of(error)}") from error
    if not difference <= tolerance:
        raise DensescoreError(
            f"{path}: the converted network's probabilities differ by {difference:.2g} of the highest"
        )
    return Converted(name, weights, difference)


def _weights(model: "onnx.ModelProto", nodes: list[Any], path: Path) -> dict[str, Tensor]:
    """Tensors of the convolutions and linear layers, by the names of `Krizhevsky`."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = [node for node in nodes if node.op_type in ("Conv", "Gemm")]
    names = [f"features.{index}" for index in (0, 4, 8, 10, 12)] + [f"classifier.{index}" for index in (0, 3, 6)]
    weights = {}
    for node, name in zip(layers, names, strict=True):
        if len(node.input) != 3 or any(key not in tensors for key in node.input[1:]):
            raise DensescoreError(f"{path}: layer {node.name or node.op_type} lacks constant weights and biases")
        weight, bias = (_array(tensors[key], key, path) for key in node.input[1:])
        expected = 4 if node.op_type == "Conv" else 2
        if weight.ndim != expected or bias.ndim != 1 or 0 in weight.shape or 0 in bias.shape:
            raise DensescoreError(
                f"{path}: layer {node.name or node.op_type} has weights of shape {weight.shape} and biases of shape "
                f"{bias.shape}, expected {expected} dimensions and 1, none of them empty"
            )
        if node.op_type == "Gemm" and not _attribute(node, "transB", 0):
            weight = weight.T
        weights[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(weight))
        weights[f"{name}.bias"] = torch.from_numpy(bias.copy())
    return weights


def _array(tensor: Any, name: str, path: Path) -> NDArray[np.float32]:
    """The finite float32 values of an initializer."""
    from onnx import numpy_helper

    try:
        values = numpy_helper.to_array(tensor)
    except Exception as error:  # sizes that contradict the data, unknown types, data in other files
        raise DensescoreError(f"{path}: tensor {name} cannot be read: {reason_of(error)}") from error
    if not np.issubdtype(values.dtype, np.floating):
        raise DensescoreError(f"{path}: tensor {name} must hold floating-point numbers, got {values.dtype}")
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise DensescoreError(f"{path}: tensor {name} holds values that are not finite")
    return values


def _fold_preprocessing(weights: dict[str, Tensor], name: str, mean: tuple[float, float, float]) -> None:
    """``W (255 (s y + m) - c) + b = (255 W s) y + (b + Σ W (255 m - c))``, with y in RGB where W took BGR."""
    entry = MODELS[name]
    weight = weights["features.0.weight"].flip(1).double()  # [96, 3, 11, 11], RGB
    m, s = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (entry.mean, entry.std))
    c = torch.tensor(mean[::-1], dtype=torch.float64).view(3, 1, 1)
    shift = (weight * (255 * m - c)).sum((1, 2, 3))
    weights["features.0.bias"] = (weights["features.0.bias"].double() + shift).float()
    weights["features.0.weight"] = (weight * 255 * s).float().contiguous()


def _check_attributes(nodes: list[Any], network: nn.Module, path: Path) -> None:
    """Refuse a network whose layers have the right order, but other groups, strides or paddings."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    for node, layer in zip((node for node in nodes if node.op_type == "Conv"), layers, strict=True):
        actual = (_attribute(node, "group", 1), _attribute(node, "strides", [1, 1]), _attribute(node, "pads", [0] * 4))
        expected = (layer.groups, list(layer.stride), [*layer.padding, *layer.padding])
        if actual != expected:
            raise DensescoreError(
                f"{path}: layer {node.name or node.op_type} has groups, strides and pads {actual}, expected {expected}"
            )


def _compare(session: Any, network: nn.Module, name: str, mean: tuple[float, float, float]) -> float:
    """Largest difference of a probability on the same random pixels, at the file's own size, over the highest one."""
    entry, inputs = MODELS[name], session.get_inputs()
    usual = (1, 3, entry.patch_size, entry.patch_size)  # where the file leaves a size open
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise DensescoreError(f"takes {[each.shape for each in inputs]}, expected one tensor [N, 3, P, P]")
    sizes = zip(inputs[0].shape, usual, strict=True)
    shape = [size if isinstance(size, int) else default for size, default in sizes]
    if shape[1] != 3 or not 1 <= shape[0] <= _MAX_BATCH or not all(1 <= side <= 2 * usual[2] for side in shape[2:]):
        raise DensescoreError(f"takes images of shape {shape}, expected about {list(usual)}")
    pixels = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)  # [N, 3, P, P], RGB
    bgr = np.ascontiguousarray(pixels[:, ::-1] - np.array(mean, np.float32).reshape(3, 1, 1))
    expected = _probabilities(session.run(None, {inputs[0].name: bgr})[0].reshape(shape[0], -1))
    with torch.inference_mode():
        rgb = v2.functional.normalize(torch.from_numpy(pixels) / 255, list(entry.mean), list(entry.std))
        actual = network(rgb).softmax(1).numpy()
    return float(np.abs(actual - expected).max() / expected.max())


def _probabilities(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities from logits, or from outputs that add up to 1 already."""
    if (values >= 0).all() and np.allclose(values.sum(1), 1, rtol=1e-3):
        return values
    powers = np.exp(values - values.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _attribute(node: Any, name: str, default: Any) -> Any:
    """The value of a node's attribute; None for a type that ONNX does not know."""
    import onnx

    attribute = next((attribute for attribute in node.attribute if attribute.name == name), None)
    try:
        return default if attribute is None else onnx.helper.get_attribute_value(attribute)
    except ValueError:
        return None
