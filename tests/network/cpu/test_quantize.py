"""Eight-bit layers are exact on what eight bits hold, and close on the rest."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import spearmanr
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from densescore import DensescoreError, DenseScorer
from densescore.network.cpu.fusion import FoldedConv2d, FoldedLinear
from densescore.network.cpu.int8_layers import Int8Conv2d, Int8Linear, Int8MaxPool2d, Int8ReLU, Quantization, Values
from tests.conftest import Toy

pytestmark = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="needs a CPU with AVX-512 VNNI")


@torch.no_grad()
@pytest.mark.parametrize("low", [0.0, -3.0])
@pytest.mark.parametrize("clamp", [(None, None), (0, None), (0, 6)])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(5, 8, 3, padding=1),
        nn.Conv2d(5, 8, 5, padding=2, bias=False),
        nn.Conv2d(6, 6, 3, stride=2, groups=6),
        nn.Conv2d(4, 8, (1, 3), dilation=(1, 2), groups=2),
        Conv2dSame(5, 8, 3, stride=2),  # pads by what the map's size asks for
        nn.Linear(7, 9),
    ],
    ids=str,
)
def test_exact_on_integers(layer: nn.Conv2d | nn.Linear, clamp: tuple[Any, Any], low: float) -> None:
    """Weights and inputs that are multiples of a power of two: all sums are exact, in eight bits as in float32."""
    generator = torch.Generator().manual_seed(0)
    layer.weight.copy_(torch.randint(-127, 128, layer.weight.shape, generator=generator) / 64)
    layer.weight.flatten(1)[:, 0] = 127 / 64  # so that each output's scale is 1/64
    source = Quantization.over((low, low + 255 / 32))
    x = (torch.randint(0, 256, (1, layer.weight.shape[1] * getattr(layer, "groups", 1), 19, 23), generator=generator)
         - source.zero) / 32  # fmt: skip
    activation = {(None, None): None, (0, None): nn.ReLU(), (0, 6): nn.ReLU6()}[clamp]
    made: nn.Module
    if isinstance(layer, nn.Conv2d):
        made = Int8Conv2d(FoldedConv2d(layer, None, activation), source, None)
    else:
        x = x[0].flatten(1).T
        made = Int8Linear(FoldedLinear(layer.weight, layer.bias, clamp), source, None)
    expected = layer(x) if activation is None else activation(layer(x))
    for _ in range(2):
        torch.testing.assert_close(made(x), expected, rtol=1e-6, atol=1e-5)
    assert expected.std() > 0.5


def test_a_relu_of_integers() -> None:
    quantization = Quantization.over((-3, 5))
    x = torch.linspace(-3, 5, 50)
    integers = Int8ReLU(quantization)(quantization.quantize(x))
    assert quantization.zero > 50
    torch.testing.assert_close(Values(quantization)(integers), x.relu(), rtol=0, atol=quantization.scale * 0.51)


def test_outputs_are_the_nearest_of_their_quantization() -> None:
    torch.manual_seed(0)
    folded = FoldedConv2d(nn.Conv2d(8, 16, 3), None, nn.ReLU())
    source, target = Quantization.over((0, 2)), Quantization.over((0, 1))
    x = torch.rand(1, 8, 9, 9) * 2
    real = Int8Conv2d(folded, source, None)(x)
    integers = Int8Conv2d(folded, source, target)(x)
    assert integers.dtype == torch.uint8
    difference = (integers.float() * target.scale - real.clamp(max=1)).abs()
    assert real.max() > 0.3
    assert difference.max() <= target.scale * 0.51


@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.booleans(), st.integers(5, 12), st.integers(5, 12)
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_max_pool(kernel: int, stride: int, padding: int, ceil: bool, height: int, width: int) -> None:
    padding = min(padding, kernel // 2)
    pool = nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil)
    x = torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(Int8MaxPool2d(pool)(x).float(), pool(x.float()))


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.lists(st.floats(-1, 1), min_size=1, max_size=20))
def test_a_quantization_is_within_half_a_step(a: float, b: float, places: list[float]) -> None:
    quantization = Quantization.over((min(a, b), max(a, b)))
    low, high = -quantization.zero * quantization.scale, (255 - quantization.zero) * quantization.scale
    values = torch.tensor([low + (high - low) * abs(place) for place in places])
    restored = (quantization.quantize(values).float() - quantization.zero) * quantization.scale
    torch.testing.assert_close(restored, values, rtol=1e-5, atol=quantization.scale * 0.51)
    assert float(quantization.quantize(torch.zeros(1))) == quantization.zero


class Small(nn.Module):
    """With an FC6 to slide, pools between convolutions, a layer that two others take, and one called twice."""

    def __init__(self, act6: nn.Module) -> None:
        super().__init__()
        self.act6 = act6
        self.first, self.second, self.third = nn.Conv2d(3, 16, 5, 2), nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 8, 1)
        self.pool, self.act = nn.MaxPool2d(3, 2), nn.SiLU()
        self.fc6, self.fc7, self.fc8 = nn.Linear(8 * 6 * 6, 64), nn.Linear(64, 64), nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.first(x))
        x = x + self.act(self.second(x))
        x = self.act6(self.fc6(F.relu(self.third(x)).flatten(1)))
        return self.fc8(self.fc7(F.relu(self.fc7(x))))


@pytest.mark.parametrize(
    ("module", "patch"),
    [
        (torchvision.models.resnet18(num_classes=5), 64),
        (Small(nn.ReLU()), 29),
        (Small(nn.SiLU()), 29),  # a float between integers
    ],
    ids=lambda value: type(value).__name__,
)
def test_networks_rank_patches_as_in_float32(module: nn.Module, patch: int, cat: NDArray[np.uint8]) -> None:
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    image = cat[:160, :200]
    exact = DenseScorer(module.eval(), patch_size=patch, scales=(3, 4)).score(image)
    scorer = DenseScorer(module, patch_size=patch, scales=(3, 4), dtype="int8", calibration=[image, cat])
    close = scorer.score(image)
    logs = exact.patch_scores.log(), close.patch_scores.log()
    assert float(logs[0].std()) > 0.01
    for label in range(5):
        assert spearmanr(logs[0][:, label], logs[1][:, label]).statistic > 0.95
    assert torch.corrcoef(torch.stack([log.ravel() for log in logs]))[0, 1] > 0.99


def test_features_crops_and_scores_are_of_one_network(cat: NDArray[np.uint8]) -> None:
    torch.manual_seed(0)
    scorer = DenseScorer(Toy(), patch_size=20, scales=(6, 4), dtype="int8", calibration=[cat])
    exact = DenseScorer(Toy(), patch_size=20, scales=(6, 4))
    features = scorer.features(cat)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, exact.features(cat), rtol=0.05, atol=0.02 * float(features.abs().max()))
    scores = scorer.score(cat)
    torch.testing.assert_close(scorer.score_features(features, 300, 451).patch_scores, scores.patch_scores)
    cropped = scorer.score(cat, context="patch").patch_scores
    torch.testing.assert_close(cropped, scores.patch_scores, rtol=0.05, atol=0.01)
    assert not torch.equal(scores.patch_scores, exact.score(cat).patch_scores)


def test_other_ranges_are_other_weights(cat: NDArray[np.uint8]) -> None:
    """Caches and tables of scores tell networks apart by this digest."""
    options: dict[str, Any] = {"patch_size": 20, "scales": (6,)}
    digests = {
        DenseScorer(Toy(), dtype="int8", calibration=[image], **options).weights_digest
        for image in (cat, cat, cat // 2)
    }
    assert len(digests | {DenseScorer(Toy(), **options).weights_digest}) == 3


def test_lite0_knows_the_cat(cat: NDArray[np.uint8], coffee: NDArray[np.uint8]) -> None:
    scores = DenseScorer(dtype="int8", calibration=[coffee]).score(cat)
    assert scores.top(1)[0].label == "Egyptian cat"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs calibration"),
        ({"calibration": [np.zeros((40, 40, 3), np.uint8)], "runtime": "openvino"}, "'openvino' cannot be had"),
        ({"calibration": [np.zeros((40, 40, 3), np.uint8)], "stride": 2}, "own stride"),
        ({"calibration": ["missing.jpg"]}, "missing.jpg"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DensescoreError, match=message):
        DenseScorer(Toy(), patch_size=20, dtype="int8", **options)


def test_needs_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(DensescoreError, match="AVX-512 VNNI"):
        DenseScorer(Toy(), patch_size=20, dtype="int8", calibration=[np.zeros((40, 40, 3), np.uint8)])
