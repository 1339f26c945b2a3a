"""Images in one pass get the scores of one at a time, in fewer operations; and their copies to a GPU are waited for."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock, call

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from densescore import DensescoreError, DenseScorer, score_many
from densescore.models.box_layer import BoxLayer
from densescore.network.gpu.accelerate import accelerated_on_gpu
from densescore.scoring import batching, engine
from densescore.scoring import scorer as scorer_module
from densescore.scoring.scorer import Launched
from densescore_kernels.image_levels.op import PlacedLevel, level_tiles
from tests.conftest import Toy, same_boxes


class Padded(Toy):
    """`Toy` with padding, and biases that would fill the gaps between levels."""

    def __init__(self) -> None:
        super().__init__()
        for number in (0, 2):
            self.features[number].padding = (1, 1)  # type: ignore[assignment]  # maps of 5×5 on 24 pixels
        self.classifier[0] = nn.Linear(6 * 16, 10)


class Squeezed(Toy):
    """`Toy` with an average over the level, so that levels cannot share a canvas."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.features(pixels)
        return self.classifier((x * x.mean((2, 3), keepdim=True).sigmoid()).flatten(1))


@pytest.fixture(params=[Toy, Padded, Squeezed, "head"])
def scorer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> DenseScorer:
    """A scorer that batches as on a GPU, with the layers that run there; or as on a CPU, the head alone."""
    torch.manual_seed(0)
    head = request.param == "head"
    if not head:
        monkeypatch.setattr(scorer_module, "accelerated", lambda network, *_: accelerated_on_gpu(network))
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
    monkeypatch.setattr(batching, "BATCH_PIXELS", pixels)
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


