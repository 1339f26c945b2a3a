"""The network as convolutions gives the engine's scores, position by position."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from densescore import DensescoreError
from densescore.models.head import AdaptationHead
from densescore.models.krizhevsky import Krizhevsky
from densescore.network.export import convolutional_form
from densescore.network.surgery import to_dense
from tests.conftest import Toy


@pytest.mark.parametrize(
    ("module", "patch"),
    [
        (Toy(), 20),
        (Krizhevsky(7), 224),
        (torchvision.models.resnet18(), 224),
        (timm.create_model("mobilenetv3_small_050"), 224),
        (timm.create_model("convnext_atto"), 64),  # a norm in the head
        (timm.create_model("convnext_zepto_rms"), 64),  # its weight is used in forward itself
    ],
    ids=["toy", "krizhevsky", "resnet18", "mobilenetv3", "convnext", "rms"],
)
@torch.no_grad()
def test_each_position_is_a_cell(module: nn.Module, patch: int) -> None:
    torch.manual_seed(0)
    network = to_dense(module, patch)
    pixels = torch.rand(1, 3, patch + 2 * network.stride, patch + 3 * network.stride)
    logits = convolutional_form(network)(pixels)
    maps = network.trunk(pixels)
    expected = network.classifier(network.embed_blocks([network.block(maps, range(3), range(4))]))
    assert logits.shape == (1, network.classes, 3, 4)
    assert expected.std() > 0
    torch.testing.assert_close(logits[0].flatten(1).T, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_an_adaptation_head_becomes_convolutions() -> None:
    network = to_dense(Toy(), 20).with_classifier(AdaptationHead(10, 4, width=6).eval(), 10, 4)
    logits = convolutional_form(network)(torch.rand(1, 3, 20, 28))
    assert logits.shape == (1, 4, 1, 3)


def test_a_network_without_a_convolutional_form_is_refused() -> None:
    normed = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 2))
    with pytest.raises(DensescoreError, match="only linear layers may take the flattened map"):
        convolutional_form(to_dense(normed, 5))
