"""Score a huge image: tile by tile into a folder, then maps and ranks from there."""

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from densescore.errors import DensescoreError
from densescore.geometry import Level, Pyramid
from densescore.io.files import atomic_write
from densescore.io.locks import exclusive
from densescore.io.names import label_file_names, text_values
from densescore.jobs.huge.job import Job
from densescore.jobs.huge.maps import write_map
from densescore.jobs.huge.resampling import level_window
from densescore.jobs.huge.source import HugeImage, open_huge
from densescore.models import BACKGROUND
from densescore.models.labels import find_classes
from densescore.network.dense_network import DenseNetwork
from densescore.network.tiling import Tile, bytes_per_pixel, own_part, reach, tiles
from densescore.results.best_patches import rank_patches
from densescore.results.heatmaps import describe_geometry
from densescore.scoring.crop_network import dense_only
from densescore.scoring.scorer import DenseScorer

Track = Callable[[Sequence[Any], str], Iterable[Any]]
"""Items and what they are → the same items; shows how far it is."""

_ANY_NUMBER = 2**62


def score_huge(
    scorer: DenseScorer,
    image: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    classes: Sequence[str] = (),
    top: int = 1,
    map_step: int = 1,
    memory: float = 1.0,
    bands: Sequence[int] | None = None,
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
    track: Track = lambda items, _: items,
) -> dict[str, Any]:
    """Score every patch of an image that is too large for memory, and write the response maps of some classes.

    The scores equal those of ``scorer.score`` on the whole image, to float32 rounding: a tile holds all pixels that its
    cells depend on, and levels are resized exactly as a whole. Called again after a kill, it goes on.

    Args:
        scorer: with `patch_sizes`, in pixels of the image, or with `scales`.
        image: a TIFF or zarr image; see `open_huge`.
        folder: to write to: ``scores.zarr`` (per level ``[rows, cols, C]``), ``maps/CLASS.tif`` and ``result.json``.
        classes: to map: classes, or groups of classes, whose scores add up; see `DenseScores.select`.
        top: number of best classes to map, if `classes` is empty.
        map_step: image pixels per pixel of the maps.
        memory: GB that one tile may take in the trunk. More is faster for networks with wide receptive fields.
        bands: channels to read; see `open_huge`.
        overwrite: begin again where the folder holds other scores.
        inputs: other files of the run, such as the model's; neither they nor the image are ever deleted.
        track: shows progress.

    Returns:
        The contents of ``result.json``: geometry, ranking, and per mapped class its file, peak and best patches.

    Raises:
        DensescoreError: the image cannot be read by windows, the folder holds other scores or cannot be written, or
            the network cannot be cut into tiles.
    """
    if map_step < 1 or not memory > 0:
        raise DensescoreError(f"map_step and memory must be positive, got {map_step} and {memory}")
    network = dense_only(scorer.network, "scoring a huge image by tiles")
    chosen = [find_classes(label.strip(), scorer.labels).label for label in classes]
    with exclusive(Path(folder)), open_huge(image, bands) as opened:
        pyramid = scorer.pyramid(opened.height, opened.width, max_cells=_ANY_NUMBER)
        side = _tile_side(scorer.name, network, memory)
        plan = list(tiles(pyramid.levels, network, side))
        chunk = max(len(tile.rows.cells) for tile in plan), max(len(tile.cols.cells) for tile in plan)
        asked = _describe(scorer, opened, pyramid, bands, chunk)
        job = Job(folder, asked, pyramid.levels, len(scorer.labels), chunk, overwrite, (image, *inputs))
        start = time.perf_counter()
        left = [tile for tile in plan if tile.number not in job.done]
        for tile in track(left, "tiles"):
            job.keep(tile, _score_tile(scorer, network, opened, pyramid, tile))
        seconds = time.perf_counter() - start
        result = {**asked, "tiles": len(plan), "tiles_scored_now": len(left), "seconds": round(seconds, 3)}
        result |= _finish(scorer, job, pyramid, chosen, top, map_step, opened, track)
        with job.writing(), atomic_write(job.folder / "result.json", overwrite=True) as temporary:
            temporary.write_text(json.dumps(text_values(result), indent=2) + "\n")
    return result


def _tile_side(name: str, network: DenseNetwork, memory: float) -> int:
    """Side in pixels of the largest tile for which `memory` GB are enough.

    Raises:
        DensescoreError: it is smaller than what one cell depends on, so that each cell would need a tile of its own.
    """
    per_pixel = bytes_per_pixel(network)
    side = int((memory * 1e9 / per_pixel) ** 0.5)
    least = sum(reach(network)) * network.stride * network.phases + network.patch
    if side < least:
        enough = per_pixel * least**2 / 1e9
        raise DensescoreError(
            f"memory: {memory:g} GB hold a tile of {side} pixels a side, but the scores of one patch by {name} "
            f"depend on {least}; give at least {1.1 * enough:.2g}, better {4 * enough:.2g}"
        )
    return side


