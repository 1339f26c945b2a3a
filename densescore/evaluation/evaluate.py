"""Score a set of images and compare with its truth: classification and localization, as PASCAL VOC counts them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from densescore.data.boxed_set import BoxedImage
from densescore.data.labeled_set import DIFFICULT, POSITIVE, LabeledImage, LabeledSet
from densescore.errors import DensescoreError
from densescore.evaluation.average_precision import (
    COCO_IOUS,
    Curve,
    ImageBoxes,
    Rule,
    average_precision,
    detection_ap,
    precision_recall,
)
from densescore.models.calibration import Calibration
from densescore.results.regions import Region
from densescore.results.scores import DenseScores, Locate
from densescore_kernels.checks import check_exponent

TOLERANCE = 18.0
"""Pixels past a box at which a place still counts as inside: Oquab et al., "Is object localization for free?",
CVPR 2015, Section 6."""

Scorer = Callable[[LabeledImage], DenseScores]


@dataclass(frozen=True, eq=False)
class SetScores:
    """Scores and locations of every image of a set; small, whatever the images' size."""

    boxed: LabeledSet
    ks: tuple[float, ...]  # [K] exponents
    scores: NDArray[np.float64]  # [K, N, C] image scores, in the order of the set's images and classes
    places: NDArray[np.float64] | None  # [N, C, 2] x and y of each class's place in pixels (`DenseScores.locate`)
    boxes: list[list[list[Region]]] | None = None  # predicted boxes, N lists of C lists
    probabilities: NDArray[np.float64] | None = None  # [N, C], NaN for a class without calibration
    calibration: Calibration | None = None


@dataclass(frozen=True)
class ClassResult:
    """One class's numbers: shares in [0, 1], None if no image of the set is positive.

    Those of locations are also None without locations, or if a positive image has no boxes.
    """

    label: str
    positives: int  # positive images, difficult ones not counted
    ap: float | None  # average precision by the rule of 2010 and later
    ap_2007: float | None  # average precision by the 11-point rule
    pointing: float | None  # share of the positive images in which the class's place lies in a box of it
    located_ap: float | None  # AP of score and location: a positive image whose place lies elsewhere is a false one
    box_ap_30: float | None = None  # AP of predicted boxes at IoU 0.3; None without boxes, or if an image has none
    box_ap_50: float | None = None  # at IoU 0.5
    box_ap: float | None = None  # COCO's mean over IoU 0.5, 0.55, …, 0.95


def score_set(
    boxed: LabeledSet,
    score: Scorer,
    ks: Sequence[float],
    *,
    locate: Locate | None = "heatmap",
    boxes: bool = False,
    track: Callable[[Iterable[LabeledImage]], Iterable[LabeledImage]] = iter,
) -> SetScores:
    """Score every image of a set.

    Args:
        boxed: the set.
        score: image → scores, whose labels hold the set's classes, in any order, and others (background).
        ks: exponents of the image score to evaluate.
        locate: how each class is located, as `DenseScores.locate` takes it; None leaves it out.
        boxes: also predict each class's boxes.
        track: wraps the iteration, for a progress bar.

    Raises:
        DensescoreError: an exponent below 1, the model lacks a class of the set, or an image cannot be scored.
    """
    for k in ks:
        check_exponent(k)
    count, classes = len(boxed.images), len(boxed.classes)
    scores = np.zeros((len(ks), count, classes))
    places = None if locate is None else np.zeros((count, classes, 2))
    predicted: list[list[list[Region]]] | None = [] if boxes else None
    probabilities, calibration = np.full((count, classes), np.nan), None
    for index, image in enumerate(track(boxed.images)):
        result = score(image)
        missing = [label for label in boxed.classes if label not in result.labels]
        if missing:
            raise DensescoreError(f"the model {result.model} knows no {', '.join(missing)}, which the set has")
        columns = [result.index(label) for label in boxed.classes]
        for row, k in enumerate(ks):
            scores[row, index] = result.image_scores(k)[columns].cpu().numpy()
        calibration = result.calibration
        if (values := result.image_probabilities()) is not None:
            probabilities[index] = values[columns].cpu().numpy()
        if locate is not None and places is not None:
            places[index] = [place[:2] for place in result.locate(boxed.classes, by=locate)]
        if predicted is not None:
            predicted.append([*result.class_boxes(boxed.classes).values()])
    known = None if calibration is None else probabilities
    return SetScores(boxed, tuple(ks), scores, places, predicted, known, calibration)


def evaluate_classes(result: SetScores, k: float) -> list[ClassResult]:
    """AP of every class, and localization if `score_set` located the classes.

    Args:
        result: what `score_set` returned, with `k` among its exponents.
        k: exponent of the image score.
    """
    inside = located(result)
    rows = []
    for column, label in enumerate(result.boxed.classes):
        # Classification
        counted, truth = judged(result, column)
        curve = class_curve(result, column, k)
        if curve is None:
            rows.append(ClassResult(label, 0, None, None, None, None))
            continue
        positives = int(truth.sum())
        # Location
        pointing = located_ap = None
        boxed = all(isinstance(result.boxed.images[index], BoxedImage) for index in counted[truth])
        if result.places is not None and boxed:
            hits = inside[counted, column] & truth
            pointing = float(hits.sum() / positives)
            scores = result.scores[result.ks.index(k), counted, column]
            located_ap = average_precision(precision_recall(scores, hits, positives))
        # Boxes
        boxes = _class_boxes(result, column)
        box_aps: tuple[float | None, ...] = (None, None, None)
        if boxes is not None:
            box_aps = detection_ap(boxes, [0.3]), detection_ap(boxes, [0.5]), detection_ap(boxes, COCO_IOUS, "coco")
        aps = average_precision(curve), average_precision(curve, "voc2007")
        rows.append(ClassResult(label, positives, *aps, pointing, located_ap, *box_aps))
    return rows


