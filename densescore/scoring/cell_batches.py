"""Batches of cells: as many at a time as memory allows, of one level or of several."""

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from densescore.geometry import Level
from densescore.network.cpu.winograd import WHOLE_TILES
from densescore.network.dense_network import DenseNetwork


def cell_batches(
    maps: Iterable[Tensor], levels: Sequence[Level], network: DenseNetwork, most: int
) -> Iterator[list[Tensor]]:
    """Cut the maps of all levels into blocks of cells, phase by phase, and put them together into few batches.

    Args:
        maps: per level, ``[phases², C, rows + h - 1, cols + w - 1]``. The next one is asked for only when it is needed.
        levels: their grids.
        network: projects the blocks.
        most: bytes that the windows and the head's outputs of a batch may take.

    Yields:
        The blocks of one batch.
    """
    # A window is held twice while it is projected; features, a hidden layer as wide, and logits follow.
    numbers = 2 * (network.window_width + network.feature_width) + network.classes
    cells = sum(level.rows * level.cols for level in levels)
    largest = max(1, most // (numbers * next(network.trunk.parameters()).dtype.itemsize))
    batches = -(-cells // largest)
    largest = -(-cells // batches)  # batches of equal size: a small last one would cost nearly as much as a large one
    batch: list[Tensor] = []
    count = 0
    for feature_map, level in zip(maps, levels, strict=True):
        for phase, grid in zip(feature_map.split(1), level.phases(network.phases), strict=True):
            for rows, cols in _blocks(grid.shape[0], grid.shape[1], largest) if grid.size else ():
                if count + len(rows) * len(cols) > largest:
                    yield batch
                    batch, count = [], 0
                batch.append(network.block(phase, rows, cols))
                count += len(rows) * len(cols)
    yield batch


def _blocks(rows: int, cols: int, most: int) -> Iterator[tuple[range, range]]:
    """Cut a grid, in the order of its cells, into blocks of at most `most` cells: whole rows, or parts of one row."""
    if cols > most:
        for row in range(rows):
            for col in range(0, cols, most):
                yield range(row, row + 1), range(col, min(col + most, cols))
        return
    step = most // cols
    step -= step % WHOLE_TILES if step > WHOLE_TILES else 0
    for row in range(0, rows, step):
        yield range(row, min(row + step, rows)), range(cols)
