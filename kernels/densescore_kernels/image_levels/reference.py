"""The definition, as plain float64 loops. Slow and obvious: never edited to match a kernel."""

from __future__ import annotations

import itertools
import math

import torch


def image_level(image: torch.Tensor, size: tuple[int, int], padded: tuple[int, int]) -> torch.Tensor:
    """One image ``[H, W, 3]`` resized to ``size`` and padded by reflection to ``padded``: float64 ``[h, w, 3]``.

    Shrinking averages the pixels under each new one; enlarging is bilinear between pixel centers.
    """
    down, across = (_weights(image.shape[axis], size[axis]) for axis in (0, 1))
    out = torch.zeros(*padded, 3, dtype=torch.float64)
    for y, x in itertools.product(range(padded[0]), range(padded[1])):
        rows, columns = down[_reflect(y, size[0])], across[_reflect(x, size[1])]
        for (i, wy), (j, wx) in itertools.product(rows, columns):
            out[y, x] += wy * wx * image[i, j].double()
    return out


def _weights(length: int, size: int) -> list[list[tuple[int, float]]]:
    """Pixels and weights of each of ``size`` new pixels."""
    step, weights = length / size, []
    for new in range(size):
        if size < length:
            start, stop = new * step, min((new + 1) * step, length)
            first, last = math.floor(start), min(math.ceil(stop), length)
            overlap = [(i, max(min(stop, i + 1) - max(start, i), 0.0) / (stop - start)) for i in range(first, last)]
            weights.append(overlap)
        else:
            center = (new + 0.5) * step - 0.5
            first = math.floor(center)
            pair = [(first, 1 - (center - first)), (first + 1, center - first)]
            weights.append([(min(max(i, 0), length - 1), weight) for i, weight in pair])
    return weights


def _reflect(position: int, size: int) -> int:
    """Mirror about the border pixels, which are not repeated, as often as needed."""
    if size == 1:
        return 0
    position %= 2 * (size - 1)
    return min(position, 2 * (size - 1) - position)
