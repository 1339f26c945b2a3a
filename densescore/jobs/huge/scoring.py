"""Score a huge image: tile by tile into a folder, then ranks and maps from there.

The folder outlives the process, and resumes with the same image, model and geometry only:

``.densescore`` the mark: a folder without it is never cleared
``job.json``    the image, model and geometry
``scores.zarr`` per level, float32 ``[rows, cols, C]``
``done``        a line per finished tile, written after its scores; other tiles are scored again
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from densescore.errors import DensescoreError
from densescore.geometry import Level, Pyramid
from densescore.io.files import ZARR, atomic_write, check_replaceable, claim, exclusive, remove_folder, write_errors
from densescore.io.names import label_file_names, text_values, to_json
from densescore.jobs.huge import places
from densescore.jobs.huge.maps import write_map
from densescore.jobs.huge.resampling import level_window
from densescore.jobs.huge.source import GeoTag, HugeImage, open_huge
from densescore.models.head import BACKGROUND
from densescore.models.labels import find_classes
from densescore.network.crops import dense_only
from densescore.network.dense_network import DenseNetwork, whole_float32
from densescore.network.tiling import Tile, own_part, tiles
from densescore.results.draw import PICTURE_SIDE, Style, plot_map
from densescore.results.heatmaps import describe_geometry
from densescore.results.patches import rank_patches
from densescore.results.regions import thumbnail_size
from densescore.results.scores import DenseScores
from densescore.scoring.scorer import DenseScorer

Track = Callable[[Sequence[Any], str], Iterable[Any]]
"""Items and their name → the same items, with a progress bar."""

_UNLIMITED = 2**62  # cells
_CHUNK_CLASSES = 64
_KIND = "scores of a huge image"
_HOLDS = (
    r"job\.json",
    "done",
    r"result\.json",
    r"maps(/[^/]+\.(tif|png))?",
    r"places\.(csv|geojson)",
    rf"scores\.zarr(/{ZARR})?",
)


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
    cells depend on, and levels are resized exactly as a whole. Called again after a kill, it resumes.

    Args:
        scorer: scores the tiles; with `patch_sizes`, in pixels of the image, or with `scales`.
        image: path of a TIFF or zarr image; see `open_huge`.
        folder: output folder: ``scores.zarr`` (per level ``[rows, cols, C]``), ``maps/CLASS.tif``,
            ``maps/CLASS.png`` (its picture, as `DenseScores.plot` draws it), ``result.json``, and the best patches:
            ``places.csv``, and ``places.geojson`` of a georeferenced image.
        classes: classes to map, or groups of classes, whose scores add up; see `DenseScores.select`.
        top: number of best classes to map, if `classes` is empty.
        map_step: image pixels per pixel of the maps.
        memory: GB for one tile in the trunk. More is faster for networks with wide receptive fields.
        bands: channels to read; see `open_huge`.
        overwrite: start again if the folder holds other scores.
        inputs: other files of the run, such as the model's; neither they nor the image are ever deleted.
        track: shows progress.

    Returns:
        The contents of ``result.json``: geometry, ranking, and per mapped class its file, peak and best patches.

    Raises:
        DensescoreError: the image cannot be read by windows, the folder holds other scores or cannot be written, or
            the network cannot be cut into tiles.

    Example:
        >>> import densescore
        >>> scorer = densescore.DenseScorer("lite0", patch_sizes=(224, 448))  # doctest: +SKIP
        >>> result = densescore.score_huge(scorer, "slide.tif", "slide-scores")  # doctest: +SKIP
    """
    if map_step < 1 or not memory > 0:
        raise DensescoreError(f"map_step and memory must be positive, got {map_step} and {memory}")
    network = dense_only(scorer.network, "scoring a huge image by tiles")
    labels = [find_classes(label.strip(), scorer.labels).label for label in classes]
    with exclusive(Path(folder)), open_huge(image, bands) as source:
        # Cut the levels into tiles
        pyramid = scorer.pyramid(source.height, source.width, max_cells=_UNLIMITED)
        plan = list(tiles(pyramid.levels, network, _tile_side(scorer.name, network, memory)))
        chunk = max(len(tile.rows.cells) for tile in plan), max(len(tile.cols.cells) for tile in plan)

        # Score those that no earlier run has
        config = _describe(scorer, source, pyramid, bands, chunk)
        job = Job(folder, config, pyramid.levels, len(scorer.labels), chunk, overwrite, (image, *inputs))
        pending = [tile for tile in plan if tile.number not in job.done]
        start = time.perf_counter()
        for tile in track(pending, "tiles"):
            job.store(tile, _score_tile(scorer, network, source, pyramid, tile))
        seconds = time.perf_counter() - start

        # Rank the classes and write the maps
        ranked = _rank(scorer, job, len(pyramid), track)
        labels = list(dict.fromkeys(labels)) or [entry["label"] for entry in ranked[:top]]
        result = {
            **config,
            "tiles": len(plan),
            "tiles_scored_now": len(pending),
            "seconds": round(seconds, 3),
            "k": scorer.k,
            "top": ranked[: max(top, 5)],
            "classes": _write_maps(scorer, job, pyramid, labels, map_step, source, track),
        }
        _write_places(job, result["classes"], source.geotags)
        with job.writing(), atomic_write(job.folder / "result.json", overwrite=True) as temporary:
            temporary.write_text(to_json(text_values(result), indent=2) + "\n")
    return result


