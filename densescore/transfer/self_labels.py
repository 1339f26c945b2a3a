"""Labels of patches from a head that was trained on labels of images: a second round without any box.

A head that learned from images ranks an image's patches, though less sharply than one that learned from boxes. Of each
class that an image shows, its best patches become positive, its worst ones negative, and the rest are left out; of
classes that the image does not show, every patch is negative. What it is worth: benchmarks/results/recipe_search.md.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from densescore.data.labeled_set import LabeledSet
from densescore.models.adaptation import AdaptationHead
from densescore.transfer.recipe import Recipe
from densescore.transfer.training_patches import Features, TrainingPatches

POSITIVE, NEGATIVE = 0.6, 0.1
"""A patch is positive from this share of the image's best patch on, and negative up to that one."""

LEAST = 0.2
"""A class whose best patch in an image scores less there has no positive patch in it: the teacher did not find it."""


def self_label(scores: NDArray[np.float32], truth: NDArray[np.int8]) -> NDArray[np.int8]:
    """Label an image's patches by a teacher's scores and the image's labels.

    Args:
        scores: ``[M, C]`` in [0, 1].
        truth: ``[C]``: 1, -1, or 0 for unknown.

    Returns:
        int8 ``[M, C]``: 1, -1, or 0 for what is left out.

    Example:
        >>> self_label(np.array([[0.9, 0.9], [0.3, 0.1], [0.02, 0.5]], np.float32), np.array([1, -1], np.int8)).tolist()
        [[1, -1], [0, -1], [-1, -1]]
    """
    best = scores.max(0)  # [C]
    shown = (truth == 1) & (best >= LEAST)
    labels = np.where(truth == -1, -1, np.zeros(scores.shape, np.int8)).astype(np.int8)
    labels[shown & (scores >= POSITIVE * best)] = 1
    labels[shown & (scores <= NEGATIVE * best)] = -1
    return labels


def gather_self_labeled(
    images: LabeledSet,
    features: Features,
    patches: TrainingPatches,
    teacher: AdaptationHead,
    recipe: Recipe,
    seed: int,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> TrainingPatches:
    """Label, draw and collect patches as `gather` does, by a teacher instead of boxes.

    Args:
        images: the training set.
        features: gives an image's patches, mirrored or not.
        patches: of `gather`, whose bags stay.
        teacher: sigmoid head for raw features.
        recipe: its flips and share of background.
        seed: of the draws.
        track: wraps the iteration over images, for a progress bar.
    """
    truth, flips = images.truth(), (False, True) if recipe.flips else (False,)
    views = [(index, flip) for index in range(len(images.images)) for flip in flips]
    parts, owners = [patches.features], [patches.images]
    labels: list[NDArray[np.int8]] = []
    for number in track(range(len(views))):
        index, flip = views[number]
        _, values = features(images.images[index], flip)
        with torch.no_grad():
            scores = teacher(torch.from_numpy(values).float()).sigmoid().numpy()  # [M, C]
        given = self_label(scores, truth[index])
        draw = np.random.default_rng([seed, index, flip])
        background = (given == -1).all(1).nonzero()[0]
        drawn = draw.choice(background, round(recipe.background * len(background)), replace=False)
        kept = np.sort(np.concatenate([(given == 1).any(1).nonzero()[0], drawn]))
        parts.append(values[kept])
        labels.append(given[kept])
        owners.append(np.full(len(kept), index))
    return replace(
        patches,
        features=np.concatenate(parts),
        labels=np.concatenate(labels),
        images=np.concatenate(owners),
        only_labels=0,  # all images have labeled patches now
    )
