"""The box layer learns where objects are, from features that tell it."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from densescore import DensescoreError, Pyramid
from densescore.data.boxed_set import BoxedImage, BoxedSet
from densescore.data.labeled_set import LabeledImage
from densescore.models.box_layer import gather_neighbors, gather_scores, neighbors, score_logits
from densescore.models.head import Activation, AdaptationHead
from densescore.transfer import train_boxes as train_boxes_module
from densescore.transfer.patch_labels import LabelRule, shown_object
from densescore.transfer.pipeline import head_scores
from densescore.transfer.recipe import Objective, Recipe
from densescore.transfer.train_boxes import (
    ABSENT,
    ABSENT_POOL,
    EPOCHS,
    MAX_SHOWN,
    SAMPLE_PATCHES,
    Pairs,
    draw_pairs,
    fit_reduction,
    gather_boxes,
    train_boxes,
)
from densescore.transfer.train_head import Round
from densescore.transfer.training_set import mirrored

SIDE = 120


def pyramid(height: int, width: int) -> Pyramid:
    return Pyramid.of(height, width, scales=(1, 1.5, 2.4), patch=70, stride=10)


def features(image: LabeledImage, flip: bool) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
    """The share of each ninth of each patch that the object fills: ``[M, 9]``."""
    assert isinstance(image, BoxedImage)
    patches = pyramid(image.height, image.width).boxes()
    boxes = mirrored(image.boxes, image.width) if flip else image.boxes
    low, size = patches[:, :2], patches[:, 2:] - patches[:, :2]
    columns = []
    for down, across in itertools.product(range(3), repeat=2):
        corner = low + size * np.array([across, down], np.float32) / 3
        shared = np.minimum(corner + size / 3, boxes[:1, 2:]) - np.maximum(corner, boxes[:1, :2])
        columns.append(np.prod(np.clip(shared, 0, None), 1) / np.prod(size / 3, 1))
    return patches, np.stack(columns, 1).astype(np.float16)


def score(values: torch.Tensor) -> torch.Tensor:
    """First class: how much of a patch the object fills; second class, which no image shows: chance."""
    noise = torch.rand(len(values), generator=torch.Generator().manual_seed(len(values)))
    return torch.stack([values.mean(1), noise], 1)


def drawn(boxes: Any, classes: list[int], difficult: list[bool], truth: list[int], side: int = SIDE) -> BoxedImage:
    return BoxedImage(
        name="drawn", path=Path("none"), height=side, width=side, truth=np.array(truth, np.int8),
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4), classes=np.array(classes, np.int64),
        difficult=np.array(difficult, bool),
    )  # fmt: skip


def make(count: int, seed: int, difficult: bool = False) -> BoxedSet:
    draw = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        corner, size = draw.uniform(0, 50, 2), draw.uniform(30, 70, 2)
        images.append(drawn(np.concatenate([corner, corner + size]), [0], [difficult], [1, -1]))
    return BoxedSet("drawn", ("thing", "other"), tuple(images))


def test_a_trained_layer_finds_boxes_and_knows_their_quality() -> None:
    rounds: list[Round] = []
    layer = train_boxes(make(60, 0), features, score, pyramid, Recipe(), 0, callback=rounds.append)
    again = train_boxes(make(60, 0), features, score, pyramid, Recipe(), 0)
    assert [done.round for done in rounds] == list(range(1, EPOCHS + 1))
    assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), again.state_dict().values(), strict=True))
    ious, right, wrong, absent, of_patches = np.empty((5, 20))
    for number, image in enumerate(make(20, 1).images):
        patches, values = features(image, False)
        with torch.no_grad():
            inputs = torch.from_numpy(values).float()
            found = layer(layer.reduce(inputs), score(inputs), pyramid(SIDE, SIDE))
        order = found.patches[0]
        shown = shown_object(patches[order], image.boxes) >= 0
        truth = torch.from_numpy(image.boxes)
        ious[number] = box_iou(found.boxes[0][shown], truth).mean()
        of_patches[number] = box_iou(torch.from_numpy(patches[order][shown]), truth).mean()
        right[number], wrong[number] = found.qualities[0][shown].mean(), found.qualities[0][~shown].mean()
        absent[number] = found.qualities[1].mean()
    assert ious.mean() > of_patches.mean() + 0.15
    assert right.mean() > wrong.mean() + 0.2
    assert right.mean() > absent.mean() + 0.2


@pytest.mark.parametrize("seed", range(5))
def test_pairs_of_a_patch_and_a_class(seed: int) -> None:
    draw = np.random.default_rng(seed)
    corners, sizes = draw.uniform(0, 80, (4, 2)), draw.uniform(20, 80, (4, 2))
    boxes = np.hstack([corners, corners + sizes])
    image = drawn(boxes, [2, 0, 2, 0], [False, False, True, False], [1, -1, 1, 0, -1], 160)
    patches = Pyramid.of(160, 160, scales=(1, 1.5, 2.4, 3), patch=70, stride=10).boxes()
    scores = draw.random((len(patches), 5)).astype(np.float32)
    pairs = draw_pairs(patches, image.boxes, image, scores, LabelRule(), draw)
    assert len(pairs.patches) == len(pairs.classes) == len(pairs.boxes)
    shows = np.isfinite(pairs.boxes[:, 0])
    for column in (0, 2):
        own = pairs.classes == column
        boxes = image.boxes[(image.classes == column) & ~image.difficult]
        shown = shown_object(patches[pairs.patches[own]], boxes)
        assert (shows[own] == (shown >= 0)).all()
        np.testing.assert_array_equal(pairs.boxes[own & shows], boxes[shown[shown >= 0]])
        assert 0 < (own & shows).sum() <= MAX_SHOWN
        assert len(np.unique(pairs.patches[own])) == own.sum()  # none twice
        assert (own & ~shows).sum() == max(8, (own & shows).sum() // 2)
    absent = np.isin(pairs.classes, [1, 4])
    assert absent.sum() == ABSENT
    assert not shows[absent].any()
    least = np.sort(scores[:, [1, 4]].ravel())[-ABSENT_POOL]
    assert (scores[pairs.patches[absent], pairs.classes[absent]] >= least).all()
    assert not (pairs.classes == 3).any()  # unknown
    pairs = draw_pairs(patches, image.boxes[:0], drawn([], [], [], [0] * 5), scores, LabelRule(), draw)
    assert [part.shape for part in pairs] == [(0,), (0,), (0, 4)]  # nothing is known of the image


def test_neighbor_scores_are_of_the_pair_s_class(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = np.array([3, 5, 7]), np.array([0, 1, 0])
    nothing = np.full((3, 4), np.nan, np.float32)
    monkeypatch.setattr(train_boxes_module, "draw_pairs", lambda *_: Pairs(rows, columns, nothing))
    images, draw, recipe = make(2, 0), np.random.default_rng(0), Recipe(flips=False)
    reduce = fit_reduction(images, features, draw)
    gathered = gather_boxes(images, features, score, pyramid, recipe, reduce, draw)
    assert len(gathered.patches) == 6
    patches, values = features(images.images[1], False)
    inputs, near = torch.from_numpy(values).float(), torch.from_numpy(neighbors(pyramid(SIDE, SIDE)))[rows]
    logits = score_logits(score(inputs))
    with torch.no_grad():
        torch.testing.assert_close(gathered.neighbor_features[3:], gather_neighbors(reduce(inputs), near).half())
    expected = gather_scores(logits, near, torch.from_numpy(columns))
    torch.testing.assert_close(gathered.neighbor_scores[3:], expected.half())
    assert not torch.equal(expected[0], gather_scores(logits, near, 1 - torch.from_numpy(columns))[0])
    np.testing.assert_array_equal(gathered.patches[3:], patches[rows])


def test_the_reduction_is_the_principal_components_of_the_features() -> None:
    """Strongest first, decorrelated, and of a mean variance of 1, measured on sampled patches of all images."""
    draw = np.random.default_rng(1)
    turn, spread = np.linalg.qr(draw.normal(size=(9, 9)))[0], np.geomspace(3, 0.1, 9)
    values = [((draw.normal(size=(SAMPLE_PATCHES, 9)) * spread) @ turn + 5).astype(np.float16) for _ in range(40)]
    remaining = iter(values)
    reduce = fit_reduction(make(40, 0), lambda *_: (np.zeros((0, 4), np.float32), next(remaining)), draw)
    with torch.no_grad():
        reduced = reduce(torch.from_numpy(np.concatenate(values)).float()).double()
    covariance = torch.cov(reduced.T)
    assert not reduce.weight.requires_grad
    torch.testing.assert_close(covariance.trace() / 9, torch.tensor(1.0).double(), rtol=1e-3, atol=0)
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-3
    exact = torch.linalg.eigvalsh(torch.cov(torch.from_numpy(np.concatenate(values).astype(np.float64)).T)).flip(0)
    torch.testing.assert_close(covariance.diag(), exact / exact.mean(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_the_layer_trains_on_the_head_s_scores(activation: Activation) -> None:
    torch.manual_seed(0)
    head = AdaptationHead(5, 3, 4).eval()
    given = torch.randn(6, 5)
    logits = head(given)
    expected = 1 / (1 + (-logits).exp()) if activation == "sigmoid" else logits.exp() / logits.exp().sum(1, True)
    objective: Objective = "softmax" if activation == "softmax" else "multilabel"
    torch.testing.assert_close(head_scores(head, objective)(given), expected)


def test_the_object_that_a_patch_shows_best() -> None:
    patches = np.array([[0, 0, 100, 100], [0, 0, 50, 50], [200, 0, 300, 100]], np.float32)
    boxes = np.array([[0, 0, 50, 50], [0, 0, 90, 90]], np.float32)
    assert shown_object(patches, boxes).tolist() == [1, 0, -1]
    assert shown_object(patches, boxes, difficult=np.array([False, True])).tolist() == [0, 0, -1]
    assert shown_object(patches, boxes, LabelRule(patch_share=0.5)).tolist() == [1, 0, -1]
    assert shown_object(patches, boxes[:0]).tolist() == [-1, -1, -1]


def test_a_set_without_a_shown_object_is_refused() -> None:
    with pytest.raises(DensescoreError, match="'drawn': no patch shows a boxed object"):
        train_boxes(make(3, 0, difficult=True), features, score, pyramid, Recipe(), 0)
