"""The form of a network for a GPU gives the unfolded network's values: whole levels, canvases, heads."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from densescore.network.dense_network import DenseNetwork
from densescore.network.gpu import layers as gpu_layers
from densescore.network.gpu.accelerate import ConvolvedWindows, accelerated_on_gpu, gpu_form
from densescore.network.mosaic import pack
from densescore.network.surgery import to_dense
from densescore_kernels.depthwise.op import depthwise_conv2d
from tests.conftest import Toy


def lively(module: nn.Module) -> nn.Module:
    """Norms and biases that do something."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
        if isinstance(layer, nn.BatchNorm2d | nn.Conv2d) and layer.bias is not None:
            nn.init.normal_(layer.bias, std=0.1)
    return module.eval()


def of_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=5, **options)


def of_torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None, num_classes=5, **options)


def depthwise(channels: int, kernel: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, **options)


class Block(nn.Module):
    """A residual block whose first layers `inner` are; `last` follows the sum."""

    def __init__(self, inner: nn.Module, last: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.shortcut, self.inner, self.last = shortcut or nn.Identity(), inner, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.shortcut(x) + self.inner(x))


class Late(Block):
    """The same, whose shortcut runs after the layers."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x) + self.shortcut(x))


class Pools(nn.Module):
    """A padded max pool that is not alone in reading its input, beside a convolution that pads with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.convolution = nn.MaxPool2d(3, 1, 1), nn.Conv2d(16, 16, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.pool(x - 9), self.pool(x), self.convolution(x)[:, ::2]], 1)[:, :16]


CONV, BN = partial(nn.Conv2d, 16, 16), partial(nn.BatchNorm2d, 16)
SMALL: dict[str, tuple[list[nn.Module], list[str]]] = {
    "inverted bottleneck": (
        [CONV(1), BN(), nn.ReLU6(True), depthwise(16, 3), BN(), nn.ReLU6(True), CONV(1), BN()],
        ["Pointwise", "Depthwise", "Pointwise"],
    ),
    "clamp of a convolution, and of a sum": (
        [CONV(3, padding=1), nn.ReLU6(), depthwise(16, 5), Block(CONV(1), nn.ReLU6()), depthwise(16, 7, stride=2)],
        ["Convolution", "Depthwise", "Convolution", "Depthwise"],
    ),
    "residuals": (
        [Block(nn.Sequential(CONV(1), nn.ReLU(True), CONV(3, padding=1), BN()), nn.ReLU(True), CONV(1)),
         Block(nn.Sequential(CONV(1), BN()), nn.ReLU(True)), Block(CONV(1), nn.Identity())],
        ["Pointwise", "Pointwise", "Convolution", "Convolution", "Pointwise"],
    ),
    "a residual that is clamped in place": (
        [Block(CONV(1), nn.ReLU(True), nn.ReLU(True)), Late(CONV(1), nn.ReLU(), nn.ReLU(True))],
        ["ReLU", "Convolution", "Pointwise", "ReLU", "ReLU"],
    ),
    "a clamp that others see": (
        [Block(nn.Sequential(nn.ReLU(True), depthwise(16, 3)), nn.ReLU())],
        ["ReLU", "Depthwise", "ReLU"],
    ),
    "not clamps": (
        [CONV(1), nn.SiLU(), depthwise(16, 3), nn.GELU(), CONV(1), nn.Hardswish()],
        ["Pointwise", "SiLU", "Depthwise", "GELU", "Pointwise", "Hardswish"],
    ),
    "unequal padding": (
        [Conv2dSame(16, 16, 3, stride=2), nn.ReLU(), Conv2dSame(16, 16, 5, stride=2, groups=16), CONV(1)],
        ["Convolution", "Depthwise", "Pointwise"],
    ),
    "convolutions after gaps that nobody wrote": (
        [depthwise(16, 3), nn.ReLU(), CONV(3, padding=1), depthwise(16, 3, bias=False), CONV(3, bias=False)],
        ["Depthwise", "Convolution", "Depthwise", "Convolution"],
    ),
    "other groups, strides and dilations": (
        [CONV(3, padding=1, groups=4), CONV(1, stride=2), depthwise(16, 3, dilation=2), CONV((1, 3), padding=(0, 1))],
        ["Convolution"] * 4,
    ),
    "pools": (
        [CONV(1), nn.ReLU(), Pools(), nn.AvgPool2d(3, 2, 1)],
        ["Pointwise", "MaxPool2d", "MaxPool2d", "Convolution", "AvgPool2d"],
    ),
}  # fmt: skip


