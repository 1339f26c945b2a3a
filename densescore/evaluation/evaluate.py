"""Score a set of images and compare with its truth: classification and localization, as PASCAL VOC counts them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from densescore.data.boxed_set import BoxedImage
from densescore.data.labeled_set import DIFFICULT, POSITIVE, LabeledImage, LabeledSet
from densescore.errors import DensescoreError
from densescore.evaluation.average_precision import Curve, Rule, average_precision, precision_recall
from densescore.evaluation.detection import COCO_OVERLAPS, ImageBoxes, detection_ap
from densescore.results.regions import Region, class_regions
from densescore.results.scores import DenseScores, Locate
from densescore_kernels.power_mean.exponents import check_exponent

TOLERANCE = 18.0
"""Pixels past a box at which a place still counts as inside: Oquab et al., "Is object localization for free?",
CVPR 2015, Section 6."""

Scorer = Callable[[LabeledImage], DenseScores]


@dataclass(frozen=True, eq=False)
class SetScores:
    """Scores and locations of every image; small, whatever the images' size.

    Attributes:
        boxed: the set that was scored.
        ks: K exponents.
        scores: float64 ``[K, N, C]``, image scores in the order of the set's images and classes.
        places: float64 ``[N, C, 2]``, x and y in pixels of where each class is (`DenseScores.locate`); None if that was
            not asked for.
        found: the boxes found of each class, image by image; None if that was not asked for.
    """

    boxed: LabeledSet
    ks: tuple[float, ...]
    scores: NDArray[np.float64]
    places: NDArray[np.float64] | None
    found: list[list[list[Region]]] | None = None


def score_set(
    boxed: LabeledSet,
    score: Scorer,
    ks: Sequence[float],
    *,
    locate: Locate | None = "shrunk",
    boxes: bool = False,
    track: Callable[[Iterable[LabeledImage]], Iterable[LabeledImage]] = iter,
) -> SetScores:
    """Score every image of a set.

    Args:
        boxed: the set.
        score: image → scores, whose labels hold the set's classes, in any order, and others (background).
        ks: exponents of the image score to evaluate.
        locate: how each class is located, as `DenseScores.locate` takes it; None leaves it out.
        boxes: also find each class's boxes.
        track: wraps the iteration, for a progress bar.

    Raises:
        DensescoreError: an exponent below 1, the model lacks a class of the set, or an image cannot be scored.
    """
    for k in ks:
        check_exponent(k)
    count, classes = len(boxed.images), len(boxed.classes)
    scores = np.zeros((len(ks), count, classes))
    places = None if locate is None else np.zeros((count, classes, 2))
    found: list[list[list[Region]]] | None = [] if boxes else None
    for index, image in enumerate(track(boxed.images)):
        result = score(image)
        missing = [label for label in boxed.classes if label not in result.labels]
        if missing:
            raise DensescoreError(f"the model {result.model} knows no {', '.join(missing)}, which the set has")
        columns = [result.index(label) for label in boxed.classes]
        for row, k in enumerate(ks):
            scores[row, index] = result.image_scores(k)[columns].cpu().numpy()
        if locate is not None and places is not None:
            places[index] = [place[:2] for place in result.locate(boxed.classes, by=locate)]
        if found is not None:
            regions = class_regions(result, boxed.classes)
            found.append([[region for name, region in regions if name == label] for label in boxed.classes])
    return SetScores(boxed, tuple(ks), scores, places, found)


def judged(result: SetScores, column: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Images that count for a class, difficult ones taken out, and which of them are positive.

    Returns:
        Indices ``[n]`` and truth ``[n]``.
    """
    truth = result.boxed.truth()[:, column]
    kept = (truth != DIFFICULT).nonzero()[0]
    return kept, truth[kept] == POSITIVE


def class_curve(result: SetScores, column: int, k: float) -> Curve | None:
    """Precision and recall of one class's classification; None if no image of the set is positive."""
    kept, truth = judged(result, column)
    return precision_recall(result.scores[result.ks.index(k), kept, column], truth) if truth.any() else None


