"""Response maps of huge images: any window of one, and tiled, pyramidal TIFF or GeoTIFF files of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from densescore.geometry import Pyramid
from densescore.io.names import as_text
from densescore.jobs.huge.source import GeoTag

TILE = 512
"""Side of the tiles of a file, in pixels of the map."""

PIXEL_SCALE, TIEPOINT, TRANSFORMATION, KEYS = 33550, 33922, 34264, 34735
RASTER_TYPE, PIXEL_IS_POINT = 1025, 2


Track = Callable[[Sequence[tuple[int, int]]], Iterable[tuple[int, int]]]
"""Corners of tiles (row, column) → the same, with a progress bar."""


class CellRange(NamedTuple):
    """Per pixel of the map along one axis: the first cell of a level over its center, and the number of such cells."""

    first: NDArray[np.int64]
    cells: NDArray[np.int64]


def covering_cells(size: int, length: int, cells: int, pyramid: Pyramid, step: int) -> CellRange:
    """Cells over the centers of map pixels, each `step` image pixels wide: exact, in integers.

    `size` is the image's, `length` the level's before padding. For `step` 1, as `densescore_kernels.grid.axis`.
    """
    pixel = np.arange(-(-size // step), dtype=np.int64)
    center = np.minimum((2 * pixel + 1) * step, 2 * size - 1) * length  # 2 · size · (center in pixels of the level)
    last = np.minimum(center // (2 * size * pyramid.stride), cells - 1)
    first = np.maximum((center - 2 * size * pyramid.patch) // (2 * size * pyramid.stride) + 1, 0)
    return CellRange(first, last - first + 1)


class MapView:
    """The response map of one class with pixels `step` image pixels wide, computed window by window.

    `columns` are the class's scores per level, ``[rows, cols]``. For `step` 1, as `DenseScores.response_map`.
    """

    def __init__(self, columns: Sequence[NDArray[np.float32]], pyramid: Pyramid, step: int) -> None:
        self._columns = columns
        self.shape = -(-pyramid.height // step), -(-pyramid.width // step)
        self._axes = [
            (
                covering_cells(pyramid.height, level.height, level.rows, pyramid, step),
                covering_cells(pyramid.width, level.width, level.cols, pyramid, step),
            )
            for level in pyramid.levels
        ]

    def window(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.float32]:
        """The mean score of all patches over each pixel's center: float32 ``[y1 - y0, x1 - x0]``."""
        total = np.zeros((y1 - y0, x1 - x0), np.float32)
        count = np.zeros(total.shape, np.int64)
        for column, (down, across) in zip(self._columns, self._axes, strict=True):
            rows, top = _membership(down, y0, y1)  # [h, rows]
            cols, left = _membership(across, x0, x1)  # [w, cols]
            total += rows @ column[top : top + rows.shape[1], left : left + cols.shape[1]] @ cols.T
            count += down.cells[y0:y1, None] * across.cells[x0:x1]
        return np.divide(total, count.astype(np.float32), dtype=np.float32)


def _membership(axis: CellRange, start: int, stop: int) -> tuple[NDArray[np.float32], int]:
    """Cells over each pixel, 0 or 1 ``[pixels, cells]``, and the first of these cells."""
    first = axis.first[start:stop]
    end = first + axis.cells[start:stop]
    cell = np.arange(first.min(), end.max())
    return ((cell >= first[:, None]) & (cell < end[:, None])).astype(np.float32), int(cell[0])


def write_map(
    path: Path,
    columns: Sequence[NDArray[np.float32]],
    pyramid: Pyramid,
    label: str,
    step: int,
    tags: Sequence[GeoTag],
    track: Track = iter,
) -> float:
    """Write a class's map as a tiled TIFF of halved pictures, each exact at its pixels' centers; returns the peak.

    `columns` and `step` are as for `MapView`; `tags` georeference the image; `track` sees the largest picture's tiles.
    """
    import tifffile

    peak = 0.0

    def pieces(view: MapView, is_full: bool) -> Iterator[NDArray[np.float32]]:
        nonlocal peak
        height, width = view.shape
        corners = [(y, x) for y in range(0, height, TILE) for x in range(0, width, TILE)]
        for y, x in track(corners) if is_full else corners:
            piece = view.window(y, min(y + TILE, height), x, min(x + TILE, width))
            if is_full:
                peak = max(peak, float(piece.max()))
            yield np.pad(piece, ((0, TILE - piece.shape[0]), (0, TILE - piece.shape[1])), mode="edge")

    steps = [step]
    while max(pyramid.height, pyramid.width) > TILE * steps[-1]:  # until one tile holds the picture
        steps.append(2 * steps[-1])
    description = f"response map of {as_text(label)}: mean score of the patches over each pixel"
    with tifffile.TiffWriter(path, bigtiff=pyramid.height * pyramid.width * 4 > 2**31 * step**2) as writer:
        for number, wide in enumerate(steps):
            view, is_full = MapView(columns, pyramid, wide), number == 0
            writer.write(
                pieces(view, is_full),
                shape=view.shape,
                dtype="float32",
                tile=(TILE, TILE),
                compression="zlib",
                photometric="minisblack",
                subfiletype=0 if is_full else 1,  # 1: a smaller version of another picture
                description=description.encode() if is_full else None,  # UTF-8; TIFF's strings are ASCII
                extratags=scaled(tags, step) if is_full else (),
                metadata=None,
            )
    return peak


def geo_keys(tags: Sequence[GeoTag]) -> dict[int, int]:
    """GeoKeys with a number of their own."""
    table: Any = next((value for code, _, _, value, _ in tags if code == KEYS), ())
    return {table[at]: table[at + 3] for at in range(4, len(table), 4) if table[at + 1] == 0}


def scaled(tags: Sequence[GeoTag], step: int) -> tuple[GeoTag, ...]:
    """GeoTIFF tags for pixels that are `step` times as wide."""
    points = geo_keys(tags).get(RASTER_TYPE) == PIXEL_IS_POINT
    shift = (step - 1) / 2 if points else 0.0  # if coordinates mean the centers of pixels
    changed = []
    for code, kind, count, value, once in tags:
        numbers: Any = value
        if code == PIXEL_SCALE:
            numbers = (value[0] * step, value[1] * step, value[2])
        elif code == TIEPOINT:
            numbers = tuple((v - shift) / step if at % 6 < 2 else v for at, v in enumerate(value))
        elif code == TRANSFORMATION:
            rows = np.array(value).reshape(4, 4)
            rows[:, 3] += shift * (rows[:, 0] + rows[:, 1])
            rows[:, :2] *= step
            numbers = tuple(rows.ravel())
        changed.append((code, kind, count, numbers, once))
    return tuple(changed)