def small(name: str, dtype: torch.dtype = torch.float64) -> DenseNetwork:
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 16, 4, stride=4)
    module = nn.Sequential(stem, *SMALL[name][0], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    return to_dense(lively(module).to(dtype), 32)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal to rounding, in float64, where only a mistake differs."""
    assert expected.std() > 1e-6 * expected.abs().max() > 0
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9 * float(expected.abs().max()))


@torch.inference_mode()
def check_levels_and_heads(plain: DenseNetwork, gpu: DenseNetwork) -> None:
    pixels = torch.rand(2, 3, plain.patch + 2 * plain.stride, plain.patch + plain.stride, dtype=torch.float64)
    expected = plain.trunk(pixels)
    for channels_last in (True, False):
        maps = gpu.fast_trunk(pixels.contiguous(memory_format=torch.channels_last) if channels_last else pixels.clone())
        assert_same(maps, expected)
    features = plain.embed_blocks(expected.split(1))
    assert_same(gpu.embed_blocks(maps.split(1)), features)
    windows = gpu.windows(maps)
    assert_same(gpu.embed_windows(windows.flatten(0, 2)), features)
    assert gpu.window_width == windows[0, 0, 0].numel()
    assert_same(gpu.classifier(features), plain.classifier(features))
    crops = pixels[:, :, : plain.patch, : plain.patch]
    assert_same(gpu(crops), plain(crops))


@torch.inference_mode()
def check_canvas(plain: DenseNetwork, gpu: DenseNetwork) -> None:
    mosaic, stride, patch = gpu.mosaic, plain.stride, plain.patch
    assert mosaic is not None
    grids = [(2, 4), (1, 1), (3, 1)]
    (canvas,) = pack(grids, mosaic.spare, 10**6)
    dtype = next(plain.parameters()).dtype
    sizes = [(patch + (rows - 1) * stride, patch + (cols - 1) * stride) for rows, cols in grids]
    levels = [torch.rand(1, 3, *size).to(dtype) for size in sizes]
    pixels = torch.zeros(1, 3, patch + (canvas.rows - 1) * stride, patch + (canvas.cols - 1) * stride, dtype=dtype)
    for level, row, col in canvas.places:
        height, width = sizes[level]
        pixels[:, :, row * stride : row * stride + height, col * stride : col * stride + width] = levels[level]
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    before = pixels.clone()
    whole = mosaic(pixels, mosaic.tables(canvas, grids))
    assert torch.equal(pixels, before)
    for level, row, col in canvas.places:
        alone = plain.trunk(levels[level])
        shared = whole[:, :, row : row + alone.shape[2], col : col + alone.shape[3]]
        if dtype == torch.float64:
            assert_same(shared, alone)
        else:
            torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-5 * float(alone.abs().max()))


@pytest.mark.parametrize("name", SMALL)
def test_layers(name: str) -> None:
    """Values, and the layers after the stem."""
    plain = small(name)
    gpu = accelerated_on_gpu(plain)
    check_levels_and_heads(plain, gpu)
    check_canvas(plain, gpu)
    trunk: Any = gpu.trunk
    kinds = [type(trunk.get_submodule(node.target)).__name__ for node in trunk.graph.nodes if node.op == "call_module"]
    assert kinds[1:] == SMALL[name][1]


# Networks, patches, and whether levels share canvases
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, bool]] = {
    "lite0": (of_timm("tf_efficientnet_lite0"), 64, True),
    "alexnet": (of_torchvision("alexnet"), 224, True),
    "resnet50": (of_torchvision("resnet50"), 64, True),
    "resnet10t": (of_timm("resnet10t"), 64, True),
    "convnext": (of_timm("convnext_atto"), 64, True),
    "mobilenet_v2": (of_torchvision("mobilenet_v2"), 64, True),
    "mobilenet_v3": (of_torchvision("mobilenet_v3_small"), 64, False),  # squeeze-and-excitation
    "mnasnet": (of_torchvision("mnasnet0_5"), 64, True),
    "densenet": (of_timm("densenet121", growth_rate=8, block_config=(2, 2, 2, 2)), 64, True),
    "efficientnet": (of_timm("tf_efficientnet_b0"), 64, False),
    "googlenet": (of_torchvision("googlenet", init_weights=False, aux_logits=False), 64, False),  # pools round up
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    torch.manual_seed(0)
    build, patch, on_canvases = NETWORKS[name]
    plain = to_dense(lively(build()).double(), patch)
    gpu = accelerated_on_gpu(plain)
    check_levels_and_heads(plain, gpu)
    if on_canvases:
        check_canvas(plain, gpu)
    else:
        assert gpu.mosaic is None
    norms = [layer for layer in gpu.trunk.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert not norms or name == "densenet"  # whose norms come before convolutions, after concatenations


def test_fc6_is_a_convolution() -> None:
    plain = to_dense(Toy().double(), 20)
    gpu = accelerated_on_gpu(plain)
    assert isinstance(gpu.project, ConvolvedWindows)
    assert gpu.window_width == plain.feature_width < plain.window_width
    check_levels_and_heads(plain, gpu)


def test_phases_share_their_layers() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    finer = to_dense(lively(module).double(), 32).with_stride(4)
    gpu = accelerated_on_gpu(finer)
    pixels = torch.rand(1, 3, 48, 40, dtype=torch.float64)
    with torch.inference_mode():
        assert_same(gpu.fast_trunk(pixels), finer.fast_trunk(pixels))
    assert sum(isinstance(layer, gpu_layers.Convolution) for layer in gpu.fast_trunk.modules()) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    plain = small("inverted bottleneck", dtype)
    pixels = torch.rand(1, 3, 64, 96).to(dtype)
    with torch.inference_mode():
        expected, actual = plain.trunk(pixels), gpu_form(plain.trunk)(pixels)
    assert actual.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.triton_interpret
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1 before import")
def test_the_kernel_on_a_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_layers, "depthwise_conv2d", partial(depthwise_conv2d, backend="triton"))
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 8, 8), nn.ReLU6(), depthwise(16, 3, stride=2), nn.ReLU6(), nn.Conv2d(16, 4, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    plain = to_dense(lively(module), 32)
    gpu = accelerated_on_gpu(plain)
    monkeypatch.setattr("densescore.network.mosaic._is_exact", lambda *_: True)  # float64 is no kernel's
    check_canvas(plain, gpu)
