"""Where the entries of a report come from: images scored now, or a table of images scored before."""

import base64
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from densescore.errors import DensescoreError, MissingPackageError
from densescore.geometry import Pyramid
from densescore.io.images import Pixels, read_image
from densescore.io.names import as_message, as_text, from_text
from densescore.io.video import split_frame_name
from densescore.jobs.many.rows import array_key
from densescore.jobs.many.table import read_description
from densescore.models.labels import find_classes
from densescore.report.page import ClassSummary, Entry
from densescore.results.draw import jpeg
from densescore.results.regions import find_place, shrink_weights, thumbnail_size
from densescore.results.scores import DenseScores
from densescore.scoring.scorer import DenseScorer
from densescore.scoring.stream import score_many

PHOTO_SIDE, MAP_SIDE = 480, 96
"""Longest sides, in pixels, of the photographs and maps in a report."""

_WORK_SIDE = 1000  # longest side of the maps that boxes are read from
_MAX_BOXES = 10  # per image and class
_PHOTO_QUALITY, _MAP_QUALITY = 80, 90
_SMOOTHING = 1.2  # standard deviation of a map's blur, in pixels: steps between cells are noise
_COLUMNS = ("index", "image", "height", "width", "patches", "labels", "scores", "regions", "error")

# Images scored now


def scored_entries(
    images: Iterable[str | os.PathLike[str]], scorer: DenseScorer, classes: Sequence[str] = (), top: int = 3
) -> Iterator[Entry]:
    """Score image files one by one, each in memory only meanwhile; shows `classes`, or each image's `top` classes."""
    for item in score_many(images, scorer):
        name = os.fspath(item.source)  # type: ignore[arg-type]
        if item.scores is None:
            yield _failed(name, item.error or "")
            continue
        try:
            pixels = read_image(name)
            if pixels.shape[:2] != (item.scores.pyramid.height, item.scores.pyramid.width):
                raise DensescoreError(f"{name}: changed while it was scored")
            chosen = item.scores.select(classes or [best.label for best in item.scores.top(top)])
            yield entry_of(as_text(name), pixels, chosen)
        except DensescoreError as error:
            yield _failed(name, str(error))


def entry_of(name: str, pixels: Pixels, scores: DenseScores) -> Entry:
    """The entry of an image ``[H, W, 3]``, with all classes of its scores."""
    height, width = pixels.shape[:2]
    work = scores.thumbnail(_WORK_SIDE)
    zoom = width / work.pyramid.width
    box_zoom = zoom if scores.object_boxes is None else 1.0  # a box layer's boxes are in pixels of the image
    maps = dict(zip(scores.labels, scores.thumbnail(MAP_SIDE).shrunk_map().cpu().numpy(), strict=True))  # each [h, w]
    classes = []
    for best in scores.top(len(scores.labels)):
        view = work.class_map(best.label, _WORK_SIDE)
        boxes = [
            (x0 * box_zoom, y0 * box_zoom, x1 * box_zoom, y1 * box_zoom, peak)
            for (x0, y0, x1, y1), peak, *_ in work.find_boxes(best.label, max_regions=_MAX_BOXES)
        ]
        place, picture = (view.place.x * zoom, view.place.y * zoom), _map_picture(maps[best.label])
        summary = ClassSummary(
            label=best.label, confidence=best.confidence, boxes=boxes, place=place, peak=view.peak, map_url=picture
        )
        classes.append(summary)
    photo = jpeg(pixels, PHOTO_SIDE, _PHOTO_QUALITY)
    return Entry(name=name, width=width, height=height, photo_url=photo, classes=classes)


def _map_picture(values: NDArray[np.float32]) -> str:
    """A map ``[H, W]`` as a small picture, from black, 0, to white, its peak."""
    height, width = values.shape
    small = cv2.resize(values, thumbnail_size(width, height, MAP_SIDE), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), _SMOOTHING)
    relative = np.rint(255 * small / max(float(small.max()), 1e-30)).astype(np.uint8)
    pixels = cv2.cvtColor(relative, cv2.COLOR_GRAY2BGR)
    encoded = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, _MAP_QUALITY])[1]
    return "data:image/webp;base64," + base64.b64encode(encoded.tobytes()).decode()


# A table of images scored before


