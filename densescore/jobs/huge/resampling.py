"""Windows of a level, equal pixel for pixel to those of `densescore.io.images.level_pixels` on the whole image.

A level's pixel x lies over the image at ``x · W / w``, seldom an integer, so a window of the image that is resized by
itself would be shifted by part of a pixel. This module computes any part of a level with OpenCV's arithmetic
(``INTER_AREA`` to shrink, ``INTER_LINEAR`` to enlarge), in the same order and precision, and with the same rounding.
"""

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from densescore.geometry import Level, Pyramid
from densescore.io.images import Pixels

Read = Callable[[int, int, int, int], Pixels]
"""``y0, y1, x0, x1`` → that window of the image, ``[h, w, 3]``."""

BAND_BYTES = 2**26
"""Bytes of the part of the image, in float32, that is resized at a time."""

_FIXED = np.float32(2048)  # OpenCV's weights for bytes: fractions of 11 bits


def level_window(read: Read, pyramid: Pyramid, level: Level, y0: int, y1: int, x0: int, x1: int) -> Pixels:
    """Rows ``y0 … y1 - 1`` and columns ``x0 … x1 - 1`` of a padded level: RGB ``[h, w, 3]`` of the image's dtype."""
    rows, cols = _reflected(y0, y1, level.height), _reflected(x0, x1, level.width)
    top, left = rows.min(), cols.min()
    window = _resized(read, pyramid, level, (top, rows.max() + 1), (left, cols.max() + 1))
    return np.ascontiguousarray(window[rows - top][:, cols - left])


def _reflected(start: int, stop: int, length: int) -> NDArray[np.int64]:
    """Positions ``start … stop - 1`` of a padded axis within the axis: OpenCV's ``BORDER_REFLECT_101``."""
    period = max(2 * (length - 1), 1)
    position = np.arange(start, stop) % period
    return np.minimum(position, period - position) if length > 1 else np.zeros_like(position)


def _resized(read: Read, pyramid: Pyramid, level: Level, rows: tuple[int, int], cols: tuple[int, int]) -> Pixels:
    """A window of a level before padding."""
    height, width = pyramid.height, pyramid.width
    if (level.height, level.width) == (height, width):
        return read(*rows, *cols)
    if level.height > height or level.width > width:
        down = _linear_taps(height, level.height, *rows)
        across = _linear_taps(width, level.width, *cols)
        resize = _linear
    elif height % level.height == 0 and width % level.width == 0:  # OpenCV sums whole pixels for integer ratios
        steps = height // level.height, width // level.width
        down = _whole_taps(steps[0], *rows)
        across = _whole_taps(steps[1], *cols)
        resize = _whole
    else:
        down = _area_taps(height, level.height, *rows)
        across = _area_taps(width, level.width, *cols)
        resize = _area
    left, right = int(across[0].min()), int(across[0].max()) + 1
    across = (across[0] - left, across[1])
    parts = []
    for band in _bands(down[0], right - left):
        positions, weights = down[0][band], down[1][band]
        top, bottom = int(positions.min()), int(positions.max()) + 1
        parts.append(resize(read(top, bottom, left, right), (positions - top, weights), across))
    return np.concatenate(parts)


Taps = tuple[NDArray[np.int64], NDArray[np.floating[Any]]]
"""Per pixel of the level, positions in the image and their weights: ``[pixels, taps]`` each."""


