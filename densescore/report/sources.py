"""Where the entries of a report come from: images scored now, or a table of images scored before."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from densescore.errors import DensescoreError, MissingPackageError
from densescore.io.images import Pixels, read_image
from densescore.io.names import as_message, as_text, from_text
from densescore.io.video import split_frame_name
from densescore.jobs.many.rows import array_key
from densescore.jobs.many.table import read_description
from densescore.models.labels import find_classes
from densescore.report.page import ClassSummary, Entry
from densescore.results.draw import Style, data_url, heat
from densescore.results.formats import SIDES, Ranked
from densescore.results.regions import ABSENT, ClassMap, find_place, title_of
from densescore.results.scores import DenseScores
from densescore.scoring.scorer import DenseScorer
from densescore.scoring.stream import score_many

PHOTO_SIDE, MAP_SIDE = 640, 128
"""Longest sides, in pixels, of the photographs and maps in a report."""

_WORK_SIDE = 1000  # longest side of the maps that boxes are read from
_MAX_BOXES = 10  # per image and class
_PHOTO_QUALITY, _MAP_QUALITY = 80, 90
_COLUMNS = (
    "index", "image", "height", "width", "labels", "confidences", "probabilities", "answers", "regions", "error"
)  # fmt: skip

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
    width = pixels.shape[1]
    work = scores.thumbnail(_WORK_SIDE)
    zoom = width / work.pyramid.width
    box_zoom = zoom if scores.object_boxes is None else 1.0  # a box layer's boxes are in pixels of the image
    classes = []
    for best in scores.top(len(scores.labels)):
        view = work.class_map(best.label, _WORK_SIDE)
        boxes = [
            (*(side * box_zoom for side in region.box), region.probability)
            for region in work.find_boxes(best.label, max_regions=_MAX_BOXES)
        ]
        classes.append(_summary(best, boxes, view, zoom))
    return _entry(name, pixels, classes)


def place_entry(source: str | os.PathLike[str], summary: ClassSummary) -> Entry:
    """The entry of an image of which one thing is said, such as a place in it; a failed one if it cannot be read."""
    name = as_text(os.fspath(source))
    try:
        return _entry(name, read_image(source), [summary])
    except DensescoreError as error:
        return _failed(name, str(error))


def _entry(name: str, pixels: Pixels, classes: Sequence[ClassSummary]) -> Entry:
    photo = data_url(pixels, PHOTO_SIDE, _PHOTO_QUALITY)
    return Entry(name=name, width=pixels.shape[1], height=pixels.shape[0], photo_url=photo, classes=classes)


def _summary(best: Ranked, boxes: Sequence[Any], view: ClassMap | None, zoom: float = 1.0) -> ClassSummary:
    """A class, and what is drawn of it, which is nothing if it is absent."""
    title = title_of(best.label, best.shown, best.probability is not None)
    said = ClassSummary(label=best.label, title=title, confidence=best.shown, answer=best.answer)
    if best.shown < ABSENT:
        return said
    if view is None:
        return replace(said, boxes=boxes)
    place = view.place.x * zoom, view.place.y * zoom
    picture = data_url(heat(view, Style(opacity=1)), MAP_SIDE, _MAP_QUALITY)
    return replace(said, boxes=boxes, place=place, map_url=picture)


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
        # Describe the classes that have boxes or maps
        maps = _maps_of(arrays, row["index"])
        boxes: dict[str, list[Any]] = {}
        for each in row["regions"]:
            box = [*(each[side] for side in SIDES), each["probability"]]
            boxes.setdefault(from_text(each["label"]), []).append(box)
        classes = []
        for best in self._ranking(row):
            if best.label in boxes and (not chosen or best.label in chosen):
                values, view = maps.get(as_text(best.label)), None
                if values is not None:
                    place = find_place(torch.from_numpy(values))
                    view = ClassMap(best.label, best.shown, best.probability is not None, values, place, ())
                classes.append(_summary(best, boxes[best.label], view))
        return _entry(row["image"], pixels, classes)

    def _ranking(self, row: dict[str, Any]) -> list[Ranked]:
        """The ranked classes, best first; without the scores, which a report does not show."""
        names = ("labels", "confidences", "probabilities", "answers")
        ranked = list(zip(*(row[name] for name in names), strict=True))
        if row.get("classes") is not None:
            names = ("label", "confidence", "probability", "answer")
            ranked = [tuple(each[name] for name in names) for each in row["classes"]]
        return [Ranked(from_text(label), math.nan, value, math.nan, *rest) for label, value, *rest in ranked]


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
    if arrays is None or key not in arrays or "heatmaps" not in arrays[key]:
        return {}
    group = arrays[key]
    return {label: np.asarray(group["heatmaps"][number]) for number, label in enumerate(group.attrs["mapped"])}


def _failed(name: str, error: str) -> Entry:
    return Entry(name=as_text(name), error=as_message(error))
