"""Levels of any sizes in one pass of the trunk: side by side on a canvas, each with the map that it has alone.

A network with padding sees zeros past a level's border. On a canvas it would see what its biases make of the gap
between two levels, and then the neighbor. So before each layer that pads, all that lies outside the levels' own maps is
overwritten by what the layer pads with. Levels stitched onto planes are those of Dubout and Fleuret (ECCV 2012) and of
Iandola et al. ("DenseNet", 2014), whose border cells see the gap; here the maps are the same, to rounding.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, fx, nn

from densescore.network.dense_network import DenseNetwork
from densescore.network.graph import axes_of, shape_of, step_of
from densescore.network.once import once

Grid = tuple[int, int]
"""Rows and columns of a level's cells."""


class Place(NamedTuple):
    """Where a level lies: its number, and the canvas's cell that is its first."""

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
    """Levels side by side.

    Attributes:
        places: of its levels.
        rows: of cells, gaps included.
        cols: of cells, gaps included.
    """

    places: tuple[Place, ...]
    rows: int
    cols: int


def pack(grids: Sequence[Grid], spare: int, area: int) -> list[Canvas]:
    """Lay levels onto few canvases, in shelves, the tallest first.

    Args:
        grids: of the levels.
        spare: cells from the last one of a level to the first one of its neighbor.
        area: most cells of a canvas, its last gaps included. A level that is larger has a canvas of its own.
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
        self._shelves: list[list[int]] = []  # top, height and what is taken of the width
        self.places: list[Place] = []

    def take(self, level: int, rows: int, cols: int) -> bool:
        """Lay a level onto the first shelf that has room, or onto a new one; False where there is none."""
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


class MosaicTrunk(nn.Module):
    """A trunk that runs over canvases.

    Args:
        trunk: ``[1, 3, P + nS, P + mS]`` → ``[1, C, h + n, w + m]``, from `to_dense`; its layers are shared.
        patch: P.
        stride: S.

    Attributes:
        spare: for `pack`.
    """

    def __init__(self, trunk: fx.GraphModule, patch: int, stride: int) -> None:
        super().__init__()
        self._patch, self._stride = patch, stride
        self._trunk, self._resolutions = _masked(trunk)
        # Nothing that a level's own positions, or those from which its padding is read, share with the next level's.
        ends = [
            resolution.step * (max(resolution.height, resolution.width) + pad)
            for resolution, pad in [*self._resolutions.items(), *((_resolution(n), 0) for n in _maps(trunk))]
        ]
        self.spare = -(-max([patch, *ends]) // stride)

    def outside(self, canvas: Canvas, grids: Sequence[Grid]) -> list[Tensor]:
        """Where a canvas holds no level, in each resolution at which a layer pads: bool ``[1, 1, h, w]``."""
        masks = []
        for step, height, width in self._resolutions:
            per_cell = self._stride // step
            mask = np.ones((height + (canvas.rows - 1) * per_cell, width + (canvas.cols - 1) * per_cell), bool)
            for level, row, col in canvas.places:
                rows, cols = grids[level]
                bottom, right = height + (row + rows - 1) * per_cell, width + (col + cols - 1) * per_cell
                mask[row * per_cell : bottom, col * per_cell : right] = False
            masks.append(torch.from_numpy(mask)[None, None])
        return masks

    def forward(self, pixels: Tensor, outside: Sequence[Tensor]) -> Tensor:
        """The map of a canvas; the values between the levels' own maps mean nothing.

        Args:
            pixels: ``[1, 3, P + (rows - 1)S, P + (cols - 1)S]``, anything finite between the levels.
            outside: the masks, on the same device.

        Returns:
            ``[1, C, rows + h - 1, cols + w - 1]``.
        """
        return self._trunk(pixels, *outside)


@once
def mosaic_of(network: DenseNetwork) -> MosaicTrunk | None:
    """The network's trunk for canvases; None where a level's map would depend on what lies beside it.

    That is so for squeeze-and-excitation, for padding by reflection, and the like: it is tried, in float64.
    """
    trunk = network.trunk
    if network.level_context or network.phases > 1 or not isinstance(trunk, fx.GraphModule):
        return None
    if not all(axes_of(node) == (2, 3) for node in _padded(trunk)):
        return None
    exact = MosaicTrunk(copy.deepcopy(trunk).double(), network.patch, network.stride)
    return MosaicTrunk(trunk, network.patch, network.stride) if _is_exact(exact, network) else None


@torch.inference_mode()
def _is_exact(exact: MosaicTrunk, network: DenseNetwork) -> bool:
    """Whether levels on a canvas have the maps that they have alone; a network that takes no canvas has not."""
    grids = [(1, 1), (2, 3), (1, 2), (3, 1)]
    patch, stride = network.patch, network.stride
    parameter = next(exact.parameters())
    generator = torch.Generator().manual_seed(0)
    sizes = [(patch + (rows - 1) * stride, patch + (cols - 1) * stride) for rows, cols in grids]
    levels = [torch.rand(1, 3, *size, generator=generator, dtype=torch.float64).to(parameter.device) for size in sizes]
    (canvas,) = pack(grids, exact.spare, 10**9)
    pixels = parameter.new_zeros(1, 3, patch + (canvas.rows - 1) * stride, patch + (canvas.cols - 1) * stride)
    for level, row, col in canvas.places:
        height, width = sizes[level]
        pixels[:, :, row * stride : row * stride + height, col * stride : col * stride + width] = levels[level]
    nothing = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=parameter.device)
    try:
        whole = exact(pixels, [mask.to(parameter.device) for mask in exact.outside(canvas, grids)])
        for level, row, col in canvas.places:
            alone = exact(levels[level], [nothing] * len(exact.outside(canvas, grids)))
            found = whole[:, :, row : row + alone.shape[2], col : col + alone.shape[3]]
            if not torch.allclose(found, alone, rtol=1e-6, atol=1e-9 * float(alone.abs().max())):
                return False
    except RuntimeError:
        return False
    return True


def _masked(trunk: fx.GraphModule) -> tuple[fx.GraphModule, dict[Resolution, int]]:
    """The trunk with masks as further inputs, and for each mask its resolution and the widest padding there."""
    padded = _padded(trunk)
    resolutions: dict[Resolution, int] = {}
    for node, (_, pad) in padded.items():
        resolution = _resolution(node.all_input_nodes[0])
        resolutions[resolution] = max(pad, resolutions.get(resolution, 0))
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    masks: dict[Resolution, fx.Node] = {}
    for node in trunk.graph.nodes:
        inputs = dict(copies)
        if node in padded:
            (source, *_), (value, _) = node.all_input_nodes, padded[node]
            mask = masks[_resolution(source)]
            inputs[source] = graph.call_function(torch.masked_fill, (copies[source], mask, value))
        copies[node] = graph.node_copy(node, inputs.__getitem__)
        if node.op == "placeholder":
            masks = {at: graph.placeholder(f"outside_{number}") for number, at in enumerate(resolutions)}
    return fx.GraphModule(trunk, graph).eval(), resolutions


def _padded(trunk: fx.GraphModule) -> dict[fx.Node, tuple[float, int]]:
    """The nodes that pad their input: by which value, and by how many positions at most."""
    found = {}
    for node in trunk.graph.nodes:
        value, pad = _padding(trunk, node)
        if pad:
            found[node] = (value, pad)
    return found


def _padding(trunk: fx.GraphModule, node: fx.Node) -> tuple[float, int]:
    """The value that a node pads its input with, and by how many positions at most; 0 for no padding."""
    if node.op == "call_module":
        layer: Any = trunk.get_submodule(str(node.target))
        if isinstance(layer, Conv2dSame) or getattr(layer, "padding", 0) == "same":
            return 0.0, max(d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | nn.ZeroPad2d) and layer.padding != "valid":
            return -math.inf if isinstance(layer, nn.MaxPool2d) else 0.0, _widest(layer.padding)
        return 0.0, 0
    functions: dict[Any, tuple[str, ...]] = {
        torch.conv2d: ("input", "weight", "bias", "stride", "padding"),
        F.max_pool2d: ("input", "kernel_size", "stride", "padding"),
        F.avg_pool2d: ("input", "kernel_size", "stride", "padding"),
        F.pad: ("input", "padding", "mode", "value"),
    }
    names = functions.get(node.target)
    if node.op != "call_function" or names is None:
        return 0.0, 0
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
    value = given.get("value") or (-math.inf if node.target is F.max_pool2d else 0.0)
    return value, _widest(given.get("padding", 0))


def _widest(padding: Any) -> int:
    return max((abs(int(one)) for one in ([padding] if isinstance(padding, int) else padding)), default=0)


def _maps(trunk: fx.GraphModule) -> list[fx.Node]:
    return [node for node in trunk.graph.nodes if axes_of(node) == (2, 3)]


def _resolution(node: fx.Node) -> Resolution:
    height, width = shape_of(node)[2:]
    return Resolution(step_of(node), height, width)
