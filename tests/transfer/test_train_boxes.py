"""The box layer learns where objects are, from features that tell it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from densescore import DensescoreError, Pyramid
from densescore.data.boxed_set import BoxedImage, BoxedSet
from densescore.data.labeled_set import LabeledImage
from densescore.models.adaptation import Activation, AdaptationHead, HeadFile
from densescore.models.box_layer import around, evidence_of, logits_of, neighbors
from densescore.transfer import train_boxes as train_boxes_module
from densescore.transfer.patch_labels import LabelRule, shown_object
from densescore.transfer.pipeline import scores_of
from densescore.transfer.recipe import Recipe
from densescore.transfer.rounds import Round
from densescore.transfer.train_boxes import (
    ABSENT,
    EPOCHS,
    HIGHEST,
    SHOWN,
    Pairs,
    draw_pairs,
    gather_boxes,
    train_boxes,
)
from densescore.transfer.training_patches import mirrored

SIDE = 120


def pyramid(height: int, width: int) -> Pyramid:
    return Pyramid.of(height, width, scales=(1, 1.5, 2.4), patch=70, stride=10)


def features(image: LabeledImage, flip: bool) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
    """Of each patch: the share of each of its quarters and of itself that the object fills; and noise."""
    assert isinstance(image, BoxedImage)
    patches = pyramid(image.height, image.width).boxes()
    boxes = mirrored(image.boxes, image.width) if flip else image.boxes
    low, size = patches[:, :2], patches[:, 2:] - patches[:, :2]
    columns = []
    for down in range(3):
        for across in range(3):
            corner = low + size * np.array([across, down], np.float32) / 3
            part = np.concatenate([corner, corner + size / 3], 1)
            shared = np.minimum(part[:, 2:], boxes[:1, 2:]) - np.maximum(part[:, :2], boxes[:1, :2])
            columns.append(np.prod(np.clip(shared, 0, None), 1) / np.prod(size / 3, 1))
    return patches, np.stack(columns, 1).astype(np.float16)


def score(values: torch.Tensor) -> torch.Tensor:
    """Of the first class, how much of a patch the object fills; of the second, which no image shows, chance."""
    noise = torch.rand(len(values), generator=torch.Generator().manual_seed(len(values)))
    return torch.stack([values.mean(1), noise], 1)


def make(count: int, seed: int) -> BoxedSet:
    draw = np.random.default_rng(seed)
    images = []
    for number in range(count):
        corner, size = draw.uniform(0, 50, 2), draw.uniform(30, 70, 2)
        box = np.concatenate([corner, corner + size])[None].astype(np.float32)
        images.append(
            BoxedImage(
                name=f"{number}", path=Path("none"), height=SIDE, width=SIDE, truth=np.array([1, -1], np.int8),
                boxes=box, classes=np.zeros(1, np.int64), difficult=np.zeros(1, bool),
            )
        )  # fmt: skip
    return BoxedSet("drawn", ("thing", "other"), tuple(images))


def test_boxes_are_found_and_their_qualities_known() -> None:
    rounds: list[Round] = []
    layer = train_boxes(make(60, 0), features, score, pyramid, Recipe(), 0, callback=rounds.append)
    again = train_boxes(make(60, 0), features, score, pyramid, Recipe(), 0)
    assert [done.round for done in rounds] == list(range(1, EPOCHS + 1))
    assert rounds[-1].loss < 0.75 * rounds[0].loss
    assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), again.state_dict().values(), strict=True))
    ious, right, wrong, absent, of_patches = [], [], [], [], []
    for image in make(20, 1).images:
        patches, values = features(image, False)
        with torch.no_grad():
            raw = torch.from_numpy(values).float()
            found = layer(layer.reduce(raw), score(raw), pyramid(SIDE, SIDE))
        order = found.patches[0]
        shown = shown_object(patches[order], image.boxes) >= 0
        truth = torch.from_numpy(image.boxes)
        ious.append(box_iou(found.boxes[0][shown], truth).mean().item())
        of_patches.append(box_iou(torch.from_numpy(patches[order][shown]), truth).mean().item())
        right.append(found.qualities[0][shown].mean().item())
        wrong.append(found.qualities[0][~shown].mean().item())
        absent.append(found.qualities[1].mean().item())
    assert np.mean(ious) > np.mean(of_patches) + 0.15
    assert np.mean(right) > np.mean(wrong) + 0.2
    assert np.mean(right) > np.mean(absent) + 0.2


@pytest.mark.parametrize("seed", range(5))
def test_pairs_of_a_patch_and_a_class(seed: int) -> None:
    draw = np.random.default_rng(seed)
    corners, sizes = draw.uniform(0, 80, (4, 2)), draw.uniform(20, 80, (4, 2))
    boxes = np.concatenate([corners, corners + sizes], 1).astype(np.float32)
    classes, difficult = np.array([2, 0, 2, 0]), np.array([False, False, True, False])
    image = BoxedImage(
        name="drawn", path=Path("none"), height=160, width=160, truth=np.array([1, -1, 1, 0, -1], np.int8),
        boxes=boxes, classes=classes, difficult=difficult,
    )  # fmt: skip
    patches = Pyramid.of(160, 160, scales=(1, 1.5, 2.4, 3), patch=70, stride=10).boxes()
    scores = draw.random((len(patches), 5)).astype(np.float32)
    pairs = draw_pairs(patches, boxes, image, scores, LabelRule(), draw)
    assert len(pairs.patches) == len(pairs.classes) == len(pairs.boxes)
    shows = np.isfinite(pairs.boxes[:, 0])
    for column in (0, 2):
        own = pairs.classes == column
        usable = (classes == column) & ~difficult
        shown = shown_object(patches[pairs.patches[own]], boxes[usable])
        assert (shows[own] == (shown >= 0)).all()
        np.testing.assert_array_equal(pairs.boxes[own & shows], boxes[usable][shown[shown >= 0]])
        assert 0 < (own & shows).sum() <= SHOWN
        assert len(np.unique(pairs.patches[own])) == own.sum()  # none twice
        assert (own & ~shows).sum() == max(8, (own & shows).sum() // 2)
    absent = np.isin(pairs.classes, [1, 4])
    assert absent.sum() == ABSENT
    assert not shows[absent].any()
    least = np.sort(scores[:, [1, 4]].ravel())[-HIGHEST]
    assert (scores[pairs.patches[absent], pairs.classes[absent]] >= least).all()
    assert not (pairs.classes == 3).any()  # unknown


def test_an_image_of_which_nothing_is_known_has_no_pairs() -> None:
    image = BoxedImage(
        name="unknown", path=Path("none"), height=SIDE, width=SIDE, truth=np.zeros(2, np.int8),
        boxes=np.zeros((0, 4), np.float32), classes=np.zeros(0, np.int64), difficult=np.zeros(0, bool),
    )  # fmt: skip
    patches = pyramid(SIDE, SIDE).boxes()
    scores = np.full((len(patches), 2), 0.5, np.float32)
    pairs = draw_pairs(patches, image.boxes, image, scores, LabelRule(), np.random.default_rng(0))
    assert [part.shape for part in pairs] == [(0,), (0,), (0, 4)]


def test_each_pair_s_evidence_is_of_its_own_class(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = np.array([3, 5, 7]), np.array([0, 1, 0])
    nothing = np.full((3, 4), np.nan, np.float32)
    monkeypatch.setattr(train_boxes_module, "draw_pairs", lambda *_: Pairs(rows, columns, nothing))
    images = make(2, 0)
    reduce, gathered = gather_boxes(images, features, score, pyramid, Recipe(flips=False), 0)
    assert len(gathered.looks) == 6
    patches, values = features(images.images[1], False)
    raw, near = torch.from_numpy(values).float(), torch.from_numpy(neighbors(pyramid(SIDE, SIDE)))[rows]
    with torch.no_grad():
        looks = around(reduce(raw), near)
    evidence = evidence_of(logits_of(score(raw)), near, torch.from_numpy(columns))
    torch.testing.assert_close(gathered.looks[3:], looks.half())
    torch.testing.assert_close(gathered.evidence[3:], evidence.half())
    assert not torch.equal(evidence[0], evidence_of(logits_of(score(raw)), near, 1 - torch.from_numpy(columns))[0])
    np.testing.assert_array_equal(gathered.patches[3:], patches[rows])


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_the_scores_that_the_layer_sees_are_the_head_s(activation: Activation) -> None:
    torch.manual_seed(0)
    head = AdaptationHead(5, 3, 4).eval()
    file = HeadFile(head, ("a", "b", "c"), "lite0", (0.5,) * 3, (0.5,) * 3, 224, activation)
    given = torch.randn(6, 5)
    logits = head(given)
    expected = 1 / (1 + (-logits).exp()) if activation == "sigmoid" else logits.exp() / logits.exp().sum(1, True)
    torch.testing.assert_close(scores_of(file)(given), expected)


def test_the_object_that_a_patch_shows_best() -> None:
    patches = np.array([[0, 0, 100, 100], [0, 0, 50, 50], [200, 0, 300, 100]], np.float32)
    boxes = np.array([[0, 0, 50, 50], [0, 0, 90, 90]], np.float32)
    assert shown_object(patches, boxes).tolist() == [1, 0, -1]
    assert shown_object(patches, boxes, difficult=np.array([False, True])).tolist() == [0, 0, -1]
    assert shown_object(patches, boxes, LabelRule(patch_share=0.5)).tolist() == [1, 0, -1]
    assert shown_object(patches, boxes[:0]).tolist() == [-1, -1, -1]


def test_a_set_without_an_object_that_a_patch_shows_is_refused() -> None:
    images = make(3, 0)
    empty = BoxedSet("empty", images.classes, tuple(i for i in images.images))
    for image in empty.images:
        image.difficult[:] = True
    with pytest.raises(DensescoreError, match="'empty': no patch shows a boxed object"):
        train_boxes(empty, features, score, pyramid, Recipe(), 0)
