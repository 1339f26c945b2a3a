"""Average precision of rankings and of boxes, as PASCAL VOC and COCO define it.

Source: Everingham et al., "The Pascal Visual Object Classes Challenge" (IJCV 2010), Sections 4.2 and 4.3, and the VOC
2012 development kit (``VOCevalcls.m``, ``VOCap.m``); Lin et al., "Microsoft COCO" (ECCV 2014), whose reference code
(``pycocotools``) gives the same numbers for boxes by the rule ``"coco"``, tied scores and crowds included.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError

Rule = Literal["voc2007", "voc2010", "coco"]
"""``"voc2007"``: mean of the interpolated precision at recalls 0, 0.1, …, 1. ``"voc2010"``: area under it. ``"coco"``:
mean at recalls 0, 0.01, …, 1."""

COCO_IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""Overlaps over which COCO's average precision is the mean: 0.5, 0.55, …, 0.95."""

_POINTS = {"voc2007": 11, "coco": 101}

# Rankings


@dataclass(frozen=True, eq=False)
class Curve:
    """Recall and precision after each ranked item, best first: float64 ``[N]`` each."""

    recall: NDArray[np.float64]  # rises to 1 if every positive is ranked
    precision: NDArray[np.float64]


def precision_recall(scores: NDArray[np.float64], truth: NDArray[np.bool_], positives: int | None = None) -> Curve:
    """The curve of a ranking by scores ``[N]`` with truth ``[N]``; difficult items are already taken out.

    A detector may miss positives: `positives` is their number. Scores that are not finite raise `DensescoreError`.
    """
    total = int(truth.sum()) if positives is None else positives
    if total < 1:
        raise DensescoreError("average precision needs at least one positive")
    if not np.isfinite(scores).all():
        raise DensescoreError(f"scores: {int((~np.isfinite(scores)).sum())} of {len(scores)} are not finite")
    # Among equal scores, negatives come first, so that ties never raise the precision; the last key counts most.
    order = np.lexsort((truth, -scores))
    hits = np.cumsum(truth[order])
    return Curve(hits / total, hits / np.arange(1, len(hits) + 1))


def average_precision(curve: Curve, rule: Rule = "voc2010") -> float:
    """Summary of a class's curve, in [0, 1].

    >>> curve = precision_recall(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))
    >>> round(average_precision(curve, "voc2010"), 4), round(average_precision(curve, "voc2007"), 4)
    (0.8333, 0.8485)
    """
    # Interpolated precision at a recall is the best at that recall or beyond.
    best = np.maximum.accumulate(curve.precision[::-1])[::-1]
    if rule in _POINTS:
        # A recall of 0.3 that sums to 0.30000000000000004 must still count as reached.
        starts = np.searchsorted(curve.recall, np.linspace(0, 1, _POINTS[rule]) - 1e-9)
        return float(np.append(best, 0.0)[starts].mean())
    if rule == "voc2010":
        return float(np.sum(np.diff(curve.recall, prepend=0.0) * best))
    raise DensescoreError(f"rule must be 'voc2007', 'voc2010' or 'coco', got {rule!r}")


# Boxes


@dataclass(frozen=True, eq=False)
class ImageBoxes:
    """Detections and objects of one class in one image; boxes are ``x0 y0 x1 y1`` in pixels, ends excluded."""

    boxes: NDArray[np.float32]  # [N, 4]
    scores: NDArray[np.floating[Any]]  # [N], comparable across images
    truth: NDArray[np.float32]  # [B, 4]
    difficult: NDArray[np.bool_]  # [B], objects that count neither as hits nor as misses
    crowd: NDArray[np.bool_] | None = None  # [B], difficult ones that are COCO's crowds; none by default


def match(image: ImageBoxes, iou: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which detections hit an object at `iou` or more, and which count: bool ``[N]`` each, as VOC matches them.

    By descending score, each takes the object that it overlaps most, once; hits of difficult objects do not count.
    """
    # A crowd is hit by intersection over the detection's own area, as in COCO.
    hit, counts = np.zeros(len(image.scores), bool), np.ones(len(image.scores), bool)
    if not len(image.truth):
        return hit, counts
    ious, free = _overlaps(image), ~image.difficult  # [N, B], [B]
    for index in np.argsort(-image.scores, kind="stable"):
        best = int(np.argmax(np.where(free, ious[index], -1.0)))
        if free[best] and ious[index, best] >= iou:
            hit[index], free[best] = True, False
        else:
            counts[index] = not (ious[index, image.difficult] >= iou).any()
    return hit, counts


def _overlaps(image: ImageBoxes) -> NDArray[np.float64]:
    """Intersection over union of each detection and object, over the detection's area for a crowd: ``[N, B]``."""
    boxes, truth = image.boxes[:, None].astype(np.float64), image.truth.astype(np.float64)
    sides = np.minimum(boxes[..., 2:], truth[:, 2:]) - np.maximum(boxes[..., :2], truth[:, :2])  # [N, B, 2]
    shared = sides.clip(0).prod(2)
    area, true_area = (np.prod(box[..., 2:] - box[..., :2], -1) for box in (boxes, truth))  # [N, 1], [B]
    rest = true_area - shared if image.crowd is None else np.where(image.crowd, 0, true_area - shared)
    return shared / np.maximum(area + rest, np.finfo(float).tiny)


def detection_ap(images: Sequence[ImageBoxes], ious: Sequence[float], rule: Rule = "voc2010") -> float | None:
    """Average precision of one class's boxes in a set, the mean over `ious`; None if the set has no object of it.

    Detections of equal score keep their order, image by image, as in COCO's code.

    >>> truth = np.array([[0, 0, 10, 10]], np.float32)
    >>> image = ImageBoxes(truth / 2, np.ones(1, np.float32), truth, np.zeros(1, bool))  # a quarter of the object
    >>> detection_ap([image], [0.25]), detection_ap([image], [0.3])
    (1.0, 0.0)
    """
    positives = sum(int((~image.difficult).sum()) for image in images)
    if positives == 0:
        return None
    ranks = np.argsort(np.argsort(-np.concatenate([image.scores for image in images]), kind="stable")).astype(float)
    values = []
    for iou in ious:
        matches = [match(image, iou) for image in images]
        hits, counts = (np.concatenate(parts) for parts in zip(*matches, strict=True))
        values.append(average_precision(precision_recall(-ranks[counts], hits[counts], positives), rule))
    return float(np.mean(values))
