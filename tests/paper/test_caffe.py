from collections.abc import Callable
from operator import setitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from densescore.errors import DensescoreError
from densescore.io.images import read_image
from densescore.models.registry import load_classifier
from densescore.paper.caffe import CAFFE_MEAN, convert_caffe
from tests.cli.runner import succeed

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

CLASSES, WIDTH = 7, 24


def write_caffe(
    path: Path, *, pool_first: bool = False, side: int = 227, groups: int = 2, softmax: bool = True
) -> Path:
    """An ONNX file as Caffe's converters write AlexNet or CaffeNet, with random weights and narrow FC layers."""
    draw = np.random.default_rng(0)
    nodes: list[Any] = []
    tensors: list[Any] = []
    last = "data"

    def add(kind: str, *weights: NDArray[np.float32], **attributes: object) -> None:
        nonlocal last
        name = f"{kind}_{len(nodes)}"
        names = [f"{name}_{index}" for index in range(len(weights))]
        tensors.extend(map(onnx.numpy_helper.from_array, weights, names))
        nodes.append(onnx.helper.make_node(kind, [last, *names], [name], name=name, **attributes))
        last = name

    def parameters(*shape: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        scale = np.sqrt(2 / np.prod(shape[1:]))
        return draw.normal(0, scale, shape).astype(np.float32), draw.normal(0, 0.1, shape[0]).astype(np.float32)

    def convolve(outputs: int, inputs: int, kernel: int, stride: int, pad: int, group: int) -> None:
        weights = parameters(outputs, inputs // group, kernel, kernel)
        add("Conv", *weights, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, group=group)
        add("Relu")

    def normalize() -> None:
        add("LRN", size=5, alpha=1e-4, beta=0.75, bias=1.0)

    def pool() -> None:
        # Ceil pooling as files of old versions of ONNX spell it: a pixel of padding at the far ends.
        incomplete = side == 224 and sum(node.op_type == "MaxPool" for node in nodes) == 0
        add("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1] if incomplete else [0] * 4)

    for outputs, inputs, kernel, stride, pad, group in ((96, 3, 11, 4, 0, 1), (256, 96, 5, 1, 2, groups)):
        convolve(outputs, inputs, kernel, stride, pad, group)
        for layer in (pool, normalize) if pool_first else (normalize, pool):
            layer()
    convolve(384, 256, 3, 1, 1, 1)
    convolve(384, 384, 3, 1, 1, groups)
    convolve(256, 384, 3, 1, 1, groups)
    pool()
    add("Reshape", np.array([1, 9216]))
    for outputs, inputs in ((WIDTH, 9216), (WIDTH, WIDTH)):
        add("Gemm", *parameters(outputs, inputs), transB=1)
        add("Relu")
        add("Dropout")
    weight, bias = parameters(CLASSES, WIDTH)
    add("Gemm", np.ascontiguousarray(weight.T), bias)
    if softmax:
        add("Softmax")
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("data", [1, 3, side, side]), (last, [1, CLASSES]))
    ]
    graph = onnx.helper.make_graph(nodes, "caffe", ends[:1], ends[1:], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("pool_first", "side", "softmax", "name"),
    [
        (False, 227, True, "krizhevsky-caffe"),
        (True, 227, False, "krizhevsky-caffenet"),
        (False, 224, True, "krizhevsky-caffe"),
    ],
)
def test_a_converted_network_gives_the_same_scores(
    tmp_path: Path, cat: NDArray[np.uint8], pool_first: bool, side: int, softmax: bool, name: str
) -> None:
    """On a photograph, through this package's own preprocessing and the command's file."""
    path = write_caffe(tmp_path / "net.onnx", pool_first=pool_first, side=side, softmax=softmax)
    out = tmp_path / "net.safetensors"
    result = succeed("convert-caffe", path, "--out", out)
    assert f"weights for {name}" in " ".join(result.stdout.split())
    classifier = load_classifier(name, weights=out)
    pixels = np.ascontiguousarray(read_image(cat)[20 : 20 + side, 50 : 50 + side])
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (classifier.mean, classifier.std))
    with torch.inference_mode():
        actual = classifier.module.eval()((tensor - mean) / std)
    caffe = pixels[..., ::-1].astype(np.float32) - np.array(CAFFE_MEAN, np.float32)
    session = onnxruntime.InferenceSession(path)
    (expected,) = session.run(None, {"data": caffe.transpose(2, 0, 1)[None]})
    np.testing.assert_allclose(actual.softmax(1) if softmax else actual, expected, rtol=1e-3, atol=1e-5)
    assert np.ptp(expected) > 0.05


