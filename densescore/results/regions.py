"""Boxes of a class: of the head's box layer, or the connected regions where the class's map is high."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou, nms

from densescore.errors import DensescoreError

if TYPE_CHECKING:
    from densescore.results.scores import DenseScores

SHARE = 0.5
"""A region is where the map reaches this share of its peak. This and the numbers below were chosen by two-fold
cross-validation on the training images of voc2012-mini; docs/train.md has what they are worth."""

MIN_SHARE = 0.3
"""Regions whose area is below this share of the largest one's are left out: most are slivers at the border."""


Box: TypeAlias = tuple[int, int, int, int]
"""``x0 y0 x1 y1`` in image pixels, ``x1`` and ``y1`` exclusive."""

OVERLAP, VOTING = 0.1, 0.4
"""Of boxes of a class that overlap by more than the first (intersection over union), the best is kept. It becomes the
weighted mean of all that overlap it by the second."""

LAYER_SHARE = 0.1
"""A box layer's boxes of a class whose score is below this share of the best one's are left out. Half, as for maps,
would cost 0.03 of average precision in cross-validation; this costs 0.01."""

CANDIDATES, MOST = 200, 20
"""Patches of a class whose boxes are merged, and most boxes that are left."""


class Region(NamedTuple):
    """A box of a class.

    Attributes:
        box: see `Box`.
        peak: of the map in the box; of a box layer's box, the score of the patch that it comes from.
        score: how certain the box is, comparable across images: the class's confidence times the peak; for a box
            layer's box, see `layer_regions`.
    """

    box: Box
    peak: float
    score: float


def find_regions(
    values: NDArray[np.float32],
    share: float = SHARE,
    *,
    min_share: float = MIN_SHARE,
    min_area: float = 0.0,
    max_regions: int | None = None,
    confidence: float = 1.0,
) -> list[Region]:
    """Connected regions where a map reaches a share of its peak.

    Args:
        values: a map, ``[H, W]``; best `DenseScores.shrunk_map`.
        share: of the map's maximum, in (0, 1].
        min_share: least area, as a share of the largest region's, in [0, 1].
        min_area: least area in pixels. The region of the map's maximum is kept, however small it is.
        max_regions: most regions.
        confidence: of the class in the image; see `Region`.

    Returns:
        Regions, highest peak first; boxes hold whole pixels.

    Raises:
        DensescoreError: an argument is out of range.
    """
    _check(share, min_share, min_area, max_regions)
    highest = values.max()
    mask = (values >= share * highest).astype(np.uint8)
    count, regions, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    least = max(min_area, min_share * stats[1:, cv2.CC_STAT_AREA].max(initial=0))
    found = []
    for region in range(1, count):
        x, y, width, height, area = map(int, stats[region])
        inside = values[y : y + height, x : x + width][regions[y : y + height, x : x + width] == region]
        peak = float(inside.max())
        if area >= least or peak == highest:
            found.append(Region((x, y, x + width, y + height), peak, confidence * peak))
    return sorted(found, key=lambda region: (-region.peak, region.box))[:max_regions]


def class_regions(
    scores: "DenseScores",
    labels: Sequence[str],
    share: float | None = None,
    *,
    min_area: float = 0.0,
    max_regions: int | None = None,
    maps: NDArray[np.float32] | None = None,
) -> list[tuple[str, Region]]:
    """The boxes of some classes of an image: what every format and picture shows; see `DenseScores.find_boxes`.

    Args:
        scores: of the image.
        labels: the classes.
        share: see `DenseScores.find_boxes`.
        min_area: see `DenseScores.find_boxes`.
        max_regions: of each class.
        maps: the response maps ``[len(labels), H, W]``, where they are known already.

    Returns:
        Pairs of class and region, class by class, best first.
    """
    if scores.object_boxes is None:
        share = SHARE if share is None else share
        return map_regions(scores, labels, share, min_area=min_area, max_regions=max_regions, maps=maps)
    share = LAYER_SHARE if share is None else share
    _check(share, 0.0, min_area, max_regions)
    found = []
    for label in labels:
        regions = layer_regions(scores, label)
        kept = [region for region in regions if region.score >= share * regions[0].score and _area(region) >= min_area]
        found += [(label, region) for region in (kept or regions[:1])[:max_regions]]
    return found


def map_regions(
    scores: "DenseScores",
    labels: Sequence[str],
    share: float = SHARE,
    *,
    min_share: float = MIN_SHARE,
    min_area: float = 0.0,
    max_regions: int | None = None,
    maps: NDArray[np.float32] | None = None,
) -> list[tuple[str, Region]]:
    """As `class_regions`, from the response maps, whatever the head; the numbers are those of `find_regions`."""
    if not labels:
        return []
    means = scores.response_map(labels) if maps is None else torch.from_numpy(maps)
    shrunk = scores.shrink(means).cpu().numpy()  # [len(labels), H, W]
    confidence = dict(zip(labels, scores.select(labels).confidence().tolist(), strict=True))
    return [
        (label, region)
        for label, values in zip(labels, shrunk, strict=True)
        for region in find_regions(
            values,
            share,
            min_share=min_share,
            min_area=min_area,
            max_regions=max_regions,
            confidence=confidence[label],
        )
    ]


def layer_regions(scores: "DenseScores", label: str) -> list[Region]:
    """The boxes of a class that the head's box layer gives, merged: at most `MOST`, best first.

    The box of patch i has the score ``sqrt(confidence(c)) · y(c | P_i) · quality_i^3``; a good patch whose
    box does not fit ranks low.

    Args:
        scores: of a head with a box layer.
        label: the class.
    """
    assert scores.object_boxes is not None
    column = scores.index(label)
    patches, boxes, qualities = (part[column] for part in scores.object_boxes)  # [K], [K, 4], [K]
    patch_scores = scores.patch_scores[patches, column]  # [K]
    certainty = scores.confidence()[column].sqrt() * patch_scores * qualities**3
    certainty, chosen = certainty.topk(min(CANDIDATES, len(certainty)))
    boxes, patch_scores = boxes[chosen], patch_scores[chosen]
    kept = nms(boxes, certainty, OVERLAP)[:MOST]
    votes = certainty * (box_iou(boxes[kept], boxes) >= VOTING)  # [kept, candidates]
    merged = (votes @ boxes) / votes.sum(1, keepdim=True).clamp(min=torch.finfo(votes.dtype).tiny)
    low, high = merged.round().int().split(2, 1)
    corners = torch.cat([low, torch.maximum(high, low + 1)], 1).tolist()
    peaks, certain = patch_scores[kept].tolist(), certainty[kept].tolist()
    return [Region((x0, y0, x1, y1), *rest) for (x0, y0, x1, y1), *rest in zip(corners, peaks, certain, strict=True)]


def _area(region: Region) -> int:
    x0, y0, x1, y1 = region.box
    return (x1 - x0) * (y1 - y0)


def _check(share: float, min_share: float, min_area: float, max_regions: int | None) -> None:
    if not 0 < share <= 1:
        raise DensescoreError(f"share must lie in (0, 1], got {share}")
    if not 0 <= min_share <= 1:
        raise DensescoreError(f"min_share must lie in [0, 1], got {min_share}")
    if not min_area >= 0:
        raise DensescoreError(f"min_area must be at least 0, got {min_area}")
    if max_regions is not None and max_regions < 1:
        raise DensescoreError(f"max_regions must be at least 1, got {max_regions}")
