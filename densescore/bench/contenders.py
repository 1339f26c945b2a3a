"""Ways to score all patches of an image: each takes the levels and gives the same probabilities, or is left out."""

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.layers.test_time_pool import TestTimePoolHead
from torch import Tensor, nn

from densescore.errors import MissingPackageError
from densescore.geometry import Pyramid
from densescore.models.efficientnet_lite import EfficientNetLite
from densescore.network.cpu.openvino import import_openvino
from densescore.network.dense_network import DenseNetwork
from densescore.network.export import convolutional_form

Run = Callable[[Tensor], Tensor]

CROP_SIZES = {"cpu": (8, 16, 32, 64, 128), "cuda": (32, 64, 128, 256, 512)}
"""Batch sizes that crops are tuned over, by device."""


@dataclass(frozen=True)
class Subject:
    """One unmodified network on one image."""

    module: nn.Module  # the classifier as its author wrote it, in the dtype and on the device under test
    network: DenseNetwork  # its parts, not sped up
    levels: list[Tensor]  # [1, 3, P + nS, P + mS] each, normalized
    pyramid: Pyramid
    cells: Tensor  # indices of the patches that are cropped

    def crops(self, batch: int) -> Iterator[Tensor]:
        """The sampled patches in batches: ``[≤ batch, 3, P, P]``."""
        views = []
        for index in self.cells.tolist():
            level, row, col = self.pyramid.locate(index)
            x0, y0, x1, y1 = self.pyramid.window(level, row, col)
            views.append(self.levels[self.pyramid.levels.index(level)][0, :, y0:y1, x0:x1])
        for start in range(0, len(views), batch):
            yield torch.stack(views[start : start + batch]).contiguous(memory_format=torch.channels_last)

    @property
    def dtype(self) -> torch.dtype:
        """The module's dtype."""
        return next(self.module.parameters()).dtype

    @property
    def patch(self) -> Tensor:
        """One patch: ``[1, 3, P, P]``."""
        side = self.network.patch
        return self.levels[0][..., :side, :side].contiguous()

    def form(self, dense: bool) -> nn.Module:
        """The network as one graph of convolutions, or the module itself for crops."""
        return convolutional_form(self.network) if dense else self.module


class UnavailableError(Exception):
    """The contender cannot run here."""


def probabilities(logits: Tensor) -> Tensor:
    """Softmax in float32, as the engine does."""
    return torch.softmax(logits.float(), dim=1)


def crops_by(run: Run, subject: Subject, batch: int) -> Tensor:
    """Probabilities of the sampled crops, ``[len(cells), C]``; cutting them out is part of the work."""
    return probabilities(torch.cat([run(crops) for crops in subject.crops(batch)]))


def dense_by(run: Run, subject: Subject) -> Tensor:
    """Probabilities of all cells, ``[M, C]``, level by level."""
    maps = [run(level) for level in subject.levels]  # [1, C, rows, cols] each
    return probabilities(torch.cat([scores.flatten(2)[0].T for scores in maps]))


def compiled(subject: Subject, dense: bool) -> Run:
    """`torch.compile`: for crops of one shape, or once for levels of all sizes."""
    run: Run = torch.compile(subject.form(dense), dynamic=dense)
    return run


def onnxruntime(subject: Subject, dense: bool) -> Run:
    """The module in ONNX Runtime; height and width are free for levels, fixed for crops."""
    if subject.dtype != torch.float32:
        raise UnavailableError("ONNX Runtime's CPU kernels compute in float32")
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise UnavailableError("ONNX Runtime is not installed (extra: bench)") from error
    ort.disable_telemetry_events()
    file = io.BytesIO()
    target: Any = file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter by tracing is deprecated, but needs no further package
        axes = {"x": {0: "n", 2: "h", 3: "w"} if dense else {0: "n"}}
        torch.onnx.export(
            subject.form(dense), (subject.patch,), target, input_names=["x"], dynamic_axes=axes, dynamo=False
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(None, {"x": np.ascontiguousarray(pixels.numpy())})[0])


def openvino(subject: Subject, dense: bool) -> Run:
    """The module in OpenVINO's CPU plugin, tuned for latency with all threads."""
    try:
        ov = import_openvino()
    except MissingPackageError as error:
        raise UnavailableError("OpenVINO is not installed (extra: openvino)") from error
    module, sample = subject.form(dense), subject.patch.float()
    exact = module if subject.dtype == torch.float32 else copy.deepcopy(module).float()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = ov.convert_model(exact, example_input=sample)
    model.reshape([-1, 3, -1, -1] if dense else [-1, 3, *sample.shape[2:]])
    hint = "f32" if subject.dtype == torch.float32 else "bf16"
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = ov.compile_model(model, "CPU", settings).create_infer_request()

    def run(pixels: Tensor) -> Tensor:
        result = request.infer({0: pixels.float().contiguous().numpy()}, share_inputs=True)
        return torch.from_numpy(result[0].copy())

    return run


def timm_pooling(subject: Subject, dense: bool) -> Run:
    """Timm's test-time pooling, its head for large images, without the last step (the average over cells)."""
    base: Any = copy.deepcopy(subject.module)
    if isinstance(base, EfficientNetLite):  # timm's network of these weights, which are named as there
        ours, base = base, timm.create_model(base.timm_name)
        base.classifier = ours.classifier
        base.load_state_dict(ours.state_dict())
        base = base.to(subject.patch).eval()
    pool = (getattr(base, "default_cfg", None) or {}).get("pool_size")  # only timm's networks have it
    if pool is None or not isinstance(base.get_classifier(), nn.Linear | nn.Conv2d):
        raise UnavailableError("not one of timm's networks that end in pooling and one linear layer")
    head = TestTimePoolHead(base, original_pool=pool).to(subject.patch).eval()
    return lambda pixels: head.fc(F.avg_pool2d(head.base.forward_features(pixels), head.original_pool, stride=1))


RUNTIMES: dict[str, Callable[[Subject, bool], Run]] = {
    "crops": Subject.form,
    "crops-compile": compiled,
    "crops-onnxruntime": onnxruntime,
    "crops-openvino": openvino,
    "dense-modules": Subject.form,
    "dense-compile": compiled,
    "dense-timm": timm_pooling,
    "dense-onnxruntime": onnxruntime,
    "dense-openvino": openvino,
}
"""How to make each of `CONTENDERS`."""


def build(name: str, subject: Subject, batch: int) -> Callable[[], Tensor]:
    """A contender, ready to run: a call gives probabilities of the sampled crops, or of all cells.

    Raises UnavailableError if its runtime is not installed or cannot run the network.
    """
    dense = name.startswith("dense")
    try:
        run = RUNTIMES[name](subject, dense)
    except (RuntimeError, ImportError, ValueError) as error:
        raise UnavailableError(str(error).strip().splitlines()[0][:200]) from error
    return (lambda: dense_by(run, subject)) if dense else (lambda: crops_by(run, subject, batch))
