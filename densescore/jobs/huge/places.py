"""Best patches of a huge image's classes as CSV, and as GeoJSON where the image is georeferenced."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densescore.io.names import as_text, text_values, to_json
from densescore.jobs.huge.maps import PIXEL_IS_POINT, PIXEL_SCALE, RASTER_TYPE, TIEPOINT, TRANSFORMATION, geo_keys
from densescore.jobs.huge.source import GeoTag

_PROJECTED, _GEOGRAPHIC, _USER_DEFINED = 3072, 2048, 32767


def write_csv(path: Path, classes: Sequence[dict[str, Any]]) -> None:
    """A row per place: class, box in image pixels, score; UTF-8."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("class", "x0", "y0", "x1", "y1", "score"))
        for label, box, score in _places(classes):
            writer.writerow((as_text(label), *(f"{side:.1f}" for side in box), f"{score:.6g}"))


def write_geojson(path: Path, classes: Sequence[dict[str, Any]], tags: Sequence[GeoTag]) -> None:
    """A polygon per place, in the image's own coordinate system, which the file names by its EPSG number."""
    ground, epsg = ground_of(tags), epsg_of(tags)
    assert ground is not None
    features = []
    for label, (x0, y0, x1, y1), score in _places(classes):
        corners = [ground(*corner) for corner in ((x0, y0), (x0, y1), (x1, y1), (x1, y0), (x0, y0))]
        geometry = {"type": "Polygon", "coordinates": [corners]}
        properties = text_values({"class": label, "score": score})
        features.append({"type": "Feature", "properties": properties, "geometry": geometry})
    system = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{epsg}"}}
    path.write_text(to_json({"type": "FeatureCollection", "crs": system, "features": features}) + "\n", "utf-8")


def _places(classes: Sequence[dict[str, Any]]) -> list[tuple[str, tuple[float, ...], float]]:
    return [(entry["label"], patch["box"], patch["score"]) for entry in classes for patch in entry["best_patches"]]


def epsg_of(tags: Sequence[GeoTag]) -> int | None:
    """EPSG number of the coordinate system of GeoTIFF tags; None if it has none."""
    keys = geo_keys(tags)
    number = keys.get(_PROJECTED, keys.get(_GEOGRAPHIC, _USER_DEFINED))
    return None if number == _USER_DEFINED else number


def ground_of(tags: Sequence[GeoTag]) -> Callable[[float, float], tuple[float, float]] | None:
    """Image pixels (x, y), 0 at the left and upper border → coordinates on the ground; None without a georeference."""
    values = {code: value for code, _, _, value, _ in tags}
    half = 0.5 if geo_keys(tags).get(RASTER_TYPE) == PIXEL_IS_POINT else 0.0  # coordinates mean the centers of pixels
    if TRANSFORMATION in values:
        matrix = np.array(values[TRANSFORMATION], float).reshape(4, 4)[:2]
    elif PIXEL_SCALE in values and TIEPOINT in values:
        (across, down, _), (x, y, _, east, north, _) = values[PIXEL_SCALE], values[TIEPOINT][:6]
        matrix = np.array([[across, 0, 0, east - x * across], [0, -down, 0, north + y * down]])
    else:
        return None

    def ground(x: float, y: float) -> tuple[float, float]:
        east, north = matrix @ (x - half, y - half, 0, 1)
        return float(east), float(north)

    return ground
