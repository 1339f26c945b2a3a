"""The patches that a head is trained on: labeled from boxes, drawn from images, with features from the cache."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densescore.data.boxed_set import BoxedImage, boxed_part, select_classes
from densescore.data.labeled_set import POSITIVE, LabeledImage, LabeledSet
from densescore.data.problems import repeated
from densescore.errors import DensescoreError, DensescoreWarning
from densescore.geometry import Pyramid
from densescore.models.head import BACKGROUND
from densescore.transfer.patch_labels import AMBIGUOUS, label_patches, label_patches_per_class
from densescore.transfer.recipe import Recipe

Features = Callable[[LabeledImage, bool], tuple[NDArray[np.float32], NDArray[np.float16]]]
"""(image, mirrored) → boxes ``[M, 4]`` and features ``[M, D]`` of all its patches."""

_ROWS = 65_536  # rows that moments and components are measured on
_CHUNK = 8192  # rows at a time: float16 features are never copied whole


@dataclass(frozen=True, eq=False)
class FeatureBasis:
    """Coordinates of features: ``(x - shift) @ axes``."""

    shift: Tensor  # float32 [D]
    axes: Tensor  # float32 [D, d]

    def project(self, features: NDArray[np.float16]) -> NDArray[np.float16]:
        """Features ``[..., D]`` → coordinates ``[..., d]``."""
        rows = features.reshape(-1, features.shape[-1])
        projected = np.empty((len(rows), self.axes.shape[1]), np.float16)
        for start in range(0, len(rows), _CHUNK):
            chunk = torch.from_numpy(rows[start : start + _CHUNK]).float()
            projected[start : start + _CHUNK] = ((chunk - self.shift) @ self.axes).numpy()
        return projected.reshape(*features.shape[:-1], self.axes.shape[1])


@dataclass(frozen=True, eq=False)
class TrainingPatches:
    """Drawn patches: N labeled ones from images with boxes, and a bag of n from each view of all I images."""

    features: NDArray[np.float16]  # [N, D]; N = 0 if no image has boxes
    labels: NDArray[np.int64] | NDArray[np.int8]
    """Softmax: int64 ``[N]``, C is background. Multilabel: int8 ``[N, C]``, 1, -1, or 0 for ambiguous."""
    images: NDArray[np.int64]  # [N], each patch's image, by its index in the set; mirror images share their original's
    bags: NDArray[np.float16] = field(default_factory=lambda: np.zeros((0, 0, 0), np.float16))  # [I, n, D]
    truth: NDArray[np.int8] = field(default_factory=lambda: np.zeros((0, 0), np.int8))
    """``[I, C]``: 1, -1, or 0 for unknown."""
    only_labels: int = 0  # images without boxes

    def counts(self, classes: int) -> list[int]:
        """Positive patches per class, then background patches."""
        if self.labels.ndim == 1:
            return np.bincount(self.labels, minlength=classes + 1).tolist()
        background = int((self.labels == -1).all(1).sum())
        return [*(self.labels == 1).sum(0).tolist(), background]

    def of_images(self, chosen: NDArray[np.bool_]) -> "TrainingPatches":
        """The patches of some images: bool ``[I]``."""
        views = np.repeat(chosen, len(self.truth) // len(chosen))
        rows = chosen[self.images]
        return replace(
            self, features=self.features[rows], labels=self.labels[rows], images=self.images[rows],
            bags=self.bags[views[: len(self.bags)]], truth=self.truth[views[: len(self.truth)]],
        )  # fmt: skip

    def project(self, basis: FeatureBasis) -> "TrainingPatches":
        """The same patches, with their features in a basis."""
        bags = basis.project(self.bags) if len(self.bags) else self.bags
        return replace(self, features=basis.project(self.features), bags=bags)


def gather(
    images: LabeledSet,
    features: Features,
    recipe: Recipe,
    seed: int,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> TrainingPatches:
    """Label, draw and collect the patches of a set, in memory only the drawn ones. Each image has its own draws.

    Images with boxes give labeled patches; all images give a bag of patches if the recipe trains on image labels.
    """
    boxed = [isinstance(image, BoxedImage) for image in images.images]
    if not all(boxed) and not recipe.image_rounds:
        raise DensescoreError("images have no boxes, and the recipe does not train on image labels: image_rounds is 0")
    classes = len(images.classes)
    parts, labels, owners = list[NDArray[np.float16]](), list[NDArray[Any]](), list[NDArray[np.int64]]()
    flips = (False, True) if recipe.flips else (False,)
    views = [(index, flip) for index in range(len(images.images)) for flip in flips]
    bags = np.zeros((0, 0, 0), np.float16)
    for number in track(range(len(views))):
        index, flip = views[number]
        image = images.images[index]
        patches, values = features(image, flip)
        draw = np.random.default_rng([seed, index, flip])

        # Labeled patches
        if isinstance(image, BoxedImage):
            rows, row_labels = label_and_draw(patches, image, flip, classes, recipe, draw)
            parts.append(values[rows])
            labels.append(row_labels)
            owners.append(np.full(len(rows), index))

        # A bag of any patches
        if recipe.image_rounds:
            if number == 0:  # filled in place: a list of bags, stacked at the end, would take twice the memory
                bags = np.empty((len(views), recipe.image_bag, values.shape[1]), np.float16)
            bags[number] = values[draw.choice(len(values), recipe.image_bag, replace=recipe.image_bag > len(values))]
    if not parts:
        parts, owners = [bags[:0, 0]], [np.zeros(0, np.int64)]
        labels = [np.zeros(0, np.int64) if recipe.objective == "softmax" else np.zeros((0, classes), np.int8)]
    return TrainingPatches(
        np.concatenate(parts), np.concatenate(labels), np.concatenate(owners), bags,
        np.repeat(images.truth(), len(flips), axis=0)[: len(bags)], boxed.count(False),
    )  # fmt: skip


def label_and_draw(
    patches: NDArray[np.float32], image: BoxedImage, flip: bool, classes: int, recipe: Recipe, draw: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64] | NDArray[np.int8]]:
    """Label an image's patches ``[M, 4]``; keep all positives and a random share of the background.

    Returns indices ``[n]`` of the drawn patches, ascending, and their labels ``[n]`` or ``[n, C]``.
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
    negatives = background.nonzero()[0]
    negatives = draw.choice(negatives, round(recipe.background * len(negatives)), replace=False)
    rows = np.sort(np.concatenate([positive.nonzero()[0], negatives]))
    return rows, labels[rows]


