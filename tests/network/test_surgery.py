"""The surgery: convolutional networks keep their outputs; others are refused by the name of their layer."""

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from timm.layers.squeeze_excite import SqueezeExcite
from torch import Tensor, nn

from densescore import DensescoreError
from densescore.errors import NotConvolutionalError
from densescore.models.head import AdaptationHead
from densescore.models.krizhevsky import Krizhevsky
from densescore.network.surgery import to_dense
from tests.network.cpu.operations import Function

CONVOLUTIONAL = {
    "alexnet": (torchvision.models.alexnet, (4096,), 4096),
    "resnet18": (torchvision.models.resnet18, (512, 1, 1), 512),
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, (576, 1, 1), 1024),
    "shufflenet": (torchvision.models.shufflenet_v2_x0_5, (1024,), 1024),
    "densenet121": (torchvision.models.densenet121, (1024, 1, 1), 1024),
    "timm resnet18": (lambda: timm.create_model("resnet18"), (512, 1, 1), 512),
    "timm convnext_atto": (lambda: timm.create_model("convnext_atto"), (320, 1, 1), 320),
    "timm mobilenetv3": (lambda: timm.create_model("mobilenetv3_small_050"), (288, 1, 1), 1024),
    "timm efficientnet_b0": (lambda: timm.create_model("efficientnet_b0"), (1280, 1, 1), 1280),
    "timm vgg11": (lambda: timm.create_model("vgg11"), (4096, 1, 1), 4096),  # FC6 as a convolution already
    "timm resnetv2_50": (lambda: timm.create_model("resnetv2_50"), (2048, 1, 1), 2048),  # FC8 as a convolution
    "krizhevsky 6144": (lambda: Krizhevsky(classes=7, width=6144), (6144,), 6144),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@torch.inference_mode()
def test_named_families_keep_their_outputs(name: str) -> None:
    build, row, width = CONVOLUTIONAL[name]
    torch.manual_seed(0)
    module = build().eval()
    network = to_dense(module, 224)
    assert (network.stride, network.feature_width) == (32, width)
    crops = torch.rand(2, 3, 224, 224)
    expected = module(crops)
    assert expected.shape[1] == network.classes
    assert expected.std() > 0
    torch.testing.assert_close(network(crops), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    maps = network.trunk(torch.rand(1, 3, 256, 320))  # 2 × 4 cells
    cells = network.project([network.block(maps, range(2), range(4))])
    assert cells.shape == (8, *row)
    assert network.classifier(network.embed(cells.clone())).shape == (8, network.classes)
    part = network.project([network.block(maps, range(1, 2), range(2, 4))])
    torch.testing.assert_close(part, cells[6:8], rtol=1e-4, atol=1e-5 * float(cells.abs().max()))


class Net(nn.Module):
    """A trunk and a tail."""

    def __init__(self, tail: nn.Module, stride: int = 2) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3, stride=stride, padding=1), nn.ReLU())
        self.tail = tail

    def forward(self, pixels: Tensor) -> Tensor:
        return self.tail(self.trunk(pixels))


def head_after(flatten: Callable[[Tensor], Tensor], features: int) -> nn.Module:
    return nn.Sequential(Function(flatten), nn.Linear(features, 5))


def mean_head() -> nn.Module:
    return head_after(lambda x: x.mean([2, 3]), 4)


@pytest.mark.parametrize(
    ("tail", "shape"),
    [(head_after(lambda x: x.view(x.size(0), 256), 256), (256,)), (mean_head(), (4,))],  # batch size read from the map
)
@torch.inference_mode()
def test_flattening_by_view_and_averaging_by_mean(tail: nn.Module, shape: tuple[int, ...]) -> None:
    module = Net(tail).eval()
    network = to_dense(module, 16)
    assert (network.stride, network.window) == (2, (8, 8))
    crops = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(network(crops), module(crops))
    block = network.block(network.trunk(torch.rand(1, 3, 18, 22)), range(2), range(4))
    assert network.project([block]).shape == (8, *shape)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        return self.a(x) + self.b(x)


