"""Which patches are drawn to train on, and that draws follow from the seed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from densescore.data.boxed_set import BoxedImage, BoxedSet
from densescore.data.labeled_set import LabeledImage
from densescore.data.load import load_boxed
from densescore.geometry import Pyramid
from densescore.transfer.training_patches import gather, label_and_draw, mirrored
from tests.transfer.conftest import QUICK, SCALES


def test_all_positives_and_a_tenth_of_the_background_are_drawn(voc: Path) -> None:
    boxed = load_boxed(voc, "train")
    image = boxed.images[0]
    patches = Pyramid.of(image.height, image.width, scales=SCALES, patch=20, stride=4).boxes()
    everything = replace(QUICK, background=1.0)
    _, labels = label_and_draw(patches, image, False, 3, everything, np.random.default_rng(0))
    kept, drawn = label_and_draw(patches, image, False, 3, QUICK, np.random.default_rng(0))
    assert (np.diff(kept) > 0).all()
    assert (drawn < 3).sum() == (labels < 3).sum() > 0
    assert (drawn == 3).sum() == round(0.1 * (labels == 3).sum()) > 0
    flipped = mirrored(mirrored(patches, image.width), image.width)
    np.testing.assert_allclose(flipped, patches, atol=1e-4)
    assert mirrored(np.array([[0, 0, 10, 5]], np.float32), 30).tolist() == [[20, 0, 30, 5]]


def test_draws_follow_from_the_seed_and_not_from_other_images(voc: Path) -> None:
    boxed = load_boxed(voc, "train")

    def features(image: object, flip: bool) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        patches = Pyramid.of(60, 80, scales=SCALES, patch=20, stride=4).boxes()
        return patches, np.arange(len(patches) * 2, dtype=np.float16).reshape(-1, 2)

    first, again = (gather(boxed, features, QUICK, 3) for _ in range(2))
    np.testing.assert_array_equal(first.features, again.features)
    shorter = gather(BoxedSet("train", boxed.classes, boxed.images[:5]), features, QUICK, 3)
    np.testing.assert_array_equal(shorter.features, first.features[first.images < 5])
    assert not np.array_equal(gather(boxed, features, QUICK, 4).features, first.features)
    assert sum(first.counts(3)) == len(first.labels)


@pytest.mark.parametrize("flips", [False, True])
def test_bags_are_drawn_from_all_patches_of_the_image_that_their_truth_is_of(voc: Path, flips: bool) -> None:
    boxed = load_boxed(voc, "train")
    assert len(np.unique(boxed.truth(), axis=0)) > 1

    def features(image: BoxedImage | LabeledImage, flip: bool) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        patches = Pyramid.of(60, 80, scales=SCALES, patch=20, stride=4).boxes()
        index = next(index for index, other in enumerate(boxed.images) if other is image)
        values = np.stack([np.full(len(patches), index), np.full(len(patches), flip), np.arange(len(patches))], axis=1)
        return patches, values.astype(np.float16)  # names of image, side and patch

    patches = gather(boxed, features, replace(QUICK, flips=flips, image_rounds=1, image_bag=30), 3)
    sides = 1 + flips
    assert patches.bags.shape == (len(boxed.images) * sides, 30, 3)
    images, flipped, numbers = np.moveaxis(patches.bags, 2, 0).astype(int)
    assert (images == np.repeat(np.arange(len(boxed.images)), sides)[:, None]).all()
    assert (flipped == np.tile(np.arange(sides), len(boxed.images))[:, None]).all()
    assert all(len(set(row)) == 30 for row in numbers.tolist())
    np.testing.assert_array_equal(patches.truth, boxed.truth()[images[:, 0]])
