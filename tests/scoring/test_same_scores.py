"""What "the same scores" means: four statements, for every named network and a toy one.

The references run the networks' own, unmodified parts (`parts_of`), named by hand here; the surgery is not asked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn

from densescore import DenseScorer, DenseScores
from densescore.io.images import level_pixels
from densescore.models.efficientnet_lite import shipped_weights
from densescore.models.krizhevsky import Krizhevsky
from densescore.models.registry import MODELS
from densescore.scoring.reference import head_reference, receptive_field_reference
from tests.conftest import Toy

RTOL, ATOL = 1e-4, 1e-6  # of probabilities, in float32


@dataclass
class Case:
    """A network, its two halves as its author wrote them, and the margin of its receptive field past a patch."""

    module: nn.Module
    trunk: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch: int
    margin: int
    scorer: DenseScorer


def build(name: str) -> Case:
    torch.manual_seed(0)
    if name == "toy":
        toy: Any = Toy().eval()
        module: nn.Module = toy
        trunk: Any = toy.features
        head: Any = lambda m: toy.classifier(m.flatten(1))  # noqa: E731
        mean, std, patch, margin = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 20, 0
    else:
        entry = MODELS[name]
        mean, std, patch = entry.mean, entry.std, entry.patch_size
        if name == "lite0":
            lite0 = timm.create_model("tf_efficientnet_lite0").eval()
            lite0.load_state_dict(shipped_weights())
            module, trunk, head = lite0, lite0.forward_features, lite0.forward_head
            margin = 448  # 851 pixels per position of the map, by hand; 7 positions
        else:
            network: Any = {
                "alexnet": torchvision.models.alexnet,
                "vgg16": torchvision.models.vgg16,
                "krizhevsky": Krizhevsky,
                "krizhevsky-caffe": lambda: Krizhevsky(padding=0, lrn_alpha=1e-4 / 5, lrn_k=1.0),
            }[name]().eval()
            enliven(network)
            module, trunk, head = network, network.features, lambda m: network.classifier(m.flatten(1))
            margin = 128
    scales = (1, 2.2) if name == "lite0" else (1, 1.6)  # lite0's levels must be wider than its receptive field
    labels = ("a", "b", "c") if name == "toy" else None
    scorer = DenseScorer(module, mean=mean, std=std, patch_size=patch, labels=labels, scales=scales)
    return Case(module, trunk, head, mean, std, patch, margin, scorer)


def enliven(network: nn.Module) -> None:
    """Random weights that let the image through, so that classes differ by far more than the tolerance."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            assert layer.bias is not None
            nn.init.uniform_(layer.bias, -0.1, 0.1)


NAMES = ("toy", "lite0", "krizhevsky", "krizhevsky-caffe", "alexnet", "vgg16")


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    return build(request.param)


