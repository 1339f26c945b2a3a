"""Which patches are drawn to train on, and that draws follow from the seed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from densescore.data.boxed_set import BoxedSet
from densescore.data.labeled_set import LabeledImage
from densescore.data.load import load_boxed
from densescore.geometry import Pyramid
from densescore.transfer.training_set import gather, label_and_draw, mirrored
from tests.transfer.conftest import QUICK, SCALES

PATCHES = Pyramid.of(60, 80, scales=SCALES, patch=20, stride=4).boxes()


def features(image: LabeledImage, flip: bool) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
    """Names of image, side and patch."""
    index, numbers = int(image.name[-3:]), np.arange(len(PATCHES))
    return PATCHES, np.stack([numbers * 0 + index, numbers * 0 + flip, numbers], axis=1).astype(np.float16)


def test_all_positives_and_a_tenth_of_the_background_are_drawn(voc: Path) -> None:
    image = load_boxed(voc, "train").images[0]
    everything = replace(QUICK, background=1.0)
    _, labels = label_and_draw(PATCHES, image, False, 3, everything, np.random.default_rng(0))
    kept, drawn = label_and_draw(PATCHES, image, False, 3, QUICK, np.random.default_rng(0))
    assert (np.diff(kept) > 0).all()
    assert (drawn < 3).sum() == (labels < 3).sum() > 0
    assert (drawn == 3).sum() == round(0.1 * (labels == 3).sum()) > 0
    np.testing.assert_allclose(mirrored(mirrored(PATCHES, image.width), image.width), PATCHES, atol=1e-4)
    assert mirrored(np.array([[0, 0, 10, 5]], np.float32), 30).tolist() == [[20, 0, 30, 5]]


def test_draws_follow_from_the_seed_and_not_from_other_images(voc: Path) -> None:
    boxed = load_boxed(voc, "train")
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
    patches = gather(boxed, features, replace(QUICK, flips=flips, image_rounds=1, image_bag=30), 3)
    sides = 1 + flips
    assert patches.bags.shape == (len(boxed.images) * sides, 30, 3)
    images, flipped, numbers = np.moveaxis(patches.bags, 2, 0).astype(int)
    assert (images == np.repeat(np.arange(len(boxed.images)), sides)[:, None]).all()
    assert (flipped == np.tile(np.arange(sides), len(boxed.images))[:, None]).all()
    assert all(len(set(row)) == 30 for row in numbers.tolist())
    np.testing.assert_array_equal(patches.truth, boxed.truth()[images[:, 0]])
