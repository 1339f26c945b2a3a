"""Cells closer than the network's stride: the same scores where they are shared, the right ones in between."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from densescore import DensescoreError, DenseScorer, Pyramid
from densescore.models.krizhevsky import Krizhevsky
from densescore.network.strides import with_phases
from densescore.network.surgery import to_dense
from tests.conftest import Toy, need_openvino

FINER = [("toy", 2), ("toy", 1), ("krizhevsky", 8), ("lite0", 16), ("mobilenetv3_small_100", 16)]


def scorer_of(name: str, **options: Any) -> DenseScorer:
    torch.manual_seed(0)
    if name == "toy":
        return DenseScorer(Toy(), labels=("a", "b", "c"), patch_size=20, scales=(1, 2.3), runtime="torch", **options)
    if name.startswith("mobilenet"):  # squeeze-and-excitation after the last stride
        module: Any = timm.create_model(name)
        nn.init.normal_(module.classifier.weight)  # lively, so that scores differ
        return DenseScorer(module, scales=(1, 1.6), runtime="torch", **options)
    network = Krizhevsky(classes=10, width=64) if name == "krizhevsky" else name
    return DenseScorer(network, runtime="torch", scales=(1, 1.6), **options)


@pytest.mark.parametrize(("name", "stride"), FINER)
def test_shared_cells_have_the_same_scores(name: str, stride: int, cat: NDArray[np.uint8]) -> None:
    image = cat[:151, 70:301].transpose(1, 0, 2) if name == "toy" else cat[:251, :333]  # one column of cells, one row
    coarse, fine = scorer_of(name).score(image), scorer_of(name, stride=stride).score(image)
    assert fine.pyramid.stride == stride
    step = coarse.pyramid.stride // stride
    assert coarse.patch_scores.std() > 1e-6  # flat scores would agree with anything
    for at, finer in zip(coarse.levels, fine.levels, strict=True):
        assert (finer.rows, finer.cols) == ((at.rows - 1) * step + 1, (at.cols - 1) * step + 1)
        shared = fine.patch_scores[finer.cells].unflatten(0, (finer.rows, finer.cols))[::step, ::step]
        torch.testing.assert_close(shared.flatten(0, 1), coarse.patch_scores[at.cells], rtol=1e-4, atol=1e-7)
        boxes = fine.boxes[finer.cells].unflatten(0, (finer.rows, finer.cols))[::step, ::step]
        torch.testing.assert_close(boxes.flatten(0, 1), coarse.boxes[at.cells])


@pytest.mark.parametrize("stride", [2, 1])
def test_without_padding_each_cell_is_its_crop(stride: int, cat: NDArray[np.uint8]) -> None:
    """Statement 4 of "the same scores", for cells in between; so the cells come in the order of their boxes."""
    scorer = scorer_of("toy", stride=stride)
    dense, cropped = (scorer.score(cat[40:131, 70:181], context=context) for context in ("image", "patch"))
    assert dense.patch_scores.std() > 1e-3
    torch.testing.assert_close(dense.patch_scores, cropped.patch_scores, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "margin"), [("alexnet", 4), ("resnet18", 8)], ids=["strided pool last", "strided convolutions last"]
)
@torch.inference_mode()
def test_away_from_the_border_a_phase_is_the_trunk_on_the_shifted_image(name: str, margin: int) -> None:
    """Shift-and-stitch, the plain definition: a phase sees what the unmodified trunk sees from its first pixel on."""
    torch.manual_seed(0)
    trunk: Any = to_dense(torchvision.models.get_model(name).eval(), 224).trunk
    positions = 2 * margin + 4
    pixels = torch.randn(1, 3, 224 + 32 * positions, 224 + 32 * positions)
    maps = with_phases(trunk, 224, 32, 8)(pixels)
    assert maps.std() > 1e-3
    for phase in (1, 6, 15):
        down, across = (8 * part for part in divmod(phase, 4))
        shifted = trunk(pixels[..., down:, across:])
        inside = slice(margin, maps.shape[2] - 1 - margin)
        torch.testing.assert_close(maps[phase, :, inside, inside], shifted[0, :, inside, inside], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_at_the_border_phases_see_what_dilated_layers_see() -> None:
    """With padding, against the same network written by hand with stride 1 and dilation: zeros only past the map."""
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, 2, 1)
    layers = (first, nn.MaxPool2d(3, 2, 1), last, nn.AvgPool2d(3, 1, 1), nn.Conv2d(5, 6, 3, 1, 1))
    network = to_dense(nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)), 32)
    trunk: Any = network.trunk
    assert network.stride == 8
    pixels = torch.randn(1, 3, 56, 72)
    x = nn.functional.max_pool2d(first(pixels), 3, 1, 1)
    x = nn.functional.conv2d(x, last.weight, last.bias, 1, 2, 2)
    kernel = torch.full((5, 1, 3, 3), 1 / 9)
    x = nn.functional.conv2d(x, kernel, None, 1, 4, 4, groups=5)
    x = nn.functional.conv2d(x, layers[-1].weight, layers[-1].bias, 1, 4, 4).relu()
    maps = with_phases(trunk, 32, 8, 2)(pixels)
    assert maps.shape == (16, 6, 7, 9)
    for phase in range(16):
        expected = x[0, :, phase // 4 :: 4, phase % 4 :: 4]
        actual = maps[phase, :, : expected.shape[1], : expected.shape[2]]
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "end",
    [
        (nn.MaxPool2d(2),),
        (nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1)),
        (nn.AvgPool2d(2),),
        (nn.Conv2d(4, 4, 2, 2),),
        (nn.Conv2d(4, 4, 2),),
    ],
    ids=["pool", "pool, then convolution", "average", "strided", "valid"],
)
@pytest.mark.parametrize("stride", [4, 2, 1])
def test_a_patch_that_ends_in_one_position(end: tuple[nn.Module, ...], stride: int) -> None:
    """A level of one row of cells, whose later phases have no rows."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2, 2), nn.MaxPool2d(2))
    module = nn.Sequential(*layers, *end, nn.Flatten(), nn.Linear(4, 3)).eval()
    coarse, fine = (DenseScorer(module, patch_size=16, scales=(1,), stride=step) for step in (None, stride))
    image = torch.rand(3, 16, 48)
    at, finer = coarse.score(image), fine.score(image)
    step = coarse.dense.stride // stride
    assert (finer.levels[0].rows, finer.levels[0].cols) == (1, (at.levels[0].cols - 1) * step + 1)
    assert at.patch_scores.std() > 1e-5
    torch.testing.assert_close(finer.patch_scores[::step], at.patch_scores, rtol=1e-4, atol=1e-7)


