"""Several images in one pass: fewer and larger operations, for devices on which launching one costs more than its work.

On a GPU, levels of all images lie side by side on a few canvases and go through the trunk together; see
`densescore.network.mosaic`. Where a network does not allow that, levels of one size are stacked. The head runs over the
cells of all images. The photographs of a batch and all tables are copied to the device at once, while the batch before
it is scored (`prefetch`); `densescore_kernels.image_levels` resizes them there, straight onto the canvases.

On a CPU each level goes through the trunk by itself, whose layers gain nothing from more. But a head with fully
connected layers reads all of their weights once per pass, which for few patches takes most of the time; there images
share the head alone.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, islice
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from densescore.geometry import Pyramid
from densescore.io.images import Pixels
from densescore.network.crops import PatchNetwork
from densescore.network.dense_network import DenseNetwork, LinearWindows, whole_float32
from densescore.network.mosaic import Grid, pack
from densescore.network.tiling import TRUNK_BYTES, trunk_over
from densescore.scoring.engine import Clock, Head, Normalization, cells_per_batch, copy_together
from densescore_kernels.image_levels.op import PlacedLevel, level_tiles
from densescore_kernels.tiles import Tiles

BATCH_PIXELS = 64 * 10**6
"""Pixels of all levels of one pass: 0.4 GB in bfloat16, and their maps a quarter. One image alone may have more."""

BATCH = 8
"""Images in one pass."""

HEAD_CELLS = 1000
"""Cells in one pass of a head on a CPU, past which more of them do not make it faster."""

ALIGNED = 16
"""Alignment of a canvas's first pixel, in pixels: aligned memory in any dtype."""

Batching = Literal["canvases", "head"] | None
"""The part of a network that several images go through together: all of it, or the head alone; None: no part."""


def find_batching(network: PatchNetwork, device: torch.device) -> Batching:
    """The batching that saves time, for a network whose layers are not yet replaced by faster ones."""
    if not isinstance(network, DenseNetwork) or network.phases > 1:
        return None
    if device.type == "cuda":
        return "canvases"
    return "head" if isinstance(network.project, LinearWindows) else None


def batch_slices(images: Sequence[Pixels], pyramids: Sequence[Pyramid]) -> Iterator[slice]:
    """Cut images, in order, into batches of one dtype and at most `BATCH_PIXELS`."""
    start = total = 0
    for index, pyramid in enumerate(pyramids):
        pixels = sum(height * width for height, width in map(pyramid.padded_size, pyramid.levels))
        if index > start and (total + pixels > BATCH_PIXELS or images[index].dtype != images[start].dtype):
            yield slice(start, index)
            start, total = index, 0
        total += pixels
    if pyramids:
        yield slice(start, len(pyramids))


class Placement(NamedTuple):
    """Where a level lies: its number among those of all images, its map on the canvas, and its first cell there."""

    level: int
    map: int
    row: int
    col: int


class CanvasGrid(NamedTuple):
    """A canvas of maps of one size, in cells, the levels on it, and the mosaic's tables (none if stacked)."""

    maps: int
    rows: int
    cols: int
    placements: list[Placement]
    tables: tuple[Tensor | Tiles, ...]


@dataclass(frozen=True)
class Canvas:
    """Levels that go through the trunk together."""

    start: int  # first pixel among those of all canvases
    shape: tuple[int, int, int]  # maps, height and width in pixels
    tables: tuple[Tensor | Tiles, ...]  # for `MosaicTrunk`; none where each level has a map of its own
    cells: Tensor  # int32 [2, cells]: each cell's number among those of all images, and its position on the canvas


@dataclass(frozen=True)
class Layout:
    """The levels of some images on canvases."""

    pyramids: tuple[Pyramid, ...]  # of each image
    levels: Tiles  # all levels, and their places among the pixels of all canvases
    canvases: tuple[Canvas, ...]
    count: int  # pixels of all canvases


@dataclass(frozen=True)
class Prefetched:
    """Images that are on the device, or on the way to it."""

    pixels: Tensor  # [ΣH·W, 3], uint8, or float32 in [0, 1], of all images, one after another
    layout: Layout  # of their levels, on the same device
    copied: torch.cuda.Event | None  # after the copy; None without one to wait for
    seconds: float  # that the host took


def prefetch(layout: Layout, images: Sequence[Pixels], device: torch.device) -> Prefetched:
    """Begin to copy images ``[h, w, 3]`` of one dtype, and the layout of their levels; from any thread."""
    start = time.perf_counter()
    tables = [layout.levels, *(table for canvas in layout.canvases for table in (canvas.cells, *canvas.tables))]
    stream = _copies(device) if device.type == "cuda" else None
    with torch.cuda.stream(stream):  # None: no stream
        pixels, tables = copy_together(images, tables, device)
    copied = stream.record_event() if stream is not None else None
    there: Iterator[Any] = iter(tables)
    levels = next(there)
    canvases = [
        replace(canvas, cells=next(there), tables=tuple(islice(there, len(canvas.tables))))
        for canvas in layout.canvases
    ]
    layout = replace(layout, levels=levels, canvases=tuple(canvases))
    return Prefetched(pixels, layout, copied, time.perf_counter() - start)


