"""What a report holds of one image."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from densescore.io.images import Pixels
from densescore.results.scores import DenseScores
from densescore.results.thumbnails import fit, jpeg, smaller

PHOTO_SIDE, MAP_SIDE = 480, 96
"""Longest sides, in pixels, of the photographs and maps in a report."""

_WORK_SIDE = 1000  # longest side of the maps that boxes are read from
_MOST_BOXES = 10  # per image and class
_PHOTO_QUALITY, _MAP_QUALITY = 80, 90
_SMOOTHING = 1.2  # standard deviation in pixels of a map's picture: the steps of the cells are no signal


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A class or group in an image.

    Attributes:
        label: its name.
        confidence: the k-th root of the image score.
        boxes: regions of its map in image pixels, each ``(x0, y0, x1, y1, peak)``; highest peak first.
        place: its most likely location in image pixels, ``(x, y)``, if it is known.
        peak: the map's highest value, if it is known.
        map_url: the map as a picture, from black, 0, to white, its peak; empty where there is none.
    """

    label: str
    confidence: float
    boxes: Sequence[tuple[float, float, float, float, float]] = ()
    place: tuple[float, float] | None = None
    peak: float | None = None
    map_url: str = ""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An image of a report.

    Attributes:
        name: its path; any text.
        width: in pixels; 0 where there is an error.
        height: in pixels.
        photo_url: a small picture of it.
        findings: classes and groups, best first.
        error: what went wrong; None if nothing did.
    """

    name: str
    width: int = 0
    height: int = 0
    photo_url: str = field(default="", repr=False)
    findings: Sequence[Finding] = ()
    error: str | None = None

    def facts(self) -> dict[str, Any]:
        """All but the pictures, as JSON values; numbers with the digits that a page shows."""
        if self.error is not None:
            return {"name": self.name, "error": self.error}
        classes = [
            {
                "label": found.label,
                "confidence": _short(found.confidence),
                "boxes": [[*(round(side, 1) for side in box[:4]), _short(box[4])] for box in found.boxes],
                "place": found.place and [round(side, 1) for side in found.place],
                "peak": found.peak and _short(found.peak),
            }
            for found in self.findings
        ]
        return {"name": self.name, "width": self.width, "height": self.height, "classes": classes}

    def pictures(self) -> dict[str, Any]:
        """The photograph, and the map of each finding, in order."""
        return {"photo": self.photo_url, "maps": [found.map_url for found in self.findings]}


def entry_of(name: str, pixels: Pixels, scores: DenseScores) -> Entry:
    """The entry of an image whose scores are those of the classes to show, and no others; see `DenseScores.select`."""
    height, width = pixels.shape[:2]
    work, small = smaller(scores, _WORK_SIDE), smaller(scores, MAP_SIDE)
    maps = dict(zip(scores.labels, small.shrunk_map().cpu().numpy(), strict=True))  # each [rows, columns]
    scale = width / work.pyramid.width
    findings = []
    for best in scores.top(len(scores.labels)):
        values = work.shrunk_map(best.label)
        place = work.locate(best.label)[0]
        from_layer = scores.object_boxes is not None  # its boxes are in pixels of the image, whatever the maps' size
        regions = (scores if from_layer else work).find_boxes(best.label, max_regions=_MOST_BOXES)
        zoom = 1 if from_layer else scale
        findings.append(
            Finding(
                label=best.label,
                confidence=best.confidence,
                boxes=[(*(side * zoom for side in region.box), region.peak) for region in regions],  # type: ignore[misc]
                place=(place.x * scale, place.y * scale),
                peak=float(values.max()),
                map_url=map_picture(maps[best.label]),
            )
        )
    return Entry(name=name, width=width, height=height, photo_url=photo_picture(pixels), findings=findings)


def photo_picture(pixels: Pixels) -> str:
    """A photograph as a small picture."""
    return jpeg(pixels, PHOTO_SIDE, _PHOTO_QUALITY)


def map_picture(values: NDArray[np.float32]) -> str:
    """A response map ``[H, W]`` as a small picture, from black, 0, to white, the map's peak."""
    small = cv2.resize(values, fit(values.shape[1], values.shape[0], MAP_SIDE), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), _SMOOTHING)
    relative = np.rint(255 * small / max(float(small.max()), 1e-30)).astype(np.uint8)
    encoded = cv2.imencode(
        ".webp", cv2.cvtColor(relative, cv2.COLOR_GRAY2BGR), [cv2.IMWRITE_WEBP_QUALITY, _MAP_QUALITY]
    )[1]
    return "data:image/webp;base64," + base64.b64encode(encoded.tobytes()).decode()


def _short(value: float) -> float:
    return float(f"{value:.4g}")
