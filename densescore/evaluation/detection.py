"""Average precision of boxes: which detections hit an object, by how far they overlap.

Source: Everingham et al., "The Pascal Visual Object Classes Challenge" (IJCV 2010), Section 4.3; Lin et al., "Microsoft
COCO" (ECCV 2014), whose reference code (``pycocotools``) gives the same numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from densescore.evaluation.average_precision import Curve, Rule, average_precision, precision_recall

COCO_OVERLAPS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""Overlaps over which COCO's average precision is the mean: 0.5, 0.55, …, 0.95."""


@dataclass(frozen=True, eq=False)
class ImageBoxes:
    """One image's boxes of one class: those found, and those there are.

    Attributes:
        boxes: float ``[N, 4]``, ``x0 y0 x1 y1`` in pixels, ends excluded.
        scores: float ``[N]``, higher is more certain; comparable across images.
        truth: float ``[B, 4]``, boxes of the objects.
        difficult: bool ``[B]``: objects that count neither when found nor when missed.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    truth: NDArray[np.float32]
    difficult: NDArray[np.bool_]


def match(image: ImageBoxes, overlap: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which detections hit an object, and which count.

    The most certain detection chooses first: of the objects that are not yet hit, the one that it overlaps most. A
    second detection of an object is a false one. A detection that hits nothing but a difficult object does not count.

    Args:
        image: of one class.
        overlap: least intersection over union of a hit, in (0, 1].

    Returns:
        ``hit`` and ``counts``, each bool ``[N]``.
    """
    hit, counts = np.zeros(len(image.scores), bool), np.ones(len(image.scores), bool)
    if not len(image.truth):
        return hit, counts
    ious = box_iou(torch.from_numpy(image.boxes).double(), torch.from_numpy(image.truth).double()).numpy()  # [N, B]
    free = ~image.difficult
    for index in np.argsort(-image.scores, kind="stable"):
        best = int(np.argmax(np.where(free, ious[index], -1.0)))
        if free[best] and ious[index, best] >= overlap:
            hit[index], free[best] = True, False
        else:
            counts[index] = not (ious[index, image.difficult] >= overlap).any()
    return hit, counts


def detection_curve(images: Sequence[ImageBoxes], overlap: float) -> Curve | None:
    """Precision and recall of one class's detections in a set; None if the set has no object of it.

    Args:
        images: the set.
        overlap: least intersection over union of a hit.
    """
    positives = sum(int((~image.difficult).sum()) for image in images)
    if positives == 0:
        return None
    matched = [match(image, overlap) for image in images]
    counts = np.concatenate([kept for _, kept in matched])
    hits = np.concatenate([hit for hit, _ in matched])
    scores = np.concatenate([image.scores for image in images]).astype(np.float64)
    return precision_recall(scores[counts], hits[counts], positives)


def detection_ap(images: Sequence[ImageBoxes], overlaps: Sequence[float], rule: Rule = "voc2010") -> float | None:
    """Average precision of one class, the mean over some overlaps; None if the set has no object of it.

    Args:
        images: the set.
        overlaps: least intersections over union of a hit; `COCO_OVERLAPS` for COCO's mean, with ``rule="coco"``.
        rule: see `Rule`.

    Example:
        >>> truth = np.array([[0, 0, 10, 10]], np.float32)
        >>> image = ImageBoxes(truth / 2, np.ones(1, np.float32), truth, np.zeros(1, bool))  # a quarter of the object
        >>> detection_ap([image], [0.25]), detection_ap([image], [0.3])
        (1.0, 0.0)
    """
    curves = [detection_curve(images, overlap) for overlap in overlaps]
    values = [average_precision(curve, rule) for curve in curves if curve is not None]
    return float(np.mean(values)) if values else None