class ScoreTable:
    """A table that ``densescore score`` wrote, and the response maps of the zarr folder beside it, if there is one.

    `description` says how the table was made. Tables of other programs raise `DensescoreError`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise MissingPackageError(f"a table needs {error.name}: pip install 'densescore[many]'") from error
        self.path = Path(path)
        try:
            self._file = pq.ParquetFile(self.path)
        except (OSError, pa.ArrowException) as error:
            raise DensescoreError(f"{self.path}: cannot be read as a table: {error}") from error
        description = read_description(self.path)
        if description is None or not {*_COLUMNS} <= {*self._file.schema_arrow.names}:
            raise DensescoreError(f"{self.path}: not a table that densescore score has made")
        self.description: dict[str, Any] = description

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes and groups of the table, or all of the model's."""
        return tuple(self.description["classes"] or self.description["labels"])

    def entries(self, classes: Sequence[str] = (), folder: Path | None = None) -> Iterator[Entry]:
        """The table's images, found again in `folder`, or at their paths; missing or changed ones are errors.

        Shows `classes`, by default all; one that the table lacks raises `DensescoreError`.
        """
        members = [find_classes(name, self.labels) for name in classes]
        if group := next((each.label for each in members if each.is_group), None):
            raise DensescoreError(f"{self.path}: has no scores of the group {group!r}; score with --classes {group!r}")
        chosen = [each.label for each in members]
        arrays = _open_arrays(self.path.with_suffix(".zarr"))
        columns = [name for name in (*_COLUMNS, "classes") if name in self._file.schema_arrow.names]
        for batch in self._file.iter_batches(64, columns=columns):
            for row in batch.to_pylist():
                yield self._entry(row, chosen, folder, arrays)

    def _entry(self, row: dict[str, Any], chosen: Sequence[str], folder: Path | None, arrays: Any) -> Entry:
        name = from_text(row["image"])
        if row["error"] is not None:
            return _failed(name, row["error"])
        # Find the photograph
        try:
            path = find_again(name, folder)
            pixels = read_image(path)
            height, width = pixels.shape[:2]
            if (height, width) != (row["height"], row["width"]):
                raise DensescoreError(
                    f"{path}: not the picture that was scored: {width}×{height} pixels now, "
                    f"{row['width']}×{row['height']} then"
                )
        except DensescoreError as error:
            return _failed(name, str(error))
        # Shrink its maps, if there are any
        maps = _maps_of(arrays, row["index"])
        if maps:
            pyramid = self._pyramid(row)
            coverage = DenseScores(torch.empty(len(pyramid), 0), (), pyramid).coverage
            weights = shrink_weights(coverage).numpy()
            maps = {label: values * weights for label, values in maps.items()}
        classes = [
            _summary(row, from_text(label), confidence, maps.get(label))
            for label, confidence in self._ranking(row)
            if not chosen or from_text(label) in chosen
        ]
        photo = jpeg(pixels, PHOTO_SIDE, _PHOTO_QUALITY)
        return Entry(name=row["image"], width=width, height=height, photo_url=photo, classes=classes)

    def _pyramid(self, row: dict[str, Any]) -> Pyramid:
        """The patches of an image; the table has their number, not their phases."""
        made = self.description
        for phases in (1, 2, 4, 8, 16, 32):
            pyramid = Pyramid.of(
                row["height"], row["width"], scales=made["scales"] or (), patch_sizes=made["patch-sizes"],
                patch=made["patch"], stride=made["stride"], phases=phases, max_cells=made["max-cells"],
            )  # fmt: skip
            if len(pyramid) == row["patches"]:
                return pyramid
        raise DensescoreError(f"{row['image']}: its {row['patches']:,} patches are not those of its size, {pyramid}")

    def _ranking(self, row: dict[str, Any]) -> list[tuple[str, float]]:
        """Labels, as `as_text` writes them, and confidences, best first."""
        if row.get("classes") is not None:
            return [(ranked["label"], ranked["confidence"]) for ranked in row["classes"]]
        k = float(self.description["k"])
        return [(label, score ** (1 / k)) for label, score in zip(row["labels"], row["scores"], strict=True)]


def find_again(name: str, folder: Path | None) -> Path:
    """The file of an image, or the frame of a video, that was scored under the path `name`.

    With `folder`, the file in it whose path agrees with `name` in the most last parts; raises `DensescoreError`.
    """
    if folder is None:
        return Path(name)
    for file in dict.fromkeys((name, split_frame_name(name)[0])):  # "clip.mp4#t=1" may be a file, moved
        parts = [part for part in Path(file).parts if part != ".."]
        for start in range(1 if Path(file).is_absolute() else 0, len(parts)):
            with suppress(OSError, ValueError):
                if (path := folder.joinpath(*parts[start:])).is_file():
                    return Path(f"{path}{name[len(file) :]}")
    raise DensescoreError(f"{name}: no such file in {folder}")


def _summary(row: Mapping[str, Any], label: str, confidence: float, values: NDArray[np.float32] | None) -> ClassSummary:
    """A class of a row, with its shrunk map ``[H, W]``, if there is one."""
    boxes = [
        (region["x0"], region["y0"], region["x1"], region["y1"], region["peak"])
        for region in row["regions"]
        if from_text(region["label"]) == label
    ]
    summary = ClassSummary(label=label, confidence=confidence, boxes=boxes, peak=boxes[0][4] if boxes else None)
    if values is None:
        return summary
    place = find_place(torch.from_numpy(values), torch.from_numpy(values))[:2]
    return replace(summary, place=place, peak=float(values.max()), map_url=_map_picture(values))


def _open_arrays(path: Path) -> Any:
    if not path.is_dir():
        return None
    try:
        import zarr
    except ImportError as error:
        raise MissingPackageError("maps beside a table need zarr: pip install 'densescore[many]'") from error
    try:
        return zarr.open_group(path, mode="r")
    except Exception as error:  # zarr raises many kinds
        raise DensescoreError(f"{path}: the maps beside the table cannot be read: {error}") from error


def _maps_of(arrays: Any, index: int) -> dict[str, NDArray[np.float32]]:
    """The maps of an image by their labels, as `as_text` writes them."""
    key = array_key(index)
    if arrays is None or key not in arrays or "maps" not in arrays[key]:
        return {}
    group = arrays[key]
    return {label: np.asarray(group["maps"][number]) for number, label in enumerate(group.attrs["mapped"])}


def _failed(name: str, error: str) -> Entry:
    return Entry(name=as_text(name), error=as_message(error))
