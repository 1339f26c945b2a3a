import json
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from densescore.errors import DensescoreError
from densescore.models.krizhevsky import Krizhevsky, initialize
from densescore.models.registry import load_classifier
from densescore.models.weights import read_metadata, save_weights
from densescore.paper.pretrain import SourceRecipe
from densescore.paper.pretrain.images import (
    EpochBatches,
    SourceImages,
    Views,
    available_classes,
    center_view,
    find_images,
    ten_views,
    training_view,
)
from densescore.paper.pretrain.process import Process, find_precision
from densescore.paper.pretrain.training import Event, measure, normalizer
from tests.paper.pretrain.source_training import (
    CPU,
    FLOAT32,
    NORMALIZE,
    RECIPE,
    load_tree,
    small_network,
    train,
    write_tree,
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def images(tree: Path) -> SourceImages:
    return load_tree(tree)


def test_validation_images_are_held_out_where_there_are_none(tree: Path, tmp_path: Path) -> None:
    classes = available_classes(tree)
    assert classes == ["n00000001", "n00000002", "n00000003"]
    images = find_images(tree, classes)
    assert (len(images.train), len(images.val)) == (54, 6)
    assert not {path for path, _ in images.train} & {path for path, _ in images.val}
    assert [label for _, label in images.val] == [0, 0, 1, 1, 2, 2]
    assert all(path.parent.name == classes[label] for path, label in (*images.train, *images.val))
    write_tree(tmp_path / "train", count=3)
    write_tree(tmp_path / "val", count=2, classes=1)
    mixed = find_images(tmp_path, ["n00000001", "n00000003"])
    assert [(path.parts[-3], label) for path, label in mixed.val] == [("val", 0), ("val", 0), ("train", 1)]
    assert len(mixed.train) == 3 + 2
    assert mixed.digest() != images.digest() == find_images(tree, classes).digest()
    with pytest.raises(DensescoreError, match="1 of 2 classes have no folder: n00000009"):
        find_images(tmp_path, ["n00000001", "n00000009"])
    write_tree(tmp_path / "one", count=1)
    with pytest.raises(DensescoreError, match="n00000001: too few images"):
        find_images(tmp_path / "one", ["n00000001"])
    with pytest.raises(DensescoreError, match="none: no such folder"):
        available_classes(tmp_path / "none")


def ramp(height: int, width: int) -> torch.Tensor:
    """A picture whose channels are each pixel's row and column: ``[3, H, W]``."""
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, cols, torch.zeros_like(rows)]).to(torch.uint8)


def test_views_are_patches_of_the_central_square_and_its_mirror_image() -> None:
    picture = ramp(36, 50)  # the square: all rows, columns 7 to 42
    (center,) = center_view(36, 32)(picture)
    assert torch.equal(center, picture[:, 2:34, 9:41])
    ten = ten_views(36, 32)(picture)
    corners = [picture[:, y : y + 32, 7 + x : 7 + x + 32] for y, x in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))]
    mirrored = [picture[:, :, 7:43].flip(2)[:, y : y + 32, x : x + 32] for y, x in ((0, 0), (0, 4), (4, 0), (4, 4))]
    assert ten.shape == (10, 3, 32, 32)
    for view in (*corners, *mirrored):
        assert any(torch.equal(view, each) for each in ten)
    seen = set()
    for seed in range(60):
        torch.manual_seed(seed)
        (patch,) = training_view(36, 32)(picture)
        mirror = bool(patch[1, 0, 0] > patch[1, 0, 1])
        top, left = int(patch[0, 0, 0]), int(patch[1, 0].min())
        assert torch.equal(patch.flip(2) if mirror else patch, picture[:, top : top + 32, left : left + 32])
        seen.add((mirror, top, left - 7))
    assert {mirror for mirror, _, _ in seen} == {False, True}
    assert {top for _, top, _ in seen} == {left for _, _, left in seen} == {0, 1, 2, 3, 4}
    assert center_view(256, 224)(ramp(100, 60)).shape == (1, 3, 224, 224)