@pytest.fixture(scope="module")
def caffe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_caffe(tmp_path_factory.mktemp("caffe") / "net.onnx")
    convert_caffe(path)
    return path


def attribute(model: Any, node: int, name: str) -> Any:
    return next(each for each in model.graph.node[node].attribute if each.name == name)


def sizes(model: Any) -> Any:
    return model.graph.input[0].type.tensor_type.shape.dim


def truncate(model: Any) -> None:
    del model.graph.node[-2:]


def text_group(model: Any) -> None:
    attribute(model, 0, "group").CopyFrom(onnx.helper.make_attribute("group", "one"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (truncate, "neither Caffe's AlexNet nor its CaffeNet: its layers are Conv, Relu"),
        (lambda model: setattr(attribute(model, 2, "alpha"), "f", 10.0), "network's probabilities differ by"),
        (
            lambda model: setitem(attribute(model, 0, "strides").ints, slice(2), [2, 2]),
            "layer Conv_0 has groups, strides",
        ),
        (lambda model: attribute(model, 0, "pads").ints.pop(), "has groups, strides and pads"),
        (text_group, "has groups, strides and pads"),
        (lambda model: model.graph.node[0].input.pop(), "lacks constant weights and biases"),
        (lambda model: setattr(sizes(model)[2], "dim_value", 100_000), "cannot be run"),
        (lambda model: sizes(model).pop(), "cannot be run"),
        (lambda model: setattr(model.graph.initializer[0], "raw_data", b"12"), "cannot be read"),
    ],
)
def test_other_networks_are_refused(change: Callable[[Any], None], message: str, tmp_path: Path, caffe: Path) -> None:
    model = onnx.load(caffe)
    change(model)
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(DensescoreError, match=f"odd.onnx.*{message}"):
        convert_caffe(tmp_path / "odd.onnx")


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DensescoreError, match="features.4.weight has shape"):
        convert_caffe(write_caffe(tmp_path / "ungrouped.onnx", groups=1))
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(DensescoreError, match="cannot be read as ONNX"):
        convert_caffe(tmp_path / "text.onnx")


@pytest.mark.parametrize(
    ("layer", "values", "message"),
    [
        ("Conv_0_0", np.ones(96, np.float32), r"layer Conv_0 has weights of shape \(96,\).* expected 4 dimensions"),
        ("Conv_0_0", np.ones((), np.float32), r"weights of shape \(\).* expected 4 dimensions"),
        ("Conv_0_0", np.ones((96, 3, 11), np.float32), "expected 4 dimensions"),
        ("Conv_0_0", np.ones((96, 3, 11, 0), np.float32), "none of them empty"),
        ("Conv_0_0", np.ones((96, 3, 5, 5), np.float32), "features.0.weight has shape"),
        ("Conv_0_0", np.ones((96, 3, 11, 11), np.int64), "must hold floating-point numbers, got int64"),
        ("Conv_0_0", np.full((96, 3, 11, 11), np.nan, np.float32), "Conv_0_0 holds values that are not finite"),
        ("Conv_0_1", np.ones((), np.float32), r"biases of shape \(\)"),
        ("Conv_0_1", np.ones((96, 1), np.float32), "biases of shape"),
        ("Conv_0_1", np.ones(95, np.float32), "features.0.bias has shape"),
        ("Gemm_16_0", np.ones(9216, np.float32), "layer Gemm_16 has weights .* expected 2 dimensions"),
        ("Gemm_16_1", np.ones(0, np.float32), "none of them empty"),
        ("Gemm_16_1", np.array([np.inf] * WIDTH, np.float32), "not finite"),
        ("Gemm_22_0", np.ones((WIDTH, 0), np.float32), "none of them empty"),
        ("Gemm_22_1", np.ones(CLASSES + 1, np.float32), "classifier.6.weight has shape"),
    ],
)
def test_tensors_of_other_shapes_and_types_are_refused(
    layer: str, values: NDArray[Any], message: str, tmp_path: Path, caffe: Path
) -> None:
    model = onnx.load(caffe)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == layer)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, layer))
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(DensescoreError, match=f"odd.onnx.*{message}"):
        convert_caffe(tmp_path / "odd.onnx")
