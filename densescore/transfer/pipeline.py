"""A set of labeled or boxed images in, the file of a trained head out; and scores from cached features."""

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densescore.data.boxed_set import boxed_part
from densescore.data.labeled_set import LabeledImage, LabeledSet
from densescore.data.pictures import check_size
from densescore.models import BACKGROUND
from densescore.models.adaptation import AdaptationHead, HeadFile
from densescore.results.scores import DenseScores
from densescore.scoring.scorer import DenseScorer
from densescore.transfer.feature_basis import feature_basis, in_basis
from densescore.transfer.feature_cache import FeatureCache
from densescore.transfer.head_ensemble import mean_head
from densescore.transfer.recipe import Recipe
from densescore.transfer.rounds import Callback, within
from densescore.transfer.train_boxes import train_boxes
from densescore.transfer.train_head import STAGES, train_head
from densescore.transfer.training_patches import (
    Features,
    TrainingPatches,
    check_class_labels,
    check_every_class,
    gather,
)
from densescore.transfer.tune_on_images import image_stages, train_on_images, tune_on_images


def cached_features(scorer: DenseScorer, cache: FeatureCache) -> Features:
    """Boxes and features of an image's patches, as `gather` takes them."""

    def features(image: LabeledImage, flip: bool) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        check_size(image)
        return scorer.pyramid(image.height, image.width).boxes(), cache.features(image.path, flip=flip)

    return features


def cached_scores(scorer: DenseScorer, cache: FeatureCache) -> Callable[[LabeledImage], DenseScores]:
    """Scores of an image from cached features: only the head runs, not the network."""

    def score(image: LabeledImage) -> DenseScores:
        check_size(image)
        features = torch.from_numpy(cache.features(image.path))
        return scorer.score_features(features, image.height, image.width, context=cache.context)

    return score


def change_recipe(recipe: Recipe, *, scales: tuple[float, ...] | None = None, **changes: Any) -> Recipe:
    """`recipe` with what is not None instead; other scales of training are also those of testing.

    Args:
        recipe: see `Recipe`.
        scales: λ of the levels to train on and to test at.
        **changes: other attributes of `Recipe`.

    Raises:
        DensescoreError: see `Recipe`.

    Example:
        >>> changed = change_recipe(Recipe(test_scales=(1, 2)), scales=(1.0,), flips=None)
        >>> changed.scales, changed.test_scales, changed.flips
        ((1.0,), None, True)
    """
    given = {name: value for name, value in changes.items() if value is not None}
    return replace(recipe, **given) if scales is None else replace(recipe, **given, scales=scales, test_scales=None)


def train_model(
    images: LabeledSet,
    scorer: DenseScorer,
    cache: FeatureCache,
    recipe: Recipe,
    seed: int = 0,
    *,
    boxes: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
    callback: Callback = lambda _: None,
) -> HeadFile:
    """Draw patches, gather their features and train a head for the set's classes.

    Args:
        images: the training set, with boxes or without.
        scorer: a named model, at the scales of training.
        cache: of this scorer's features.
        recipe: see `Recipe`.
        seed: of the draws, the first weights, the order and dropout; recorded in the file.
        boxes: also train a box layer (`train_boxes`), on the images with boxes; by default, if every image has some.
        checkpoint: see `train_both`.
        track: wraps the iteration over images, for a progress bar.
        callback: called after each round.

    Raises:
        DensescoreError: a class is called like the background, or see `check_every_class`, `train_head` and
            `train_boxes`.
    """
    check_class_labels(images)
    features = cached_features(scorer, cache)
    patches = gather(images, features, recipe, seed, track)
    check_every_class(patches, images.classes, recipe)
    boxed = boxed_part(images)
    if boxes is None:
        boxes = len(boxed.images) == len(images.images)
    before = recipe.heads * _stages(patches, recipe)
    stages = before + boxes
    own = within(callback, 0, stages)
    head = train_both(patches, len(images.classes), recipe, seed, checkpoint=checkpoint, callback=own)
    file = head_file(images, patches, head, recipe, seed, **describe(scorer, cache))
    if not boxes:
        return file
    del patches  # gigabytes
    own = within(callback, before, stages)
    layer = train_boxes(boxed, features, scores_of(file), scorer.pyramid, recipe, seed, track, own)
    return replace(file, box_layer=layer)


