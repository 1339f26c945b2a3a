"""Images in one pass get the scores of one at a time, in fewer operations."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from densescore import DensescoreError, DenseScorer, score_many
from densescore.models.box_layer import BoxLayer
from densescore.scoring import batch
from densescore.scoring import scorer as scorer_module
from tests.conftest import Toy, same_boxes


class Padded(Toy):
    """The same with padding, and biases that would fill the gaps between levels."""

    def __init__(self) -> None:
        super().__init__()
        for number in (0, 2):
            self.features[number].padding = (1, 1)  # type: ignore[assignment]  # maps of 5×5 on 24 pixels
        self.classifier[0] = nn.Linear(6 * 16, 10)


class Squeezed(Toy):
    """With an average over the level, so that levels do not share a canvas."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.features(pixels)
        return self.classifier((x * x.mean((2, 3), keepdim=True).sigmoid()).flatten(1))


@pytest.fixture(params=[Toy, Padded, Squeezed, "head"])
def scorer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> DenseScorer:
    """Takes batches as on a GPU, with the layers that run there; or as on a CPU, the head alone."""
    torch.manual_seed(0)
    head = request.param == "head"
    if not head:
        monkeypatch.setattr(scorer_module, "speed_up", lambda *_: "torch")
    module = Toy() if head else request.param()
    made = DenseScorer(module, labels=("a", "b", "c"), patch_size=20, scales=(1, 1.5, 2.3), runtime="torch", k=3)
    assert made.batching == "head"
    made.batching = "head" if head else "canvases"
    return made


@pytest.fixture
def images(cat: NDArray[np.uint8], coffee: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    sizes = [(60, 80), (60, 80), (120, 160), (80, 60), (33, 90), (60, 80), (21, 20), (120, 161)]
    return [(cat, coffee)[index % 2][:height, :width] for index, (height, width) in enumerate(sizes)]


def assert_same(found: Any, expected: Any) -> None:
    assert found.pyramid == expected.pyramid
    assert expected.patch_scores.std() > 1e-3
    torch.testing.assert_close(found.patch_scores, expected.patch_scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.image_scores(), expected.image_scores(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.image_scores(2), expected.image_scores(2), rtol=1e-4, atol=1e-7)
    assert (found.k, found.labels, found.runtime) == (expected.k, expected.labels, expected.runtime)
    assert {"pyramid", "trunk", "head"} <= found.timings.keys()


@pytest.mark.parametrize("pixels", [1, 100_000, 10**9])
def test_scores_are_those_of_one_at_a_time(
    scorer: DenseScorer, images: list[NDArray[np.uint8]], pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "BATCH_PIXELS", pixels)
    found = scorer.score_batch(images)
    assert len(found) == len(images)
    for scores, image in zip(found, images, strict=True):
        assert_same(scores, scorer.score(image))
        assert not scores.patch_scores.is_inference()
        assert scores.patch_scores.untyped_storage().nbytes() == 4 * scores.patch_scores.numel()


def test_boxes_of_a_box_layer_are_those_of_one_at_a_time(scorer: DenseScorer, images: list[NDArray[np.uint8]]) -> None:
    torch.manual_seed(1)
    scorer.box_layer = BoxLayer(scorer.dense.feature_width, 4, 8).eval()
    for scores, image in zip(scorer.score_batch(images), images, strict=True):
        alone = scorer.score(image)
        assert_same(scores, alone)
        assert alone.object_boxes is not None
        assert alone.object_boxes.boxes.std() > 1
        same_boxes(scores.object_boxes, alone.object_boxes)


def test_floats_and_bytes_share_a_batch(scorer: DenseScorer, images: list[NDArray[np.uint8]]) -> None:
    mixed: list[Any] = [images[0], images[1] / np.float32(255), images[2]]
    for scores, image in zip(scorer.score_batch(mixed), mixed, strict=True):
        assert_same(scores, scorer.score(image))


def test_one_image_takes_canvases_too(scorer: DenseScorer, images: list[NDArray[np.uint8]]) -> None:
    found, features = scorer.score(images[2]), scorer.features(images[2])
    scorer.batching = None
    assert_same(found, scorer.score(images[2]))
    assert features.std() > 1e-3
    torch.testing.assert_close(features, scorer.features(images[2]), rtol=1e-4, atol=1e-6)


def test_crops_and_networks_that_gain_nothing_go_one_at_a_time(images: list[NDArray[np.uint8]]) -> None:
    averaged = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    scorer = DenseScorer(averaged, patch_size=20, scales=(1, 1.5))
    assert (scorer.batching, scorer.batch_size) == (None, 1)
    for scores, image in zip(scorer.score_batch(images), images, strict=True):
        assert torch.equal(scores.patch_scores, scorer.score(image).patch_scores)
    for crops in scorer.score_batch(images[:2], context="patch"):
        assert crops.context == "patch"
    assert scorer.score_batch([]) == []


def test_a_head_takes_several_images_while_they_have_few_patches(toy_scorer: DenseScorer) -> None:
    assert toy_scorer.batch_size == 8
    assert toy_scorer.with_scales((1, 2, 10)).batch_size == 1
    assert toy_scorer.with_scales((1, 2, 4)).batch_size == 3
    assert toy_scorer.with_scales(patch_sizes=(30,)).batch_size == 1


def test_a_stream_in_batches_keeps_its_order_and_survives_bad_images(
    scorer: DenseScorer, images: list[NDArray[np.uint8]]
) -> None:
    small = scorer.with_scales((1, 1.5))
    small.max_cells = 700
    wide = np.zeros((20, 3000, 3), np.uint8)
    sources: list[Any] = [*images[:3], "gone.png", *images[3:], wide, images[0], b"", images[1]]
    for size in (1, 3, 8, 50):
        found = list(score_many(iter(sources), small, batch=size, ahead=2))
        assert [item.source is source for item, source in zip(found, sources, strict=True)] == [True] * len(sources)
        assert [index for index, item in enumerate(found) if item.error] == [3, 9, 11]
        assert "3000" in str(found[9].error)
        for item in found:
            if item.scores is not None:
                assert_same(item.scores, small.score(item.source))


def test_out_of_memory_goes_on_one_at_a_time(
    scorer: DenseScorer, images: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(batch, "_score_together", short)
    for scores, image in zip(scorer.score_batch(images), images, strict=True):
        assert torch.equal(scores.patch_scores, scorer.score(image).patch_scores)


def test_batch_must_be_positive(scorer: DenseScorer) -> None:
    with pytest.raises(DensescoreError, match="batch must be at least 1, got 0"):
        score_many([], scorer, batch=0)


class Counting(TorchDispatchMode):
    """Counts the operators that a device would be asked for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_batch_takes_fewer_operations_whatever_the_sizes(
    images: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer_module, "speed_up", lambda *_: "torch")  # the layers as a GPU runs them
    layers = [layer for _ in range(30) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    network = nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=4), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    scorer = DenseScorer(network, patch_size=32, scales=(1, 1.5, 2.3))
    counts = []
    for batching in (None, "canvases"):
        scorer.batching = batching
        scorer.score_batch(images[:2])
        with Counting() as counting:
            scorer.score_batch(images)
        counts.append(counting.count)
    assert 0 < counts[1] < counts[0] / 6, counts
