"""The patches that a head is trained on: labeled from boxes, drawn from images, with features from the cache."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densescore.data.boxed_set import BoxedImage
from densescore.data.labeled_set import LabeledImage, LabeledSet
from densescore.data.problems import repeated
from densescore.errors import DensescoreError, DensescoreWarning
from densescore.models import BACKGROUND
from densescore.transfer.patch_labels import AMBIGUOUS, label_patches, label_patches_per_class
from densescore.transfer.recipe import Recipe

Features = Callable[[LabeledImage, bool], tuple[NDArray[np.float32], NDArray[np.float16]]]
"""(image, mirrored) → boxes ``[M, 4]`` and features ``[M, D]`` of all its patches."""


@dataclass(frozen=True, eq=False)
class TrainingPatches:
    """What was drawn.

    Attributes:
        features: float16 ``[N, D]``, of labeled patches; N = 0 if no image has boxes.
        labels: of ``"softmax"``: int64 ``[N]``, C is background. Of ``"multilabel"``: int8 ``[N, C]``, 1, -1, or 0 for
            what is left out.
        images: int64 ``[N]``, index of each patch's image in its set; mirror images share their original's.
        bags: float16 ``[I, n, D]``: n patches drawn from all of each image; I = 0 if not asked for.
        truth: int8 ``[I, C]``, labels of the images that bags come from: 1, -1, or 0 for unknown.
        only_labels: images of the set have no boxes.
    """

    features: NDArray[np.float16]
    labels: NDArray[np.int64] | NDArray[np.int8]
    images: NDArray[np.int64]
    bags: NDArray[np.float16] = field(default_factory=lambda: np.zeros((0, 0, 0), np.float16))
    truth: NDArray[np.int8] = field(default_factory=lambda: np.zeros((0, 0), np.int8))
    only_labels: int = 0

    def counts(self, classes: int) -> list[int]:
        """Positive patches per class, then background ones."""
        if self.labels.ndim == 1:
            return np.bincount(self.labels, minlength=classes + 1).tolist()
        background = int((self.labels == -1).all(1).sum())
        return [*(self.labels == 1).sum(0).tolist(), background]


def mirrored(boxes: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Boxes ``[B, 4]`` of an image of `width` pixels, as they lie in its mirror image."""
    x0, y0, x1, y1 = boxes.T
    return np.stack([width - x1, y0, width - x0, y1], axis=1)


def label_and_draw(
    patches: NDArray[np.float32], image: BoxedImage, flip: bool, classes: int, recipe: Recipe, draw: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64] | NDArray[np.int8]]:
    """Label one image's patches; keep all positives and a random share of its background.

    Args:
        patches: ``[M, 4]``, in pixels of the image, or of its mirror image.
        image: its boxes.
        flip: the patches are the mirror image's.
        classes: C.
        recipe: rule, objective and share of background.
        draw: of the background.

    Returns:
        Indices ``[n]`` of the patches kept, ascending, and their labels ``[n]`` or ``[n, C]``.
    """
    boxes = mirrored(image.boxes, image.width) if flip else image.boxes
    arguments = (patches, boxes, image.classes, classes, recipe.rule, image.difficult)
    labels: NDArray[np.int64] | NDArray[np.int8]
    if recipe.objective == "softmax":
        labels = label_patches(*arguments)
        positive, background = (labels != AMBIGUOUS) & (labels != classes), labels == classes
    else:
        labels = label_patches_per_class(*arguments)
        positive, background = (labels == 1).any(1), (labels == -1).all(1)
    drawn = background.nonzero()[0]
    drawn = draw.choice(drawn, round(recipe.background * len(drawn)), replace=False)
    kept = np.sort(np.concatenate([positive.nonzero()[0], drawn]))
    return kept, labels[kept]