def mirrored(boxes: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Boxes ``[B, 4]`` of an image of `width` pixels → boxes in its mirror image."""
    x0, y0, x1, y1 = boxes.T
    return np.stack([width - x1, y0, width - x0, y1], axis=1)


def feature_basis(patches: TrainingPatches, components: int) -> FeatureBasis:
    """Standardized features along their leading principal components; with 0 components, all D features as they are.

    Measured on bags, which hold all kinds of patches; without bags, on labeled patches.
    """
    rows = patches.bags if len(patches.bags) else patches.features
    rows = rows.reshape(-1, rows.shape[-1])
    rows = rows[:: -(-len(rows) // _ROWS)]  # [N, D]
    mean = torch.stack([chunk.double().sum(0) for chunk in _chunks(rows)]).sum(0) / len(rows)
    variance = torch.stack([(chunk.double() - mean).square().sum(0) for chunk in _chunks(rows)]).sum(0) / len(rows)
    # A feature that never varies carries nothing, and must not be divided by nearly zero.
    shift, scale = mean.float(), variance.clamp(min=1e-6).rsqrt().float()
    if not components or components >= rows.shape[1]:
        return FeatureBasis(shift, torch.diag(scale))
    _, axes = principal_components(rows, components, shift, scale)
    return FeatureBasis(shift, scale[:, None] * axes)


def principal_components(
    rows: NDArray[Any], count: int, shift: Tensor, scale: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """Variances ``[d]`` and axes ``[D, d]`` of the leading components of ``(rows - shift) * scale``, weakest first."""
    width = rows.shape[1]
    covariance = torch.zeros(width, width, dtype=torch.float64)  # in float32 LAPACK may fail on few different rows
    for chunk in _chunks(rows):
        centered = ((chunk.float() - shift) * scale).double()
        covariance += centered.T @ centered
    variances, axes = torch.linalg.eigh(covariance / max(len(rows) - 1, 1))
    return variances[-count:], axes[:, -count:].float()


def _chunks(rows: NDArray[Any]) -> Iterator[Tensor]:
    return (torch.from_numpy(rows[start : start + _CHUNK]) for start in range(0, len(rows), _CHUNK))


def check_class_labels(labeled: LabeledSet) -> None:
    """Refuse repeated classes, and a class called like the head's background, before any work."""
    if BACKGROUND in labeled.classes:
        raise DensescoreError(
            f"set {labeled.name!r}: no class may be called {BACKGROUND!r}; that label is the head's own"
        )
    for label in repeated(labeled.classes):
        raise DensescoreError(f"set {labeled.name!r}: class {label!r} is given more than once")


def learnable(
    images: LabeledSet, pyramid: Callable[[int, int], Pyramid], recipe: Recipe, strict: bool = False
) -> LabeledSet:
    """The set without classes that no image shows, or no patch; a warning names them, or if `strict` an error."""
    # Count what each class could be learned from
    count, boxed = len(images.classes), boxed_part(images)
    shown = (images.truth() == POSITIVE).any(0)
    taught = np.full(count, len(boxed.images) < len(images.images))  # images without boxes teach by their labels
    for image in boxed.images:
        patches = pyramid(image.height, image.width).boxes()
        arguments = (patches, image.boxes, image.classes, count, recipe.rule, image.difficult)
        if recipe.objective == "softmax":
            taught |= np.isin(np.arange(count), label_patches(*arguments))
        else:
            taught |= (label_patches_per_class(*arguments) == 1).any(0)

    # Leave out the others
    reasons = []
    if unseen := _names(images.classes, ~shown):
        reasons.append(f"no image shows {unseen}")
    if empty := _names(images.classes, shown & ~taught):
        reasons.append(f"no patch is positive for {empty}: {_no_box(recipe)}")
    if reasons and (strict or not (shown & taught).any()):
        raise DensescoreError(f"set {images.name!r}: {'; '.join(reasons)}")
    if reasons:
        warnings.warn(f"left out: {'; '.join(reasons)}", DensescoreWarning, stacklevel=3)
    return select_classes(images, [images.classes[column] for column in (shown & taught).nonzero()[0]])


def _no_box(recipe: Recipe) -> str:
    rule = recipe.rule
    return (
        f"no box meets the rule (patch_share={rule.patch_share}, object_share={rule.object_share}, "
        f"overlap={rule.overlap!r}) at these scales; more scales, or more images of the class, may help"
    )


def check_every_class(patches: TrainingPatches, classes: tuple[str, ...], recipe: Recipe) -> None:
    """Refuse classes without a positive image or patch; warn of classes without a negative one."""
    if patches.only_labels:
        check_image_labels(patches.truth, classes)
        return
    counts = np.array(patches.counts(len(classes))[:-1])
    if empty := _names(classes, counts == 0):
        raise DensescoreError(f"no patch is positive for {empty}: {_no_box(recipe)}")
    single = patches.labels.ndim == 1
    negatives = len(patches.labels) - counts if single else (patches.labels == -1).sum(0)
    _warn_of(_names(classes, negatives == 0), "patch")


def check_image_labels(truth: NDArray[np.int8], classes: tuple[str, ...]) -> None:
    """Refuse classes without a positive image, warn of classes without a negative one; truth ``[I, C]``."""
    if empty := _names(classes, ~(truth == 1).any(0)):
        raise DensescoreError(f"no image shows {empty}: give at least one labeled image of each class")
    _warn_of(_names(classes, ~(truth == -1).any(0)), "image")


def _names(classes: tuple[str, ...], chosen: NDArray[np.bool_]) -> str:
    return ", ".join(classes[column] for column in chosen.nonzero()[0])


def _warn_of(classes: str, unit: str) -> None:
    if classes:
        warnings.warn(
            f"every {unit} shows {classes}: without a negative {unit} the head learns to say yes everywhere. "
            f"Add images without the class",
            DensescoreWarning,
            stacklevel=3,
        )
