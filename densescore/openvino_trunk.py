"""The trunk run by OpenVINO on a CPU, where it is installed: `pip install 'densescore[openvino]'`.

Depthwise networks live or die by the runtime: OpenVINO joins a depthwise convolution with its neighbours, so that the
wide maps between them are not written to memory.
"""

import copy
import warnings
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import get_same_padding
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from densescore_kernels.errors import DensescoreError

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

    Raises:
        DensescoreError: OpenVINO is not installed, or cannot convert the trunk.
    """

    def __init__(self, trunk: nn.Module, patch: int, dtype: torch.dtype) -> None:
        super().__init__()
        try:
            import openvino
        except ImportError as error:
            raise DensescoreError("runtime 'openvino' needs OpenVINO: pip install 'densescore[openvino]'") from error
        if dtype not in _HINTS:
            raise DensescoreError(f"runtime 'openvino' computes in float32 or bfloat16, not {dtype}")
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # OpenVINO traces by torch.jit, which is deprecated
                # OpenVINO rounds to bfloat16 by itself, and better: it misreads weights that are in it already.
                exact = _with_fixed_padding(trunk if dtype == torch.float32 else copy.deepcopy(trunk).float(), patch)
                model = openvino.convert_model(exact, example_input=torch.zeros(1, 3, patch, patch))
                steps = openvino.preprocess.PrePostProcessor(model)
                # Levels come channels last, and their maps are cut into windows channels last.
                for tensor in (steps.input(), steps.output()):
                    tensor.tensor().set_layout(openvino.Layout("NHWC")).set_element_type(openvino.Type.f32)
                    tensor.model().set_layout(openvino.Layout("NCHW"))
                model = steps.build()
                model.reshape([1, -1, -1, 3])
                settings = {"INFERENCE_PRECISION_HINT": _HINTS[dtype], "INFERENCE_NUM_THREADS": torch.get_num_threads()}
                self._request = openvino.compile_model(model, "CPU", settings).create_infer_request()
        except RuntimeError as error:
            raise DensescoreError(f"OpenVINO cannot convert the trunk: {str(error).splitlines()[0]}") from error
        self._dtype = dtype

    def forward(self, pixels: Tensor) -> Tensor:
        """Run the trunk."""
        result = self._request.infer({0: pixels.permute(0, 2, 3, 1).float().contiguous().numpy()}, share_inputs=True)
        return torch.from_numpy(result[0].copy()).permute(0, 3, 1, 2).to(self._dtype)


def _with_fixed_padding(trunk: nn.Module, patch: int) -> nn.Module:
    """The trunk with the paddings that `Conv2dSame` works out from a map's size written down: OpenVINO fuses them then.

    They depend on the size modulo a stride that divides the trunk's own; levels differ by multiples of that one.
    """
    if not isinstance(trunk, fx.GraphModule) or not any(isinstance(layer, Conv2dSame) for layer in trunk.modules()):
        return trunk
    graph, layers = copy.deepcopy(trunk.graph), dict(trunk.named_modules())
    ShapeProp(fx.GraphModule(layers, graph)).propagate(torch.zeros(1, 3, patch, patch))
    for node in graph.nodes:
        layer = layers.get(str(node.target))
        if node.op != "call_module" or not isinstance(layer, Conv2dSame):
            continue
        sides: list[int] = []
        for axis in (1, 0):
            size = node.args[0].meta["tensor_meta"].shape[2 + axis]
            total = get_same_padding(size, layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis])
            sides += [total // 2, total - total // 2]
        node.target = f"padded_{node.name}"
        layers[node.target] = _PaddedConv2d(layer, sides)
    return fx.GraphModule(layers, graph)


class _PaddedConv2d(nn.Module):
    """A convolution after zeros on the left, right, top and bottom."""

    def __init__(self, layer: nn.Conv2d, sides: list[int]) -> None:
        super().__init__()
        self.layer, self.sides = layer, sides

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        x = F.pad(x, self.sides)
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)
