"""A dense model as one file for other runtimes: ONNX, or a ``torch.export`` program, of any height and width."""

import io
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.fx.experimental import _config as fx_config

from densescore.errors import DensescoreError, MissingPackageError
from densescore.io.files import atomic_write
from densescore.io.names import to_json
from densescore.models.head import Activation, AdaptationHead
from densescore.models.registry import Classifier, Weights, load_classifier
from densescore.models.weights import digest_of
from densescore.network.dense_network import AveragedWindows, DenseNetwork, LinearWindows, replaced
from densescore.network.graph import TRACING, symbolic_trace
from densescore.network.strides import static_padding
from densescore.network.surgery import to_dense

FORMATS = (".onnx", ".pt2")
_TOLERANCE = 1e-3  # relative, of probabilities: another runtime sums in another order
_MAX_STRIDES = 1000  # per axis, of an image that the graph takes


class DenseModel(nn.Module):
    """A network with its preprocessing: pixels ``[1, 3, P + nS, P + mS]`` in [0, 1] → probabilities per cell."""

    def __init__(self, form: nn.Module, mean: Sequence[float], std: Sequence[float], activation: Activation) -> None:
        super().__init__()
        self.form, self.activation = form, activation
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """``[1, 3, P + nS, P + mS]`` RGB in [0, 1] → ``[1, C, n + 1, m + 1]``."""
        logits = self.form((pixels - self.mean) / self.std)
        return logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(1)


def export_model(
    model: str | os.PathLike[str] | nn.Module,
    path: str | os.PathLike[str],
    *,
    weights: Weights = "default",
    labels: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    patch_size: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a dense model as one graph, and check it against torch at two sizes.

    The graph takes ``pixels``, float32 ``[1, 3, P + nS, P + mS]``, RGB in [0, 1] (a level of an image, resized and
    padded as `level_pixels` does; the normalization is inside), and gives ``probabilities``, float32
    ``[1, C, n + 1, m + 1]``, a cell per position.

    Args:
        model: a name, an adaptation head's file, or a module, as for `DenseScorer`; so are the next five.
        path: a new file: ``.onnx``, or ``.pt2`` for ``torch.export.load``.
        weights: weights of a named model.
        labels: C class names.
        mean: mean per channel.
        std: standard deviation per channel.
        patch_size: P, side of a patch in pixels.
        overwrite: replace the file.

    Returns:
        The file's metadata ``densescore`` (labels, patch, stride, scales and so on), and ``largest_difference``, of a
        probability from torch's.

    Raises:
        DensescoreError: the network has no such graph, a package is missing, or the check fails.

    Example:
        >>> export_model("lite0", "lite0.onnx")["stride"]  # doctest: +SKIP
        32
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise DensescoreError(f"{path}: expected a name that ends in {' or '.join(FORMATS)}")
    classifier = load_classifier(model, weights=weights, labels=labels, mean=mean, std=std, patch_size=patch_size)

    # Dense graph
    network = to_dense(classifier.module, classifier.patch_size)
    classifier.check_backbone(digest_of(*network.below_classifier))
    if classifier.head is not None:
        head = classifier.head
        network = network.with_classifier(head, head.fca.in_features, head.fcb.out_features)
    assert isinstance(network.trunk, fx.GraphModule)
    network = replaced(network, trunk=static_padding(network.trunk))
    dense = DenseModel(convolutional_form(network), classifier.mean, classifier.std, classifier.activation).eval()
    described = _describe(classifier, network.stride, network.classes)

    # Write it, and check the file
    with atomic_write(path, overwrite=overwrite) as temporary:
        program = _trace(dense, network.patch, network.stride)
        if path.suffix == ".onnx":
            _write_onnx(program, temporary, described)
        else:
            torch.export.save(program, temporary, extra_files={"densescore": to_json(described)})
        run = _onnx_runner(temporary) if path.suffix == ".onnx" else _torch_runner(temporary)
        described["largest_difference"] = _check(dense, run, network.patch, network.stride, path)
    return described


def _describe(classifier: Classifier, stride: int, classes: int) -> dict[str, Any]:
    labels = classifier.labels if len(classifier.labels) == classes else [f"class {index}" for index in range(classes)]
    return {
        "model": classifier.name,
        "labels": list(labels),
        "patch": classifier.patch_size,
        "stride": stride,
        "pixels": f"height and width: {classifier.patch_size} + n × {stride}, n = 0, 1, …; others are undefined",
        "mean": list(classifier.mean),
        "std": list(classifier.std),
        "activation": classifier.activation,
        "scales": list(classifier.scales),
        "k": classifier.k,
    }


def _trace(dense: DenseModel, patch: int, stride: int) -> torch.export.ExportedProgram:
    """The graph, for all heights and widths of P + nS pixels."""
    height, width = (
        stride * torch.export.Dim(name, min=1, max=_MAX_STRIDES) + (patch - stride) for name in ("rows", "cols")
    )
    sample = torch.rand(1, 3, patch + 2 * stride, patch + 3 * stride)
    try:
        # Without the patch, a level of one cell a side would need a graph of its own.
        with TRACING, torch.no_grad(), fx_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            return torch.export.export(dense, (sample,), dynamic_shapes=({2: height, 3: width},))
    except Exception as error:  # torch.export has many ways to say no
        raise DensescoreError(f"torch.export cannot trace {type(dense.form).__name__}: {error}") from error


def _write_onnx(program: torch.export.ExportedProgram, path: Path, described: dict[str, Any]) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "ONNX needs onnx, onnxscript and onnxruntime: pip install 'densescore[export]'"
        ) from error
    with redirect_stdout(io.StringIO()):  # the exporter reports its progress
        exported = torch.onnx.export(
            program, dynamo=True, input_names=["pixels"], output_names=["probabilities"], verbose=False
        )
    assert exported is not None
    exported.model.metadata_props["densescore"] = to_json(described)
    exported.save(path, external_data=False)


