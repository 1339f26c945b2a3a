"""Fused layers equal the layers that they replace."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers.norm_act import BatchNormAct2d
from timm.models import EfficientNet
from torch import fx, nn

from densescore.models.registry import load_classifier
from densescore.network.cpu.fusion import FusedConv2d, fuse
from densescore.network.cpu.onednn import PackedLinear
from densescore.network.surgery import to_dense


def liven(module: nn.Module) -> nn.Module:
    """Batch norms that do something, as after training."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            if layer.running_mean is not None and layer.running_var is not None:
                nn.init.normal_(layer.running_mean, std=0.1)
                nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias, std=0.1)
    return module.eval()


class Tracer(fx.Tracer):
    """Stops at timm's batch norm too, as the surgery does."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, BatchNormAct2d) or super().is_leaf_module(m, module_qualified_name)


def types_in(graph: fx.GraphModule) -> list[type[nn.Module]]:
    return [type(graph.get_submodule(str(node.target))) for node in graph.graph.nodes if node.op == "call_module"]


@torch.no_grad()
def check(module: nn.Module, x: torch.Tensor, left: list[type[nn.Module]]) -> None:
    """Equal outputs to rounding, and only `left` beside fused layers."""
    graph = fx.GraphModule(module, Tracer().trace(module))
    fused = fuse(graph)
    kinds = types_in(fused)
    assert [kind for kind in kinds if kind not in (FusedConv2d, PackedLinear)] == left
    assert len(kinds) > len(left)
    expected = module(x)
    assert expected.std() > 1e-3
    torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    torch.testing.assert_close(graph(x), expected)  # the original is as it was


@pytest.mark.parametrize(
    ("layers", "left"),
    [
        ([nn.Conv2d(4, 8, 3)], []),
        ([nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()], []),
        ([nn.Conv2d(4, 8, (3, 5), stride=(2, 1), padding=(1, 2)), nn.ReLU6()], []),
        ([nn.Conv2d(4, 4, 3, groups=4, dilation=2), nn.Identity(), nn.BatchNorm2d(4), nn.Identity()], []),
        ([nn.Conv2d(4, 8, 1), BatchNormAct2d(8, act_layer=nn.SiLU)], [nn.SiLU]),
        ([nn.Conv2d(4, 8, 3), nn.Dropout(), BatchNormAct2d(8), nn.BatchNorm2d(8)], [nn.BatchNorm2d]),
        ([nn.Conv2d(4, 8, 1), nn.SiLU()], [nn.SiLU]),
        ([nn.Conv2d(4, 8, 1), nn.ReLU(), nn.BatchNorm2d(8)], [nn.BatchNorm2d]),
        ([nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8, track_running_stats=False)], [nn.BatchNorm2d]),
        ([nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), nn.Conv2d(8, 8, 1)], [nn.Conv2d]),
        ([nn.Conv2d(4, 8, 3, padding="same"), nn.Conv2d(8, 8, 1)], [nn.Conv2d]),
        ([nn.Conv2d(4, 64, 1), nn.Conv2d(64, 48, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)], [nn.MaxPool2d]),
    ],
    ids=str,
)
def test_layers(layers: list[nn.Module], left: list[type[nn.Module]]) -> None:
    check(liven(nn.Sequential(*layers)), torch.randn(1, 4, 37, 41), left)


def test_linear_layers_take_their_relu() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 3)).eval()
    check(module, torch.randn(7, 6), [])


def test_activations_as_functions_are_fused() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.third(F.relu(self.second(self.first(x).relu_()), inplace=True)))

    torch.manual_seed(0)
    check(Functional().eval(), torch.randn(1, 4, 9, 9), [])
    module = Functional()
    assert len(fuse(fx.GraphModule(module, Tracer().trace(module))).graph.nodes) == 5


def test_an_output_with_two_users_is_not_clamped() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.relu = nn.Conv2d(4, 8, 3), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.convolution(x)
            return self.relu(y) - y

    torch.manual_seed(0)
    check(Branches(), torch.randn(1, 4, 9, 9), [nn.ReLU])


@pytest.mark.parametrize(
    "module",
    [
        torchvision.models.resnet18(),
        torchvision.models.mobilenet_v2(),
        torchvision.models.alexnet(),
        timm.create_model("regnetx_002"),
        timm.create_model("densenet121"),
        load_classifier("lite0").module,  # pads by what the map's size asks for
    ],
    ids=lambda module: type(module).__name__,
)
@torch.no_grad()
def test_trunks(module: nn.Module) -> None:
    """Large enough for Cook–Toom, and not a whole number of tiles."""
    # Trained norms stay: random ones make of this depth a network that magnifies any rounding.
    network = to_dense(module if isinstance(module, EfficientNet) else liven(module), 224)
    assert isinstance(network.trunk, fx.GraphModule)
    fused = fuse(network.trunk)
    x = torch.randn(1, 3, 224 + 4 * network.stride, 224 + 9 * network.stride)
    expected = network.trunk(x)
    assert expected.std() > 1e-3
    torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_a_batch_of_maps() -> None:
    """Cook–Toom takes one map; a batch goes the direct way."""
    torch.manual_seed(0)
    layer = nn.Conv2d(40, 8, 3, padding=1)
    x = torch.randn(3, 40, 40, 40)
    torch.testing.assert_close(FusedConv2d(layer)(x), layer(x), rtol=1e-4, atol=1e-5)
