"""Which patches an image has: levels, cells, windows and boxes. Plain arithmetic; no torch, no pixels.

A *patch* is a square window of the image, of side ``min(H, W) / λ``. For each scale λ the image is resized to a
*level* in which a patch is P pixels wide, then padded bottom and right until a whole number of strides fits, so that
every pixel is seen at every scale. A *cell* (row i, column j) of a level is the patch whose window is
``[j·S, j·S + P) × [i·S, i·S + P)`` in level pixels, whatever network looks at it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError

PAPER_SCALES = (1.0, 1.3, 1.6, 2.0, 2.4, 2.8, 3.2, 3.6, 4.0)
"""The scales of Oquab et al. (CVPR 2014), Section 3.2: the short side over the side of a patch."""

DEFAULT_MAX_CELLS = 100_000
"""Most patches that one image may have before `Pyramid.of` refuses: nine paper scales pass it beyond 46:1."""

_LONGEST = 2**31  # pixels of a level's side, as OpenCV counts them


@dataclass(frozen=True)
class Level:
    """The image resized for one scale, and its grid of cells.

    Attributes:
        scale: λ, the short side of the image over the side of a patch.
        height: level height in level pixels, before padding.
        width: level width in level pixels, before padding.
        rows: rows of cells.
        cols: columns of cells.
        start: index of this level's first cell among the cells of all levels; cells are numbered row by row.
    """

    scale: float
    height: int
    width: int
    rows: int
    cols: int
    start: int

    @property
    def cells(self) -> slice:
        """This level's rows of every per-patch array."""
        return slice(self.start, self.start + self.rows * self.cols)

    def phases(self, count: int) -> list[NDArray[np.int64]]:
        """Cell indices of each of the `count` × `count` phases: every `count`-th cell down and across, row by row."""
        grid = np.arange(self.start, self.start + self.rows * self.cols).reshape(self.rows, self.cols)
        return [grid[down::count, across::count] for down in range(count) for across in range(count)]


