"""The trunk run by OpenVINO on a CPU, where it is installed: `pip install 'densescore[openvino]'`.

OpenVINO joins a depthwise convolution with its neighbors, so that the wide maps between them are not written to memory.
"""

import copy
import warnings
from importlib.util import find_spec

import torch
from torch import Tensor, fx, nn

from densescore.errors import DensescoreError, MissingPackageError, reason_of
from densescore.network.finer_stride import static_padding
from densescore.network.tracing import TRACING

SHAPES_KEPT = 1024
"""Kernels that OpenVINO keeps, one per layer and size of its map; by default it keeps 5,000."""

_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def available(dtype: torch.dtype) -> bool:
    """Whether OpenVINO is installed, and computes in this dtype."""
    return dtype in _HINTS and find_spec("openvino") is not None


class OpenVINOTrunk(nn.Module):
    """A trunk compiled for maps of any size: ``[1, 3, h, w]`` → ``[1, C, h', w']``.

    Args:
        trunk: the module, on the CPU.
        patch: P; with the next size up, for the trace.
        dtype: float32 or bfloat16: of the arithmetic, and of what is taken and returned.
        profile: count the time of each layer, too: see ``idle[0].get_profiling_info()``.

    Attributes:
        idle: infer requests that no thread is using. A request serves one thread at a time, so there come to be as many
            as threads have run the trunk at once.

    Raises:
        DensescoreError: OpenVINO is not installed, or cannot convert the trunk.
    """

    def __init__(self, trunk: nn.Module, patch: int, dtype: torch.dtype, *, profile: bool = False) -> None:
        super().__init__()
        try:
            import openvino
        except ImportError as error:
            raise MissingPackageError(
                "runtime 'openvino' needs OpenVINO: pip install 'densescore[openvino]'"
            ) from error
        if dtype not in _HINTS:
            raise DensescoreError(f"runtime 'openvino' computes in float32 or bfloat16, not {dtype}")
        try:
            with TRACING, warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # OpenVINO traces by torch.jit, which is deprecated
                # OpenVINO rounds to bfloat16 by itself, and better: it misreads weights that are in it already.
                exact = trunk if dtype == torch.float32 else copy.deepcopy(trunk).float()
                if isinstance(exact, fx.GraphModule):
                    exact = static_padding(exact)  # which OpenVINO fuses with the convolution
                model = openvino.convert_model(exact, example_input=torch.zeros(1, 3, patch, patch))
                steps = openvino.preprocess.PrePostProcessor(model)
                # Levels come channels last, and their maps are cut into windows channels last.
                for tensor in (steps.input(), steps.output()):
                    tensor.tensor().set_layout(openvino.Layout("NHWC")).set_element_type(openvino.Type.f32)
                    tensor.model().set_layout(openvino.Layout("NCHW"))
                model = steps.build()
                model.reshape([1, -1, -1, 3])
                settings = {
                    "INFERENCE_PRECISION_HINT": _HINTS[dtype],
                    "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                    "PERF_COUNT": profile,
                    "CPU_RUNTIME_CACHE_CAPACITY": SHAPES_KEPT,
                }
                self._compiled = openvino.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise DensescoreError(f"OpenVINO cannot convert the trunk: {reason_of(error)}") from error
        self._dtype = dtype
        self.idle = [self._compiled.create_infer_request()]

    def forward(self, pixels: Tensor) -> Tensor:
        """Run the trunk; from any number of threads."""
        given = pixels.permute(0, 2, 3, 1).float().contiguous().numpy()
        try:
            request = self.idle.pop()
        except IndexError:  # all are at work in other threads
            request = self._compiled.create_infer_request()
        try:
            result = request.infer({0: given}, share_inputs=True)[0]  # a copy, so that the request may be used again
        finally:
            self.idle.append(request)
        return torch.from_numpy(result).permute(0, 3, 1, 2).to(self._dtype)
