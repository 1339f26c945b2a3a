"""What is kept of each image: a row of the table, and arrays beside it."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError, WriteError
from densescore.io.names import as_message, as_text, text_values
from densescore.io.video import split_frame_name
from densescore.models.labels import find_classes
from densescore.results.formats import SIDES, to_row
from densescore.scoring.stream import Scored

if TYPE_CHECKING:
    import pyarrow as pa

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """What to keep of each image.

    Attributes:
        top: classes to rank.
        all_scores: keep the image scores of all classes, too.
        mapped: number of best classes whose regions go into the row, and whose maps are kept if `maps` is set.
        classes: map these classes, or groups of classes, instead, and keep their scores whatever their rank.
        maps: keep the response maps of the mapped classes, as arrays.
        patch_scores: keep the scores and boxes of all patches, as arrays.
    """

    top: int = 5
    all_scores: bool = False
    mapped: int = 1
    classes: tuple[str, ...] = ()
    maps: bool = False
    patch_scores: bool = False

    def checked(self, labels: Sequence[str]) -> "Kept":
        """The same, with classes and groups by the names that results have; what no image could give is refused.

        Raises:
            DensescoreError: names the argument.
        """
        if self.top < 1:
            raise DensescoreError(f"top must be at least 1, got {self.top}")
        if self.mapped < 0:
            raise DensescoreError(f"mapped must be at least 0, got {self.mapped}")
        if self.maps and not (self.mapped or self.classes):
            raise DensescoreError("maps are kept of the mapped classes, of which there are none: mapped is 0")
        return replace(self, classes=tuple(dict.fromkeys(find_classes(name, labels).label for name in self.classes)))

    @property
    def arrays(self) -> bool:
        """Whether anything goes beside the table."""
        return self.maps or self.patch_scores


def keep(index: int, name: str, scored: Scored, kept: Kept, arrays: Path) -> Row:
    """Make one image's row. Arrays, if any are kept, are written first, so that a row is proof of them.

    Args:
        index: of the image in the run.
        name: the image's path; the row has it as `as_text` writes it, and so the labels.
        scored: what became of it.
        kept: what to keep.
        arrays: the zarr folder.
    """
    error = None if scored.error is None else as_message(scored.error)
    row: Row = {"index": index, "image": as_text(name), "time": split_frame_name(name)[1], "error": error}
    scores = scored.scores
    if scores is None:
        return row
    chosen = scores.select(kept.classes)
    labels = chosen.labels or [best.label for best in scores.top(kept.mapped)]
    maps = scores.response_map(labels).cpu().numpy() if labels else None  # [len(labels), H, W]
    row |= text_values(to_row(scores, kept.top, labels, maps))
    if kept.classes:
        row["classes"] = text_values([ranked._asdict() for ranked in chosen.top(len(labels))])
    if kept.all_scores:
        row["image_scores"] = scores.image_scores().cpu().numpy()
    if kept.arrays:
        found: dict[str, NDArray[np.float32]] = {}
        if kept.maps and maps is not None:
            found["maps"] = maps
        if kept.patch_scores:
            found |= {"patch_scores": scores.patch_scores.cpu().numpy(), "boxes": scores.boxes.numpy()}
        write_arrays(arrays, index, found, {"image": row["image"], "mapped": text_values(labels)})
    return row


def open_arrays(folder: Path, description: Mapping[str, Any]) -> None:
    """Make the zarr folder, if it is not there: one group per image, by its index in the run.

    Raises:
        DensescoreError: it cannot be written, or zarr is not installed.
    """
    try:
        import zarr
    except ImportError as error:
        raise DensescoreError("maps and patch scores need zarr: pip install 'densescore[many]'") from error
    with _clear_errors(folder):
        for left in folder.glob("*.partial"):  # by a kill in the line below
            left.unlink()
        zarr.open_group(folder, mode="a", attributes={"densescore": description})


def write_arrays(
    folder: Path, index: int, arrays: Mapping[str, NDArray[np.float32]], attributes: Mapping[str, Any]
) -> None:
    """Write one image's arrays as the zarr group ``folder/<index>``, over what an interrupted run may have left.

    Raises:
        DensescoreError: they cannot be written.
    """
    import zarr

    with _clear_errors(folder):
        group = zarr.create_group(folder / array_key(index), attributes=dict(attributes), overwrite=True)
        for name, values in arrays.items():
            chunks = (1, *values.shape[1:]) if name == "maps" else values.shape
            group.create_array(name, data=values, chunks=chunks)


@contextmanager
def _clear_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(f"{folder}: cannot be written: {error.strerror or error}") from error


def array_key(index: int) -> str:
    """Name of an image's group in the zarr folder."""
    return f"{index:09d}"


def schema(kept: Kept, classes: int) -> "pa.Schema":
    """Columns of the table, as `keep` fills them."""
    import pyarrow as pa

    sides, numbers = [(side, pa.int32()) for side in SIDES], [(name, pa.float32()) for name in ("peak", "score")]
    region = pa.struct([("label", pa.string()), *sides, *numbers])
    patch = pa.struct([*((side, pa.float32()) for side in SIDES), ("score", pa.float32())])
    columns = [
        ("index", pa.int64()),
        ("image", pa.string()),
        ("time", pa.float64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("patches", pa.int32()),
        ("label", pa.string()),
        ("score", pa.float32()),
        ("confidence", pa.float32()),
        ("best_patch", patch),
        ("labels", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("confidences", pa.list_(pa.float32())),
        ("best_patch_scores", pa.list_(pa.float32())),
        ("regions", pa.list_(region)),
    ]
    if kept.classes:
        numbers = [(name, pa.float32()) for name in ("score", "confidence", "best_patch")]
        ranked = pa.struct([("label", pa.string()), *numbers])
        columns.append(("classes", pa.list_(ranked)))
    if kept.all_scores:
        columns.append(("image_scores", pa.list_(pa.float32(), classes)))
    return pa.schema([*columns, ("error", pa.string())])


def encode(rows: Sequence[Row], columns: "pa.Schema") -> bytes:
    """Rows as a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=columns), data)
    return data.getvalue()