def test_a_view_follows_from_seed_epoch_and_image_alone(images: SourceImages) -> None:
    samples = images.train
    views = Views(samples, training_view(36, 24), seed=3)
    first = views[1, 5][0]
    torch.manual_seed(99)
    assert first is not None
    again = views[1, 5][0]
    assert again is not None
    assert torch.equal(first, again)
    others = [Views(samples, training_view(36, 24), seed=4)[1, 5][0], views[2, 5][0]]
    assert all(other is not None and not torch.equal(first, other) for other in others)


def test_processes_share_each_batch_and_a_sampler_resumes_anywhere() -> None:
    whole = list(EpochBatches(23, 6, seed=0, epoch=2))
    assert len(whole) == 3
    indices = [index for batch in whole for epoch, index in batch if epoch == 2]
    assert len(set(indices)) == 18
    assert list(EpochBatches(23, 6, seed=0, epoch=2, start=1)) == whole[1:]
    shares = [list(EpochBatches(23, 6, seed=0, epoch=2, rank=rank, world=3)) for rank in range(3)]
    assert [sorted(chain.from_iterable(batches)) for batches in zip(*shares, strict=True)] == [
        sorted(batch) for batch in whole
    ]
    assert next(iter(EpochBatches(23, 6, seed=0, epoch=3))) != [(3, index) for _, index in whole[0]]


def test_training_learns_and_divides_the_learning_rate_three_times(images: SourceImages) -> None:
    network = small_network(dropout=0.0)
    events: list[Event] = []
    recipe = replace(RECIPE, max_epochs=60, patience=0, tolerance=0.2)
    result = train(network, images, recipe, callback=events.append, callback_steps=3)
    assert result.top1 == result.top5 == 1
    assert result.loss < 0.5 * np.log(3)
    done = [event for event in events if event.validation is not None]
    rates = [event.learning_rate for event in done]
    assert [rate for index, rate in enumerate(rates) if rate not in rates[:index]] == pytest.approx(
        [1e-2, 1e-3, 1e-4, 1e-5]
    )
    losses = [event.validation.loss for event in done if event.validation is not None]
    stale = [now >= 0.8 * min(losses[:index]) for index, now in enumerate(losses) if index]
    # A stale epoch, and only such a one, divides the rate of the next; the fourth ends the training.
    assert [after < before for before, after in pairwise(rates[1:])] == stale[:-1]
    assert stale[-1]
    assert sum(stale) == 4
    assert [event.step for event in events[:4]] == [3, 6, 9, 3]
    assert all(event.rate > 0 for event in events)


def test_accuracy_by_hand(tmp_path: Path) -> None:
    """A network whose logits are the mean color: black pictures tie, and a tie counts as the worse place."""
    classes = [f"n0000000{index}" for index in range(7)]
    samples: list[tuple[Path, int]] = []
    for label, color in ((0, (255, 0, 0)), (1, (0, 200, 250)), (2, (0, 0, 255)), (0, (0, 0, 0))):
        path = tmp_path / f"{len(samples)}.png"
        Image.fromarray(np.full((40, 40, 3), color, np.uint8)).save(path)
        samples.append((path, label))

    class Color(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.pad(10 * pixels.mean((2, 3)), (0, len(classes) - 3))

    normalize = normalizer((0, 0, 0), (1, 1, 1))
    result = measure(Color(), samples, ten_views(36, 32), normalize, CPU, precision=FLOAT32, batch=20)
    assert (result.images, result.top1, result.top5) == (4, 0.5, 0.75)
    logits = torch.zeros(4, 7, dtype=torch.float64)
    logits[0, 0], logits[1, 1:3], logits[2, 2] = 10, torch.tensor([2000 / 255, 2500 / 255]), 10
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0]))
    assert result.loss == pytest.approx(float(expected), rel=1e-5)


