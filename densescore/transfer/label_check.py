"""Labels and boxes that look wrong to heads that have not seen the image, and pictures that repeat."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from densescore.data.boxed_set import BoxedImage
from densescore.data.labeled_set import POSITIVE, UNKNOWN, LabeledImage, LabeledSet
from densescore.io.images import read_image
from densescore.results.regions import Box
from densescore.results.scores import DenseScores
from densescore.scoring.scorer import DenseScorer
from densescore.transfer.cross_validation import PRECISION, CrossValidation, cross_validate, fit_calibration
from densescore.transfer.feature_cache import FeatureCache
from densescore.transfer.pipeline import prepare
from densescore.transfer.recipe import Recipe
from densescore.transfer.train_head import Callback

SUSPICIOUS = 0.5
"""Least suspicion that is reported."""

HASH_BITS = 3
"""Most bits of 64 in which the difference hashes of a picture and of its copy differ."""


class Suspect(NamedTuple):
    """A class of an image whose label or boxes look wrong, or a picture that repeats another."""

    image: str
    label: str
    problem: str  # "not labeled", "not shown", "displaced", "repeats NAME"
    suspicion: float  # in [0, 1]
    box: Box | None = None  # most likely object that is not labeled, or that is elsewhere


class Rated(NamedTuple):
    """Labels of a set, with their suspicion."""

    result: CrossValidation
    images: LabeledSet  # without the classes that cannot be learned
    score: Callable[..., DenseScores]
    suspicion: NDArray[np.float64]  # [I, C], 1 - probability of the label; 0 where it is not known

    def score_held_out(self, index: int) -> DenseScores:
        """Scores of an image by the head that has not seen it."""
        return self.score(self.result.heads[self.result.folds[index]], self.images.images[index])


def rate_labels(
    images: LabeledSet,
    scorer: DenseScorer,
    cache: FeatureCache,
    recipe: Recipe,
    seed: int = 0,
    *,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
    callback: Callback = lambda _: None,
) -> Rated:
    """The probability that each label of a set is the other one, by heads that have not seen the image."""
    images, patches, basis, score = prepare(images, scorer, cache, recipe, seed, track=track)
    result = cross_validate(images, patches, basis, recipe, seed, score, callback)
    calibration = fit_calibration(result, images.classes, PRECISION, seed)
    probabilities = np.stack([calibration.probabilities(row, images.classes) for row in result.confidences])
    suspicion = np.where(result.truth == POSITIVE, 1 - probabilities, probabilities)
    suspicion[(result.truth == UNKNOWN) | np.isnan(suspicion)] = 0
    return Rated(result, images, score, suspicion)


def suspect_labels(rated: Rated) -> list[Suspect]:
    """Labels that look wrong, most suspect first; a ranking by self-confidence, as in cleanlab's multi-label one."""
    images, suspicion, suspects = rated.images, rated.suspicion, []
    for index, column in zip(*np.unravel_index(np.argsort(-suspicion, axis=None), suspicion.shape), strict=True):
        if suspicion[index, column] < SUSPICIOUS:
            break
        image, label, box = images.images[index], images.classes[column], None
        shown = rated.result.truth[index, column] == POSITIVE
        if not shown and isinstance(image, BoxedImage):
            box = rated.score_held_out(index).find_boxes(label, max_regions=1)[0].box
        problem = "not shown" if shown else "not labeled"
        suspects.append(Suspect(image.name, label, problem, float(suspicion[index, column]), box))
    return suspects


def suspect_boxes(rated: Rated) -> list[Suspect]:
    """Classes that are where none of their boxes is: the heatmap's peak in the boxes is below half of its peak."""
    suspects = []
    for index, image in enumerate(rated.images.images):
        if not isinstance(image, BoxedImage) or not len(image.boxes):
            continue
        scores = rated.score_held_out(index)
        for column in np.unique(image.classes):
            label = rated.images.classes[column]
            heatmap = scores.heatmap(label)[0].cpu().numpy()
            boxes = image.boxes[image.classes == column].round().astype(int)
            inside = max(heatmap[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)].max() for x0, y0, x1, y1 in boxes)
            suspicion = float((1 - rated.suspicion[index, column]) * (1 - inside / heatmap.max()))
            if suspicion >= SUSPICIOUS:
                box = scores.find_boxes(label, max_regions=1)[0].box
                suspects.append(Suspect(image.name, label, "displaced", suspicion, box))
    return sorted(suspects, key=lambda each: -each.suspicion)


def find_repeats(images: Sequence[LabeledImage]) -> list[Suspect]:
    """Pictures that look like an earlier one, by their difference hash."""
    small = [
        cv2.resize(cv2.cvtColor(read_image(i.path), cv2.COLOR_RGB2GRAY), (9, 8), interpolation=cv2.INTER_AREA)
        for i in images
    ]
    grays = np.array(small, np.int16).reshape(-1, 8, 9)
    signs = np.where(np.diff(grays) > 0, 1, -1).reshape(-1, 64).astype(np.float32)  # [N, 64]
    suspects = []
    for index in range(1, len(images)):
        different = (64 - signs[:index] @ signs[index]) / 2  # [index] bits
        nearest = int(different.argmin())
        if different[nearest] <= HASH_BITS and grays[index].std() > 2:  # plain pictures are all alike
            problem = f"repeats {images[nearest].name}"
            suspects.append(Suspect(images[index].name, "", problem, 1 - float(different[nearest]) / 64))
    return suspects
