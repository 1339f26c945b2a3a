"""A finished table in other forms: CSV, COCO's results, YOLO's labels; each whole or not at all, and written anew."""

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from densescore.errors import DensescoreError
from densescore.io.files import atomic_write, check_replaceable
from densescore.io.names import as_text, from_text, shorten, to_json
from densescore.jobs.many.rows import Row
from densescore.jobs.many.table import parts_of, read_description
from densescore.results.formats import SIDES, coco_results
from densescore.results.regions import Region

_LABELS = "labels in YOLO's layout"
_MAX_ID = 2**53  # integers that every reader of JSON keeps
_MAX_STEM = 251  # bytes of a file name before ".txt"


@dataclass(frozen=True)
class Exports:
    """Paths of a table's other forms."""

    # A line per image and the table's columns. Lists are JSON; so is text that looks like a formula to a spreadsheet.
    csv: Path | None = None
    # COCO's results: the regions of all images; ids are the numbers of the files' names if all have one, else the rows.
    coco: Path | None = None
    # Folder in YOLO's layout: data.yaml with the classes, labels/ with a file per scored image, in the images' folders.
    yolo: Path | None = None
    yolo_confidence: bool = False  # as a sixth column, which YOLO's own predictions have

    @property
    def places(self) -> dict[str, Path]:
        """Requested paths by option."""
        return {name: place for name, place in vars(self).items() if isinstance(place, Path)}

    def check(
        self, table: Path, *, regions: bool, overwrite: bool = False, inputs: Iterable[str | os.PathLike[str]] = ()
    ) -> None:
        """Refuse, before the work, paths that are taken or equal, and regions that the table will not have."""
        taken = {os.path.realpath(path) for path in (table, parts_of(table), table.with_suffix(".zarr"))}
        for name, place in self.places.items():
            if os.path.realpath(place) in taken:
                raise DensescoreError(f"--{name}: {place} is also where another result of this run goes")
            taken.add(os.path.realpath(place))
        if not regions and (self.coco or self.yolo):
            raise DensescoreError("--coco and --yolo write the regions of mapped classes, of which there are none")
        if overwrite or not os.path.lexists(table):  # otherwise they may be exports of this table; see `write`
            for name, place in self.places.items():
                folder = _LABELS if name == "yolo" else ""
                check_replaceable(place, overwrite=overwrite, folder=folder, inputs=inputs)

    def write(
        self,
        table: Path,
        *,
        overwrite: bool = False,
        inputs: Sequence[str | os.PathLike[str]] = (),
        is_new: bool = False,
    ) -> None:
        """Write the forms of a finished table. Without `overwrite`, only its own earlier exports are replaced.

        A table that this run made `is_new`: it has no earlier exports.
        """
        inputs = [table, *inputs]
        for place, lines in ((self.csv, _csv_lines), (self.coco, _coco_lines)):
            if place is not None:
                is_ours = overwrite or (not is_new and _starts_with(place, lines(table)))
                with (
                    atomic_write(place, overwrite=is_ours, inputs=inputs) as temporary,
                    temporary.open("w", encoding="utf-8", newline="") as file,
                ):
                    file.writelines(lines(table))
        if self.yolo is not None:  # a folder is replaced only if its mark says that it has such labels
            with atomic_write(self.yolo, overwrite=overwrite or not is_new, folder=_LABELS, inputs=inputs) as temporary:
                _write_yolo(table, temporary, self.yolo_confidence)


def _starts_with(place: Path, lines: Iterator[str]) -> bool:
    """Whether a file has the first two lines of an export: its header and first image, or its first regions."""
    start = "".join(islice(lines, 2)).encode()
    with suppress(OSError):
        if place.is_file():
            with place.open("rb") as file:
                return file.read(len(start)) == start
    return False


