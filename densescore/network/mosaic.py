"""Levels of any sizes in one pass of the trunk: side by side on a canvas, each with the map that it has alone.

A network with padding sees zeros past a level's border. On a canvas it would see features of the gap between two
levels, and then the neighbor. So a GPU's depthwise layers are told the region of each level, and before other layers
that pad, the positions around each level that padding reaches are overwritten, in place, by the padding's value. Levels
stitched onto planes are those of Dubout and Fleuret (ECCV 2012) and of Iandola et al. ("DenseNet", 2014), whose border
cells see the gap; here the maps are the same, to rounding.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from densescore.network.folding import layer_of, only_user, source_of
from densescore.network.gpu.layers import Convolution, Depthwise
from densescore.network.graph import Padding, axes_of, members, padding_of, shape_of, step_of
from densescore_kernels.depthwise.op import region_tiles
from densescore_kernels.tiles import Tiles

Grid = tuple[int, int]
"""Rows and columns of a level's cells."""


class Place(NamedTuple):
    """A level by its number, and the canvas cell of its first cell."""

    level: int
    row: int
    col: int


class Resolution(NamedTuple):
    """A map's step in pixels of the level, and its height and width for one patch."""

    step: int
    height: int
    width: int


@dataclass(frozen=True)
class Canvas:
    """Levels side by side."""

    places: tuple[Place, ...]
    rows: int  # of cells, gaps included
    cols: int