def judged(result: SetScores, column: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Indices ``[n]`` of the images that count for a class, difficult ones taken out, and their truth ``[n]``."""
    truth = result.boxed.truth()[:, column]
    counted = (truth != DIFFICULT).nonzero()[0]
    return counted, truth[counted] == POSITIVE


def class_curve(result: SetScores, column: int, k: float) -> Curve | None:
    """Precision and recall of one class's classification; None if no image of the set is positive."""
    counted, truth = judged(result, column)
    return precision_recall(result.scores[result.ks.index(k), counted, column], truth) if truth.any() else None


def located(result: SetScores, tolerance: float = TOLERANCE) -> NDArray[np.bool_]:
    """Whether each class's place lies in a box of it, difficult or not, or `tolerance` pixels near: ``[N, C]``."""
    inside = np.zeros(result.scores.shape[1:], bool)
    for index, image in enumerate(result.boxed.images if result.places is not None else ()):
        if not isinstance(image, BoxedImage):
            continue
        for (x0, y0, x1, y1), column in zip(image.boxes, image.classes, strict=True):
            x, y = result.places[index, column]  # type: ignore[index]
            inside[index, column] |= bool(
                x0 - tolerance <= x <= x1 + tolerance and y0 - tolerance <= y <= y1 + tolerance
            )
    return inside


def _class_boxes(result: SetScores, column: int) -> list[ImageBoxes] | None:
    """One class's boxes, predicted and true, by image; None without predictions, or if an image has no boxes."""
    if result.boxes is None:
        return None
    images = []
    for image, predicted in zip(result.boxed.images, result.boxes, strict=True):
        if not isinstance(image, BoxedImage):
            return None
        members = image.classes == column
        boxes = np.array([region.box for region in predicted[column]], np.float32).reshape(-1, 4)
        scores = np.array([region.score for region in predicted[column]], np.float64)
        truth = image.boxes[members], image.difficult[members], image.crowd[members]
        images.append(ImageBoxes(boxes, scores, *truth))
    return images


def mean_of(rows: Sequence[ClassResult], field: str, classes: Sequence[str] | None = None) -> float | None:
    """Mean of a number over the classes that have it, or over those among `classes`; None if none has."""
    values = [getattr(row, field) for row in rows if classes is None or row.label in classes]
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else None


@dataclass(frozen=True)
class Promise:
    """A class's yes on a set, beside what its calibration promises; shares in [0, 1], None without a yes."""

    label: str
    promised: float | None  # precision
    yes: int  # images answered yes
    precision: float | None  # share of these that show the class
    recall: float | None  # share of the positive images answered yes


def promises(result: SetScores) -> list[Promise]:
    """Precision and recall of the answer yes, class by class; empty without probabilities."""
    rows = []
    for column, label in enumerate(result.boxed.classes if result.calibration else ()):
        assert result.calibration is not None
        assert result.probabilities is not None
        counted, shown = judged(result, column)
        fitted = result.calibration.of(label)
        if fitted is None or fitted.yes is None:
            rows.append(Promise(label, None, 0, None, None))
            continue
        said = result.probabilities[counted, column] >= fitted.yes
        hits = int((said & shown).sum())
        precision, recall = (hits / int(each.sum()) if each.any() else None for each in (said, shown))
        rows.append(Promise(label, result.calibration.promised, int(said.sum()), precision, recall))
    return rows


def calibration_error(result: SetScores, bins: int = 15) -> float | None:
    """Expected calibration error, classes pooled: mean gap of probability and share, over bins of equal counts."""
    if result.probabilities is None:
        return None
    known = (result.boxed.truth() != DIFFICULT) & np.isfinite(result.probabilities)
    probabilities, shown = result.probabilities[known], result.boxed.truth()[known] == POSITIVE
    parts = np.array_split(np.argsort(probabilities, kind="stable"), bins)
    gaps = [abs(float((probabilities[part] - shown[part]).sum())) for part in parts]
    return sum(gaps) / max(1, len(shown))


def k_curve(
    result: SetScores, rule: Rule = "voc2010", classes: Sequence[str] | None = None
) -> list[tuple[float, float]]:
    """Mean AP at each exponent, for `tune-k`: ``[(k, mAP), …]``."""
    columns = [column for column, label in enumerate(result.boxed.classes) if classes is None or label in classes]
    points = []
    for k in result.ks:
        curves = [class_curve(result, column, k) for column in columns]
        values = [average_precision(curve, rule) for curve in curves if curve is not None]
        if not values:
            raise DensescoreError(f"set {result.boxed.name!r}: no class has a positive image")
        points.append((k, float(np.mean(values))))
    return points