def scores_of(file: HeadFile) -> Callable[[Tensor], Tensor]:
    """Features ``[M, D]`` → scores ``[M, C]`` in [0, 1], by a head."""

    def score(features: Tensor) -> Tensor:
        logits = file.head(features)
        return logits.sigmoid() if file.activation == "sigmoid" else logits.softmax(1)

    return score


def _stages(patches: TrainingPatches, recipe: Recipe) -> int:
    """Stages of the training of one head."""
    return (STAGES if len(patches.features) else 0) + len(image_stages(patches, recipe))


def train_both(
    patches: TrainingPatches,
    classes: int,
    recipe: Recipe,
    seed: int,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callback = lambda _: None,
) -> AdaptationHead:
    """Train on labeled patches, then on image labels: `train_head` and `tune_on_images`.

    Without labeled patches, on image labels alone: `train_on_images`. A recipe with several heads trains each so, from
    weights and draws of its own, and takes their mean.

    Args:
        patches: see `gather`.
        classes: C, without background.
        recipe: see `Recipe`.
        seed: of the first weights, the order and dropout.
        checkpoint: a folder for the files of all parts.
        callback: called after each round; each head's stages follow those of the head before.

    Returns:
        The layer, in evaluation mode, for raw features.
    """
    basis = feature_basis(patches, recipe.components) if recipe.standardize else None
    patches = patches if basis is None else in_basis(patches, basis)
    seeds = [seed, *np.random.SeedSequence(seed).generate_state(recipe.heads - 1).tolist()]
    stages = _stages(patches, recipe)
    heads = []
    for number, own_seed in enumerate(seeds):
        own = within(callback, number * stages, recipe.heads * stages)
        heads.append(_train_one(patches, classes, recipe, own_seed, checkpoint, number, own))
    head = mean_head(heads) if len(heads) > 1 else heads[0]
    return head if basis is None else basis.fold(head)


def _train_one(
    patches: TrainingPatches,
    classes: int,
    recipe: Recipe,
    seed: int,
    checkpoint: str | os.PathLike[str] | None,
    number: int,
    callback: Callback,
) -> AdaptationHead:
    """The head of this number; `checkpoint` is the folder of the files of all."""
    names = [f"{part}-{number}.pt" for part in ("patches", "images")]
    files = [None if checkpoint is None else Path(checkpoint) / name for name in names]
    if not len(patches.features):
        return train_on_images(patches, classes, recipe, seed, checkpoint=files[1], callback=callback)
    head = train_head(patches, classes, recipe, seed, checkpoint=files[0], callback=callback)
    if recipe.image_rounds:
        after = within(callback, STAGES)
        tune_on_images(head, patches, recipe, seed, checkpoint=files[1], callback=after)
    return head


def describe(scorer: DenseScorer, cache: FeatureCache) -> dict[str, Any]:
    """The features that a head was trained on, for its file: arguments of `head_file`."""
    return {
        "backbone": scorer.name,
        "mean": scorer.mean,
        "std": scorer.std,
        "patch_size": scorer.network.patch,
        "context": cache.context,
        "backbone_digest": scorer.backbone_digest,
    }


def head_file(
    images: LabeledSet,
    patches: TrainingPatches,
    head: AdaptationHead,
    recipe: Recipe,
    seed: int,
    *,
    backbone: str,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    patch_size: int,
    **more: Any,
) -> HeadFile:
    """A trained head with the metadata of its file; `more` is added to the record of the training."""
    softmax = recipe.objective == "softmax"
    training: dict[str, Any] = {
        "recipe": asdict(recipe),
        "seed": seed,
        "set": images.name,
        "images": len(images.images),
        "patches": dict(zip((*images.classes, BACKGROUND), patches.counts(len(images.classes)), strict=True)),
        "labels": dict(zip(images.classes, (images.truth() == 1).sum(0).tolist(), strict=True)),
        "versions": {name: version(name) for name in ("densescore", "torch", "timm")},
        **more,
    }
    return HeadFile(
        head,
        (*images.classes, BACKGROUND) if softmax else images.classes,
        backbone,
        mean,
        std,
        patch_size,
        "softmax" if softmax else "sigmoid",
        scales=recipe.test_scales or recipe.scales,
        training=training,
    )
