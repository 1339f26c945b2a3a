"""Classes that cannot be learned, labels that look wrong, and pictures that repeat."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from densescore import DensescoreError, DenseScorer
from densescore.data.boxed_set import BoxedImage, select_classes
from densescore.data.labeled_set import LabeledSet
from densescore.data.load import load_boxed, load_set
from densescore.errors import DensescoreWarning
from densescore.transfer.feature_cache import FeatureCache
from densescore.transfer.label_check import find_repeats, find_suspects, rate_labels
from densescore.transfer.training_set import learnable
from tests.data.voc_set import CLASSES
from tests.transfer.conftest import QUICK


def test_a_label_that_was_removed_is_found_with_its_object(toy: DenseScorer, voc: Path, tmp_path: Path) -> None:
    images = load_boxed(voc, "train")
    victim = next(image for image in images.images if len(image.boxes) > 0)
    column = int(victim.classes[0])
    gone = victim.classes == column
    parts = {name: getattr(victim, name)[~gone] for name in ("boxes", "classes", "difficult", "crowd")}
    truth = np.where(np.arange(len(CLASSES)) == column, -1, victim.truth).astype(np.int8)
    wrong = replace(victim, truth=truth, **parts)
    changed = replace(images, images=[wrong if image is victim else image for image in images.images])
    suspects = find_suspects(rate_labels(changed, toy, FeatureCache(toy, tmp_path), QUICK, 1))
    assert all(one.suspicion >= other.suspicion for one, other in itertools.pairwise(suspects))
    found = next(each for each in suspects if (each.image, each.label) == (victim.name, CLASSES[column]))
    assert found in suspects[:3]
    assert found.problem == "not labeled"
    assert found.box is not None
    x0, y0, x1, y1 = found.box
    middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    corners = victim.boxes[gone].reshape(-1, 2, 2)
    assert min(np.abs(corners.mean(1) - middle).max(1)) < 25


def test_a_box_in_the_wrong_place_is_found_with_the_right_one(toy: DenseScorer, voc: Path, tmp_path: Path) -> None:
    images = load_boxed(voc, "train")
    victim = next(image for image in images.images if len(image.boxes) == 1)
    x0, y0, x1, y1 = victim.boxes[0]
    left, top = 0 if x0 + x1 > victim.width else victim.width - 12, 0 if y0 + y1 > victim.height else victim.height - 12
    wrong = replace(victim, boxes=np.array([[left, top, left + 12, top + 12]], np.float32))  # the opposite corner
    changed = replace(images, images=[wrong if image is victim else image for image in images.images])
    suspects = find_suspects(rate_labels(changed, toy, FeatureCache(toy, tmp_path), QUICK, 1))
    (found,) = (each for each in suspects if each.problem == "displaced")
    assert found in suspects[:3]
    assert found.image == victim.name
    assert found.box is not None
    middle = np.array(found.box).reshape(2, 2).mean(0)
    assert np.abs(middle - victim.boxes.reshape(2, 2).mean(0)).max() < 25


def test_pictures_that_repeat_are_named(voc: Path) -> None:
    images = load_boxed(voc, "train").images
    copy = replace(images[2], name="copy")
    assert [(each.image, each.problem) for each in find_repeats([*images[:5], copy])][-1] == (
        "copy", f"repeats {images[2].name}"
    )  # fmt: skip


def test_classes_that_cannot_be_learned_are_left_out_or_refused(toy: DenseScorer, voc: Path) -> None:
    images = load_boxed(voc, "train")
    column = 1
    small = []
    for image in images.images:
        boxes = image.boxes.copy()
        dots = image.classes == column
        boxes[dots, 2:] = boxes[dots, :2] + 1
        small.append(replace(image, boxes=boxes))
    tiny = replace(images, images=small)
    with pytest.warns(DensescoreWarning, match=f"no patch is positive for {CLASSES[column]}"):
        left = learnable(tiny, toy.pyramid, QUICK)
    assert left.classes == tuple(name for name in CLASSES if name != CLASSES[column])
    with pytest.raises(DensescoreError, match="no patch is positive"):
        learnable(tiny, toy.pyramid, QUICK, strict=True)
    unseen = LabeledSet("train", (*images.classes, "yurt"), [
        replace(image, truth=np.append(image.truth, -1).astype(np.int8)) for image in images.images
    ])  # fmt: skip
    with pytest.warns(DensescoreWarning, match="no image shows yurt"):
        assert learnable(unseen, toy.pyramid, QUICK).classes == images.classes


def test_selected_classes_keep_their_own_boxes(voc: Path) -> None:
    images = load_boxed(voc, "train")
    some = select_classes(images, [CLASSES[2], CLASSES[0]])
    assert some.classes == (CLASSES[0], CLASSES[2])
    for image, whole in zip(some.images, images.images, strict=True):
        assert isinstance(image, BoxedImage)
        assert [some.classes[c] for c in image.classes] == [CLASSES[c] for c in whole.classes if c != 1]
        assert (image.boxes == whole.boxes[whole.classes != 1]).all()
        assert (image.truth == whole.truth[[0, 2]]).all()


def test_a_set_without_splits_is_read_whole(tmp_path: Path, voc: Path) -> None:
    for number, image in enumerate(load_boxed(voc, "train").images[:4]):
        folder = tmp_path / "set" / ("even" if number % 2 == 0 else "odd")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / image.path.name).write_bytes(image.path.read_bytes())
    whole = load_set(tmp_path / "set", None)
    assert (whole.name, len(whole.images)) == ("all", 4)
    assert load_set(voc, None).name == "val"
