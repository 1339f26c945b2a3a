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

_SMALLEST = 512  # a pyramid ends at a picture no larger
_PIXEL_SCALE, _TIEPOINT, _TRANSFORMATION, _KEYS = 33550, 33922, 34264, 34735
_RASTER_TYPE, _PIXEL_IS_POINT = 1025, 2


Corner = tuple[int, int]
"""Of a tile: its first row and column."""


class Held(NamedTuple):
    """Per pixel of the map along one axis: the first cell of a level that holds its center, and how many do."""

    first: NDArray[np.int64]
    cells: NDArray[np.int64]


def held(size: int, length: int, cells: int, pyramid: Pyramid, step: int) -> Held:
    """Cells over the centers of a map's pixels, each `step` image pixels wide: exact, in integers.

    Args:
        size: of the image along the axis.
        length: of the level, before padding.
        cells: of the level.
        pyramid: of the image.
        step: 1 gives the cells of `densescore_kernels.grid.axis`.
    """
    place = np.arange(-(-size // step), dtype=np.int64)
    center = np.minimum((2 * place + 1) * step, 2 * size - 1) * length  # 2 · size · (place of the center in the level)
    last = np.minimum(center // (2 * size * pyramid.stride), cells - 1)
    first = np.maximum((center - 2 * size * pyramid.patch) // (2 * size * pyramid.stride) + 1, 0)
    return Held(first, last - first + 1)


class MapView:
    """The response map of one class with pixels `step` image pixels wide; its windows are computed when asked for.

    Args:
        columns: per level, the class's scores ``[rows, cols]``.
        pyramid: of the image.
        step: image pixels per pixel of the map; 1 gives `DenseScores.response_map`.
    """

    def __init__(self, columns: Sequence[NDArray[np.float32]], pyramid: Pyramid, step: int) -> None:
        self._columns = columns
        self.shape = -(-pyramid.height // step), -(-pyramid.width // step)
        self._axes = [
            (
                held(pyramid.height, level.height, level.rows, pyramid, step),
                held(pyramid.width, level.width, level.cols, pyramid, step),
            )
            for level in pyramid.levels
        ]

    def window(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.float32]:
        """The mean score of all patches over each pixel's center: float32 ``[y1 - y0, x1 - x0]``."""
        total = np.zeros((y1 - y0, x1 - x0), np.float32)
        count = np.zeros(total.shape, np.int64)
        for column, (down, across) in zip(self._columns, self._axes, strict=True):
            rows, top = _membership(down, y0, y1)
            cols, left = _membership(across, x0, x1)
            total += rows @ column[top : top + rows.shape[1], left : left + cols.shape[1]] @ cols.T
            count += down.cells[y0:y1, None] * across.cells[x0:x1]
        return np.divide(total, count.astype(np.float32), dtype=np.float32)


def _membership(axis: Held, start: int, stop: int) -> tuple[NDArray[np.float32], int]:
    """Which cells hold each pixel, 0 or 1 ``[pixels, cells]``, and the first of these cells."""
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
    track: Callable[[Sequence[Corner]], Iterable[Corner]] = iter,
) -> float:
    """Write a response map as a tiled TIFF of halved pictures, each exactly the map at its pixels' centers.

    Args:
        path: of the file.
        columns: as for `MapView`.
        pyramid: of the image.
        label: of the class.
        step: as for `MapView`, of the largest picture.
        tags: that say where on Earth the image lies.
        track: wraps the iteration over the tiles of the largest picture, for a progress bar.

    Returns:
        The map's peak.
    """
    import tifffile

    text = f"response map of {as_text(label)}: mean score of the patches over each pixel"
    description = text.encode()  # UTF-8; as a string, TIFF takes only ASCII
    peak = 0.0
    full = MapView(columns, pyramid, step).shape
    with tifffile.TiffWriter(path, bigtiff=full[0] * full[1] * 4 > 2**31) as writer:
        view = MapView(columns, pyramid, step)
        first = True
        while True:
            pieces = _Pieces(view, track if first else iter)
            writer.write(
                iter(pieces),
                shape=view.shape,
                dtype="float32",
                tile=(TILE, TILE),
                compression="zlib",
                photometric="minisblack",
                subfiletype=0 if first else 1,  # 1: a smaller version of another picture
                description=description if first else None,
                extratags=scaled(tags, step) if first else (),
                metadata=None,
            )
            peak = pieces.peak if first else peak
            if max(view.shape) <= _SMALLEST:
                return peak
            first, step = False, step * 2
            view = MapView(columns, pyramid, step)


class _Pieces:
    """The tiles of a map, row by row, filled up at the ends; keeps the largest value that it has seen."""

    def __init__(self, view: MapView, track: Callable[[Sequence[Corner]], Iterable[Corner]]) -> None:
        self.view, self.track, self.peak = view, track, 0.0

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        height, width = self.view.shape
        for y, x in self.track([(y, x) for y in range(0, height, TILE) for x in range(0, width, TILE)]):
            piece = self.view.window(y, min(y + TILE, height), x, min(x + TILE, width))
            self.peak = max(self.peak, float(piece.max()))
            yield np.pad(piece, ((0, TILE - piece.shape[0]), (0, TILE - piece.shape[1])), mode="edge")


def scaled(tags: Sequence[GeoTag], step: int) -> tuple[GeoTag, ...]:
    """GeoTIFF tags of a picture whose pixels are `step` times as wide."""
    keys: dict[int, Any] = {code: value for code, _, _, value, _ in tags}
    table = keys.get(_KEYS, ())
    points = any(table[at] == _RASTER_TYPE and table[at + 3] == _PIXEL_IS_POINT for at in range(4, len(table), 4))
    shift = (step - 1) / 2 if points else 0.0  # where coordinates mean the middles of pixels
    changed = []
    for code, kind, count, value, once in tags:
        numbers: Any = value
        if code == _PIXEL_SCALE:
            numbers = (value[0] * step, value[1] * step, value[2])
        elif code == _TIEPOINT:
            numbers = tuple((v - shift) / step if at % 6 < 2 else v for at, v in enumerate(value))
        elif code == _TRANSFORMATION:
            rows = np.array(value).reshape(4, 4)
            rows[:, 3] += shift * (rows[:, 0] + rows[:, 1])
            rows[:, :2] *= step
            numbers = tuple(rows.ravel())
        changed.append((code, kind, count, numbers, once))
    return tuple(changed)
