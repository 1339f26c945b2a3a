"""Where a class is in an image: its heatmap, place and boxes, from the map or from the head's box layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densescore.errors import DensescoreError
from densescore.io.names import as_text
from densescore_kernels import Grid

_STRIP = 256  # rows or columns that `smooth` sums at a time
RADIUS = 0.08
"""Radius of the neighborhood that a heatmap averages, as a share of the image's shorter side. This and the thresholds
below were chosen by cross-validation on the training images of voc2012-mini; docs/train.md has the numbers."""

MAP_THRESHOLD, MIN_AREA_SHARE = 0.5, 0.3
"""A region reaches the first share of its map's peak, and the second of the largest region's area: most smaller ones
are slivers at the border."""

NMS_IOU, VOTE_IOU = 0.1, 0.4
"""The best of a class's boxes suppresses those that overlap it by more than the first (intersection over union), and
becomes the weighted mean of all that overlap it by the second."""

SCORE_THRESHOLD = 0.1
"""A box layer's box reaches this share of the best box's score. Half, as for maps, would cost 0.03 of average precision
in cross-validation; this costs 0.01."""

MAX_CANDIDATES, MAX_DETECTIONS = 200, 20
"""Patches of a class whose boxes are merged, and boxes after merging."""

ABSENT = 0.05
"""A class of less confidence is absent: pictures do not paint it."""

MIN_CONFIDENCE = 0.25
"""Probability from which pictures, the page and reports show a box."""

Box: TypeAlias = tuple[int, int, int, int]
"""``x0 y0 x1 y1`` in image pixels, ``x1`` and ``y1`` exclusive."""


class Place(NamedTuple):
    """The most likely location of a class: the center of a pixel, in image pixels, and its map there, the peak."""

    x: float
    y: float
    peak: float


class Region(NamedTuple):
    """A box of a class.

    Attributes:
        box: ``x0 y0 x1 y1`` in image pixels, ``x1`` and ``y1`` exclusive.
        peak: highest value of the heatmap in the box; of a box layer's box, the score of the patch that it comes from.
        score: certainty of the box, comparable across images: the class's confidence times the peak. Of a box layer's
            box, ``sqrt(confidence) · peak · quality^3``, with the layer's estimate of how well the box fits.
        probability: that the box is right at IoU 0.5, by the head's calibration; without one for boxes, the class's
            probability times the peak's share of the first region's. None if the model has no probabilities.
    """

    box: Box
    peak: float
    score: float
    probability: float | None = None

    def numbers(self) -> dict[str, float | None]:
        """All but the box, by name."""
        return {"peak": self.peak, "score": self.score, "probability": self.probability}

    @property
    def shown(self) -> float:
        """The confidence that other formats carry: the probability, or without calibration the score."""
        return self.score if self.probability is None else self.probability


@dataclass(frozen=True, eq=False)
class ClassMap:
    """A class as pictures show it; place and boxes in pixels of the heatmap, which may be smaller than the image."""

    label: str
    certainty: float  # the probability, or without calibration the confidence, in [0, 1]
    is_probability: bool
    heatmap: NDArray[np.float32]  # [h, w]
    place: Place
    boxes: Sequence[Region]  # best first

    @property
    def is_present(self) -> bool:
        """Whether pictures paint the class."""
        return self.certainty >= ABSENT

    @property
    def title(self) -> str:
        """See `title_of`."""
        return title_of(self.label, self.certainty, self.is_probability)


def title_of(label: str, certainty: float, is_probability: bool) -> str:
    """What pictures say of a class: ``horse 98 %``, without calibration ``horse, confidence 0.28``, or ``no horse``."""
    name = as_text(label)
    if certainty < ABSENT:
        return f"no {name}"
    return f"{name} {100 * certainty:.0f} %" if is_probability else f"{name}, confidence {certainty:.2g}"


def confident(boxes: Sequence[Region], least: float) -> Sequence[Region]:
    """The boxes of at least a probability; of a model without probabilities, the best one."""
    if not boxes or boxes[0].probability is None:
        return boxes[:1]
    return [box for box in boxes if (box.probability or 0.0) >= least]


def thumbnail_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height shrunk, in proportion, to at most `side` pixels; never enlarged."""
    shrink = min(1.0, side / max(width, height))
    return max(1, round(width * shrink)), max(1, round(height * shrink))


def coverage_of(grid: Grid) -> Tensor:
    """Number of patches over each pixel's center; see `DenseScores.coverage`."""
    axes = [(grid.down(number), grid.across(number)) for number in range(len(grid.levels))]
    most = sum(int(down.cells.max()) * int(across.cells.max()) for down, across in axes)
    counts = np.zeros((grid.height, grid.width), np.int16 if most < 2**15 else np.int32)
    for down, across in axes:
        rows, cols = (axis.cells[axis.segment].astype(counts.dtype) for axis in (down, across))  # [H], [W]
        counts += rows[:, None] * cols
    return torch.from_numpy(counts)


def heatmap_of(maps: Tensor, coverage: Tensor) -> Tensor:
    """Heatmaps ``[C, H, W]`` of response maps ``[C, H, W]`` and their `DenseScores.coverage` ``[H, W]``."""
    counts = coverage.to(maps.device, torch.float32, non_blocking=True)
    radius, weights = round(RADIUS * min(counts.shape)), 2 * counts / (counts + counts.max())
    return torch.stack([smooth(each * weights, radius) for each in maps]) if len(maps) else maps