@pytest.fixture(scope="module", params=["landscape", "portrait", "square", "smaller than a patch"])
def photo(request: pytest.FixtureRequest, cat: NDArray[np.uint8], coffee: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Real photographs of several aspect ratios and odd sizes."""
    return {
        "landscape": coffee[:333, :597],
        "portrait": cat[:299, 100:301],
        "square": cat[:257, :257],
        "smaller than a patch": cat[100:151, 100:163],
    }[request.param]


@pytest.fixture(scope="module")
def scores(case: Case, photo: NDArray[np.uint8]) -> DenseScores:
    return case.scorer.score(photo)


def normalized(case: Case, image: NDArray[np.uint8], index: int) -> tuple[Tensor, int]:
    """Level `index` of the image as input of the unmodified network: the scorer's preprocessing, written again."""
    pyramid = case.scorer.pyramid(*image.shape[:2])
    pixels = torch.from_numpy(level_pixels(image, pyramid, pyramid.levels[index])).permute(2, 0, 1)[None] / 255
    return (pixels - torch.tensor(case.mean).view(3, 1, 1)) / torch.tensor(case.std).view(3, 1, 1), index


def assert_same(actual: Tensor, logits: Tensor) -> None:
    expected = logits.softmax(1)
    assert expected.std() > 10 * ATOL  # flat scores would agree with anything
    torch.testing.assert_close(actual, expected, rtol=RTOL, atol=ATOL)


@torch.inference_mode()
def test_1_a_patch_sized_image_is_classified_as_by_the_network(case: Case, cat: NDArray[np.uint8]) -> None:
    image = cat[20 : 20 + case.patch, 100 : 100 + case.patch]
    pixels, _ = normalized(case, image, 0)
    scores = case.scorer.score(image)
    assert scores.levels[0].cells == slice(0, 1)
    assert_same(scores.patch_scores[:1], case.module(pixels))


@torch.inference_mode()
def test_2_each_cell_is_the_head_slid_over_the_trunks_map(
    case: Case, photo: NDArray[np.uint8], scores: DenseScores
) -> None:
    for index, level in enumerate(scores.levels):
        pixels, _ = normalized(case, photo, index)
        logits = head_reference(case.trunk, case.head, pixels, scores.pyramid, level)
        assert_same(scores.patch_scores[level.cells], logits)


@torch.inference_mode()
def test_3_each_cell_is_the_network_on_its_receptive_field(
    case: Case, photo: NDArray[np.uint8], scores: DenseScores
) -> None:
    for index, level in enumerate(scores.levels):
        pixels, _ = normalized(case, photo, index)
        cells = {(0, 0), (level.rows - 1, level.cols - 1), (level.rows // 2, level.cols // 2), (0, level.cols // 3)}
        for row, col in sorted(cells):
            logits = receptive_field_reference(case.trunk, case.head, pixels, scores.pyramid, (row, col), case.margin)
            index_of_cell = level.start + row * level.cols + col
            assert_same(scores.patch_scores[index_of_cell][None], logits)


@torch.inference_mode()
def test_the_margins_hold_the_receptive_fields(case: Case) -> None:
    """The margin of statement 3 is exact: pixels past it do not change the cell's scores; a nearer one does."""
    steps = -(-case.margin // case.scorer.network.stride) + 1
    stride, patch = case.scorer.network.stride, case.patch
    side = patch + 2 * steps * stride
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    far, near = pixels.clone(), pixels.clone()
    past = steps * stride - case.margin  # the first pixel at or inside the margin
    far[..., :past, :] += 10
    far[..., :past] += 10
    far[..., side - past :, :] += 10
    far[..., side - past :] += 10
    near[..., side // 2, side // 2] += 10
    height, width = case.scorer.dense.window

    def cell(image: Tensor) -> Tensor:
        return case.head(case.trunk(image)[:, :, steps : steps + height, steps : steps + width])

    torch.testing.assert_close(cell(far), cell(pixels), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(cell(near), cell(pixels), rtol=1e-4, atol=1e-4)


def test_4_without_padding_each_crop_gives_its_cell(photo: NDArray[np.uint8]) -> None:
    case = build("toy")
    dense, cropped = (case.scorer.score(photo, context=context) for context in ("image", "patch"))
    assert len(dense.patch_scores) > 3
    assert dense.patch_scores.std() > 1e-3
    torch.testing.assert_close(dense.patch_scores, cropped.patch_scores, rtol=RTOL, atol=ATOL)


@torch.inference_mode()
def test_crops_are_classified_as_by_the_network(case: Case, cat: NDArray[np.uint8]) -> None:
    """context="patch" is the paper's path: the unmodified network on each window of the levels."""
    scores = case.scorer.score(cat[:251, :301], context="patch")
    for index, level in enumerate(scores.levels):
        pixels, _ = normalized(case, cat[:251, :301], index)
        for number in {0, level.rows * level.cols - 1}:
            x0, y0, x1, y1 = scores.pyramid.window(level, *divmod(number, level.cols))
            assert_same(scores.patch_scores[level.start + number][None], case.module(pixels[..., y0:y1, x0:x1]))


def test_features_are_the_input_of_the_last_layer(case: Case, photo: NDArray[np.uint8], scores: DenseScores) -> None:
    features = case.scorer.features(photo)
    last = [layer for layer in case.module.modules() if isinstance(layer, nn.Linear)][-1]
    assert features.shape == (len(scores.boxes), last.in_features)
    assert_same(scores.patch_scores, last(features).detach())
