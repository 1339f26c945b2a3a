"""Images on their way to the device: their levels laid out in pinned memory, and copied on a stream of their own."""

import os
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from densescore.geometry import Pyramid
from densescore.io.images import Pixels, level_pixels
from densescore.network.dense_network import DenseNetwork
from densescore.network.mosaic import Grid, mosaic_of, pack
from densescore.network.tiling import TRUNK_BYTES, bytes_per_pixel, trunk_over
from densescore.scoring.clock import Clock
from densescore.scoring.dense_pass import HEAD_BYTES
from densescore.scoring.normalize import normalize_on_device

if TYPE_CHECKING:
    from densescore.scoring.scorer import DenseScorer


class _Spot(NamedTuple):
    """A level's number, and the map, row and column of its first cell."""

    level: int
    image: int
    row: int
    col: int


@dataclass(frozen=True)
class Sheet:
    """Levels that go through the trunk together.

    Attributes:
        pixels: uint8, or float32 in [0, 1]: ``[N, P + nS, P + mS, 3]``.
        outside: for the trunk over canvases: where there is no level; none where each level is alone.
        cells: map, row and column of each cell: int64 ``[3, cells]``.
        numbers: of the cells among those of all images: int64 ``[cells]``.
    """

    pixels: Tensor
    outside: list[Tensor]
    cells: Tensor
    numbers: NDArray[np.int64]


@dataclass(frozen=True)
class Staged:
    """Images whose levels are on the device, or on the way to it.

    Attributes:
        pyramids: of the images.
        sheets: of all their levels.
        copied: has happened when all is there; None where nothing has to be waited for.
        seconds: it took to prepare.
    """

    pyramids: tuple[Pyramid, ...]
    sheets: tuple[Sheet, ...]
    copied: torch.cuda.Event | None
    seconds: float


def stage(scorer: "DenseScorer", images: Sequence[Pixels]) -> Staged:
    """Resize images to their levels, lay these out, and begin to copy them; from any thread.

    Args:
        scorer: for whose network and device.
        images: RGB ``[h, w, 3]``, uint8 or float32.
    """
    start = time.perf_counter()
    pyramids = tuple(scorer.pyramid(*image.shape[:2]) for image in images)
    levels = [
        (image, pyramid, level) for image, pyramid in zip(images, pyramids, strict=True) for level in pyramid.levels
    ]
    grids = [(level.rows, level.cols) for _, _, level in levels]
    firsts = [0, *accumulate(rows * cols for rows, cols in grids)]
    whole = all(image.dtype == np.uint8 for image in images)
    cuda = scorer.device.type == "cuda"
    patch, stride = scorer.network.patch, scorer.network.stride
    sheets = []
    stream = torch.cuda.Stream(scorer.device) if cuda else None
    with torch.cuda.stream(stream), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # None: as it is
        for count, rows, cols, spots, outside in _layouts(scorer.dense, grids):
            shape = (count, patch + (rows - 1) * stride, patch + (cols - 1) * stride, 3)
            pixels = torch.zeros(shape, dtype=torch.uint8 if whole else torch.float32, pin_memory=cuda)
            parts = pool.map(lambda spot: level_pixels(*levels[spot.level]), spots)  # OpenCV leaves Python's lock
            for spot, part in zip(spots, parts, strict=True):
                y, x = spot.row * stride, spot.col * stride
                window = pixels.numpy()[spot.image, y : y + part.shape[0], x : x + part.shape[1]]
                window[...] = part if whole else _unit(part)
            cells = torch.from_numpy(np.concatenate([_cells(spot, grids[spot.level]) for spot in spots], 1))
            numbers = np.concatenate([np.arange(firsts[spot.level], firsts[spot.level + 1]) for spot in spots])
            moved = [
                (tensor.pin_memory() if cuda else tensor).to(scorer.device, non_blocking=True)
                for tensor in (pixels, cells, *outside)
            ]
            sheets.append(Sheet(moved[0], moved[2:], moved[1], numbers))
    copied = stream.record_event() if stream is not None else None
    return Staged(pyramids, tuple(sheets), copied, time.perf_counter() - start)