def test_one_image_takes_canvases_too(
    scorer: DenseScorer, images: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scores are those of one level after another, if these are resized alike."""
    found, features = scorer.score(images[2]), scorer.features(images[2])
    if scorer.batching == "canvases":
        monkeypatch.setattr(engine, "level_pixels", None)
        monkeypatch.setattr(engine, "normalized_levels", levels_by_the_device)
    scorer.batching = None
    assert_same(found, scorer.score(images[2]))
    assert features.std() > 1e-3
    torch.testing.assert_close(features, scorer.features(images[2]), rtol=1e-4, atol=1e-6)


def levels_by_the_device(images: Any, pyramids: Any, normalize: Any, clock: Any) -> Iterator[torch.Tensor]:
    for image, pyramid in zip(images, pyramids, strict=True):
        for level in engine.levels_of_copy(image, pyramid, normalize):
            clock.lap("pyramid")
            yield level


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_a_device_resizes_as_opencv(scorer: DenseScorer, images: list[NDArray[np.uint8]], kind: Any) -> None:
    normalize = scorer.normalize
    for image in images if kind == np.uint8 else [image / np.float32(255) for image in images]:
        pyramid = scorer.pyramid(*image.shape[:2])
        for level, found in zip(pyramid.levels, engine.levels_of_copy(image, pyramid, normalize), strict=True):
            expected = scorer.level(image, pyramid, level)
            assert found.shape == expected.shape
            assert found.is_contiguous(memory_format=torch.channels_last)
            steps = (found - expected).abs() * torch.tensor(normalize.std)[:, None, None] * 255
            assert steps.max() < 1.01
            assert expected.std() > 0.1


def test_photographs_on_canvases_score_as_one_level_at_a_time(
    cat: NDArray[np.uint8], coffee: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer_module, "accelerated", lambda network, *_: network)
    scorer = DenseScorer("lite0", scales=(1, 1.6), runtime="torch")
    photographs = [cat, coffee, coffee[50:391, 100:477], cat[:213, 20:]]
    expected = [scorer.score(image) for image in photographs]
    scorer.batching = "canvases"
    likely = 0
    for found, other in zip(scorer.score_batch(photographs), expected, strict=True):
        confidence = other.confidence()
        above = confidence > 0.01
        likely += int(above.sum())
        torch.testing.assert_close(found.confidence()[above], confidence[above], rtol=1e-2, atol=0)
        assert not torch.equal(found.patch_scores, other.patch_scores)
    assert likely > 20


def test_images_and_tables_are_copied_together(images: list[NDArray[np.uint8]]) -> None:
    table = level_tiles([PlacedLevel(0, 1, 1, 1, 1, 1, 1, 0, 1)])
    tables: list[Any] = [torch.tensor([[True, False]]), table, torch.arange(5), torch.tensor([]), torch.rand(3, 2)]
    for kind, unit in ((np.uint8, 1), (np.float32, np.float32(255))):
        copied = [(image / unit).astype(kind) for image in (images[0], images[3])]
        copied[0].flags.writeable = False
        copied.append(copied[1][:, ::2])
        pixels, found = engine.copy_together(copied, tables, torch.device("cpu"))
        np.testing.assert_array_equal(pixels, np.concatenate([image.reshape(-1, 3) for image in copied]))
        assert pixels.numpy().dtype == kind
        assert (found[1].total, found[1].table.tolist()) == (table.total, table.table.tolist())
        for tensor, expected in zip([*found[:1], *found[2:]], [*tables[:1], *tables[2:]], strict=True):
            assert torch.equal(tensor, expected)
            assert tensor.dtype == expected.dtype
        assert len({tensor.untyped_storage().data_ptr() for tensor in (pixels, found[0], found[1].table)}) == 1


def test_two_batches_are_launched_before_one_is_read(
    scorer: DenseScorer, images: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def recorded(kind: type, name: str) -> None:
        method = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda *arguments: (events.append(name), method(*arguments))[1])  # type: ignore

    recorded(DenseScorer, "launch")
    recorded(Launched, "read")
    found = list(score_many(images * 2, scorer, batch=4))
    assert [item.scores is not None for item in found] == [True] * 16
    if scorer.batching == "canvases":
        assert events == ["launch", "launch", "read", "launch", "read", "launch", "read", "read"]


def test_scores_that_are_not_finite_are_an_error_of_their_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer_module, "accelerated", lambda network, *_: network)
    module = Toy()
    with torch.no_grad():
        for number in (0, 2):
            module.features[number].weight.abs_().mul_(1e20)  # type: ignore[operator]
            module.features[number].bias.zero_()  # type: ignore[operator]
    scorer = DenseScorer(module, patch_size=20, mean=(0, 0, 0), std=(1, 1, 1), scales=(1, 1.5), runtime="torch")
    scorer.batching = "canvases"
    dark, bright = np.zeros((60, 80, 3), np.uint8), np.full((60, 80, 3), 255, np.uint8)
    found = list(score_many([dark, bright, dark, dark], scorer, batch=3))
    assert [item.scores is None for item in found] == [False, True, False, False]
    assert "the scores in torch.float32 are not finite; try another dtype" in str(found[1].error)
    with pytest.raises(DensescoreError, match="not finite"):
        scorer.score_batch([dark, bright])


def test_crops_and_networks_without_a_wide_head_are_not_batched(images: list[NDArray[np.uint8]]) -> None:
    averaged = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    scorer = DenseScorer(averaged, patch_size=20, scales=(1, 1.5))
    assert (scorer.batching, scorer.batch_size) == (None, 1)
    for scores, image in zip(scorer.score_batch(images), images, strict=True):
        assert torch.equal(scores.patch_scores, scorer.score(image).patch_scores)
    for crops in scorer.score_batch(images[:2], context="patch"):
        assert crops.context == "patch"
    assert scorer.score_batch([]) == []


def test_a_head_is_batched_only_for_few_patches(toy_scorer: DenseScorer) -> None:
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


def test_out_of_memory_falls_back_to_one_at_a_time(
    scorer: DenseScorer, images: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DenseScorer, "_score_together", short)
    for scores, image in zip(scorer.score_batch(images), images, strict=True):
        assert torch.equal(scores.patch_scores, scorer.score(image).patch_scores)


class Counting(TorchDispatchMode):
    """Counts the operators that a device would be sent: no views."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not any(out.alias_info and not out.alias_info.is_write for out in func._schema.returns)
        return func(*args, **(kwargs or {}))


def test_a_batch_takes_fewer_operations_whatever_the_sizes(
    images: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        scorer_module, "accelerated", lambda network, *_: accelerated_on_gpu(network)
    )  # the layers as a GPU runs them
    layers = [layer for _ in range(30) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    network = nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=4), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    scorer = DenseScorer(network, patch_size=32, scales=(1, 1.5, 2.3))
    counts = []
    for kind in (None, "canvases"):
        scorer.batching = kind
        scorer.score_batch(images[:2])
        with Counting() as counting:
            scorer.score_batch(images)
        counts.append(counting.count)
    assert 0 < counts[1] < counts[0] / 6, counts


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_the_device_waits_for_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    order = MagicMock()
    order.normalize.levels.side_effect = KeyboardInterrupt  # no more is looked at
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: order.stream)
    prefetched = batching.Prefetched(order.pixels, order.layout, order.copied, 0.0)
    with pytest.raises(KeyboardInterrupt):
        batching.prefetched_outputs(order.network, order.head, prefetched, order.normalize, order.clock)
    assert order.mock_calls == [
        call.stream.wait_event(order.copied),
        call.pixels.record_stream(order.stream),
        call.normalize.levels(order.pixels, order.layout.levels, order.layout.count),
    ]


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stream_on_a_gpu_gives_the_scores_of_a_cpu(dtype: str, coffee: NDArray[np.uint8]) -> None:
    images = [coffee[:height, :width] for height, width in ((60, 80), (80, 60), (120, 161), (33, 90))] * 5
    near, far = (
        DenseScorer(Toy(), patch_size=20, scales=(1, 1.5, 2.3), device=device, dtype=dtype)
        for device in ("cpu", "cuda")
    )
    tolerance = 1e-3 if dtype == "float32" else 3e-2
    for item, image in zip(score_many(images, far, batch=8), images, strict=True):
        assert item.scores is not None, item.error
        expected = near.score(image).patch_scores
        assert expected.std() > 1e-3
        torch.testing.assert_close(item.scores.patch_scores.cpu(), expected, rtol=tolerance, atol=tolerance)
