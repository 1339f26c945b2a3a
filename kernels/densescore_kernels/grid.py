"""Where the cells of a response map lie, in exact integers and without torch.

A cell ``j`` of a level that is ``w`` pixels wide sees the level window ``[j·S, j·S + P)``. The center of image pixel
``x`` lies at ``u = (x + ½)·w / W`` in level pixels, so that the pixel is held by the cell iff

    2·W·j·S  <=  (2x + 1)·w  <  2·W·(j·S + P)

which is a comparison of integers: no rounding, no ties, the same cells in every version and on every machine. The
cells that hold one pixel are a contiguous range, and the range stays the same over a whole run of pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from densescore_kernels.errors import DensescoreError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GridLevel:
    """One scale of an image: its size in level pixels, before padding, and its grid of cells.

    Args:
        height: height of the resized image, in level pixels, at least 1.
        width: width of the resized image, in level pixels, at least 1.
        rows: number of cells along y, at least 1.
        cols: number of cells along x, at least 1.

    Raises:
        DensescoreError: when a number is not a positive integer.
    """

    height: int
    width: int
    rows: int
    cols: int

    def __post_init__(self) -> None:
        for name in ("height", "width", "rows", "cols"):
            _require_positive(f"GridLevel.{name}", getattr(self, name))


@dataclass(frozen=True)
class Grid:
    """The cells of all levels of one image.

    Args:
        height: height of the image, in image pixels, at least 1.
        width: width of the image, in image pixels, at least 1.
        patch: side P of a cell's window, in level pixels.
        stride: step S between two cells, in level pixels.
        levels: the levels, in the order in which their cells are packed; at least one.

    Raises:
        DensescoreError: when a number is not a positive integer, when there is no level, or when a pixel of the
            image is held by no cell of some level.

    Example:
        >>> Grid(4, 4, patch=2, stride=1, levels=(GridLevel(4, 4, rows=3, cols=3),)).cells
        9
    """

    height: int
    width: int
    patch: int
    stride: int
    levels: tuple[GridLevel, ...]

    def __post_init__(self) -> None:
        for name in ("height", "width", "patch", "stride"):
            _require_positive(f"Grid.{name}", getattr(self, name))
        object.__setattr__(self, "levels", tuple(self.levels))
        if not self.levels:
            raise DensescoreError("Grid.levels: got none, expected at least one GridLevel")
        for number in range(len(self.levels)):
            self.down(number)
            self.across(number)

    @property
    def cells(self) -> int:
        """Number of cells of all levels, which is the number of rows of the packed scores."""
        return sum(level.rows * level.cols for level in self.levels)

    def across(self, number: int) -> Axis:
        """Which columns of cells hold each pixel column, at level ``number``."""
        level = self.levels[number]
        return axis(self.width, level.width, level.cols, self.patch, self.stride)

    def down(self, number: int) -> Axis:
        """Which rows of cells hold each pixel row, at level ``number``."""
        level = self.levels[number]
        return axis(self.height, level.height, level.rows, self.patch, self.stride)


class Axis(NamedTuple):
    """One axis of one level: runs of pixels that are held by the same cells, called segments."""

    first: Ints  # [segments] first cell that holds the segment
    cells: Ints  # [segments] number of cells that hold it, at least 1
    segment: Ints  # [pixels] segment of each pixel


@lru_cache(maxsize=1024)
def axis(pixels: int, length: int, cells: int, patch: int, stride: int) -> Axis:
    """Segments of one axis: ``pixels`` image pixels, each in at least one of ``cells``; ``length`` level pixels."""
    center = (2 * np.arange(pixels, dtype=np.int64) + 1) * length  # 2·W·u
    last = np.minimum(center // (2 * pixels * stride), cells - 1)  # [pixels]
    first = np.maximum((center - 2 * pixels * patch) // (2 * pixels * stride) + 1, 0)  # [pixels]
    if (bare := np.flatnonzero(first > last)).size:
        raise DensescoreError(
            f"Grid: pixel {bare[0]} of {pixels} is held by no cell of a level of {length} pixels and {cells} cells "
            f"(patch {patch}, stride {stride}); expected at least one cell over each pixel"
        )
    starts = run_starts(first, last)
    segment = np.repeat(np.arange(starts.size), np.diff(starts, append=pixels))
    return Axis(first[starts], (last - first + 1)[starts], segment)


def run_starts(*rows: Ints) -> Ints:
    """First index of each run over which none of the equally long arrays changes.

    Example:
        >>> run_starts(np.array([0, 0, 1, 1]), np.array([5, 5, 5, 6]))
        array([0, 2, 3])
    """
    changes = np.zeros(rows[0].size, dtype=bool)
    changes[0] = True
    for row in rows:
        changes[1:] |= row[1:] != row[:-1]
    return np.flatnonzero(changes)


def _require_positive(name: str, value: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise DensescoreError(f"{name}: got {value!r}, expected an integer of at least 1")
