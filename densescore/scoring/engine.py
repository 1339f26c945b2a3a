"""The dense engine: what happens to a photograph on its way to its scores, from top to bottom.

1. **Pixels → levels.** `level_pixels` resizes the photograph to one level per scale and pads it; `Normalization` makes
   a level the network's input, ``[1, 3, P + nS, P + mS]``.
2. **Levels → maps.** `trunk_maps` runs the convolutional trunk once over each level: ``[1, C, rows + h - 1,
   cols + w - 1]``. A cell of the level (a patch) is a window of h × w positions of its map.
3. **Maps → outputs.** `head_outputs` cuts the windows of all levels out of the maps, in few large batches
   (`cell_batches`), embeds them (FC6 and FC7, or the pooling) and applies the classifier: ``[M, C]`` logits.
4. **Outputs → scores.** `split_outputs` parts logits and the box layer's features; `DenseScorer` makes probabilities of
   the logits, `find_objects` boxes of the rest.

`dense_outputs` is steps 1 to 3. `crop_outputs` is the same by the paper's crops: every patch is cut out of its level
and goes through the network alone. On a GPU the photograph is copied once (`copy_together`), the device resizes it, and
all images share canvases; see `densescore.scoring.batching`.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densescore.geometry import Level, Pyramid
from densescore.io.images import Pixels, level_pixels
from densescore.models.box_layer import BoxLayer, ObjectBoxes
from densescore.network.cpu.winograd import WHOLE_TILES
from densescore.network.crops import PatchNetwork
from densescore.network.dense_network import DenseNetwork, whole_float32
from densescore.network.tiling import trunk_over
from densescore.scoring.checks import check_outputs, check_process
from densescore_kernels.image_levels.op import PlacedLevel, image_levels, level_tiles
from densescore_kernels.tiles import Tiles

HEAD_BYTES = 96 * 2**20
"""Memory for the windows and the head's outputs of one batch of cells, which sets the cells per batch."""

Head = Callable[[Tensor], Tensor]
"""Features ``[N, D]`` → outputs ``[N, …]``: the network's classifier, a `head_with_boxes`, or its ``to_features``."""


class Clock:
    """Seconds per stage; on a CUDA device between events in its queue, for which nobody waits."""

    def __init__(self, device: torch.device, **seconds: float) -> None:
        self._device = device
        self._seconds = seconds  # of stages that are over
        self._laps: list[tuple[str, Any]] = [("", self._now())]  # stage and its end

    def lap(self, stage: str) -> None:
        """Add the time since the last call to a stage."""
        self._laps.append((stage, self._now()))

    def timings(self) -> dict[str, float]:
        """Seconds per stage; on a CUDA device, for work that is done."""
        seconds = dict(self._seconds)
        for (_, start), (stage, end) in pairwise(self._laps):
            spent = start.elapsed_time(end) / 1000 if self._device.type == "cuda" else end - start
            seconds[stage] = seconds.get(stage, 0.0) + spent
        return seconds

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        return torch.cuda.current_stream(self._device).record_event(torch.cuda.Event(enable_timing=True))


# The whole way, densely and by crops


@whole_float32
@torch.inference_mode()
def dense_outputs(
    network: DenseNetwork,
    head: Head,
    images: Sequence[Pixels],
    pyramids: Sequence[Pyramid],
    normalize: "Normalization",
    clock: Clock,
    parts: int = 1,
) -> Tensor:
    """The head's output for every patch of some images, ``[ΣM, …]``.

    With `parts` above 1, levels are cut into about that many tiles, and batches of cells are that many times smaller.
    """
    levels = normalized_levels(images, pyramids, normalize, clock)
    maps = trunk_maps(network, levels, clock, parts)
    return head_outputs(network, head, maps, [level for pyramid in pyramids for level in pyramid.levels], clock, parts)


@whole_float32
@torch.inference_mode()
def crop_outputs(
    network: PatchNetwork,
    head: Head,
    image: Pixels,
    pyramid: Pyramid,
    normalize: "Normalization",
    clock: Clock,
    batch: int,
) -> Tensor:
    """`dense_outputs` of one image by the paper's crops, `batch` crops at a time: ``[M, …]``."""
    crops = crop_batches(normalized_levels([image], [pyramid], normalize, clock), pyramid, batch)
    outputs = torch.cat([head(network.embed_crops(batch_of_crops)) for batch_of_crops in crops])
    clock.lap("crops")
    return outputs


# 1. Pixels → levels