def _describe(
    scorer: DenseScorer, image: HugeImage, pyramid: Pyramid, bands: Sequence[int] | None, chunk: tuple[int, int]
) -> dict[str, Any]:
    """What the scores follow from."""
    status = Path(image.name).stat()
    return {
        "image": {
            "source": str(Path(image.name).resolve()),
            "height": image.height,
            "width": image.width,
            "modified": status.st_mtime,
            "bands": bands,
        },
        **scorer.fingerprint("patch scores"),
        "geometry": describe_geometry(pyramid),
        "cells_per_tile": chunk,
    }


def _score_tile(
    scorer: DenseScorer, network: DenseNetwork, image: HugeImage, pyramid: Pyramid, tile: Tile
) -> NDArray[np.float32]:
    """Scores of a tile's cells, ``[rows, cols, C]``."""
    level = pyramid.levels[tile.level]
    rows, cols = tile.rows, tile.cols
    pixels = level_window(image.read, pyramid, level, rows.start, rows.stop, cols.start, cols.stop)
    with torch.inference_mode():
        feature_map = network.fast_trunk(scorer.normalize(pixels))
    grid = Level(level.scale, level.height, level.width, len(rows.cells), len(cols.cells), 0)
    scores = scorer.score_maps([own_part(feature_map, tile, network)], [grid])
    return scores.cpu().numpy().reshape(grid.rows, grid.cols, -1)


def _finish(
    scorer: DenseScorer,
    job: Job,
    pyramid: Pyramid,
    chosen: list[str],
    top: int,
    step: int,
    image: HugeImage,
    track: Track,
) -> dict[str, Any]:
    """Compute the image scores by eq. (1), and write the maps."""
    best, total = np.full(len(scorer.labels), np.finfo(np.float64).tiny), np.zeros(len(scorer.labels))  # [C]

    def add(scores: NDArray[np.float32]) -> None:
        """Powers of scores over the best one so far, which do not underflow together; see `DenseScores.confidence`."""
        nonlocal best, total
        better = np.maximum(best, scores.max((0, 1)))
        total = total * (best / better) ** scorer.k + ((scores / better) ** scorer.k).sum((0, 1))
        best = better

    for place in track(job.blocks(), "image scores"):
        add(job.block(*place))
    mean = total / len(pyramid)
    scores, confidence = mean * best**scorer.k, best * mean ** (1 / scorer.k)
    order = [label for label in np.argsort(-confidence, kind="stable") if scorer.labels[label] != BACKGROUND]
    ranked = [
        {
            "label": scorer.labels[label],
            "score": float(scores[label]),
            "confidence": float(confidence[label]),
            "best_patch": float(best[label]),
        }
        for label in order
    ]
    labels = list(dict.fromkeys(chosen)) or [str(entry["label"]) for entry in ranked[:top]]
    known = list(dict.fromkeys([*scorer.labels, *labels]))
    names = dict(zip(known, label_file_names(known), strict=True))
    described = []
    for number, label in enumerate(labels, 1):
        name = names[label]
        found = find_classes(label, scorer.labels)
        columns = [job.sum_of(index, found.columns) for index in range(len(pyramid.levels))]
        with job.writing(), atomic_write(job.folder / "maps" / f"{name}.tif", overwrite=True) as temporary:
            shown = _described(track, f"map {number} of {len(labels)}")
            peak = write_map(temporary, columns, pyramid, label, step, image.geotags, track=shown)
        values = np.concatenate([part.ravel() for part in columns])  # [M]
        top_patch = max(float(values.max()), np.finfo(np.float64).tiny)
        relative = float(np.mean((values / top_patch) ** scorer.k, dtype=np.float64))
        described.append(
            {
                "label": label,
                "image_score": relative * top_patch**scorer.k,
                "confidence": relative ** (1 / scorer.k) * top_patch,
                "map": f"maps/{name}.tif",
                "map_step": step,
                "map_maximum": peak,
                "best_patches": [patch._asdict() for patch in rank_patches(values, pyramid, scorer.k, 5)],
            }
        )
    return {"k": scorer.k, "top": ranked[: max(top, 5)], "classes": described}


def _described(track: Track, text: str) -> Callable[[Sequence[Any]], Iterable[Any]]:
    """`track` for items that are described by `text`."""
    return lambda items: track(items, text)