@torch.inference_mode()
def staged_outputs(scorer: "DenseScorer", staged: Staged, classifier: nn.Module, clock: Clock) -> Tensor:
    """The classifier's output for every cell of all images, in order: ``[ΣM, …]``.

    Args:
        scorer: for which the images were staged.
        staged: the images.
        classifier: ``[N, D]`` features → outputs.
        clock: for the stages "trunk" and "head".
    """
    network = scorer.dense
    mosaic = mosaic_of(network)
    _wait(staged, scorer.device)
    outputs = []
    for sheet in staged.sheets:
        pixels = normalize_on_device(sheet.pixels, scorer.mean, scorer.std, scorer.dtype)
        if sheet.outside:
            assert mosaic is not None
            maps = mosaic(pixels, sheet.outside)
        else:
            maps = network.fast_trunk(pixels) if len(pixels) > 1 else trunk_over(network, pixels)
        clock.lap("trunk")
        windows = network.windows(maps)
        for cells in sheet.cells.split(_cells_at_once(network), dim=1):
            outputs.append(classifier(network.embed_windows(windows[tuple(cells)])))
        clock.lap("head")
    order = np.argsort(np.concatenate([sheet.numbers for sheet in staged.sheets]))
    return torch.cat(outputs)[torch.from_numpy(order).to(scorer.device)]


def _layouts(network: DenseNetwork, grids: Sequence[Grid]) -> list[tuple[int, int, int, list[_Spot], list[Tensor]]]:
    """How levels go together: the maps of a sheet, its rows and columns of cells, its levels, and its masks."""
    pixels = int(TRUNK_BYTES / bytes_per_pixel(network))
    mosaic = mosaic_of(network)
    if mosaic is not None:
        canvases = pack(grids, mosaic.spare, pixels // network.stride**2)
        return [
            (
                1, canvas.rows, canvas.cols, [_Spot(level, 0, row, col) for level, row, col in canvas.places],
                mosaic.outside(canvas, grids) if len(canvas.places) > 1 else [],
            )
            for canvas in canvases
        ]  # fmt: skip
    alike: defaultdict[Grid, list[int]] = defaultdict(list)
    for level, grid in enumerate(grids):
        alike[grid].append(level)
    layouts = []
    for (rows, cols), members in alike.items():
        area = (network.patch + (rows - 1) * network.stride) * (network.patch + (cols - 1) * network.stride)
        most = max(1, pixels // area)
        for start in range(0, len(members), most):
            spots = [_Spot(level, at, 0, 0) for at, level in enumerate(members[start : start + most])]
            layouts.append((len(spots), rows, cols, spots, list[Tensor]()))
    return layouts


def _cells(spot: _Spot, grid: Grid) -> NDArray[np.int64]:
    """Map, row and column of a level's cells: ``[3, cells]``."""
    down, across = np.indices(grid).reshape(2, -1)
    return np.stack([np.full_like(down, spot.image), spot.row + down, spot.col + across])


def _cells_at_once(network: DenseNetwork) -> int:
    """Cells whose windows, features and logits fit into `HEAD_BYTES`."""
    numbers = 2 * (network.window_width + network.feature_width) + network.classes
    return max(1, HEAD_BYTES // (numbers * next(network.trunk.parameters()).dtype.itemsize))


def _wait(staged: Staged, device: torch.device) -> None:
    """Have the device's work wait for the copies, and their memory for that work."""
    if staged.copied is None:
        return
    stream = torch.cuda.current_stream(device)
    stream.wait_event(staged.copied)
    for sheet in staged.sheets:
        for tensor in (sheet.pixels, *sheet.outside, sheet.cells):
            tensor.record_stream(stream)


def _unit(pixels: Pixels) -> Pixels:
    return pixels / np.float32(255) if pixels.dtype == np.uint8 else pixels
