"""Cut a level into tiles whose cells get the scores that they have in the whole level.

A cell of a network with padding depends on pixels outside its own window. A tile holds all pixels that its cells
depend on, and no others (see `locality.reach`). At the level's border the network pads a tile as it pads the level.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from densescore.errors import DensescoreError
from densescore.geometry import Level
from densescore.network.dense_network import DenseNetwork

TRUNK_BYTES = 2**31
"""Memory that the trunk may take at a time; a larger level is cut."""


@dataclass(frozen=True)
class Span:
    """A tile along one axis of a level."""

    cells: range  # its rows (columns) of cells
    start: int  # first pixel of the padded level
    stop: int  # last pixel, exclusive
    skipped: int  # positions of the tile's map before those of its cells


@dataclass(frozen=True)
class Tile:
    """Some rows and columns of a level's cells; `number` counts the tiles of an image."""

    number: int
    level: int
    rows: Span
    cols: Span


def tiles(levels: tuple[Level, ...], network: DenseNetwork, side: int) -> Iterator[Tile]:
    """All tiles of an image, level by level, row by row; `side` pixels each, as near as whole cells allow."""
    before, after = network.reach
    stride = network.stride * network.phases
    steps = max(1, (side - network.patch) // stride + 1 - before - after)
    number = 0
    for index, level in enumerate(levels):
        for rows in _spans(level.rows, network, steps, before, after):
            for cols in _spans(level.cols, network, steps, before, after):
                yield Tile(number, index, rows, cols)
                number += 1


def _spans(cells: int, network: DenseNetwork, steps: int, before: int, after: int) -> list[Span]:
    """Cut a row of `cells` cells into spans of `steps` of the network's strides each."""
    phases, stride = network.phases, network.stride * network.phases
    strides = (cells - 1) // phases + 1
    spans = []
    for start in range(0, strides, steps):
        stop = min(start + steps, strides)
        first, last = max(start - before, 0), min(stop + after, strides)
        numbers = range(start * phases, min(stop * phases, cells))
        spans.append(Span(numbers, first * stride, (last - 1) * stride + network.patch, start - first))
    return spans


def own_part(feature_map: Tensor, tile: Tile, network: DenseNetwork) -> Tensor:
    """The part of a tile's feature map that its own cells see."""
    down, across = (
        slice(span.skipped, span.skipped + (len(span.cells) - 1) // network.phases + width)
        for span, width in zip((tile.rows, tile.cols), network.window, strict=True)
    )
    return feature_map[:, :, down, across]


def trunk_over(network: DenseNetwork, pixels: Tensor, parts: int = 1) -> Tensor:
    """The map of a level ``[1, 3, P + nS, P + mS]`` by ``fast_trunk``, in tiles that take at most `TRUNK_BYTES`.

    Above 1, `parts` asks for about as many tiles; a network that cannot be cut then raises, else it runs on the whole.
    """
    area = pixels.shape[2] * pixels.shape[3]
    largest = TRUNK_BYTES / network.bytes_per_pixel
    if area <= largest and parts == 1:
        return network.fast_trunk(pixels)
    try:
        return trunk_in_tiles(network, pixels, int(min(area / parts, largest) ** 0.5))
    except DensescoreError:
        if parts > 1:
            raise
        return network.fast_trunk(pixels)


def trunk_in_tiles(network: DenseNetwork, pixels: Tensor, side: int) -> Tensor:
    """The map of a level ``[1, 3, P + nS, P + mS]`` by ``fast_trunk``, one tile of `side` pixels after another."""
    phases, stride = network.phases, network.stride * network.phases
    strides = [(size - network.patch) // stride for size in pixels.shape[2:]]
    rows, cols = (steps * phases + 1 for steps in strides)
    size = [steps + width for steps, width in zip(strides, network.window, strict=True)]
    whole: Tensor | None = None
    for tile in tiles((Level(1.0, pixels.shape[2], pixels.shape[3], rows, cols, 0),), network, side):
        window = pixels[:, :, tile.rows.start : tile.rows.stop, tile.cols.start : tile.cols.stop]
        part = own_part(network.fast_trunk(window), tile, network)
        whole = part.new_empty(*part.shape[:2], *size) if whole is None else whole
        top, left = tile.rows.cells.start // phases, tile.cols.cells.start // phases
        whole[:, :, top : top + part.shape[2], left : left + part.shape[3]] = part
    assert whole is not None
    return whole