@dataclass(frozen=True)
class Normalization:
    """Pixels as the network takes them: minus the mean, over the standard deviation, of RGB in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    dtype: torch.dtype

    def __call__(self, pixels: Pixels) -> Tensor:
        """RGB ``[h, w, 3]``, uint8 or float32 in [0, 1] → ``[1, 3, h, w]``, channels last, on the device."""
        check_process()  # all pixels that a CPU scores one level at a time pass here
        # By numpy and OpenCV: torch's threads would go on spinning for a while, in the way of the trunk's.
        if pixels.dtype != np.uint8:
            scaled = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
            values = torch.from_numpy(scaled).to(self.dtype)
        else:
            values = torch.from_numpy(cv2.LUT(pixels, _byte_table(self.mean, self.std, self.dtype))).view(self.dtype)
        if self.device.type == "cuda":
            values = values.pin_memory()
        return values.permute(2, 0, 1)[None].to(self.device, non_blocking=True)

    def levels(self, pixels: Tensor, levels: Tiles, count: int) -> Tensor:
        """Levels of images that are on the device, one after another: ``[ΣH·W, 3]`` → ``[count, 3]``."""
        return image_levels(pixels, levels, count, mean=self.mean, std=self.std, dtype=self.dtype)


@lru_cache(maxsize=16)
def _byte_table(mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype) -> NDArray[Any]:
    """The normalized value of each byte: ``[1, 256, 3]``. OpenCV knows no half floats, so it moves their bits."""
    table = ((torch.arange(256)[:, None] / 255 - torch.tensor(mean)) / torch.tensor(std)).to(dtype)
    bits = table.view(torch.int16) if table.itemsize == 2 else table
    return bits.numpy()[None]


def normalized_levels(
    images: Iterable[Pixels], pyramids: Iterable[Pyramid], normalize: Normalization, clock: Clock
) -> Iterator[Tensor]:
    """All levels of some images, resized, padded and normalized: ``[1, 3, P + nS, P + mS]`` each."""
    for image, pyramid in zip(images, pyramids, strict=True):
        levels = levels_of_copy(image, pyramid, normalize)
        if normalize.device.type != "cuda":
            levels = (normalize(level_pixels(image, pyramid, level)) for level in pyramid.levels)
        for pixels in levels:
            clock.lap("pyramid")
            yield pixels


def levels_of_copy(image: Pixels, pyramid: Pyramid, normalize: Normalization) -> Iterator[Tensor]:
    """The levels of an image by its device, which gets one copy of it: ``[1, 3, P + nS, P + mS]`` each."""
    sizes = [pyramid.padded_size(level) for level in pyramid.levels]
    placed = [
        PlacedLevel(0, pyramid.height, pyramid.width, level.height, level.width, *size, 0, size[1])
        for level, size in zip(pyramid.levels, sizes, strict=True)
    ]
    pixels, tables = copy_together([image], [level_tiles([each]) for each in placed], normalize.device)
    for table, (height, width) in zip(tables, sizes, strict=True):
        yield normalize.levels(pixels, table, height * width).view(1, height, width, 3).permute(0, 3, 1, 2)


def copy_together(images: Sequence[Pixels], tables: Sequence[Any], device: torch.device) -> tuple[Tensor, list[Any]]:
    """Pixels of images of one dtype, ``[ΣH·W, 3]``, and tensors and `Tiles` on a device, by one copy of pinned memory.

    Nobody waits for the copy.
    """
    # Lay them out
    arrays = [(table.table if isinstance(table, Tiles) else table).numpy() for table in tables]
    parts = [[image.reshape(-1, 3) for image in images], *([array] for array in arrays)]
    starts = [0, *accumulate(-(-sum(array.nbytes for array in part) // 16) * 16 for part in parts)]  # for wide loads
    buffer = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    # Write
    host = buffer.numpy()
    for start, part in zip(starts[:-1], parts, strict=True):
        for array in part:
            host[start : (start := start + array.nbytes)] = array.reshape(-1).view(np.uint8)
    # Copy, and find them in the copy
    copied = buffer.to(device, non_blocking=True)
    count = sum(len(part) for part in parts[0])
    pixels = copied[: starts[1]].view(torch.uint8 if images[0].dtype == np.uint8 else torch.float32)[: 3 * count]
    moved: list[Any] = []
    for start, table in zip(starts[1:-1], tables, strict=True):
        tensor = table.table if isinstance(table, Tiles) else table
        tensor = copied[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        moved.append(table._replace(table=tensor) if isinstance(table, Tiles) else tensor)
    return pixels.view(count, 3), moved


def crop_batches(levels: Iterable[Tensor], pyramid: Pyramid, batch: int) -> Iterator[Tensor]:
    """Every patch of the levels, in the order of the cells: ``[≤ batch, 3, P, P]``, channels last.

    Resized per level, not per patch: equal except for pixels that interpolation mixes across a patch's border.
    """
    crops: list[Tensor] = []
    for pixels, level in zip(levels, pyramid.levels, strict=True):
        for row, col in np.ndindex(level.rows, level.cols):
            x0, y0, x1, y1 = pyramid.window(level, row, col)
            crops.append(pixels[0, :, y0:y1, x0:x1])
            if len(crops) == batch:
                yield torch.stack(crops).contiguous(memory_format=torch.channels_last)
                crops = []
    if crops:
        yield torch.stack(crops).contiguous(memory_format=torch.channels_last)


# 2. Levels → maps


def trunk_maps(network: DenseNetwork, levels: Iterable[Tensor], clock: Clock, parts: int = 1) -> Iterator[Tensor]:
    """The trunk's map of each level, ``[phases², C, rows + h - 1, cols + w - 1]``; one that is not finite is an error.

    Levels that need too much memory are cut into tiles (`trunk_over`); with `parts`, all are, into about that many.
    """
    for level in levels:
        feature_map = trunk_over(network, level, parts)
        if feature_map.device.type == "cpu":  # elsewhere it would wait for the device; there NaN passes through clamps
            check_outputs(feature_map, "the trunk's features")
        clock.lap("trunk")
        yield feature_map


# 3. Maps → outputs


def head_outputs(
    network: DenseNetwork, head: Head, maps: Iterable[Tensor], levels: Sequence[Level], clock: Clock, parts: int = 1
) -> Tensor:
    """The head's output for every cell of the levels, in the order of the cells: ``[M, …]``."""
    # Windows → features → outputs, batch by batch
    batches = []
    for blocks in cell_batches(network, maps, levels, cells_per_batch(network, parts)):
        batches.append(head(network.embed_blocks(blocks)))
        clock.lap("head")
    outputs = torch.cat(batches)
    if network.phases == 1:
        return outputs
    # A finer stride: cells came phase by phase
    cells = np.concatenate([phase.ravel() for level in levels for phase in level.phases(network.phases)])
    return outputs[torch.from_numpy(np.argsort(cells)).to(outputs.device, non_blocking=True)]


