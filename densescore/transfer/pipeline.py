"""A set of labeled or boxed images in, a trained head out: `train_model`, from top to bottom."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densescore.data.boxed_set import BoxedSet, boxed_part
from densescore.data.labeled_set import LabeledImage, LabeledSet, check_size
from densescore.models.box_layer import BoxLayer
from densescore.models.head import BACKGROUND, AdaptationHead, HeadFile
from densescore.results.scores import DenseScores
from densescore.scoring.scorer import DenseScorer
from densescore.transfer.cross_validation import FOLDS, PRECISION, cross_validate, fit_box_curve, fit_calibration
from densescore.transfer.feature_cache import FeatureCache
from densescore.transfer.recipe import Objective, Recipe
from densescore.transfer.train_boxes import train_boxes
from densescore.transfer.train_head import Callback, count_stages, train_heads, within
from densescore.transfer.training_set import (
    FeatureBasis,
    Features,
    TrainingPatches,
    check_class_labels,
    check_every_class,
    feature_basis,
    gather,
    learnable,
)


def train_model(
    images: LabeledSet,
    scorer: DenseScorer,
    cache: FeatureCache,
    recipe: Recipe,
    seed: int = 0,
    *,
    boxes: bool | None = None,
    precision: float = PRECISION,
    strict: bool = False,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
    callback: Callback = lambda _: None,
) -> HeadFile:
    """Train a head for the classes of a set, on features from the cache.

    Features are the slow part. They stay in the cache, so a training that was stopped resumes where it was, and ends
    with the same head.

    Args:
        images: training set, with boxes or without.
        scorer: a named model, at the scales of training.
        cache: feature cache of this scorer.
        recipe: see `Recipe`.
        seed: seed of the draws, the first weights, the order and dropout; recorded in the file.
        boxes: also train a box layer on the images with boxes; by default, if every image has boxes.
        precision: precision that the answer yes promises, per class; see `densescore.models.calibration`.
        strict: refuse classes without a positive image or patch, which are left out otherwise, with a warning.
        track: wraps the iteration over images, for a progress bar.
        callback: called after each training round; ``print`` shows a line of progress.

    Returns:
        The head and its metadata, for `save_head`.

    Raises:
        DensescoreError: repeated class names, or a class named ``"background"``; no class with a positive image and
            patch, or with `strict` one without; images without boxes, and a recipe without image labels; no patch that
            shows a boxed object, with `boxes`; or a loss that is not finite.

    Example:
        >>> recipe = RECIPES["default"]  # doctest: +SKIP
        >>> scorer = DenseScorer("lite0-stages", scales=recipe.scales)  # doctest: +SKIP
        >>> head = train_model(load_set("photos", "train"), scorer, FeatureCache(scorer), recipe)  # doctest: +SKIP
        >>> save_head("head.safetensors", head)  # doctest: +SKIP
    """
    # Label and draw patches, with features from the cache
    images, patches, basis, score = prepare(images, scorer, cache, recipe, seed, strict=strict, track=track)
    features = cached_features(scorer, cache)

    # Cross-validate, for average precision and probabilities
    boxed = boxed_part(images)
    if boxes is None:
        boxes = len(boxed.images) == len(images.images)
    head_stages = count_stages(patches, recipe)
    stages = (FOLDS + recipe.heads) * head_stages + 2 * boxes
    result = cross_validate(images, patches, basis, recipe, seed, score, within(callback, 0, stages))

    # Train the head
    head_callback = within(callback, FOLDS * head_stages, stages)
    head = train_heads(patches, len(images.classes), recipe, seed, basis=basis, callback=head_callback)
    file = head_file(images, patches, head, recipe, seed, **describe(scorer, cache))
    training = {**file.training, "held_out_ap": dict(zip(images.classes, result.average_precisions(), strict=True))}
    calibration = fit_calibration(result, images.classes, precision, seed)
    file = replace(file, training=training, calibration=calibration)
    del patches  # gigabytes

    # Train the box layer on the head's scores, and one without a fold, for the probability that a box is right
    def fit_boxes(images: BoxedSet, head: AdaptationHead, stage: int) -> BoxLayer | None:
        if not boxes:
            return None
        patch_scores, tell = head_scores(head, recipe.objective), within(callback, stages - 2 + stage, stages)
        return train_boxes(images, features, patch_scores, scorer.pyramid, recipe, seed, track, tell)

    if not boxed.images:
        return file
    file = replace(file, box_layer=fit_boxes(boxed, head, 0))
    fold = {image.name: number for image, number in zip(images.images, result.folds, strict=True)}
    others = [image for image in boxed.images if fold[image.name] != 0]
    layer = fit_boxes(replace(boxed, images=others), result.heads[0], 1)
    tested = [image for image in boxed.images if fold[image.name] == 0]
    curve = fit_box_curve(tested, lambda image: score(result.heads[0], image, layer), seed)
    return replace(file, calibration=replace(calibration, boxes=curve))


class Prepared(NamedTuple):
    """A training set, ready to train on."""

    images: LabeledSet  # without the classes that cannot be learned
    patches: TrainingPatches  # in the basis
    basis: FeatureBasis | None
    score: Callable[..., DenseScores]  # of `head_on_images`, at the scales of use


def prepare(
    images: LabeledSet,
    scorer: DenseScorer,
    cache: FeatureCache,
    recipe: Recipe,
    seed: int,
    *,
    strict: bool = False,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Prepared:
    """Leave out what cannot be learned, and label and draw patches, with features from the cache."""
    check_class_labels(images)
    images = learnable(images, scorer.pyramid, recipe, strict)
    cache.check_pictures(image.path for image in images.images)
    features, test_cache = cached_features(scorer, cache), cache.at_scales(recipe.test_scales or recipe.scales)

    def features_at_all_scales(image: LabeledImage, flip: bool) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        if not flip and test_cache is not cache:
            test_cache.features(image.path)  # those of training are among them
        return features(image, flip)

    patches = gather(images, features_at_all_scales, recipe, seed, track)
    check_every_class(patches, images.classes, recipe)
    basis = feature_basis(patches, recipe.components) if recipe.standardize else None
    patches = patches if basis is None else patches.project(basis)
    return Prepared(images, patches, basis, head_on_images(test_cache, images.classes, recipe))


def cached_features(scorer: DenseScorer, cache: FeatureCache) -> Features:
    """Boxes and cached features of an image's patches, as `gather` takes them."""

    def features(image: LabeledImage, flip: bool) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        check_size(image)
        return scorer.pyramid(image.height, image.width).boxes(), cache.features(image.path, flip=flip)

    return features


