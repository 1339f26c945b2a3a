"""Plain references to check the dense pass against: the unmodified parts of a network, window by window.

They share only the geometry with the surgery and the engine, and are written to be read, not to be fast.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from densescore.geometry import Level, Pyramid

Network = Callable[[Tensor], Tensor]


def head_reference(
    trunk: Network,
    head: Network,
    level_pixels: Tensor,
    pyramid: Pyramid,
    level: Level,
    cells: Sequence[int] | None = None,
) -> Tensor:
    """Statement 2 of "the same scores": the unmodified head on each window of the trunk's map, one at a time.

    A normalized level ``[1, 3, P + nS, P + mS]`` → logits ``[len(cells), classes]``; cells count row by row.
    """
    height, width = trunk(level_pixels[:, :, : pyramid.patch, : pyramid.patch]).shape[2:]
    feature_map = trunk(level_pixels)
    logits = []
    for cell in range(level.rows * level.cols) if cells is None else cells:
        row, col = divmod(cell, level.cols)
        logits.append(head(feature_map[:, :, row : row + height, col : col + width]))
    return torch.cat(logits)


def receptive_field_reference(
    trunk: Network,
    head: Network,
    level_pixels: Tensor,
    pyramid: Pyramid,
    cell: tuple[int, int],
    margin: int,
) -> Tensor:
    """Statement 3: the unmodified network on a window as wide as one cell's receptive field: logits ``[1, classes]``.

    The window reaches `margin` pixels past the patch, clipped at the level's border, which is padded as in the pass.
    """
    patch, stride = pyramid.patch, pyramid.stride
    height, width = trunk(level_pixels[:, :, :patch, :patch]).shape[2:]
    steps = -(-margin // stride)  # the wide window must start on the trunk's own lattice
    top, left = max(cell[0] - steps, 0), max(cell[1] - steps, 0)
    y1, x1 = (cell[0] + steps) * stride + patch, (cell[1] + steps) * stride + patch  # slicing clips at the border
    feature_map = trunk(level_pixels[:, :, top * stride : y1, left * stride : x1])
    row, col = cell[0] - top, cell[1] - left
    return head(feature_map[:, :, row : row + height, col : col + width])
