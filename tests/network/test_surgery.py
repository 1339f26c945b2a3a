"""The surgery: what can slide does, with the same outputs; what cannot is refused by the name of its layer."""

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from densescore import DensescoreError
from densescore.models import AdaptationHead, Krizhevsky
from densescore.network.surgery import to_dense

SLIDING = {
    "alexnet": (lambda: torchvision.models.alexnet(), (4096,), 4096),
    "resnet18": (lambda: torchvision.models.resnet18(), (512, 1, 1), 512),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(), (576, 1, 1), 1024),
    "shufflenet": (lambda: torchvision.models.shufflenet_v2_x0_5(), (1024,), 1024),
    "densenet121": (lambda: torchvision.models.densenet121(), (1024, 1, 1), 1024),
    "timm resnet18": (lambda: timm.create_model("resnet18"), (512, 1, 1), 512),
    "timm convnext_atto": (lambda: timm.create_model("convnext_atto"), (320, 1, 1), 320),
    "timm mobilenetv3": (lambda: timm.create_model("mobilenetv3_small_050"), (288, 1, 1), 1024),
    "timm efficientnet_b0": (lambda: timm.create_model("efficientnet_b0"), (1280, 1, 1), 1280),
    "timm vgg11": (lambda: timm.create_model("vgg11"), (4096, 1, 1), 4096),  # FC6 as a convolution already
    "timm resnetv2_50": (lambda: timm.create_model("resnetv2_50"), (2048, 1, 1), 2048),  # FC8 as a convolution
    "krizhevsky 6144": (lambda: Krizhevsky(classes=7, width=6144), (6144,), 6144),
}  # fmt: skip


@pytest.mark.parametrize("name", SLIDING)
@torch.inference_mode()
def test_named_families_slide(name: str) -> None:
    build, row, width = SLIDING[name]
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
    """A trunk and whatever follows it."""

    def __init__(self, tail: nn.Module, stride: int = 2) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3, stride=stride, padding=1), nn.ReLU())
        self.tail = tail

    def forward(self, pixels: Tensor) -> Tensor:
        return self.tail(self.trunk(pixels))


class Views(nn.Module):
    """Flattens by view, with the batch size read from the map."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(256, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.view(x.size(0), 256))


class Means(nn.Module):
    """Averages by mean."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean([2, 3]))


@pytest.mark.parametrize(("tail", "shape"), [(Views(), (256,)), (Means(), (4,))])
@torch.inference_mode()
def test_flattening_by_view_and_averaging_by_mean(tail: nn.Module, shape: tuple[int, ...]) -> None:
    module = Net(tail).eval()
    network = to_dense(module, 16)
    assert (network.stride, network.window) == (2, (8, 8))
    crops = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(network(crops), module(crops))
    block = network.block(network.trunk(torch.rand(1, 3, 18, 22)), range(2), range(4))
    assert network.project([block]).shape == (8, *shape)


class MaxPools(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.amax((2, 3))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        return self.a(x) + self.b(x)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


@pytest.mark.parametrize(
    ("module", "patch", "message"),
    [
        (torchvision.models.swin_t(), 224, "shifted_window_attention mixes positions"),
        (torchvision.models.vit_b_16(), 224, "operation add joins 2 tensors"),
        (timm.create_model("mixer_s16_224"), 224, "joins 2 tensors"),
        (torchvision.models.squeezenet1_1(), 224, r"no linear layer follows layer classifier.3 \(AdaptiveAvgPool2d\)"),
        (torchvision.models.alexnet(), 320, r"layer avgpool \(AdaptiveAvgPool2d\) makes a 9×9 map 6×6"),
        (Net(MaxPools()), 16, "operation amax"),
        (Net(TwoHeads()), 16, "operation add joins 2 tensors"),
        (Net(Branches()), 16, "Net cannot be traced: tail"),
        (Net(nn.Sequential(nn.Flatten(), nn.Linear(99, 5))), 16, "Net cannot be run on 16×16 pixels"),
        (Net(nn.Identity()), 16, r"must return one \[N, classes\]"),
        (Net(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ReLU())), 16, "no linear layer follows"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_cannot_slide_is_refused_by_name(module: nn.Module, patch: int, message: str) -> None:
    with pytest.raises(DensescoreError, match=message):
        to_dense(module, patch)


def test_a_head_of_another_width_is_refused() -> None:
    network = to_dense(Net(Means()), 16)
    with pytest.raises(DensescoreError, match="the head takes 7 features, but the network gives 4"):
        network.replace_classifier(AdaptationHead(7, 3), 7, 3)