def _tile_side(name: str, network: DenseNetwork, memory: float) -> int:
    """Side in pixels of the largest tile for `memory` GB; an error if one cell would need a tile of its own."""
    per_pixel = network.bytes_per_pixel
    side = int((memory * 1e9 / per_pixel) ** 0.5)
    least = sum(network.reach) * network.stride * network.phases + network.patch
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
    """Everything that the scores follow from."""
    path = Path(image.name)
    return {
        "image": {
            "source": str(path.resolve()),
            "height": image.height,
            "width": image.width,
            "modified": path.stat().st_mtime,
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
    with whole_float32, torch.inference_mode():
        feature_map = network.fast_trunk(scorer.normalize(pixels))
    grid = Level(level.scale, level.height, level.width, len(rows.cells), len(cols.cells), 0)
    scores = scorer.score_maps([own_part(feature_map, tile, network)], [grid])
    return scores.cpu().numpy().reshape(grid.rows, grid.cols, -1)


def _rank(scorer: DenseScorer, job: "Job", patches: int, track: Track) -> list[dict[str, Any]]:
    """All classes but the background, best first, by the image scores of eq. (1)."""
    best, total = np.zeros(len(scorer.labels)), np.zeros(len(scorer.labels))  # [C]
    for block in track(job.blocks(), "image scores"):
        scores = job.block(*block)  # [rows, cols, C]
        # Powers relative to the best score so far, which do not all underflow; see `DenseScores.confidence`
        better = np.maximum(best, scores.max((0, 1)))
        unit = np.where(better > 0, better, 1)  # all scores of a class may be 0
        total = total * (best / unit) ** scorer.k + ((scores / unit) ** scorer.k).sum((0, 1))
        best = better
    mean = total / patches
    confidence = best * mean ** (1 / scorer.k)
    return [
        {
            "label": scorer.labels[label],
            "score": float(mean[label] * best[label] ** scorer.k),
            "confidence": float(confidence[label]),
            "best_patch": float(best[label]),
        }
        for label in np.argsort(-confidence, kind="stable")
        if scorer.labels[label] != BACKGROUND
    ]


def _write_maps(
    scorer: DenseScorer, job: "Job", pyramid: Pyramid, labels: Sequence[str], step: int, image: HugeImage, track: Track
) -> list[dict[str, Any]]:
    """Write the maps of classes and groups, and describe each."""
    known = list(dict.fromkeys([*scorer.labels, *labels]))
    names = dict(zip(known, label_file_names(known), strict=True))

    def progress(number: int) -> Callable[[Sequence[Any]], Iterable[Any]]:
        return lambda corners: track(corners, f"map {number} of {len(labels)}")

    width, height = thumbnail_size(image.width, image.height, PICTURE_SIDE)
    photograph = level_window(image.read, pyramid, Level(1.0, height, width, 1, 1, 0), 0, height, 0, width)
    classes = []
    for number, label in enumerate(labels, 1):
        indices = find_classes(label, scorer.labels).columns
        columns = [job.sum_of(level, indices) for level in range(len(pyramid.levels))]  # [rows, cols] each
        file = f"maps/{names[label]}.tif"
        with job.writing(), atomic_write(job.folder / file, overwrite=True) as temporary:
            peak = write_map(temporary, columns, pyramid, label, step, image.geotags, progress(number))
        values = np.concatenate([column.ravel() for column in columns])  # [M]
        picture = f"maps/{names[label]}.png"
        scores = DenseScores(torch.from_numpy(values)[:, None], (label,), pyramid, k=scorer.k)
        plot_map(photograph, scores.class_map(label, PICTURE_SIDE), Style()).save(job.folder / picture, overwrite=True)
        best = float(values.max()) or 1.0  # all may be 0
        relative = float(np.mean((values / best) ** scorer.k, dtype=np.float64))
        classes.append(
            {
                "label": label,
                "image_score": relative * best**scorer.k,
                "confidence": relative ** (1 / scorer.k) * best,
                "response_map": file,
                "picture": picture,
                "map_step": step,
                "response_map_peak": peak,
                "best_patches": [patch._asdict() for patch in rank_patches(values, pyramid, scorer.k, 5)],
            }
        )
    return classes


def _write_places(job: "Job", classes: Sequence[dict[str, Any]], tags: Sequence[GeoTag]) -> None:
    """Write the classes' best patches, on the ground as well if the image is georeferenced."""
    with job.writing(), atomic_write(job.folder / "places.csv", overwrite=True) as temporary:
        places.write_csv(temporary, classes)
    if places.ground_of(tags) is not None and places.epsg_of(tags) is not None:
        with job.writing(), atomic_write(job.folder / "places.geojson", overwrite=True) as temporary:
            places.write_geojson(temporary, classes, tags)


class Job:
    """A folder of scores, new or resumed; `overwrite` starts again, but deletes none of the `inputs`.

    `config` is everything that the scores follow from; `chunk` is the rows and columns of cells of a tile.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        config: dict[str, Any],
        levels: Sequence[Level],
        classes: int,
        chunk: tuple[int, int],
        overwrite: bool = False,
        inputs: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        import zarr

        self.folder = Path(folder)
        self._journal = self.folder / "done"
        self._levels = len(levels)
        config = json.loads(to_json(text_values(config)))
        file = self.folder / "job.json"
        with self.writing():
            claim(self.folder, _KIND, _HOLDS)
            if not self._resumes(file, config, overwrite):
                check_replaceable(self.folder, overwrite=True, folder=_KIND, inputs=inputs)
                remove_folder(self.folder, _KIND)
                claim(self.folder, _KIND, _HOLDS)
            if not file.exists():
                group = zarr.open_group(self.folder / "scores.zarr", mode="w")
                for index, level in enumerate(levels):
                    shape = (level.rows, level.cols, classes)
                    chunks = (min(chunk[0], level.rows), min(chunk[1], level.cols), min(_CHUNK_CLASSES, classes))
                    group.create_array(str(index), shape=shape, chunks=chunks, dtype="float32")
                with atomic_write(file) as temporary:  # last: a folder with it is complete
                    temporary.write_text(to_json(config, indent=2) + "\n")
            self._arrays: Any = zarr.open_group(self.folder / "scores.zarr", mode="r+")
        lines = self._journal.read_text().split("\n")[:-1] if self._journal.exists() else []
        self.done = {int(line) for line in lines if line.isdecimal()}

    def _resumes(self, file: Path, config: dict[str, Any], overwrite: bool) -> bool:
        """Whether the folder is empty or has this very job; False if it is to be cleared."""
        if not file.exists():  # new, or killed before the first tile
            return not (self.folder / "scores.zarr").exists()
        try:
            stored = json.loads(file.read_text())
        except ValueError as error:
            raise DensescoreError(f"{file}: damaged: {error}") from error
        changed = sorted(name for name in config if stored.get(name) != config[name])
        if changed and not overwrite:
            raise DensescoreError(
                f"{self.folder}: holds scores made with another {', '.join(changed)}; "
                "choose another folder, or --overwrite (overwrite=True)"
            )
        return not overwrite

    def store(self, tile: Tile, scores: NDArray[np.float32]) -> None:
        """Write a tile's scores ``[rows, cols, C]``, then its line in the journal."""
        rows, cols = tile.rows.cells, tile.cols.cells
        with self.writing():
            self._arrays[str(tile.level)][rows.start : rows.stop, cols.start : cols.stop] = scores
            with self._journal.open("a") as journal:
                journal.write(f"{tile.number}\n")
        self.done.add(tile.number)

    def blocks(self) -> list[tuple[int, slice, slice]]:
        """Level, rows and columns of each stored chunk."""
        return [(level, *part) for level in range(self._levels) for part in self._chunks(level)]

    def block(self, level: int, rows: slice, cols: slice) -> NDArray[np.float32]:
        """Scores of a block of cells: ``[≤ rows, ≤ cols, C]``."""
        return np.asarray(self._arrays[str(level)][rows, cols])

    def sum_of(self, level: int, classes: Sequence[int]) -> NDArray[np.float32]:
        """Sum of the classes' scores, at most 1, at every cell of a level: ``[rows, cols]``."""
        array = self._arrays[str(level)]
        first, last = min(classes), max(classes)
        total = np.zeros(array.shape[:2], np.float32)
        for rows, cols in self._chunks(level):
            scores = np.asarray(array[rows, cols, first : last + 1])
            total[rows, cols] = scores[..., np.array(classes) - first].sum(2)
        return np.minimum(total, 1)

    def _chunks(self, level: int) -> Iterator[tuple[slice, slice]]:
        array = self._arrays[str(level)]
        height, width = array.chunks[:2]
        for row in range(0, array.shape[0], height):
            for col in range(0, array.shape[1], width):
                yield slice(row, row + height), slice(col, col + width)

    def writing(self) -> AbstractContextManager[None]:
        """Raise failed writes as errors that name the folder."""
        return write_errors(self.folder, "; finished tiles are kept, and the same call resumes")