@lru_cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """The stream of the copies to a device."""
    return torch.cuda.Stream(device)


@whole_float32
@torch.inference_mode()
def prefetched_outputs(
    network: DenseNetwork, head: Head, prefetched: Prefetched, normalize: Normalization, clock: Clock
) -> Tensor:
    """The head's output for every patch of all prefetched images, in order: ``[ΣM, …]``."""
    # Levels
    if prefetched.copied is not None:
        stream = torch.cuda.current_stream(normalize.device)
        stream.wait_event(prefetched.copied)
        prefetched.pixels.record_stream(stream)  # and the tables, which share its memory
    layout = prefetched.layout
    levels = normalize.levels(prefetched.pixels, layout.levels, layout.count)  # [count, 3]
    clock.lap("pyramid")
    outputs: Tensor | None = None
    for canvas in layout.canvases:
        # Trunk
        maps, height, width = canvas.shape
        pixels = levels[canvas.start : canvas.start + maps * height * width].view(*canvas.shape, 3).permute(0, 3, 1, 2)
        if canvas.tables:
            assert network.mosaic is not None
            features = network.mosaic(pixels, canvas.tables)
        else:
            features = network.fast_trunk(pixels) if maps > 1 else trunk_over(network, pixels)
        clock.lap("trunk")
        # Head
        windows = network.windows(features)  # [maps, rows, cols, …]
        rows, cols = windows.shape[1:3]
        for numbers, at in canvas.cells.long().split(cells_per_batch(network), dim=1):
            part = head(network.embed_windows(windows[at // (rows * cols), at // cols % rows, at % cols]))
            if outputs is None:
                outputs = part.new_empty(sum(map(len, layout.pyramids)), *part.shape[1:])
            outputs.index_copy_(0, numbers, part)
        clock.lap("head")
    assert outputs is not None
    return outputs


def lay_out(network: DenseNetwork, pyramids: tuple[Pyramid, ...]) -> Layout:
    """Lay the levels of images onto canvases, which lie one after another, all on the host."""
    levels = [(pyramid, level, image) for image, pyramid in enumerate(pyramids) for level in pyramid.levels]
    sources = [0, *accumulate(pyramid.height * pyramid.width for pyramid in pyramids)]
    first_cells = [0, *accumulate(level.rows * level.cols for _, level, _ in levels)]
    placed: list[PlacedLevel] = []
    canvases: list[Canvas] = []
    count = 0
    for maps, rows, cols, placements, tables in _grids(network, [(level.rows, level.cols) for _, level, _ in levels]):
        height, width = network.patch + (rows - 1) * network.stride, network.patch + (cols - 1) * network.stride
        numbers, positions = [], []
        for place in placements:
            pyramid, level, image = levels[place.level]
            first_pixel = (place.map * height + place.row * network.stride) * width + place.col * network.stride
            placed.append(
                PlacedLevel(
                    sources[image], pyramid.height, pyramid.width, level.height, level.width,
                    *pyramid.padded_size(level), count + first_pixel, width,
                )
            )  # fmt: skip
            first = (place.map * rows + place.row) * cols + place.col
            positions.append((first + np.arange(level.rows)[:, None] * cols + np.arange(level.cols)).ravel())
            numbers.append(np.arange(first_cells[place.level], first_cells[place.level + 1]))
        cells = np.stack([np.concatenate(numbers), np.concatenate(positions)]).astype(np.int32)
        canvases.append(Canvas(count, (maps, height, width), tables, torch.from_numpy(cells)))
        count += -(-maps * height * width // ALIGNED) * ALIGNED
    return Layout(pyramids, level_tiles(placed), tuple(canvases), count)


def _grids(network: DenseNetwork, grids: Sequence[Grid]) -> list[CanvasGrid]:
    """Lay levels onto shared canvases if the network allows it, else stack those of one size."""
    pixels = int(TRUNK_BYTES / network.bytes_per_pixel)  # per pass of the trunk
    mosaic = network.mosaic
    if mosaic is not None:
        return [
            CanvasGrid(
                1, canvas.rows, canvas.cols, [Placement(level, 0, row, col) for level, row, col in canvas.places],
                mosaic.tables(canvas, grids) if len(canvas.places) > 1 else (),
            )
            for canvas in pack(grids, mosaic.spare, pixels // network.stride**2)
        ]  # fmt: skip
    levels_of: defaultdict[Grid, list[int]] = defaultdict(list)
    for level, grid in enumerate(grids):
        levels_of[grid].append(level)
    layouts = []
    for (rows, cols), levels in levels_of.items():
        area = (network.patch + (rows - 1) * network.stride) * (network.patch + (cols - 1) * network.stride)
        limit = max(1, pixels // area)
        for start in range(0, len(levels), limit):
            placements = [Placement(level, at, 0, 0) for at, level in enumerate(levels[start : start + limit])]
            layouts.append(CanvasGrid(len(placements), rows, cols, placements, ()))
    return layouts
