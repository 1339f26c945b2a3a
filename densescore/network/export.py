"""A dense model as one file for other runtimes: ONNX, or a ``torch.export`` program, of any height and width."""

import io
import json
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.fx.experimental import _config as fx_config

from densescore.errors import DensescoreError, MissingPackageError
from densescore.io.files import atomic_write
from densescore.models import load_classifier
from densescore.models.adaptation import Activation
from densescore.models.registry import Classifier, Weights
from densescore.models.weights import digest_of
from densescore.network.conv_graph import convolutional_form
from densescore.network.finer_stride import static_padding
from densescore.network.surgery import to_dense
from densescore.network.tracing import TRACING

FORMATS = (".onnx", ".pt2")
_TOLERANCE = 1e-3  # relative, of probabilities: another runtime sums in another order
_MOST_STRIDES = 1000  # per axis, of an image that the graph takes


class DenseModel(nn.Module):
    """A dense network with its preprocessing: pixels in [0, 1] → a probability per class and cell.

    Args:
        form: ``[1, 3, h, w]`` normalized pixels → ``[1, C, rows, cols]`` logits.
        mean: per channel, subtracted from pixels in [0, 1].
        std: per channel, divided by.
        activation: logits → probabilities.
    """

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
        weights: of a named model.
        labels: C class names.
        mean: per channel.
        std: per channel.
        patch_size: P.
        overwrite: replace the file.

    Returns:
        What the file carries as metadata ``densescore``: labels, patch, stride, scales and so on.

    Raises:
        DensescoreError: the network has no such graph, a package is missing, or the check fails.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise DensescoreError(f"{path}: expected a name that ends in {' or '.join(FORMATS)}")
    classifier = load_classifier(model, weights=weights, labels=labels, mean=mean, std=std, patch_size=patch_size)
    network = to_dense(classifier.module, classifier.patch_size)
    classifier.check_backbone(digest_of(*network.below_classifier))
    if classifier.head is not None:
        network.replace_classifier(classifier.head, classifier.head.fca.in_features, classifier.head.fcb.out_features)
    assert isinstance(network.trunk, fx.GraphModule)
    network.trunk = static_padding(network.trunk)
    dense = DenseModel(convolutional_form(network), classifier.mean, classifier.std, classifier.activation).eval()
    described = _describe(classifier, network.stride, network.classes)
    with atomic_write(path, overwrite=overwrite) as temporary:
        program = _trace(dense, network.patch, network.stride)
        if path.suffix == ".onnx":
            _write_onnx(program, temporary, described)
        else:
            torch.export.save(program, temporary, extra_files={"densescore": json.dumps(described)})
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
        "mean": list(classifier.mean),
        "std": list(classifier.std),
        "activation": classifier.activation,
        "scales": list(classifier.scales),
        "k": classifier.k,
    }


def _trace(dense: DenseModel, patch: int, stride: int) -> torch.export.ExportedProgram:
    """The graph, for all heights and widths of P + nS pixels."""
    height, width = (
        stride * torch.export.Dim(name, min=1, max=_MOST_STRIDES) + (patch - stride) for name in ("rows", "cols")
    )
    sample = torch.rand(1, 3, patch + 2 * stride, patch + 3 * stride)
    try:
        # Without it, a level of one cell a side would be another case, with a graph of its own.
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
    exported.model.metadata_props["densescore"] = json.dumps(described)
    exported.save(path, external_data=False)


def _onnx_runner(path: Path) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixels": pixels})[0]


def _torch_runner(path: Path) -> Any:
    program = torch.export.load(path).module()
    return lambda pixels: program(torch.from_numpy(pixels)).detach().numpy()


def _check(dense: DenseModel, run: Any, patch: int, stride: int, path: Path) -> float:
    """Largest difference of a probability from torch's, at two sizes that the trace has not seen.

    Raises:
        DensescoreError: they differ by more than rounding.
    """
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