def test_openvino_runs_all_phases(cat: NDArray[np.uint8]) -> None:
    need_openvino()
    by_torch, by_openvino = (
        DenseScorer("lite0", scales=(1, 1.6), stride=16, runtime=runtime).score(cat[:251, :333])
        for runtime in ("torch", "openvino")
    )
    assert by_openvino.runtime == "openvino"
    torch.testing.assert_close(by_openvino.patch_scores, by_torch.patch_scores, rtol=1e-3, atol=1e-5)


def test_maps_regions_and_features_follow(cat: NDArray[np.uint8]) -> None:
    scorer = scorer_of("toy", stride=2)
    scores = scorer.score(cat[:91, :131])
    assert scores.response_map(["a"]).shape == (1, 91, 131)
    again = scorer.score_features(scorer.features(cat[:91, :131]), 91, 131)
    torch.testing.assert_close(again.patch_scores, scores.patch_scores)


@given(
    height=st.integers(1, 900), width=st.integers(1, 900), phases=st.sampled_from([1, 2, 4]), scale=st.floats(0.3, 3)
)
def test_a_finer_pyramid_holds_the_coarse_one(height: int, width: int, phases: int, scale: float) -> None:
    coarse = Pyramid.of(height, width, scales=(scale,), patch=64, stride=16)
    fine = Pyramid.of(height, width, scales=(scale,), patch=64, stride=16 // phases, phases=phases, max_cells=10**6)
    assert fine.padded_size(fine.levels[0]) == coarse.padded_size(coarse.levels[0])
    parts = fine.levels[0].phases(phases)
    np.testing.assert_array_equal(fine.boxes()[parts[0].ravel()], coarse.boxes())
    assert sorted(np.concatenate([part.ravel() for part in parts])) == list(range(len(fine)))


class Branches(nn.Module):
    """A convolution of stride 2, and some other layers of that stride beside it."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.stem, self.straight, self.layers = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 4, 3, 2, 1), layers
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.fc((self.straight(x) + self.layers(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("module", "stride", "message"),
    [
        (Toy(), 3, "stride must divide the network's own: one of 4, 2, 1; got 3"),
        (Toy(), 0, "got 0"),
        (Toy(), 8, "got 8"),
        (
            nn.Sequential(
                nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(4, 4, 2, 2),
                nn.Flatten(), nn.Linear(4 * 25, 2)
            ), 1, r"layer 1 \(MaxPool2d\) to begin late",
        ),
        (Branches(nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, 2, 1))), 1,
         r"layer layers.1 \(Upsample\) enlarges its map"),
        (Branches(nn.MaxPool2d(2, 2)), 1, r"operation add joins maps of different sizes"),
        (nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 4, 1), nn.Flatten(), nn.Linear(100, 2)), 2, "Unshuffle"),
    ],
)  # fmt: skip
def test_networks_that_cannot_be_made_finer_are_refused(module: nn.Module, stride: int, message: str) -> None:
    with pytest.raises(DensescoreError, match=message):
        DenseScorer(module, patch_size=20, stride=stride)