def gather(
    images: LabeledSet,
    features: Features,
    recipe: Recipe,
    seed: int,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> TrainingPatches:
    """Label, draw and collect the patches of a set, image by image; only what is kept stays in memory.

    Images with boxes give labeled patches. All images give a bag of patches, if the recipe trains on image labels.

    Args:
        images: the training set.
        features: gives an image's patches, mirrored or not.
        recipe: see `label_and_draw`; with ``flips``, each image comes twice.
        seed: of the draws; each image has its own, so that one image's patches do not depend on the others.
        track: wraps the iteration over images, for a progress bar.
    """
    parts, owners = list[NDArray[np.float16]](), list[NDArray[np.int64]]()
    labels: list[NDArray[Any]] = []
    flips = (False, True) if recipe.flips else (False,)
    views = [(index, flip) for index in range(len(images.images)) for flip in flips]
    bags = np.zeros((0, 0, 0), np.float16)
    for number in track(range(len(views))):
        index, flip = views[number]
        image = images.images[index]
        patches, values = features(image, flip)
        draw = np.random.default_rng([seed, index, flip])
        if isinstance(image, BoxedImage):
            kept, kept_labels = label_and_draw(patches, image, flip, len(images.classes), recipe, draw)
            parts.append(values[kept])
            labels.append(kept_labels)
            owners.append(np.full(len(kept), index))
        if recipe.image_rounds:
            if number == 0:  # filled in place: bags in a list, and then stacked, would take twice the memory
                bags = np.empty((len(views), recipe.image_bag, values.shape[1]), np.float16)
            bags[number] = values[draw.choice(len(values), recipe.image_bag, replace=recipe.image_bag > len(values))]
    softmax, count = recipe.objective == "softmax", len(images.classes)
    return TrainingPatches(
        np.concatenate(parts) if parts else bags[:0, 0],
        np.concatenate(labels) if labels else np.zeros(0, np.int64) if softmax else np.zeros((0, count), np.int8),
        np.concatenate(owners) if owners else np.zeros(0, np.int64),
        bags,
        np.repeat(images.truth(), len(flips), axis=0)[: len(bags)],
        sum(not isinstance(image, BoxedImage) for image in images.images),
    )


def check_class_labels(labeled: LabeledSet) -> None:
    """Refuse classes that a head's file could not hold, before any work.

    Raises:
        DensescoreError: a class is called like the head's own label of the background, or two are called alike.
    """
    if BACKGROUND in labeled.classes:
        raise DensescoreError(
            f"set {labeled.name!r}: no class may be called {BACKGROUND!r}; that label is the head's own"
        )
    for label in repeated(labeled.classes):
        raise DensescoreError(f"set {labeled.name!r}: class {label!r} is given more than once")


def check_every_class(patches: TrainingPatches, classes: tuple[str, ...], recipe: Recipe) -> None:
    """Refuse to train a class that nothing shows; warn of one that everything shows.

    Raises:
        DensescoreError: names the classes. Without boxes: no image shows them. With boxes: no patch does; their boxes
            are too small, too large or too crowded for the rule.
    """
    if patches.only_labels:
        check_image_labels(patches.truth, classes)
        return
    counts = patches.counts(len(classes))
    empty = [name for name, count in zip(classes, counts, strict=False) if count == 0]
    if empty:
        raise DensescoreError(
            f"no patch is positive for {', '.join(empty)}: no box meets the rule (patch_share="
            f"{recipe.rule.patch_share}, object_share={recipe.rule.object_share}, overlap={recipe.rule.overlap!r}) "
            "at these scales; more scales, or more images of the class, may help"
        )
    negatives = (
        len(patches.labels) - np.array(counts[:-1]) if patches.labels.ndim == 1 else (patches.labels == -1).sum(0)
    )
    _warn_of([name for name, count in zip(classes, negatives, strict=True) if count == 0], "patch")


def check_image_labels(truth: NDArray[np.int8], classes: tuple[str, ...]) -> None:
    """Refuse classes that no image shows; warn of those that no image lacks, or that few show.

    Args:
        truth: ``[I, C]`` of 1, -1, or 0 for unknown.
        classes: C names.

    Raises:
        DensescoreError: names the classes without a positive image.
    """
    positives, negatives = (truth == 1).sum(0), (truth == -1).sum(0)
    empty = [name for name, count in zip(classes, positives, strict=True) if count == 0]
    if empty:
        raise DensescoreError(f"no image shows {', '.join(empty)}: give at least one labeled image of each class")
    _warn_of([name for name, count in zip(classes, negatives, strict=True) if count == 0], "image")


def _warn_of(always: list[str], what: str) -> None:
    if always:
        warnings.warn(
            f"every {what} shows {', '.join(always)}: without a negative {what} the head learns to say yes everywhere. "
            f"Add images without the class",
            DensescoreWarning,
            stacklevel=3,
        )