def cells_per_batch(network: DenseNetwork, parts: int = 1) -> int:
    """Cells whose windows, features and logits fit into `HEAD_BYTES` / `parts`."""
    # A window is held twice while it is projected; features, a hidden layer as wide, and logits follow.
    values = 2 * (network.window_width + network.feature_width) + network.classes
    return max(1, HEAD_BYTES // parts // (values * next(network.trunk.parameters()).dtype.itemsize))


def cell_batches(
    network: DenseNetwork, maps: Iterable[Tensor], levels: Sequence[Level], limit: int
) -> Iterator[list[Tensor]]:
    """Cut maps into blocks of cells, phase by phase; blocks of at most `limit` cells together make a batch.

    The next map is computed only when its first block is needed.
    """
    # Batches of equal size: a small last one would cost nearly as much as a large one.
    total = sum(level.rows * level.cols for level in levels)
    limit = -(-total // -(-total // limit))
    batch: list[Tensor] = []
    count = 0
    for feature_map, level in zip(maps, levels, strict=True):
        for phase, grid in zip(feature_map.split(1), level.phases(network.phases), strict=True):
            for rows, cols in _blocks(grid.shape[0], grid.shape[1], limit) if grid.size else ():
                if count + len(rows) * len(cols) > limit:
                    yield batch
                    batch, count = [], 0
                batch.append(network.block(phase, rows, cols))
                count += len(rows) * len(cols)
    yield batch


def _blocks(rows: int, cols: int, limit: int) -> Iterator[tuple[range, range]]:
    """Cut a grid, in the order of its cells, into blocks of at most `limit` cells: whole rows, or parts of one row."""
    if cols > limit:
        for row in range(rows):
            for col in range(0, cols, limit):
                yield range(row, row + 1), range(col, min(col + limit, cols))
        return
    step = limit // cols
    step -= step % WHOLE_TILES if step > WHOLE_TILES else 0
    for row in range(0, rows, step):
        yield range(row, min(row + step, rows)), range(cols)


# 4. Outputs → logits and object boxes


def head_with_boxes(network: PatchNetwork, layer: BoxLayer | None) -> Head:
    """The classifier, its logits followed by the box layer's reduced features: ``[N, D]`` → ``[N, C + reduced]``."""
    if layer is None:
        return network.classifier

    def head(features: Tensor) -> Tensor:
        reduced = layer.reduce(network.to_features(features).flatten(1).float())
        return torch.cat([network.classifier(features).float(), reduced], 1)

    return head


def split_outputs(outputs: Tensor, layer: BoxLayer | None) -> tuple[Tensor, Tensor]:
    """Outputs of `head_with_boxes` → logits ``[N, C]`` and reduced features ``[N, reduced]`` (none without a layer)."""
    classes = outputs.shape[1] - (0 if layer is None else layer.reduce.out_features)
    return outputs[:, :classes], outputs[:, classes:]


@torch.inference_mode()
def find_objects(
    layer: BoxLayer | None, reduced: Tensor, probabilities: Tensor, pyramid: Pyramid
) -> ObjectBoxes | None:
    """The box layer's boxes of an image; None without a layer."""
    return None if layer is None else layer(reduced, probabilities, pyramid)