def smooth(values: Tensor, radius: int) -> Tensor:
    """Box filter of side ``2 radius + 1``, applied twice; the mean is over pixels of the map: float ``[H, W]``.

    Sums are float64, of a strip at a time.

    >>> smooth(torch.tensor([[0.0, 0.0, 9.0, 0.0, 0.0]]), 1)
    tensor([[1.5000, 2.0000, 3.0000, 2.0000, 1.5000]])
    """
    for dim in (0, 1, 0, 1):
        strips = values.split(_STRIP, 1 - dim)
        values = torch.cat([_moving_mean(strip.double(), radius, dim).to(values.dtype) for strip in strips], 1 - dim)
    return values


def _moving_mean(values: Tensor, radius: int, dim: int) -> Tensor:
    length = values.shape[dim]
    total = torch.cat([torch.zeros_like(values.narrow(dim, 0, 1)), values.cumsum(dim)], dim)
    pixels = torch.arange(length, device=values.device)
    first, last = (pixels - radius).clamp(min=0), (pixels + radius + 1).clamp(max=length)
    sums = total.index_select(dim, last) - total.index_select(dim, first)
    counts = (last - first).to(values)
    return sums / (counts if dim == 1 else counts[:, None])


def find_place(values: Tensor) -> Place:
    """The highest pixel of a map ``[H, W]``."""
    best = int(values.argmax())
    row, column = divmod(best, values.shape[1])
    return Place(column + 0.5, row + 0.5, float(values[row, column]))


def find_regions(
    values: NDArray[np.float32],
    threshold: float | None = None,
    *,
    min_share: float = MIN_AREA_SHARE,
    min_area: float = 0.0,
    max_regions: int | None = None,
    confidence: float = 1.0,
) -> list[Region]:
    """Connected regions of a map ``[H, W]`` above a share of its peak, highest peak first.

    The region of the peak itself is never too small. Arguments are those of `DenseScores.boxes_from_map`.
    """
    threshold = MAP_THRESHOLD if threshold is None else threshold
    _check(threshold, min_share, min_area, max_regions)
    highest = values.max()
    mask = (values >= threshold * highest).astype(np.uint8)
    count, numbers, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    least = max(min_area, min_share * stats[1:, cv2.CC_STAT_AREA].max(initial=0))
    regions = []
    for number in range(1, count):  # 0 is the background
        x, y, width, height, area = map(int, stats[number])
        inside = values[y : y + height, x : x + width][numbers[y : y + height, x : x + width] == number]
        peak = float(inside.max())
        if area >= least or peak == highest:
            regions.append(Region((x, y, x + width, y + height), peak, confidence * peak))
    return sorted(regions, key=lambda region: (-region.peak, region.box))[:max_regions]


def layer_regions(
    boxes: Tensor,
    patch_scores: Tensor,
    qualities: Tensor,
    confidence: Tensor,
    threshold: float | None = None,
    *,
    min_area: float = 0.0,
    max_regions: int | None = None,
) -> list[Region]:
    """A class's boxes ``[K, 4]`` of a box layer, merged, best first; scores and qualities ``[K]``, confidence ``[]``.

    A good patch whose box fits badly ranks low. The best box is never too small.
    """
    threshold = SCORE_THRESHOLD if threshold is None else threshold
    _check(threshold, 0.0, min_area, max_regions)
    # Keep the best candidates
    certainty = confidence.sqrt() * patch_scores * qualities**3
    certainty, order = certainty.topk(min(MAX_CANDIDATES, len(certainty)))
    boxes, patch_scores = boxes[order], patch_scores[order]
    # Merge each box with its voters
    from torchvision.ops import box_iou, nms

    best = nms(boxes, certainty, NMS_IOU)[:MAX_DETECTIONS]
    votes = certainty * (box_iou(boxes[best], boxes) >= VOTE_IOU)  # [boxes, candidates]
    merged = (votes @ boxes) / votes.sum(1, keepdim=True).clamp(min=torch.finfo(votes.dtype).tiny)
    # Round to whole pixels, at least one
    low, high = merged.round().int().split(2, 1)
    corners = torch.cat([low, torch.maximum(high, low + 1)], 1).tolist()
    rows = zip(corners, patch_scores[best].tolist(), certainty[best].tolist(), strict=True)
    regions = [Region((x0, y0, x1, y1), peak, score) for (x0, y0, x1, y1), peak, score in rows]
    # Drop weak and small boxes
    large = [region for region in regions if _area(region.box) >= min_area]
    strong = [region for region in large if region.score >= threshold * regions[0].score]
    return (strong or regions[:1])[:max_regions]


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _check(share: float, min_share: float, min_area: float, max_regions: int | None) -> None:
    if not 0 < share <= 1:
        raise DensescoreError(f"share must lie in (0, 1], got {share}")
    if not 0 <= min_share <= 1:
        raise DensescoreError(f"min_share must lie in [0, 1], got {min_share}")
    if not min_area >= 0:
        raise DensescoreError(f"min_area must be at least 0, got {min_area}")
    if max_regions is not None and max_regions < 1:
        raise DensescoreError(f"max_regions must be at least 1, got {max_regions}")
