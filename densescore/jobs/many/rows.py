"""An image's scores as a row of the table, and as arrays beside it."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError, MissingPackageError
from densescore.io.files import write_errors
from densescore.io.names import as_message, as_text, text_values
from densescore.io.video import split_frame_name
from densescore.models.labels import find_classes
from densescore.results.formats import SIDES
from densescore.scoring.stream import Scored

if TYPE_CHECKING:
    import pyarrow as pa

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Outputs:
    """Outputs per image."""

    top: int = 5  # classes to rank
    all_scores: bool = False  # also the image scores of all classes
    mapped: int = 1  # best classes whose regions, and maps if `maps` is set, are kept
    classes: tuple[str, ...] = ()  # classes or groups to map instead; their scores are kept whatever their rank
    maps: bool = False  # heatmaps of the mapped classes, as arrays
    patch_scores: bool = False  # scores and boxes of all patches, as arrays

    def checked(self, labels: Sequence[str]) -> "Outputs":
        """The same with `classes` by their names in results; arguments out of range raise `DensescoreError`."""
        if self.top < 1:
            raise DensescoreError(f"top must be at least 1, got {self.top}")
        if self.mapped < 0:
            raise DensescoreError(f"mapped must be at least 0, got {self.mapped}")
        if self.maps and not (self.mapped or self.classes):
            raise DensescoreError("maps are kept of the mapped classes, of which there are none: mapped is 0")
        return replace(self, classes=tuple(dict.fromkeys(find_classes(name, labels).label for name in self.classes)))

    @property
    def arrays(self) -> bool:
        """Whether there are outputs beside the table."""
        return self.maps or self.patch_scores


def make_row(index: int, name: str, scored: Scored, outputs: Outputs, arrays: Path) -> Row:
    """The row of image `index` of the run; its arrays, if any, are written first, to the zarr folder `arrays`."""
    error = None if scored.error is None else as_message(scored.error)
    row: Row = {"index": index, "image": as_text(name), "time": split_frame_name(name)[1], "error": error}
    scores = scored.scores
    if scores is None:
        return row

    # Ranks, and regions of the mapped classes
    selected = scores.select(outputs.classes)
    labels = selected.labels or [best.label for best in scores.top(outputs.mapped)]
    maps = scores.heatmap(labels).cpu().numpy() if labels else None  # [len(labels), H, W]
    row |= text_values(scores.to_row(outputs.top, labels, maps))
    if outputs.classes:
        row["classes"] = text_values([ranked._asdict() for ranked in selected.top(len(labels))])
    if outputs.all_scores:
        row["image_scores"] = scores.image_scores().cpu().numpy()

    # Arrays: one zarr group, which replaces that of an interrupted run
    if outputs.arrays:
        import zarr

        values: dict[str, NDArray[np.float32]] = {}
        if outputs.maps and maps is not None:
            values["heatmaps"] = maps
        if outputs.patch_scores:
            values |= {"patch_scores": scores.patch_scores.cpu().numpy(), "boxes": scores.pyramid.boxes()}
        attributes = {"image": row["image"], "mapped": text_values(labels)}
        with write_errors(arrays):
            group = zarr.create_group(arrays / array_key(index), attributes=attributes, overwrite=True)
            for key, array in values.items():
                group.create_array(key, data=array, chunks=(1, *array.shape[1:]) if key == "heatmaps" else array.shape)
    return row


def open_arrays(folder: Path, description: Mapping[str, Any]) -> None:
    """Make the zarr folder if it is absent: one group per image, called by `array_key`."""
    try:
        import zarr
    except ImportError as error:
        raise MissingPackageError("maps and patch scores need zarr: pip install 'densescore[many]'") from error
    with write_errors(folder):
        for partial in folder.glob("*.partial"):  # left by a kill in the line below
            partial.unlink()
        zarr.open_group(folder, mode="a", attributes={"densescore": description})


def array_key(index: int) -> str:
    """Name of an image's group in the zarr folder."""
    return f"{index:09d}"


def schema(outputs: Outputs) -> "pa.Schema":
    """Columns of the table, as `make_row` fills them."""
    import pyarrow as pa

    def struct(*names: str, **types: "pa.DataType") -> "pa.StructType":
        return pa.struct([*types.items(), *((name, pa.float32()) for name in names)])

    texts, numbers = pa.list_(pa.string()), pa.list_(pa.float32())
    sides = dict.fromkeys(SIDES, pa.int32())
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
        ("probability", pa.float32()),
        ("answer", pa.string()),
        ("best_patch", struct(*SIDES, "score")),
        ("labels", texts),
        ("scores", numbers),
        ("confidences", numbers),
        ("best_patch_scores", numbers),
        ("probabilities", numbers),
        ("answers", texts),
        ("regions", pa.list_(struct("peak", "score", "probability", label=pa.string(), **sides))),
    ]
    if outputs.classes:
        ranked = struct("score", "confidence", "best_patch", "probability", label=pa.string(), answer=pa.string())
        columns.append(("classes", pa.list_(ranked)))
    if outputs.all_scores:
        columns.append(("image_scores", numbers))  # of no fixed length: pyarrow 19 to 25 cannot read nulls among those
    return pa.schema([*columns, ("error", pa.string())])


def encode(rows: Sequence[Row], columns: "pa.Schema") -> bytes:
    """Rows as a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=columns), data)
    return data.getvalue()