def _onnx_runner(path: Path) -> Any:
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixels": pixels})[0]


def _torch_runner(path: Path) -> Any:
    program = torch.export.load(path).module()
    return lambda pixels: program(torch.from_numpy(pixels)).detach().numpy()


def _check(dense: DenseModel, run: Any, patch: int, stride: int, path: Path) -> float:
    """Largest difference of a probability from torch's, at two sizes that the trace has not seen; an error if large."""
    generator = np.random.default_rng(0)
    largest = 0.0
    for rows, cols in ((0, 0), (4, 1)):
        pixels: NDArray[np.float32] = generator.random((1, 3, patch + rows * stride, patch + cols * stride), np.float32)
        with torch.inference_mode():
            expected = dense(torch.from_numpy(pixels)).numpy()
        actual = run(pixels)
        if actual.shape != expected.shape or not np.allclose(actual, expected, rtol=_TOLERANCE, atol=1e-6):
            raise DensescoreError(f"{path}: the exported graph gives other scores than torch at {pixels.shape}")
        largest = max(largest, float(np.abs(actual - expected).max()))
    return largest


def convolutional_form(network: DenseNetwork) -> nn.Module:
    """The network as convolutions: normalized pixels ``[1, 3, P + nS, P + mS]`` → logits ``[1, C, n + 1, m + 1]``.

    FC6's kernel is the window, that of later layers 1×1; a head with other layers runs over positions as rows.
    """
    project = network.project
    if isinstance(project, AveragedWindows):
        project_all: nn.Module = nn.AvgPool2d(project.window, stride=1)
    elif isinstance(project, LinearWindows) and isinstance(project.linear, nn.Linear):
        height, width = project.window
        linear = project.linear
        weight = rearrange(linear.weight.detach(), "f (c h w) -> f c h w", h=height, w=width)
        project_all = _convolution(weight, linear.bias)
    else:
        raise DensescoreError(f"{type(project).__name__}: only linear layers may take the flattened map in one graph")
    embed, classifier = _pointwise(network.embed), _pointwise(network.classifier)
    if embed is not None and classifier is not None:
        return nn.Sequential(network.trunk, project_all, embed, classifier).eval()
    shape = project.shape if isinstance(project, AveragedWindows) else (weight.shape[0],)
    return nn.Sequential(network.trunk, project_all, _Rows(network.embed, network.classifier, shape)).eval()


class _Rows(nn.Module):
    """A head with a norm or the like, over positions as rows of a matrix: ``[1, F, n, m]`` → ``[1, C, n, m]``."""

    def __init__(self, embed: nn.Module, classifier: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.embed, self.classifier, self.shape = embed, classifier, shape

    def forward(self, feature_map: Tensor) -> Tensor:
        """The head's outputs, position by position."""
        rows = feature_map.flatten(2)[0].T.unflatten(1, self.shape)  # [n·m, *shape]
        logits = self.classifier(self.embed(rows))
        return logits.T.unflatten(1, feature_map.shape[2:])[None]


def _convolution(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    outputs, inputs, height, width = weight.shape
    layer = nn.Conv2d(inputs, outputs, (height, width), bias=bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)
    return layer


def _pointwise(head: nn.Module) -> nn.Module | None:
    """A head of linear layers as 1×1 convolutions, without its flattening; None if it has another layer."""
    graph = symbolic_trace(head) if isinstance(head, AdaptationHead) else head
    assert isinstance(graph, fx.GraphModule)
    copied = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    layers: dict[str, nn.Module] = {}
    for node in graph.graph.nodes:
        layer = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, nn.Flatten) or getattr(node.target, "__name__", node.target) == "flatten":
            copies[node] = copies[node.args[0]]
            continue
        copies[node] = copied.node_copy(node, lambda old: copies[old])
        pointwise = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
        if type(layer) is nn.Linear:
            layers[str(node.target)] = _convolution(layer.weight.detach()[:, :, None, None], layer.bias)
        elif layer is not None and (
            pointwise or isinstance(layer, nn.ReLU | nn.ReLU6 | nn.Hardswish | nn.Dropout | nn.Identity)
        ):
            layers[str(node.target)] = layer
        elif node.op not in ("placeholder", "output"):
            return None
    return fx.GraphModule(layers, copied)
