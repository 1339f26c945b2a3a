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

AROUND = 0.3
"""Share of a box's sides around it that still shows its object. Found on voc2012-mini's training images."""

HASH_BITS = 3
"""Most bits of 64 in which the difference hashes of a picture and of its copy differ."""


class Suspect(NamedTuple):
    """A class of an image whose label or boxes look wrong, or a picture that repeats another."""

    image: str
    label: str
    problem: str  # "not labeled", "not shown", "not all boxed", "displaced", "repeats NAME"
    suspicion: float  # in [0, 1]
    box: Box | None = None  # most likely object, where there should be one


class Rated(NamedTuple):
    """Suspicions of a set's labels, ``[I, C]`` each in [0, 1]; 0 where there is nothing to suspect."""

    result: CrossValidation
    images: LabeledSet  # without the classes that cannot be learned
    score: Callable[[int], DenseScores]  # an image's scores by the head that has not seen it, by index
    wrong: NDArray[np.float64]  # the label: 1 - its probability
    missing: NDArray[np.float64]  # an object without a box: the heatmap's peak outside the boxes, over its peak
    displaced: NDArray[np.bool_]  # the heatmap reaches half of its peak in none of the boxes

    @property
    def suspicion(self) -> NDArray[np.float64]:
        """The higher of both suspicions."""
        return np.maximum(self.wrong, self.missing)


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
    """Rate each label and box of a set by heads that have not seen the image; arguments as for `train_model`."""
    images, patches, basis, score = prepare(images, scorer, cache, recipe, seed, track=track)
    result = cross_validate(images, patches, basis, recipe, seed, score, callback)

    # Labels
    calibration = fit_calibration(result, images.classes, PRECISION, seed)
    probabilities = np.stack([calibration.probabilities(row, images.classes) for row in result.confidences])
    wrong = np.where(result.truth == POSITIVE, 1 - probabilities, probabilities)
    wrong[(result.truth == UNKNOWN) | np.isnan(wrong)] = 0

    # Boxes
    def held_out(index: int) -> DenseScores:
        return score(result.heads[result.folds[index]], images.images[index])

    missing, displaced = np.zeros_like(wrong), np.zeros(wrong.shape, bool)
    for index, image in enumerate(images.images):
        if isinstance(image, BoxedImage) and len(image.boxes):
            columns = np.unique(image.classes)
            maps = held_out(index).heatmap([images.classes[column] for column in columns]).cpu().numpy()
            for column, heatmap in zip(columns, maps, strict=True):
                inside, outside = _peaks(heatmap, image.boxes[image.classes == column])
                missing[index, column] = (1 - wrong[index, column]) * outside / max(float(heatmap.max()), 1e-12)
                displaced[index, column] = inside < heatmap.max() / 2
    return Rated(result, images, held_out, wrong, missing, displaced)


def _peaks(heatmap: NDArray[np.float32], boxes: NDArray[np.float32]) -> tuple[float, float]:
    """Peaks of a heatmap inside boxes, and outside them and what is around them."""
    inside, near = np.zeros(heatmap.shape, bool), np.zeros(heatmap.shape, bool)
    for x0, y0, x1, y1 in boxes:
        for mask, more in ((inside, 0.0), (near, AROUND)):
            dx, dy = more * (x1 - x0), more * (y1 - y0)
            mask[max(0, int(y0 - dy)) : int(y1 + dy) + 1, max(0, int(x0 - dx)) : int(x1 + dx) + 1] = True
    return float(heatmap[inside].max(initial=0)), float(heatmap[~near].max(initial=0))


def find_suspects(rated: Rated) -> list[Suspect]:
    """Labels and boxes that look wrong, most suspect first; labels by self-confidence, as in cleanlab's ranking."""
    images, suspicion, suspects = rated.images, rated.suspicion, []
    for index, column in zip(*np.unravel_index(np.argsort(-suspicion, axis=None), suspicion.shape), strict=True):
        if suspicion[index, column] < SUSPICIOUS:
            break
        image, label, box = images.images[index], images.classes[column], None
        if rated.missing[index, column] > rated.wrong[index, column]:
            problem = "displaced" if rated.displaced[index, column] else "not all boxed"
        else:
            problem = "not shown" if rated.result.truth[index, column] == POSITIVE else "not labeled"
        if problem != "not shown" and isinstance(image, BoxedImage):
            box = rated.score(index).find_boxes(label, max_regions=1)[0].box
        suspects.append(Suspect(image.name, label, problem, float(suspicion[index, column]), box))
    return suspects


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