class ChannelsLast(nn.Module):
    """Averages a map with its channels last, and norms with a parameter used in forward itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.fc = nn.Parameter(torch.rand(4)), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = (x.permute(0, 2, 3, 1) * self.weight).mean((1, 2))
        return self.fc(x * torch.rsqrt((x * x).mean(1, keepdim=True) + 1e-6) * self.weight)


TWO_STEPS = head_after(lambda x: x.flatten(2).mean(2), 4)  # only then has nothing but channels


@pytest.mark.parametrize("tail", [TwoHeads(), TWO_STEPS, ChannelsLast()], ids=lambda tail: type(tail).__name__)
@torch.inference_mode()
def test_heads_of_other_forms(tail: nn.Module) -> None:
    torch.manual_seed(0)
    module = Net(tail).eval()
    network = to_dense(module, 16)
    assert (network.stride, network.window, network.feature_width, network.classes) == (2, (8, 8), 4, 5)
    crops = torch.rand(3, 3, 16, 16)
    expected = module(crops)
    assert expected.std() > 1e-3
    torch.testing.assert_close(network(crops), expected)
    wide = torch.rand(1, 3, 18, 22)
    cells = network.classifier(network.embed_blocks([network.block(network.trunk(wide), range(2), range(4))]))
    assert cells.shape == (8, 5)
    inner = network.trunk(wide)[:, :, 1:9, 2:10]  # the window of the cell in row 1, column 2
    torch.testing.assert_close(cells[6:7], network.classifier(network.embed_blocks([inner])))


class Mixed(nn.Module):
    """A trunk with any layer in it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem, self.layer, self.fc = nn.Conv2d(3, 4, 4, 4), layer, nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(self.stem(x)).mean((2, 3)))


class Windows(nn.Module):
    """Sums over windows of 3×3 positions that do not overlap."""

    def forward(self, x: Tensor) -> Tensor:
        rows, cols = -x.shape[2] % 3, -x.shape[3] % 3
        wide = nn.functional.pad(x, (0, cols, 0, rows))
        pooled = nn.functional.interpolate(nn.functional.avg_pool2d(wide, 3), scale_factor=3)
        return x + pooled[:, :, : x.shape[2], : x.shape[3]]


class Softmax(nn.Module):
    """Linear attention over all positions."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        return (flat @ flat.transpose(1, 2) @ flat).reshape(x.shape)


class Unfolds(nn.Module):
    """A convolution written by hand: local, though no layer says so."""

    def forward(self, x: Tensor) -> Tensor:
        around = nn.functional.unfold(x, 3, padding=1).reshape(1, 4, 9, x.shape[2], x.shape[3])
        return around.amax(2)


class Leaf(nn.Module):
    """Hides a layer from the trace, as timm's modules that cannot be traced."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.hidden = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(x)


Leaf.__module__ = "torch.nn.hidden"  # fx takes what comes from torch.nn for a layer


class Vectors(nn.Module):
    """Adds a number to each column, or row."""

    def __init__(self, make: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.make = make
        self.table = nn.Parameter(torch.arange(64.0))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.make(x, self.table)


VECTORS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda x, _: torch.linspace(0, 4, x.shape[3]),
    lambda x, _: torch.linspace(0, 4, x.shape[2])[:, None],
    lambda x, _: torch.arange(x.shape[3]),
    lambda x, _: torch.ones(x.shape[3]).cumsum(0),
    lambda x, table: table[: x.shape[3]],
    lambda x, table: table[None, None, None, : x.shape[3]],
    lambda x, table: nn.functional.interpolate(table.view(1, 1, 8, 8), size=x.shape[2:], mode="bilinear"),
)


