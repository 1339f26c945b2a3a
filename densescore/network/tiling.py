"""Cut a level into tiles whose cells get the scores that they have in the whole level.

A cell of a network with padding depends on pixels outside its own window. A tile holds all pixels that its cells
depend on, and no others; `reach` finds how far they lie by running the trunk. At the level's border the network pads
a tile as it pads the whole level.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.fx.passes.shape_prop import ShapeProp

from densescore.errors import DensescoreError
from densescore.geometry import Level
from densescore.network.dense_network import DenseNetwork
from densescore.network.once import once

_FARTHEST = 64  # strides to which a position may reach before it is held to see everything


@dataclass(frozen=True)
class Span:
    """A tile along one axis of a level.

    Attributes:
        cells: numbers of its rows (columns) of cells.
        start: first pixel of the padded level that it holds.
        stop: last, exclusive.
        skipped: positions of the tile's map before those of its cells.
    """

    cells: range
    start: int
    stop: int
    skipped: int


@dataclass(frozen=True)
class Tile:
    """Some rows and columns of a level's cells; `number` counts the tiles of an image."""

    number: int
    level: int
    rows: Span
    cols: Span


TRUNK_BYTES = 2**31
"""Memory that the trunk may take at a time; a larger level is cut."""


@once
@torch.inference_mode()
def reach(network: DenseNetwork) -> tuple[int, int]:
    """How many strides before and after a cell's window the pixels lie that its scores depend on.

    NaN are put in all pixels past a cut. They spread through convolutions, pools and activations to exactly those
    positions that depend on one of these pixels.

    Returns:
        Strides of the network before and after, the larger of both axes.

    Raises:
        DensescoreError: a position depends on the whole level, as with squeeze-and-excitation.
    """
    trunk, stride = network.level_trunk, network.stride * network.phases
    parameter = next(network.trunk.parameters())
    steps = 4
    while steps <= _FARTHEST:
        found = []
        for axis in (2, 3):
            shape = [1, 3, network.patch, network.patch]
            shape[axis] += 2 * steps * stride
            width = network.window[axis - 2]
            pixels = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
            spoilt = []
            for cut in (slice(0, steps * stride), slice(network.patch + steps * stride, None)):
                cut_off = pixels.clone().transpose(axis, 0)
                cut_off[cut] = torch.nan
                spoilt.append(_spoilt(trunk(cut_off.transpose(axis, 0)), axis))
            # Had the level begun (ended) at the cut, its map would have begun at position `steps` (ended before
            # `steps + width`); all up to the last (from the first) spoilt one differ there.
            found.append((int(spoilt[0].nonzero().max()) + 1 - steps, steps + width - int(spoilt[1].nonzero().min())))
        before, after = (max(axis) for axis in zip(*found, strict=True))
        if max(before, after) < steps:
            return max(before, 0), max(after, 0)
        steps *= 2
    raise DensescoreError(
        "the scores of a patch depend on the whole level (squeeze-and-excitation, or a very wide receptive field): "
        "no tile gives the scores of the image in one piece; use another network"
    )


def _spoilt(feature_map: Tensor, axis: int) -> Tensor:
    """Which positions along an axis of a map hold NaN."""
    others = [other for other in range(4) if other != axis]
    return feature_map.isnan().float().amax(others) > 0


@once
def bytes_per_pixel(network: DenseNetwork) -> float:
    """Peak memory of the trunk in bytes per pixel of a level: the largest sum of the tensors alive at one time."""
    trunk = network.level_trunk
    parameter = next(network.trunk.parameters())
    with torch.inference_mode():
        pixels = torch.zeros(1, 3, network.patch, network.patch, dtype=parameter.dtype, device=parameter.device)
        assert isinstance(trunk, fx.GraphModule)
        ShapeProp(trunk).propagate(pixels)
    alive: dict[fx.Node, int] = {}
    most = 0
    last_use = {source: node for node in trunk.graph.nodes for source in node.all_input_nodes}
    for node in trunk.graph.nodes:
        meta = node.meta.get("tensor_meta")
        alive[node] = meta.shape.numel() if hasattr(meta, "shape") else 0
        most = max(most, sum(alive.values()))
        alive = {held: size for held, size in alive.items() if last_use.get(held) is not node}
    return most * parameter.dtype.itemsize / network.patch**2


def tiles(levels: tuple[Level, ...], network: DenseNetwork, side: int) -> Iterator[Tile]:
    """All tiles of an image, level by level, row by row.

    Args:
        levels: of the image.
        network: whose cells they are.
        side: of a tile in pixels of a level, as near as whole cells allow.
    """
    before, after = reach(network)
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
    """The part of a tile's feature map that belongs to the tile's own cells."""
    down, across = (
        slice(span.skipped, span.skipped + (len(span.cells) - 1) // network.phases + width)
        for span, width in zip((tile.rows, tile.cols), network.window, strict=True)
    )
    return feature_map[:, :, down, across]


def trunk_over(network: DenseNetwork, pixels: Tensor, parts: int = 1) -> Tensor:
    """The map of a level, as ``network.fast_trunk`` gives it, with at most about `TRUNK_BYTES` of memory.

    Args:
        network: whose trunk is run; one that cannot be cut runs over the whole level, if `parts` is 1.
        pixels: ``[1, 3, P + nS, P + mS]``.
        parts: cut it into about so many, if it need not be cut into more.

    Raises:
        DensescoreError: the network cannot be cut; see `reach`.
    """
    area = pixels.shape[2] * pixels.shape[3]
    largest = TRUNK_BYTES / bytes_per_pixel(network)
    if area <= largest and parts == 1:
        return network.fast_trunk(pixels)
    try:
        return trunk_in_tiles(network, pixels, int(min(area / parts, largest) ** 0.5))
    except DensescoreError:
        if parts > 1:
            raise
        return network.fast_trunk(pixels)


def trunk_in_tiles(network: DenseNetwork, pixels: Tensor, side: int) -> Tensor:
    """The map of a level, as ``network.fast_trunk`` gives it, from one tile of its pixels after another.

    Args:
        network: whose trunk is run.
        pixels: ``[1, 3, P + nS, P + mS]``.
        side: of a tile in pixels.
    """
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