def _bands(positions: NDArray[np.int64], width: int) -> Iterator[slice]:
    """Ranges of the level's rows whose part of the image fits in `BAND_BYTES`."""
    max_rows = max(1, BAND_BYTES // (width * 3 * 4))  # of the image
    start = 0
    for row in range(len(positions)):
        if positions[row].max() - positions[start].min() >= max_rows and row > start:
            yield slice(start, row)
            start = row
    yield slice(start, len(positions))


def _area_taps(length: int, resized: int, start: int, stop: int) -> Taps:
    """Image pixels under each of the level's, and their fractions: OpenCV's ``computeResizeAreaTab``."""
    scale = length / resized
    begin = np.arange(start, stop) * scale
    end = begin + scale
    cell = np.minimum(scale, length - begin)
    last = np.minimum(np.floor(end).astype(np.int64), length - 1)
    first = np.minimum(np.ceil(begin).astype(np.int64), last)
    before, after = first - begin, end - last  # fractions of the pixels at the two ends
    count = int((last - first).max()) + 2
    position = first[:, None] - 1 + np.arange(count)  # [pixels, taps]: a partial pixel, whole ones, a partial one
    weight = np.where((position >= first[:, None]) & (position < last[:, None]), 1.0 / cell[:, None], 0.0)
    weight[:, 0] = np.where(before > 1e-3, before / cell, 0.0)
    partly = (position == last[:, None]) & (after > 1e-3)[:, None]
    weight = np.where(partly, (np.minimum(np.minimum(after, 1.0), cell) / cell)[:, None], weight)
    return position.clip(0, length - 1), weight.astype(np.float32)


def _area(image: Pixels, down: Taps, across: Taps) -> Pixels:
    rows = np.zeros((len(image), len(across[0]), 3), np.float32)
    values = image.astype(np.float32)
    for position, weight in zip(across[0].T, across[1].T, strict=True):  # sums in OpenCV's order
        rows += values[:, position] * weight[:, None]
    resized = np.zeros((len(down[0]), *rows.shape[1:]), np.float32)
    for position, weight in zip(down[0].T, down[1].T, strict=True):
        resized += rows[position] * weight[:, None, None]
    return np.rint(resized).astype(np.uint8) if image.dtype == np.uint8 else resized


def _whole_taps(step: int, start: int, stop: int) -> Taps:
    positions = np.arange(start, stop)[:, None] * step + np.arange(step)
    return positions, np.full(positions.shape, 1 / step)


def _whole(image: Pixels, down: Taps, across: Taps) -> Pixels:
    size = (len(across[0]), len(down[0]))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA) if size != image.shape[1::-1] else image


def _linear_taps(length: int, resized: int, start: int, stop: int) -> Taps:
    """The two image pixels around each level pixel's center (past the ends: the end), and the center."""
    middle = (np.arange(start, stop) + 0.5) * (length / resized) - 0.5
    position = np.floor(middle).astype(np.int64)
    return np.stack([position, position + 1], 1).clip(0, length - 1), middle[:, None]


def _linear(image: Pixels, down: Taps, across: Taps) -> Pixels:
    (rows, middle_y), (cols, middle_x) = down, across
    if image.dtype != np.uint8:
        share_y, share_x = ((middle - np.floor(middle)).astype(np.float32) for middle in (middle_y, middle_x))
        mixed = image[:, cols[:, 0]] * (1 - share_x) + image[:, cols[:, 1]] * share_x
        return mixed[rows[:, 0]] * (1 - share_y)[:, None] + mixed[rows[:, 1]] * share_y[:, None]
    # OpenCV mixes bytes by integers, from positions in float32.
    share_y, share_x = (
        middle.astype(np.float32) - np.floor(middle).astype(np.float32) for middle in down[1:] + across[1:]
    )
    share_x[cols[:, 0] == cols[:, 1]] = 0  # past the left and right ends OpenCV takes the end itself
    values = image.astype(np.int32)
    sums: NDArray[Any] = values[:, cols[:, 0]] * _fixed(1 - share_x) + values[:, cols[:, 1]] * _fixed(share_x)
    upper, lower = (
        (_fixed(share)[:, None] * (sums[rows[:, tap]] >> 4)) >> 16 for tap, share in enumerate((1 - share_y, share_y))
    )
    return ((upper + lower + 2) >> 2).clip(0, 255).astype(np.uint8)


def _fixed(share: NDArray[np.float32]) -> NDArray[np.int32]:
    return np.rint(share * _FIXED).astype(np.int32)
