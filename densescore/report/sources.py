"""Where the entries of a report come from: images that are scored now, or a table of images that were."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from densescore.errors import DensescoreError, MissingPackageError
from densescore.geometry import Pyramid
from densescore.io.images import read_image
from densescore.io.names import as_message, as_text, from_text
from densescore.jobs.many.rows import array_key
from densescore.jobs.many.run import read_description
from densescore.models.labels import find_classes
from densescore.report.entries import Entry, Finding, entry_of, map_picture, photo_picture
from densescore.results.scores import DenseScores
from densescore.results.smoothing import RADIUS, smooth
from densescore.scoring.scorer import DenseScorer
from densescore.scoring.stream import score_many

_COLUMNS = ("index", "image", "height", "width", "patches", "labels", "scores", "regions", "error")


def scored_entries(
    images: Iterable[str | os.PathLike[str]], scorer: DenseScorer, classes: Sequence[str] = (), top: int = 3
) -> Iterator[Entry]:
    """Score images one by one; each is in memory only while it is worked on.

    Args:
        images: paths.
        scorer: scores them.
        classes: classes and groups to show of every image.
        top: without `classes`, how many of an image's best classes to show.
    """
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


class ScoreTable:
    """A table that ``densescore score`` made.

    Args:
        path: of the table, ``….parquet``; response maps are read from the zarr folder beside it, if there is one.

    Attributes:
        description: what the table was made with.

    Raises:
        DensescoreError: the table cannot be read, or densescore did not make it.
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
        """The classes and groups that the table was made for; all of the model where none were chosen."""
        return tuple(self.description["classes"] or self.description["labels"])

    def entries(self, classes: Sequence[str] = (), folder: Path | None = None) -> Iterator[Entry]:
        """The table's images, found again; one that is gone, or has another size now, is an error of its own.

        Args:
            classes: of those of the table, the ones to show; all by default.
            folder: where the images lie now. By default at their paths in the table.

        Raises:
            DensescoreError: the table has no scores of a class.
        """
        found = [find_classes(name, self.labels) for name in classes]
        if group := next((each.label for each in found if each.is_group), None):
            raise DensescoreError(f"{self.path}: has no scores of the group {group!r}; score with --classes {group!r}")
        chosen = [each.label for each in found]
        arrays = _open_arrays(self.path.with_suffix(".zarr"))
        columns = [name for name in (*_COLUMNS, "classes") if name in self._file.schema_arrow.names]
        for batch in self._file.iter_batches(64, columns=columns):
            for row in batch.to_pylist():
                yield self._entry(row, chosen, folder, arrays)

    def _entry(self, row: dict[str, Any], chosen: Sequence[str], folder: Path | None, arrays: Any) -> Entry:
        name = from_text(row["image"])
        if row["error"] is not None:
            return _failed(name, row["error"])
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
        maps = _maps_of(arrays, row["index"])
        if maps:
            weights = shrink_weights(self._pyramid(row))
            maps = {label: values * weights for label, values in maps.items()}
        findings = [
            _finding(row, from_text(label), confidence, maps.get(label))
            for label, confidence in self._ranking(row)
            if not chosen or from_text(label) in chosen
        ]
        return Entry(name=row["image"], width=width, height=height, photo_url=photo_picture(pixels), findings=findings)

    def _pyramid(self, row: dict[str, Any]) -> Pyramid:
        """The patches of an image.

        Raises:
            DensescoreError: the image had others: the table does not say how they lay.
        """
        made = self.description
        for phases in (1, 2, 4, 8, 16, 32):  # which the table does not name
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
    """The file of an image that was scored under this path.

    Args:
        name: the path then.
        folder: where the images lie now: the file in it whose path agrees with `name` in the most last parts.

    Raises:
        DensescoreError: there is none.
    """
    if folder is None:
        return Path(name)
    parts = [part for part in Path(name).parts if part != ".."]
    for start in range(1 if Path(name).is_absolute() else 0, len(parts)):
        with suppress(OSError, ValueError):
            if (path := folder.joinpath(*parts[start:])).is_file():
                return path
    raise DensescoreError(f"{name}: no such file in {folder}")


def _finding(row: dict[str, Any], label: str, confidence: float, values: NDArray[np.float32] | None) -> Finding:
    boxes = [
        (region["x0"], region["y0"], region["x1"], region["y1"], region["peak"])
        for region in row["regions"]
        if from_text(region["label"]) == label
    ]
    if values is None:
        return Finding(label=label, confidence=confidence, boxes=boxes, peak=boxes[0][4] if boxes else None)
    smoothed = smooth(torch.from_numpy(values), round(RADIUS * max(values.shape)))  # as `DenseScores.locate` does
    y, x = np.unravel_index(int(smoothed.argmax()), values.shape)
    return Finding(
        label=label,
        confidence=confidence,
        boxes=boxes,
        place=(float(x) + 0.5, float(y) + 0.5),
        peak=float(values.max()),
        map_url=map_picture(values),
    )


def shrink_weights(pyramid: Pyramid) -> NDArray[np.float32]:
    """What a response map is multiplied by to give `DenseScores.shrunk_map`: float32 ``[H, W]``, at most 1."""
    counts = DenseScores(torch.empty(len(pyramid), 0), (), pyramid).coverage.numpy()  # [H, W]
    return (2 * counts / (counts + counts.max())).astype(np.float32)


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
