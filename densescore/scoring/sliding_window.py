"""The sliding window that the dense pass replaces: the paper's crops, and plain references to check against.

The references loop over windows with the *unmodified* parts of a network. They share only the geometry with the surgery
and the engine, and are written to be read, not to be fast.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from densescore.geometry import Level, Pyramid

Network = Callable[[Tensor], Tensor]


def crop_batches(levels: Iterable[Tensor], pyramid: Pyramid, batch: int) -> Iterator[Tensor]:
    """Cut every patch out of the levels, in the order of the cells.

    The image is resized once per level, not once per patch. The result is the same except for the pixels that
    interpolation mixes across a patch's border.

    Args:
        levels: per level, ``[1, 3, P + nS, P + mS]`` normalized pixels.
        pyramid: their geometry.
        batch: largest number of crops at a time.

    Yields:
        ``[≤ batch, 3, P, P]``, channels last, levels mixed so that only the last batch is not full.
    """
    crops: list[Tensor] = []
    for pixels, level in zip(levels, pyramid.levels, strict=True):
        for row in range(level.rows):
            for col in range(level.cols):
                x0, y0, x1, y1 = pyramid.window(level, row, col)
                crops.append(pixels[0, :, y0:y1, x0:x1])
                if len(crops) == batch:
                    yield _stack(crops)
                    crops = []
    if crops:
        yield _stack(crops)


def _stack(crops: list[Tensor]) -> Tensor:
    return torch.stack(crops).contiguous(memory_format=torch.channels_last)


def head_reference(
    trunk: Network,
    head: Network,
    level_pixels: Tensor,
    pyramid: Pyramid,
    level: Level,
    cells: Sequence[int] | None = None,
) -> Tensor:
    """Statement 2 of "the same scores": the unmodified head on each window of the trunk's map, one at a time.

    Args:
        trunk: the network's unmodified convolutional part, ``[1, 3, H, W]`` → map.
        head: what unmodified follows it, ``[1, C, h, w]`` → ``[1, classes]``.
        level_pixels: ``[1, 3, P + nS, P + mS]`` normalized pixels of one level.
        pyramid: the geometry.
        level: the level.
        cells: numbers of the cells, row by row; all by default.

    Returns:
        ``[len(cells), classes]`` logits.
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
    """Statement 3: the unmodified network on a window of the level as wide as all that the cell's scores depend on.

    Args:
        trunk: the network's unmodified convolutional part.
        head: what unmodified follows it.
        level_pixels: ``[1, 3, P + nS, P + mS]`` normalized pixels of one level.
        pyramid: the geometry.
        cell: (row, col) of one cell.
        margin: pixels past the patch on each side that its receptive field may reach; clipped at the level's border,
            where the network sees its own padding as it does in the dense pass.

    Returns:
        ``[1, classes]`` logits of the cell.
    """
    patch, stride = pyramid.patch, pyramid.stride
    height, width = trunk(level_pixels[:, :, :patch, :patch]).shape[2:]
    steps = -(-margin // stride)  # the wide window must start on the trunk's own lattice
    top, left = max(cell[0] - steps, 0), max(cell[1] - steps, 0)
    y1, x1 = (cell[0] + steps) * stride + patch, (cell[1] + steps) * stride + patch  # slicing clips at the border
    feature_map = trunk(level_pixels[:, :, top * stride : y1, left * stride : x1])
    row, col = cell[0] - top, cell[1] - left
    return head(feature_map[:, :, row : row + height, col : col + width])