@dataclass(frozen=True)
class Pyramid:
    """All levels of one image.

    Attributes:
        height: image height in pixels.
        width: image width in pixels.
        patch: P, side of the network's input in pixels.
        stride: S, step from one cell to the next in level pixels.
        levels: one per scale, in the order in which the scales were given.

    Example:
        >>> pyramid = Pyramid.of(375, 500, scales=(1, 2))
        >>> [(level.height, level.width, level.rows, level.cols) for level in pyramid.levels]
        [(224, 299, 1, 4), (448, 597, 8, 13)]
        >>> len(pyramid)
        108
    """

    height: int
    width: int
    patch: int
    stride: int
    levels: tuple[Level, ...]

    @classmethod
    def of(
        cls,
        height: int,
        width: int,
        *,
        scales: Sequence[float] = PAPER_SCALES,
        patch_sizes: Sequence[float] | None = None,
        patch: int = 224,
        stride: int = 32,
        phases: int = 1,
        max_cells: int = DEFAULT_MAX_CELLS,
    ) -> "Pyramid":
        """Lay out the levels of an image of `height` × `width` pixels.

        Args:
            height: image height in pixels, at least 1.
            width: image width in pixels, at least 1.
            scales: λ per level, relative to the short side of the image; positive.
            patch_sizes: sides of the patches in image pixels, instead of `scales`: the absolute form.
            patch: P, side of the network's input in pixels.
            stride: S, step from one cell to the next in level pixels.
            phases: cells per stride of the network, where they are closer than that. A level is padded to
                ``P + n · phases · S``: as far as without, so that the cells that are there without see the same.
            max_cells: most cells allowed over all levels.

        Raises:
            DensescoreError: a size or scale is not positive, or the levels hold more than `max_cells` cells.
        """
        if height < 1 or width < 1:
            raise DensescoreError(f"image size must be at least 1×1, got {height}×{width} (height × width)")
        if min(patch, stride, phases) < 1:
            raise DensescoreError(f"patch, stride and phases must be at least 1, got {patch}, {stride} and {phases}")
        short = min(height, width)
        if patch_sizes is not None:
            _check_positive("patch_sizes", patch_sizes)
            scales = [min(short / size, _LONGEST) for size in patch_sizes]
        _check_positive("scales", scales)

        levels: list[Level] = []
        start = 0
        for scale in scales:
            ratio = patch * scale / short
            if not max(height, width) * ratio < _LONGEST:
                raise DensescoreError(
                    f"an image of {height}×{width} pixels at scale {scale:g}, with patches of {patch} pixels, would be "
                    f"{max(height, width) * ratio:.3g} pixels long: use a smaller scale, or a larger patch size"
                )
            level_height, level_width = max(1, round(height * ratio)), max(1, round(width * ratio))
            rows, cols = (_cells_along(side, patch, stride, phases) for side in (level_height, level_width))
            levels.append(Level(float(scale), level_height, level_width, rows, cols, start))
            start += rows * cols
        if start > max_cells:
            raise DensescoreError(
                f"an image of {height}×{width} pixels has {start:,} patches at {len(levels)} scales, more than "
                f"max_cells={max_cells:,}: use fewer or smaller scales, absolute patch_sizes, a crop of the image, "
                "or a larger max_cells"
            )
        return cls(height, width, patch, stride, tuple(levels))

    def __len__(self) -> int:
        """M, the number of patches over all levels."""
        return sum(level.rows * level.cols for level in self.levels)

    def padded_size(self, level: Level) -> tuple[int, int]:
        """Height and width of a level after padding: ``P + nS`` each, at least the level's own."""
        return self.patch + (level.rows - 1) * self.stride, self.patch + (level.cols - 1) * self.stride

    def window(self, level: Level, row: int, col: int) -> tuple[int, int, int, int]:
        """The window ``x0, y0, x1, y1`` of a cell, in pixels of the padded level."""
        if not (0 <= row < level.rows and 0 <= col < level.cols):
            raise DensescoreError(f"cell ({row}, {col}) is outside the level's {level.rows}×{level.cols} grid")
        x, y = col * self.stride, row * self.stride
        return x, y, x + self.patch, y + self.patch

    def locate(self, index: int) -> tuple[Level, int, int]:
        """Level, row and column of the patch with this index; the inverse of ``level.start + row * cols + col``."""
        for level in self.levels:
            if level.cells.start <= index < level.cells.stop:
                return level, *divmod(index - level.start, level.cols)
        raise DensescoreError(f"patch index {index} is outside 0..{len(self) - 1}")

    def boxes(self) -> NDArray[np.float32]:
        """Every patch in image pixels, ``x0 y0 x1 y1``, not clipped to the image: float32 ``[M, 4]``.

        A level is the image stretched by ``w / W`` and ``h / H`` (which differ a little, by rounding), so a window
        shrinks by just those. Pixel (x, y) of the image covers ``[x, x+1) × [y, y+1)``.
        """
        parts = []
        for level in self.levels:
            x0 = np.tile(np.arange(level.cols) * float(self.stride), level.rows)  # [rows·cols], level pixels
            y0 = np.repeat(np.arange(level.rows) * float(self.stride), level.cols)
            windows = np.stack([x0, y0, x0 + self.patch, y0 + self.patch], axis=1)
            to_image = np.array([self.width / level.width, self.height / level.height] * 2)
            parts.append(windows * to_image)
        return np.concatenate(parts).astype(np.float32)


def _cells_along(length: int, patch: int, stride: int, phases: int) -> int:
    """Cells along an axis: the fewest, in whole strides of the network, whose windows reach its end."""
    return math.ceil(max(length - patch, 0) / (stride * phases)) * phases + 1


def _check_positive(name: str, values: Sequence[float]) -> None:
    if not values or not all(math.isfinite(value) and value > 0 for value in values):
        raise DensescoreError(f"{name} must be one or more positive finite numbers, got {tuple(values)}")