@pytest.mark.parametrize("hide", [lambda layer: layer, Leaf], ids=["traced", "hidden"])
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Windows(), "treats positions differently"),
        (Function(lambda x: x + torch.ones_like(x).cumsum(2)), "treats positions differently"),
        # Averages over columns, as coordinate attention does
        (Function(lambda x: x * x.mean(2, keepdim=True)), "makes each position depend on the whole image"),
        (Softmax(), "makes each position depend on the whole image"),
        *((Vectors(make), "gives each position a number of its own") for make in VECTORS),
        (Function(lambda x: x + torch.roll(x, 1, 3)), "wraps around the image"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "wraps around the image"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_nonlocal_layers_are_refused(layer: nn.Module, message: str, hide: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(NotConvolutionalError, match=rf"layer layer.* {message}.*by crops"):
        to_dense(Mixed(hide(layer)), 36)


@pytest.mark.parametrize("hide", [lambda layer: layer, Leaf], ids=["traced", "hidden"])
@pytest.mark.parametrize(
    ("layer", "averages"),
    [
        (Unfolds(), False),
        (nn.GroupNorm(2, 4), True),
        (nn.InstanceNorm2d(4), True),
        (nn.BatchNorm2d(4, track_running_stats=False), True),
        (nn.BatchNorm2d(4), False),
        (SqueezeExcite(4), True),
        (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, 4, 5, padding=2)), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
@torch.no_grad()
def test_local_layers_and_averages_are_accepted(
    layer: nn.Module, averages: bool, hide: Callable[[nn.Module], nn.Module]
) -> None:
    module = Mixed(hide(layer)).eval()
    network = to_dense(module, 36)
    crop = torch.rand(1, 3, 36, 36)
    torch.testing.assert_close(network(crop), module(crop))
    assert bool(network.level_context) == averages
    assert all(name.startswith("layer layer") for name in network.level_context)


@pytest.mark.parametrize(
    ("module", "patch", "message"),
    [
        (torchvision.models.swin_t, 224, r"layer features.1.[01].attn \(ShiftedWindowAttention\)"),
        (torchvision.models.vit_b_32, 224, r"encoder_layer_0.self_attention \(MultiheadAttention\) combines"),
        (
            lambda: timm.create_model("mixer_s32_224"),
            224,
            r"layer stem \(PatchEmbed\) takes no larger image",
        ),
        (lambda: timm.create_model("tiny_vit_5m_224"), 224, r"layer stages.1.blocks.0 \(TinyVitBlock\)"),
        (
            lambda: timm.create_model("mobilevit_xxs"),
            256,
            r"layer stages.2.1 \(MobileVitBlock\) makes each position",
        ),
        (
            lambda: timm.create_model("efficientvit_b0"),
            224,
            r"main \(LiteMLA\) makes each position depend",
        ),
        (torchvision.models.squeezenet1_1, 224, r"no linear layer follows layer classifier.3 \(Adaptive"),
        (torchvision.models.alexnet, 320, r"layer avgpool \(AdaptiveAvgPool2d\) makes a 9×9 map 6×6"),
        (lambda: timm.create_model("convmixer_768_32"), 224, "grows by 9×18 cells .* a stride that divides 64"),
        (Net(mean_head(), stride=7), 28, r"layer trunk.0 \(Conv2d\) grows by 10×19 cells .* a stride that divides 64"),
        (Net(Function(lambda x: x.amax((2, 3)))), 16, "operation amax"),
        (Net(Function(lambda x: x if x.sum() > 0 else -x)), 16, "Net cannot be traced: tail"),
        (
            Net(nn.Sequential(nn.Flatten(), nn.Linear(99, 5))),
            16,
            "cannot be run on 16×16 pixels .*: mat1 and mat2",
        ),
        (Net(nn.Identity()), 16, r"must return one \[N, classes\]"),
        (Net(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ReLU())), 16, "no linear layer follows"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_other_networks_are_refused_by_the_name_of_a_layer(
    module: nn.Module | Callable[[], nn.Module], patch: int, message: str
) -> None:
    with pytest.raises(DensescoreError, match=message):
        to_dense(module if isinstance(module, nn.Module) else module(), patch)


def test_a_head_of_another_width_is_refused() -> None:
    network = to_dense(Net(mean_head()), 16)
    with pytest.raises(DensescoreError, match="the head takes 7 features, but the network gives 4"):
        network.with_classifier(AdaptationHead(7, 3), 7, 3)