def head_scores(head: AdaptationHead, objective: Objective) -> Callable[[Tensor], Tensor]:
    """Features ``[M, D]`` → scores ``[M, C]`` in [0, 1], by a head."""

    def score(features: Tensor) -> Tensor:
        logits = head(features)
        return logits.softmax(1) if objective == "softmax" else logits.sigmoid()

    return score


def head_on_images(cache: FeatureCache, labels: tuple[str, ...], recipe: Recipe) -> Callable[..., DenseScores]:
    """A function from a head on raw features and an image to its scores, from cached features."""
    labels = labels if recipe.objective == "multilabel" else (*labels, BACKGROUND)

    def score(head: AdaptationHead, image: LabeledImage, layer: BoxLayer | None = None) -> DenseScores:
        check_size(image)
        pyramid = cache.scorer.pyramid(image.height, image.width)
        features = torch.from_numpy(cache.features(image.path)).float()
        with torch.inference_mode():
            scores = head_scores(head, recipe.objective)(features)
            objects = None if layer is None else layer(layer.reduce(features), scores, pyramid)
        return DenseScores(scores, labels, pyramid, k=cache.scorer.k, object_boxes=objects)

    return score


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


MANY_IMAGES, GOOD_AP = 30, 0.8
"""Classes below both are advised to have more images."""


def describe_classes(file: HeadFile) -> list[dict[str, Any]]:
    """What was learned of each class in cross-validation, and what to add."""
    return [_describe_class(label, file) for label in file.labels if label != BACKGROUND]


def _describe_class(label: str, file: HeadFile) -> dict[str, Any]:
    images, ap = file.training["labels"][label], file.training.get("held_out_ap", {}).get(label)
    fitted = None if file.calibration is None else file.calibration.of(label)
    row = {"label": label, "images": images, "ap": ap, "precision": None, "recall": None, "advice": ""}
    if file.calibration is None:
        return row
    if fitted is None:
        everywhere = images == file.training["images"]
        return row | {"advice": "add other images" if everywhere else "too few to tell"}
    if ap is not None and ap < GOOD_AP:
        row["advice"] = "add images" if images < MANY_IMAGES else "check labels"
    if fitted.yes is None:
        return row | {"advice": row["advice"] or "never sure"}
    return row | {"precision": fitted.precision, "recall": fitted.recall}


def describe(scorer: DenseScorer, cache: FeatureCache) -> dict[str, Any]:
    """The features that a head was trained on, as arguments of `head_file`."""
    return {
        "backbone": scorer.name,
        "mean": scorer.mean,
        "std": scorer.std,
        "patch_size": scorer.network.patch,
        "context": cache.context,
        "backbone_digest": scorer.backbone_digest,
    }


def cached_scores(scorer: DenseScorer, cache: FeatureCache) -> Callable[[LabeledImage], DenseScores]:
    """A function from an image to its scores, from cached features: only the head runs, not the network.

    Args:
        scorer: a model, or a head on it.
        cache: feature cache of this scorer.

    Returns:
        A function that takes a `LabeledImage` and returns its `DenseScores`; it raises `DensescoreError` if the
        picture cannot be read, or has another size than the set says.

    Example:
        >>> score = cached_scores(scorer, FeatureCache(scorer))  # doctest: +SKIP
        >>> result = score_set(load_set("photos", "val"), score, (5.0,))  # doctest: +SKIP
    """

    def score(image: LabeledImage) -> DenseScores:
        check_size(image)
        features = torch.from_numpy(cache.features(image.path))
        return scorer.score_features(features, image.height, image.width, context=cache.context)

    return score
