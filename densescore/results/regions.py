"""Where a response map is high: its connected regions."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError


class Region(NamedTuple):
    """A connected region of a response map: its box in image pixels (``x0 y0 x1 y1``) and the map's peak in it."""

    box: tuple[int, int, int, int]
    peak: float


def find_regions(values: NDArray[np.float32], share: float = 0.5) -> list[Region]:
    """Connected regions where a map reaches a share of its peak.

    Args:
        values: a response map, ``[H, W]``.
        share: of the map's maximum, in (0, 1].

    Returns:
        Regions, highest peak first; boxes hold whole pixels, ``x1`` and ``y1`` exclusive.
    """
    if not 0 < share <= 1:
        raise DensescoreError(f"share must lie in (0, 1], got {share}")
    mask = (values >= share * values.max()).astype(np.uint8)
    count, regions, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    found = []
    for region in range(1, count):
        x, y, width, height = map(int, stats[region, :4])
        inside = values[y : y + height, x : x + width][regions[y : y + height, x : x + width] == region]
        found.append(Region((x, y, x + width, y + height), float(inside.max())))
    return sorted(found, key=lambda region: (-region.peak, region.box))
