"""A second round without boxes, on patches that the first head labeled."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from densescore.data.labeled_set import LabeledImage, LabeledSet
from densescore.transfer.pipeline import train_all
from densescore.transfer.recipe import Recipe
from densescore.transfer.rounds import Round
from densescore.transfer.self_labels import LEAST, NEGATIVE, POSITIVE, self_label
from densescore.transfer.training_patches import gather

CLASSES = ("a", "b", "c")
CENTERS = np.random.default_rng(1).normal(0, 1, (4, 8))  # of the classes, and of background
QUICK = Recipe(
    objective="multilabel", width=32, components=6, heads=2, batch=64, round=512, max_rounds=3, background=0.5,
    image_rounds=4, label_rounds=20, image_bag=24, image_patches=24, self_labels=True, flips=False,
)  # fmt: skip


def a_set(count: int = 80) -> tuple[LabeledSet, dict[str, NDArray[np.float16]], dict[str, NDArray[np.int64]]]:
    """Images of 30 patches, 5 of which show each class of the image: the set, features, and each patch's true class."""
    draw, images = np.random.default_rng(0), []
    features, truths = {}, {}
    for number in range(count):
        name = str(number)
        shown = np.where(draw.random(3) < 0.4, 1, -1).astype(np.int8)
        classes = np.full(30, 3)
        for place, column in enumerate((shown == 1).nonzero()[0]):
            classes[5 * place : 5 * place + 5] = column
        features[name] = (CENTERS[classes] + draw.normal(0, 0.25, (30, 8)) + 3).astype(np.float16)
        truths[name] = classes
        images.append(LabeledImage(name=name, path=Path(name), height=9, width=9, truth=shown))
    return LabeledSet("toy", CLASSES, tuple(images)), features, truths


@pytest.mark.parametrize("seed", range(5))
def test_best_patches_of_a_shown_class_are_positive(seed: int) -> None:
    draw = np.random.default_rng(seed)
    scores = draw.random((40, 6)).astype(np.float32) ** 3
    scores[:, 1] *= LEAST * 0.9  # a class that is nowhere found
    truth = np.array([1, 1, -1, 0, -1, 1], np.int8)
    labels = self_label(scores, truth)
    assert (labels[:, [2, 4]] == -1).all()
    assert (labels[:, [1, 3]] == 0).all()
    for column in (0, 5):
        share = scores[:, column] / scores[:, column].max()
        np.testing.assert_array_equal(labels[:, column] == 1, share >= POSITIVE)
        np.testing.assert_array_equal(labels[:, column] == -1, share <= NEGATIVE)


def test_the_second_round_finds_the_patches_that_show_a_class(tmp_path: Path) -> None:
    images, features, truths = a_set()
    zeros = np.zeros((30, 4), np.float32)

    def given(image: LabeledImage, flip: bool) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        return zeros, features[image.name]

    patches = gather(images, given, QUICK, 0)
    done: list[Round] = []
    head = train_all(images, given, patches, QUICK, 0, callback=done.append)
    assert [each.stage for each in done] == sorted(each.stage for each in done)
    assert {each.stages for each in done} == {done[-1].stage} == {2 * 2 + 2 * (3 + 2)}
    values, classes = np.concatenate([*features.values()]), np.concatenate([*truths.values()])
    said = head(torch.from_numpy(values).float()).sigmoid().detach().numpy() > 0.5
    for column in range(3):
        assert said[classes == column, column].mean() > 0.9
        assert said[classes != column, column].mean() < 0.05

    def kill(each: Round) -> None:
        if each.stage == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_all(images, given, patches, QUICK, 0, checkpoint=tmp_path, callback=kill)
    again: list[Round] = []
    resumed = train_all(images, given, patches, QUICK, 0, checkpoint=tmp_path, callback=again.append)
    assert again[0].stage >= 8
    assert all(torch.equal(one, other) for one, other in zip(resumed.parameters(), head.parameters(), strict=True))


def test_boxes_and_softmax_need_no_second_round() -> None:
    images, features, _ = a_set(20)

    def given(image: LabeledImage, flip: bool) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        return np.zeros((30, 4), np.float32), features[image.name]

    for recipe in (replace(QUICK, self_labels=False), replace(QUICK, objective="softmax")):
        done: list[Round] = []
        train_all(images, given, gather(images, given, recipe, 0), recipe, 0, callback=done.append)
        assert done[-1].stages == 2 * 2
