"""Boxes of a class from its response map: the connected regions where the map is high."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from densescore.errors import DensescoreError

if TYPE_CHECKING:
    from densescore.results.scores import DenseScores

SHARE = 0.5
"""A region is where the map reaches this share of its peak. Chosen by two-fold cross-validation on the training images
of `benchmarks/boxes.py`, as `MIN_SHARE` was."""

MIN_SHARE = 0.3
"""Regions whose area is below this share of the largest one's are left out: most are slivers at the border."""


class Region(NamedTuple):
    """A box of a class.

    Attributes:
        box: ``x0 y0 x1 y1`` in image pixels, ``x1`` and ``y1`` exclusive.
        peak: of the map in the box.
        score: the class's confidence times the peak: how certain the box is, comparable across images and classes.
    """

    box: tuple[int, int, int, int]
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
    if not 0 < share <= 1:
        raise DensescoreError(f"share must lie in (0, 1], got {share}")
    if not 0 <= min_share <= 1:
        raise DensescoreError(f"min_share must lie in [0, 1], got {min_share}")
    if not min_area >= 0:
        raise DensescoreError(f"min_area must be at least 0, got {min_area}")
    if max_regions is not None and max_regions < 1:
        raise DensescoreError(f"max_regions must be at least 1, got {max_regions}")
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
    share: float = SHARE,
    *,
    min_share: float = MIN_SHARE,
    min_area: float = 0.0,
    max_regions: int | None = None,
    maps: NDArray[np.float32] | None = None,
) -> list[tuple[str, Region]]:
    """The boxes of some classes of an image: what every format and picture shows.

    Args:
        scores: of the image.
        labels: the classes.
        share: as for `find_regions`, and so the next three.
        min_share: as for `find_regions`.
        min_area: as for `find_regions`.
        max_regions: of each class.
        maps: the response maps ``[len(labels), H, W]``, where they are known already.

    Returns:
        Pairs of class and region, class by class, highest peak first.
    """
    if not labels:
        return []
    means = scores.response_map(labels) if maps is None else torch.from_numpy(maps)
    shrunk = scores.shrink(means).cpu().numpy()  # [len(labels), H, W]
    confidence = scores.confidence().tolist()
    return [
        (label, region)
        for label, values in zip(labels, shrunk, strict=True)
        for region in find_regions(
            values,
            share,
            min_share=min_share,
            min_area=min_area,
            max_regions=max_regions,
            confidence=confidence[scores.index(label)],
        )
    ]