def _rows(table: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(table) as file:
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()


def _csv_lines(table: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def line(cells: Iterable[str]) -> str:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerow(cells)
        return buffer.getvalue()

    names: list[tuple[str, str]] = []  # column, and its field if it has fields
    for column in pq.read_schema(table):
        fields = [column.type.field(index).name for index in range(column.type.num_fields)]
        names += [(column.name, field) for field in (fields if pa.types.is_struct(column.type) else [""])]
    yield line(f"{name}_{field}" if field else name for name, field in names)
    for row in _rows(table):
        row["time"] = row["time"] and repr(row["time"])  # the only float64
        values = (row[name] if not field else (row[name] or {}).get(field) for name, field in names)
        yield line(map(_cell, values))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        is_formula = value.startswith(("=", "+", "-", "@", "\t", "\r"))
        return to_json(value, ensure_ascii=False) if is_formula else value
    value = _short(value)
    return to_json(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)


def _short(value: Any) -> Any:
    """Plain values with each float32 as its shortest number: 0.1, not 0.10000000149011612."""
    if isinstance(value, float):
        return float(str(np.float32(value)))
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list) else value


def _coco_lines(table: Path) -> Iterator[str]:
    """The regions as one JSON list, a record a line, whose beginning comes with the first record."""
    ids, categories = _image_ids(_images(table)), _categories(table)
    separator = "["
    for row in _rows(table):
        for region in row["regions"] or ():
            x0, y0, x1, y1 = (region[side] for side in SIDES)
            box = Region((x0, y0, x1, y1), region["peak"], _certainty(region))
            (record,) = coco_results(ids[row["index"]], {region["label"]: [box]}, categories)
            yield f"{separator}\n{to_json({**record, 'file_name': row['image'], 'category_name': region['label']})}"
            separator = ","
    yield "[]\n" if separator == "[" else "\n]\n"


def _certainty(region: Row) -> float:
    """`Region.shown` of a table's region."""
    shown: float = _short(region["score"] if region["probability"] is None else region["probability"])
    return shown


def _images(table: Path) -> list[str]:
    """Paths of the images."""
    import pyarrow.parquet as pq

    return [from_text(name) for name in pq.read_table(table, columns=["image"])["image"].to_pylist()]


def _image_ids(images: Sequence[str]) -> Sequence[int]:
    """The numbers that name the images' files, if all have distinct ones; else their rows."""
    stems = [Path(image).stem for image in images]
    if all(stem.isascii() and stem.isdecimal() for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers) and max(numbers) < _MAX_ID:
            return numbers
    return range(len(images))


def _categories(table: Path) -> dict[str, int]:
    """Each class's column in ``patch_scores``, by its name in the table; groups follow the classes."""
    description = read_description(table) or {}
    names = dict.fromkeys([*description["labels"], *description["classes"]])
    return {as_text(label): column for column, label in enumerate(names)}


def _write_yolo(table: Path, folder: Path, confidence: bool) -> None:
    categories = _categories(table)
    names = "".join(f"  {number}: {_yaml_text(label)}\n" for label, number in categories.items())
    (folder / "data.yaml").write_text(f"train: images\nnames:\n{names}", encoding="utf-8")
    images = [os.path.abspath(image) for image in _images(table)]
    base = os.path.commonpath([os.path.dirname(image) for image in images])
    taken: set[str] = set()
    for image, row in zip(images, _rows(table), strict=True):
        if row["error"] is not None:
            continue
        lines = []
        for region in row["regions"] or ():
            x0, x1 = region["x0"] / row["width"], region["x1"] / row["width"]
            y0, y1 = region["y0"] / row["height"], region["y1"] / row["height"]
            numbers = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, *([_certainty(region)] if confidence else [])]
            lines.append(" ".join([str(categories[region["label"]]), *(f"{number:.6f}" for number in numbers)]) + "\n")
        file = folder / "labels" / label_file(os.path.relpath(image, base), taken)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(lines))


def _yaml_text(text: str) -> str:
    """Text in double quotes, as YAML and JSON both read it."""
    quoted = to_json(text, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", lambda match: f"\\u{ord(match[0]):04x}", quoted)


def label_file(image: str, taken: set[str]) -> str:
    """The label file of an image: its relative path with ``.txt``, as YOLO's tools look for it; added to `taken`."""
    path = Path(image)
    stem = path.stem if len(os.fsencode(path.stem)) <= _MAX_STEM else shorten(path.stem)
    name, number = str(path.with_name(f"{stem}.txt")), 1
    while name in taken:
        number += 1
        name = str(path.with_name(f"{stem}-{number}.txt"))
    taken.add(name)
    return name