def located(result: SetScores, tolerance: float = TOLERANCE) -> NDArray[np.bool_]:
    """Whether each class's place lies in a box of it, or near: ``[N, C]``; nowhere, if there are no places.

    Args:
        result: of `score_set`.
        tolerance: pixels past the box that still count. Difficult boxes count as well.
    """
    inside = np.zeros(result.scores.shape[1:], bool)
    for index, image in enumerate(result.boxed.images if result.places is not None else ()):
        if not isinstance(image, BoxedImage):
            continue
        for box, column in zip(image.boxes, image.classes, strict=True):
            x, y = result.places[index, column]  # type: ignore[index]
            x0, y0, x1, y1 = box
            inside[index, column] |= bool(
                x0 - tolerance <= x <= x1 + tolerance and y0 - tolerance <= y <= y1 + tolerance
            )
    return inside


@dataclass(frozen=True)
class ClassResult:
    """One class's numbers: shares in [0, 1], None where no image of the set is positive.

    Those of locations are also None without locations, or if a positive image has no boxes.

    Attributes:
        label: the class.
        positives: images that show it, difficult ones not counted.
        ap: by the rule of 2010 and later.
        ap_2007: by the 11-point rule.
        pointing: share of the positive images in which the class's place lies in a box of it.
        located_ap: AP of score and location: a positive image whose place lies elsewhere is a false one.
        box_ap_30: AP of the boxes found, hits overlapping the object by 0.3 (intersection over union) or more; None
            without boxes, or if an image has none.
        box_ap_50: by 0.5 or more.
        box_ap: COCO's mean over 0.5, 0.55, …, 0.95.
    """

    label: str
    positives: int
    ap: float | None
    ap_2007: float | None
    pointing: float | None
    located_ap: float | None
    box_ap_30: float | None = None
    box_ap_50: float | None = None
    box_ap: float | None = None


def class_boxes(result: SetScores, column: int) -> list[ImageBoxes] | None:
    """One class's boxes, found and true, image by image; None if they were not asked for, or an image has no boxes."""
    if result.found is None:
        return None
    images = []
    for image, found in zip(result.boxed.images, result.found, strict=True):
        if not isinstance(image, BoxedImage):
            return None
        own = image.classes == column
        boxes = np.array([region.box for region in found[column]], np.float32).reshape(-1, 4)
        certain = np.array([region.score for region in found[column]], np.float32)
        images.append(ImageBoxes(boxes, certain, image.boxes[own], image.difficult[own]))
    return images


def evaluate_classes(result: SetScores, k: float) -> list[ClassResult]:
    """AP of every class, and localization if `score_set` located the classes.

    Args:
        result: of `score_set`, with `k` among its exponents.
        k: exponent of the image score.
    """
    row = result.ks.index(k)
    inside = located(result)
    rows = []
    for column, label in enumerate(result.boxed.classes):
        kept, truth = judged(result, column)
        curve = class_curve(result, column, k)
        if curve is None:
            rows.append(ClassResult(label, 0, None, None, None, None))
            continue
        pointing = located_ap = None
        if result.places is not None and all(
            isinstance(result.boxed.images[index], BoxedImage) for index in kept[truth]
        ):
            pointing = float(inside[kept, column][truth].mean())
            true_places = precision_recall(
                result.scores[row, kept, column], truth & inside[kept, column], int(truth.sum())
            )
            located_ap = average_precision(true_places)
        boxes = class_boxes(result, column)
        rows.append(
            ClassResult(
                label,
                int(truth.sum()),
                average_precision(curve),
                average_precision(curve, "voc2007"),
                pointing,
                located_ap,
                None if boxes is None else detection_ap(boxes, [0.3]),
                None if boxes is None else detection_ap(boxes, [0.5]),
                None if boxes is None else detection_ap(boxes, COCO_OVERLAPS, "coco"),
            )
        )
    return rows


def mean_of(rows: Sequence[ClassResult], field: str, classes: Sequence[str] | None = None) -> float | None:
    """Mean of a number over the classes that have it, or over those among `classes`; None if none has."""
    values = [getattr(row, field) for row in rows if classes is None or row.label in classes]
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else None


def k_curve(
    result: SetScores, rule: Rule = "voc2010", classes: Sequence[str] | None = None
) -> list[tuple[float, float]]:
    """Mean AP at each exponent, for `tune-k`: ``[(k, mAP), …]``."""
    chosen = [c for c, label in enumerate(result.boxed.classes) if classes is None or label in classes]
    points = []
    for k in result.ks:
        curves = [class_curve(result, column, k) for column in chosen]
        values = [average_precision(curve, rule) for curve in curves if curve is not None]
        if not values:
            raise DensescoreError(f"set {result.boxed.name!r}: no class has a positive image")
        points.append((k, float(np.mean(values))))
    return points
