"""Patch labels: the rule of Section 3.2, vectorized, against a plain loop; and the picture of them."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from densescore import BoxedImage, DensescoreError
from densescore.transfer.figure import draw_patch_labels
from densescore.transfer.patch_labels import (
    AMBIGUOUS,
    LabelRule,
    Overlap,
    label_patches,
    label_patches_per_class,
    why_left_out,
)

COUNT = 3


def area(box: NDArray[np.float32]) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def shared(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return float(width * height) if width > 0 and height > 0 else 0.0


def meets(patch: NDArray[np.float32], box: NDArray[np.float32], rule: LabelRule) -> bool:
    common = shared(patch, box)
    return common >= rule.patch_share * area(patch) and common >= rule.object_share * area(box)


def overlaps(patch: NDArray[np.float32], box: NDArray[np.float32], rule: LabelRule) -> bool:
    common = shared(patch, box)
    touches = rule.overlap == "touch" and common > 0
    holds = rule.overlap == "part" and common >= rule.part * min(area(box), area(patch))
    return meets(patch, box, rule) or touches or holds


def one_label(
    patch: NDArray[np.float32],
    boxes: NDArray[np.float32],
    classes: NDArray[np.int64],
    difficult: NDArray[np.bool_],
    rule: LabelRule,
) -> int:
    if not any(shared(patch, box) > 0 for box in boxes):
        return COUNT
    fitting = [i for i in range(len(boxes)) if meets(patch, boxes[i], rule) and not difficult[i]]
    if not fitting:
        return AMBIGUOUS
    owner = max(fitting, key=lambda i: (shared(patch, boxes[i]), -i))
    others = classes != classes[owner] if rule.overlap == "class" else np.arange(len(boxes)) != owner
    return AMBIGUOUS if any(overlaps(patch, box, rule) for box in boxes[others]) else int(classes[owner])


corners = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 8), st.integers(1, 8))
squares = st.tuples(st.integers(-4, 14), st.integers(-4, 14), st.integers(1, 12))


@given(
    st.lists(squares, min_size=1, max_size=12),
    st.lists(st.tuples(corners, st.integers(0, COUNT - 1), st.booleans()), max_size=5),
    st.sampled_from(get_args(Overlap)),
    st.sampled_from([0.1, 0.2, 0.5]),
    st.sampled_from([0.3, 0.6, 1.0]),
)
def test_labels_are_those_of_a_plain_loop(
    windows: list[tuple[int, int, int]],
    objects: list[tuple[tuple[int, int, int, int], int, bool]],
    overlap: Overlap,
    patch_share: float,
    object_share: float,
) -> None:
    patches = np.array([(x, y, x + s, y + s) for x, y, s in windows], np.float32)
    boxes = np.array([(x, y, x + w, y + h) for (x, y, w, h), _, _ in objects], np.float32).reshape(-1, 4)
    classes, difficult = np.array([c for _, c, _ in objects], np.int64), np.array([d for _, _, d in objects], bool)
    rule = LabelRule(patch_share, object_share, overlap)
    expected = [one_label(patch, boxes, classes, difficult, rule) for patch in patches]
    assert label_patches(patches, boxes, classes, COUNT, rule, difficult).tolist() == expected

    table = label_patches_per_class(patches, boxes, classes, COUNT, rule, difficult)
    for patch, row in zip(patches, table, strict=True):
        for label in range(COUNT):
            own = [i for i in range(len(boxes)) if classes[i] == label]
            shown = any(meets(patch, boxes[i], rule) and not difficult[i] for i in own)
            touched = any(shared(patch, boxes[i]) > 0 for i in own)
            assert row[label] == (1 if shown else 0 if touched else -1)


def test_the_readings_of_overlap_on_paper() -> None:
    patch = np.array([[0, 0, 10, 10]], np.float32)
    dog = [2, 2, 8, 8]  # fills 36 % of the patch, which holds all of it
    others = ([9, 9, 20, 20], [7, 0, 17, 10], [0, 0, 6, 6])  # 1 pixel of 121 in common, 30 % of each, all of it
    expected: dict[Overlap, list[int]] = {
        "touch": [-1, -1, -1], "part": [0, -1, -1], "rule": [0, 0, -1], "class": [0, 0, -1]
    }  # fmt: skip
    for overlap, labels in expected.items():
        for other, label in zip(others, labels, strict=True):
            boxes = np.array([dog, other], np.float32)
            assert label_patches(patch, boxes, np.array([0, 1]), 2, LabelRule(overlap=overlap)).tolist() == [label]
    two_dogs = label_patches(patch, np.array([dog, others[2]], np.float32), np.array([0, 0]), 2)
    assert two_dogs.tolist() == [0]


@pytest.mark.parametrize("field", ["patch_share", "object_share", "part"])
def test_thresholds_are_shares(field: str) -> None:
    with pytest.raises(DensescoreError, match=f"{field} must lie in"):
        LabelRule(**{field: 1.5})  # type: ignore[arg-type]
    with pytest.raises(DensescoreError, match="overlap must be one of touch"):
        LabelRule(overlap="near")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("patch", "rule", "reason"),
    [
        ((0, 0, 100, 100), LabelRule(), "cat fills 6\xa0% of it, under 20\xa0%"),  # all of the cat, but far away
        ((20, 10, 40, 30), LabelRule(), "holds 48\xa0% of cat, under 60\xa0%"),
        ((33, 33, 43, 43), LabelRule(), "cat fills 4\xa0% of it, under 20\xa0%; holds under 1\xa0% of cat, under"),
        ((10, 10, 62, 62), LabelRule(patch_share=0.08), "also shows dog"),
        ((10, 10, 52, 52), LabelRule(overlap="touch"), "also touches dog"),
        ((10, 10, 52, 52), LabelRule(overlap="part", part=0.05), "also holds a part of dog"),
        ((60, 60, 90, 90), LabelRule(patch_share=0.1), "shows only cow, which is difficult"),
    ],
)
def test_why_a_patch_is_left_out(patch: tuple[int, ...], rule: LabelRule, reason: str) -> None:
    boxes = np.array([[10, 10, 35, 35], [45, 45, 60, 60], [70, 70, 85, 85]], np.float32)
    classes, difficult = np.array([0, 1, 2]), np.array([False, False, True])
    patches = np.array([patch], np.float32)
    assert label_patches(patches, boxes, classes, 3, rule, difficult).tolist() == [AMBIGUOUS]
    assert why_left_out(patches, boxes, classes, ["cat", "dog", "cow"], rule, difficult)[0].startswith(reason)


@given(st.integers(0, 10_000), st.sampled_from(get_args(Overlap)), st.integers(1, 6))
def test_every_patch_that_is_left_out_has_a_reason(seed: int, overlap: Overlap, count: int) -> None:
    draw = np.random.default_rng(seed)
    corners = draw.uniform(0, 80, (count, 2))
    boxes = np.hstack([corners, corners + draw.uniform(2, 60, (count, 2))]).astype(np.float32)
    classes, difficult = draw.integers(0, 3, count), draw.random(count) < 0.3
    starts = draw.uniform(-10, 80, (200, 2))
    patches = np.hstack([starts, starts + draw.uniform(5, 70, (200, 1))]).astype(np.float32)
    rule = LabelRule(overlap=overlap)
    labels = label_patches(patches, boxes, classes, 3, rule, difficult)
    reasons = why_left_out(patches[labels == AMBIGUOUS], boxes, classes, ["cat", "dog", "cow"], rule, difficult)
    assert len(reasons) == (labels == AMBIGUOUS).sum()
    for reason in reasons:
        assert any(name in reason for name in ("cat", "dog", "cow"))


def test_each_object_has_a_tag_and_each_patch_left_out_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.full((100, 140, 3), 90, np.uint8)
    boxes = np.array([[10, 10, 60, 60], [100, 5, 104, 9]], np.float32)  # the second is too small for any patch
    image = BoxedImage(
        name="photo", path=tmp_path / "photo.png", height=100, width=140, truth=np.ones(2, np.int8), boxes=boxes,
        classes=np.array([0, 1]), difficult=np.zeros(2, bool),
    )  # fmt: skip
    patches = np.array([[5, 5, 65, 65], [40, 40, 100, 100], [70, 0, 140, 70], [80, 40, 140, 100]], np.float32)
    labels = label_patches(patches, boxes, image.classes, 2)
    texts: dict[str, Any] = {}

    def read(figure: Figure, path: Path, **_: Any) -> None:
        texts.update({text.get_text().replace("\n", " "): text for text in figure.findobj(Text)})
        Path(path).touch()

    monkeypatch.setattr(Figure, "savefig", read)
    draw_patch_labels(pixels, patches, labels, image, ("cat", "bird"), tmp_path / "labels.png")
    assert {"cat", "bird: no positive patch", "cat: 1", "background: 1", "left out: 2"} <= set(texts)
    assert "cat fills 11\xa0% of it, under 20\xa0%; holds 16\xa0% of cat, under 60\xa0%" in texts
    assert "bird fills under 1\xa0% of it, under 20\xa0%" in texts
    for name in ("cat", "bird: no positive patch"):  # white letters on a color that lets the photograph through
        background = texts[name].get_bbox_patch()
        assert texts[name].get_color() == "white"
        assert max(background.get_facecolor()[:3]) < 0.95
        assert background.get_alpha() < 0.8