def pack(grids: Sequence[Grid], spare: int, area: int) -> list[Canvas]:
    """Lay levels onto few canvases of at most `area` cells, in shelves, the tallest first.

    `spare` cells lie from a level's last cell to its neighbor's first. A larger level has a canvas of its own.
    """
    sizes = [(rows - 1 + spare, cols - 1 + spare) for rows, cols in grids]
    total = sum(rows * cols for rows, cols in sizes)
    open_canvases: list[_Shelves] = []
    for level in sorted(range(len(sizes)), key=lambda level: sizes[level], reverse=True):
        rows, cols = sizes[level]
        if not any(canvas.take(level, rows, cols) for canvas in open_canvases):
            width = max(cols, min(math.ceil(total**0.5), area // rows))
            open_canvases.append(_Shelves(max(rows, area // width), width))
            open_canvases[-1].take(level, rows, cols)
    canvases = []
    for places in (canvas.places for canvas in open_canvases):
        rows = max(place.row + grids[place.level][0] for place in places)
        cols = max(place.col + grids[place.level][1] for place in places)
        canvases.append(Canvas(tuple(places), rows, cols))
    return canvases


class _Shelves:
    """A canvas that is being filled."""

    def __init__(self, height: int, width: int) -> None:
        self._height, self._width = height, width
        self._shelves: list[list[int]] = []  # top, height, occupied width
        self.places: list[Place] = []

    def take(self, level: int, rows: int, cols: int) -> bool:
        """Lay a level onto the first shelf with room, or onto a new one; False if the canvas is full."""
        for shelf in self._shelves:
            if rows <= shelf[1] and shelf[2] + cols <= self._width:
                break
        else:
            top = self._shelves[-1][0] + self._shelves[-1][1] if self._shelves else 0
            if top + rows > self._height or cols > self._width:
                return False
            shelf = [top, rows, 0]
            self._shelves.append(shelf)
        self.places.append(Place(level, shelf[0], shelf[2]))
        shelf[2] += cols
        return True


class Table(NamedTuple):
    """Positions that a layer needs to know: a depthwise layer's regions, or gaps that another layer reads."""

    resolution: Resolution  # of its input
    sides: tuple[int, int, int, int] | None  # padding: left, right, top, bottom; None for the whole gaps
    depthwise: tuple[int, int] | None = None  # its taps and stride

    def of(self, canvas: Canvas, grids: Sequence[Grid], stride: int) -> Tensor | Tiles:
        """The table for the levels of a canvas, on the CPU."""
        step, height, width = self.resolution
        cells = np.array([(row, col, *grids[level]) for level, row, col in canvas.places])  # [L, 4]
        top, left, rows, cols = (cells - (0, 0, 1, 1)).T * (stride // step)
        maps = np.stack([0 * top, top, left, height + rows, width + cols], 1)  # [L, 5]
        if self.depthwise is not None and self.sides is not None:
            before, after, above, below = self.sides
            return region_tiles(maps, *self.depthwise, (above, below, before, after))
        size = [
            extent + (n - 1) * (stride // step)
            for extent, n in zip((height, width), (canvas.rows, canvas.cols), strict=True)
        ]
        return torch.from_numpy(_gaps(maps[:, 1:], size, self.sides))


class MosaicTrunk(nn.Module):
    """A trunk ``[1, 3, P + nS, P + mS]`` → ``[1, C, h + n, w + m]`` over canvases; its layers are shared."""

    def __init__(self, trunk: fx.GraphModule, patch: int, stride: int) -> None:
        super().__init__()
        self._stride = stride
        self._trunk, self._tables = _with_tables(trunk)
        # Gap in cells that keeps neighboring levels out of each other's features and padding.
        pads = [(node.all_input_nodes[0], max(map(abs, padding.sides))) for node, padding in _padded(trunk).items()]
        maps = [(node, 0) for node in trunk.graph.nodes if axes_of(node) == (2, 3)]
        ends = [
            at.step * (max(at.height, at.width) + pad) for at, pad in ((_resolution(n), pad) for n, pad in maps + pads)
        ]
        self.spare = -(-max([patch, *ends]) // stride)

    def tables(self, canvas: Canvas, grids: Sequence[Grid]) -> tuple[Tensor | Tiles, ...]:
        """The tables of a canvas, on the CPU; each has ``to(device)``."""
        return tuple(table.of(canvas, grids, self._stride) for table in self._tables)

    def forward(self, pixels: Tensor, tables: Sequence[Tensor | Tiles]) -> Tensor:
        """Pixels of a canvas, zero between the levels, and its tables → ``[1, C, rows + h - 1, cols + w - 1]``.

        Values between the levels' own maps are meaningless, and may be NaN.
        """
        return self._trunk(pixels, *tables)


def find_mosaic(trunk: fx.GraphModule, patch: int, stride: int) -> MosaicTrunk | None:
    """The trunk over canvases, or None where a level's map would depend on its neighbors: tested in float64.

    That is so for squeeze-and-excitation, padding by reflection, and the like.
    """
    if not all(axes_of(node) == (2, 3) for node in _padded(trunk)):
        return None
    return MosaicTrunk(trunk, patch, stride) if _is_exact(copy.deepcopy(trunk).double(), patch, stride) else None


@torch.inference_mode()
def _is_exact(trunk: fx.GraphModule, patch: int, stride: int) -> bool:
    """Whether levels on a canvas have the maps that they have alone."""
    # Random levels
    exact = MosaicTrunk(trunk, patch, stride)
    grids = [(1, 1), (2, 3), (1, 2), (3, 1)]
    parameter = next(exact.parameters())
    generator = torch.Generator().manual_seed(0)
    sizes = [(patch + (rows - 1) * stride, patch + (cols - 1) * stride) for rows, cols in grids]
    levels = [torch.rand(1, 3, *size, generator=generator, dtype=torch.float64).to(parameter.device) for size in sizes]

    # Lay them onto a canvas
    (canvas,) = pack(grids, exact.spare, 10**9)
    pixels = parameter.new_zeros(1, 3, patch + (canvas.rows - 1) * stride, patch + (canvas.cols - 1) * stride)
    for level, row, col in canvas.places:
        height, width = sizes[level]
        pixels[:, :, row * stride : row * stride + height, col * stride : col * stride + width] = levels[level]

    # Compare each level's map with the one that it has alone
    try:
        whole = exact(pixels, [table.to(parameter.device) for table in exact.tables(canvas, grids)])
        for level, row, col in canvas.places:
            alone = trunk(levels[level])
            shared = whole[:, :, row : row + alone.shape[2], col : col + alone.shape[3]]
            if not torch.allclose(shared, alone, rtol=1e-6, atol=1e-9 * float(alone.abs().max())):
                return False
    except RuntimeError:  # the network takes no image of this size
        return False
    return True


def _with_tables(trunk: fx.GraphModule) -> tuple[fx.GraphModule, list[Table]]:
    """The trunk with tables as further inputs: regions of depthwise layers, and gaps that are filled before others."""
    tables, padded, graph = _tables(trunk), _padded(trunk), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    inputs: dict[Table, fx.Node] = {}
    for node in trunk.graph.nodes:
        table, known = tables.get(node), dict(copies)
        # Gaps of the input are filled in place, unless others would read infinity there
        if table is not None and table.depthwise is None:
            source, value = source_of(node), padded.get(node, Padding()).value
            in_place = value == 0 or (source.op == "call_module" and only_user(source) is node)
            known[source] = graph.call_function(fill, (copies[source], inputs[table], value, in_place))
        copies[node] = graph.node_copy(node, known.__getitem__)
        if table is not None and table.depthwise is not None:
            copies[node].args = (*copies[node].args, inputs[table])
        if node.op == "placeholder":
            inputs = {
                at: graph.placeholder(f"table_{number}") for number, at in enumerate(dict.fromkeys(tables.values()))
            }
            inputs |= {at: graph.call_method("long", (ints,)) for at, ints in inputs.items() if at.depthwise is None}
    return fx.GraphModule(trunk, graph).eval(), [*inputs]


def _tables(trunk: fx.GraphModule) -> dict[fx.Node, Table]:
    """The tables that layers need; zero padding of the pixels needs none, which are zero between the levels."""
    padded, layers = _padded(trunk), members(trunk)
    tables: dict[fx.Node, Table] = {}
    unknown: set[fx.Node] = set()  # maps with gaps that a depthwise layer left unwritten, or that hold what follows
    for node in trunk.graph.nodes:
        source, layer, padding = source_of(node), layer_of(layers, node), padded.get(node, Padding())
        if isinstance(layer, Depthwise):
            tables[node] = Table(_resolution(source), layer.pads.sides, (layer.taps, layer.stride))
            unknown.add(node)
            continue
        if isinstance(layer, Convolution) and layer.mixes and source in unknown:
            tables[node] = Table(_resolution(source), None)
            unknown.discard(source)
        elif any(padding.sides) and (padding.value or source.op != "placeholder"):
            tables[node] = Table(_resolution(source), padding.sides)
        if unknown.intersection(node.all_input_nodes):
            unknown.add(node)
    return tables


def fill(maps: Tensor, positions: Tensor, value: float, in_place: bool) -> Tensor:
    """Maps with a value at some positions, numbered row by row: of ``[1, C, h, w]``, channels last."""
    rows = maps.permute(0, 2, 3, 1).flatten(0, 2)  # a view, of maps whose channels are last
    rows = rows.index_fill_(0, positions, value) if in_place else rows.index_fill(0, positions, value)
    return rows.view(1, *maps.shape[2:], -1).permute(0, 3, 1, 2)


def _gaps(maps: NDArray[np.int64], size: Sequence[int], sides: tuple[int, ...] | None) -> NDArray[np.int32]:
    """Positions on a canvas around maps ``[L, 4]`` (top, left, height, width), as far as padding goes; None: all."""
    if sides is None:
        mask = np.ones(size, bool)
        for top, left, height, width in maps:
            mask[top : top + height, left : left + width] = False
        return np.flatnonzero(mask).astype(np.int32)
    # Rectangles above, below, left and right of each map, cut off at the canvas: top, left, bottom, right
    before, after, above, below = np.maximum(sides, 0)
    top, left, bottom, right = np.concatenate([maps[:, :2], maps[:, :2] + maps[:, 2:]], 1).T
    corners = np.concatenate(
        [
            (top - above, left - before, top, right + after),
            (bottom, left - before, bottom + below, right + after),
            (top, left - before, bottom, left),
            (top, right, bottom, right + after),
        ],
        axis=1,
    )  # [4, 4L]
    top, left, bottom, right = corners.clip(0, np.array([*size, *size])[:, None])
    # Each rectangle's positions, row by row
    counts = (bottom - top) * (right - left)
    numbers = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    top, left, width = (np.repeat(numbers_of, counts) for numbers_of in (top, left, right - left))
    return ((top + numbers // width) * size[1] + left + numbers % width).astype(np.int32)


def _padded(trunk: fx.GraphModule) -> dict[fx.Node, Padding]:
    """The nodes that pad their input."""
    paddings = {node: padding_of(trunk, node) for node in trunk.graph.nodes}
    return {node: padding for node, padding in paddings.items() if any(padding.sides)}


def _resolution(node: fx.Node) -> Resolution:
    height, width = shape_of(node)[2:]
    return Resolution(step_of(node), height, width)
