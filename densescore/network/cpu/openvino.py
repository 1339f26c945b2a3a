"""The trunk run by OpenVINO on a CPU, where it is installed: `pip install 'densescore[openvino]'`.

OpenVINO joins a depthwise convolution with its neighbors: the wide maps between them are not written to memory.
"""

import copy
import warnings
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, fx, nn

from densescore.errors import DensescoreError, MissingPackageError, reason_of
from densescore.network.graph import TRACING
from densescore.network.strides import static_padding

_CACHED_KERNELS = 1024  # one per layer and size of its map; OpenVINO's default is 5,000
_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def available(dtype: torch.dtype) -> bool:
    """Whether OpenVINO is installed, and computes in this dtype."""
    return dtype in _HINTS and find_spec("openvino") is not None


class _Silent:
    """Takes the place of ``openvino_telemetry.Telemetry``, which looks up a host and writes to the user's home."""

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    start_session = end_session = send_event = send_error = send_stack_trace = force_shutdown = __init__


def import_openvino() -> Any:
    """The package, without its usage data: its import and its conversion each report to an analytics host."""
    with suppress(ImportError):
        import openvino_telemetry

        openvino_telemetry.Telemetry = _Silent
    try:
        import openvino
    except ImportError as error:
        raise MissingPackageError("runtime 'openvino' needs OpenVINO: pip install 'densescore[openvino]'") from error
    return openvino


class OpenVINOTrunk(nn.Module):
    """A trunk compiled for maps of any size: ``[1, 3, h, w]`` → ``[1, C, h', w']`` in float32 or bfloat16.

    `idle` are infer requests: one serves one thread at a time. `data`, if given, is an earlier `export` of the trunk.
    """

    def __init__(self, trunk: nn.Module, patch: int, dtype: torch.dtype, data: bytes | None = None) -> None:
        super().__init__()
        openvino = import_openvino()
        if dtype not in _HINTS:
            raise DensescoreError(f"runtime 'openvino' computes in float32 or bfloat16, not {dtype}")

        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[dtype],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "CPU_RUNTIME_CACHE_CAPACITY": _CACHED_KERNELS,
        }
        try:
            if data is None:
                self._compiled = openvino.compile_model(_convert(openvino, trunk, patch, dtype), "CPU", settings)
            else:
                self._compiled = openvino.Core().import_model(data, "CPU", settings)
        except Exception as error:  # OpenVINO's frontends have their own kinds
            raise DensescoreError(f"OpenVINO cannot convert the trunk: {reason_of(error)}") from error
        self._dtype = dtype
        self.idle = [self._compiled.create_infer_request()]

    def export(self) -> bytes:
        """The compiled trunk, for a process with the same OpenVINO."""
        data: bytes = self._compiled.export_model().getvalue()
        return data

    def forward(self, pixels: Tensor) -> Tensor:
        """Run the trunk; from any number of threads."""
        array = pixels.permute(0, 2, 3, 1).float().contiguous().numpy()
        try:
            request = self.idle.pop()
        except IndexError:  # other threads use all of them
            request = self._compiled.create_infer_request()
        try:
            result = request.infer({0: array}, share_inputs=True)[0]  # a copy: the request is reused
        finally:
            self.idle.append(request)
        return torch.from_numpy(result).permute(0, 3, 1, 2).to(self._dtype)


def _convert(openvino: Any, trunk: nn.Module, patch: int, dtype: torch.dtype) -> Any:
    """OpenVINO's model of a trunk: traced at one patch, then of any size and channels last."""
    with TRACING, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # OpenVINO traces by torch.jit, which is deprecated
        # OpenVINO rounds to bfloat16 by itself, and better: it misreads weights that are in it already.
        exact = trunk if dtype == torch.float32 else copy.deepcopy(trunk).float()
        if isinstance(exact, fx.GraphModule):
            exact = static_padding(exact)  # OpenVINO fuses it with the convolution
        model = openvino.convert_model(exact, example_input=torch.zeros(1, 3, patch, patch))
        steps = openvino.preprocess.PrePostProcessor(model)
        for tensor in (steps.input(), steps.output()):
            tensor.tensor().set_layout(openvino.Layout("NHWC")).set_element_type(openvino.Type.f32)
            tensor.model().set_layout(openvino.Layout("NCHW"))
        model = steps.build()
        model.reshape([1, -1, -1, 3])
    return model