def test_images_that_cannot_be_read_are_left_out_and_named(tmp_path: Path) -> None:
    images = load_tree(write_tree(tmp_path, count=6, classes=2))
    broken = [images.train[2][0], images.val[0][0]]
    for path in broken:
        path.write_bytes(b"not a picture")
    events: list[Event] = []
    recipe = replace(RECIPE, batch=len(images.train), max_epochs=1)
    train(small_network(2), images, recipe, callback=events.append)
    problems = [problem for event in events for problem in event.unreadable]
    assert [problem.split(":")[0] for problem in problems] == [str(path) for path in broken]
    assert [event.validation.images for event in events if event.validation is not None] == [len(images.val) - 1]
    for path, _ in images.train:
        path.write_bytes(b"not a picture")
    with pytest.raises(DensescoreError, match="no image of a batch of 10 can be read: .*not an image"):
        train(small_network(2), images, recipe)
    with pytest.raises(DensescoreError, match="none of the 10 images to measure on can be read: .*not an image"):
        measure(small_network(2), images.train, center_view(36, 32), NORMALIZE, CPU, precision=FLOAT32)


def test_settings_that_cannot_train(images: SourceImages, tmp_path: Path) -> None:
    with pytest.raises(DensescoreError, match="batch: 55 is more than the 54 training images"):
        train(small_network(), images, replace(RECIPE, batch=55))
    with pytest.raises(DensescoreError, match="cannot be shared evenly by 4"):
        train(small_network(), images, RECIPE, process=Process(CPU.device, 0, 4))
    with pytest.raises(DensescoreError, match="patch must lie in 1..side"):
        SourceRecipe(side=100)
    for field, value in (("learning_rate", 0.0), ("patience", -1), ("divisions", -1), ("batch", 0)):
        with pytest.raises(DensescoreError, match=f"{field} must be"):
            replace(RECIPE, **{field: value})  # type: ignore[arg-type]
    with pytest.raises(DensescoreError, match="precision must be auto"):
        find_precision("float8", CPU.device)
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(DensescoreError, match="loss became"):
        train(small_network(), images, replace(RECIPE, learning_rate=1e30), checkpoint=checkpoint)
    assert not checkpoint.exists()


def test_bfloat16_trains_and_keeps_float32_weights(images: SourceImages) -> None:
    network = small_network()
    seen = []
    next(network.children()).register_forward_hook(lambda _layer, _inputs, output: seen.append(output.dtype))
    precision = find_precision("bfloat16", CPU.device)
    train(network, images, replace(RECIPE, max_epochs=1), precision=precision)
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_krizhevskys_first_weights() -> None:
    network, again = Krizhevsky(classes=5, width=32), Krizhevsky(classes=5, width=32)
    initialize(network, seed=0)
    initialize(again, seed=0)
    state, other = network.state_dict(), again.state_dict()
    biases = [tensor.unique().tolist() for name, tensor in state.items() if name.endswith("bias")]
    assert biases == [[0], [1], [0], [1], [1], [1], [1], [0]]
    for name in ("features.0.weight", "classifier.0.weight"):
        assert state[name].std().item() == pytest.approx(0.01, rel=0.02)
    assert all(torch.equal(state[name], other[name]) for name in state)


def test_a_written_network_carries_its_width_its_labels_and_its_origin(tmp_path: Path) -> None:
    path = tmp_path / "source.safetensors"
    save_weights(path, Krizhevsky(classes=3, width=16).state_dict(), ("n1", "n2", "n3"), {"seed": 0})
    classifier = load_classifier("krizhevsky", weights=path)
    assert classifier.labels == ("n1", "n2", "n3")
    assert classifier.module(torch.zeros(1, 3, 224, 224)).shape == (1, 3)
    assert json.loads(read_metadata(path)["training"]) == {"seed": 0}
