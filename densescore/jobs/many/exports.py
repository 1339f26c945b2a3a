"""A finished table in other forms beside it: CSV, COCO's results, YOLO's labels.

Each is made from the table alone and appears whole or not at all. A run that was killed before all were there makes the
missing ones when it goes on; those that are there are made once more and compared, so that nothing else is replaced.
"""

import csv
import filecmp
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from densescore.errors import DensescoreError, WriteError
from densescore.io.files import atomic_write, check_replaceable, scratch_folder
from densescore.io.marks import MARK
from densescore.io.names import as_text, from_text, shorten
from densescore.jobs.many.rows import Row
from densescore.jobs.many.run import parts_of, read_description

LABELS = "labels in YOLO's layout"
"""What the mark of a folder says that `Exports.write` wrote."""

_MAX_ID = 2**53  # whole numbers that every reader of JSON keeps
_MAX_STEM = 251  # bytes of a file name before ".txt"


@dataclass(frozen=True)
class Exports:
    """Where to write a table's other forms; None leaves one out.

    Attributes:
        csv: a file with a line per image and the table's columns. Lists are JSON; so is a text that a spreadsheet would
            take for a formula, and `densescore.io.names.from_text` reads it.
        coco: a file in the format of COCO's results: the regions of all images, with the number in the name of each
            image's file, if all names are numbers as COCO's are, or its row in the table as ``image_id``.
        yolo: a folder in YOLO's layout: ``data.yaml`` with the classes, and ``labels/`` with a text file per image that
            was scored, in subfolders as the images are.
    """

    csv: Path | None = None
    coco: Path | None = None
    yolo: Path | None = None

    @property
    def places(self) -> dict[str, Path]:
        """What is asked for, by the name of its option."""
        return {name: place for name, place in vars(self).items() if place is not None}

    def check(
        self, table: Path, *, regions: bool, overwrite: bool = False, inputs: Iterable[str | os.PathLike[str]] = ()
    ) -> None:
        """Refuse what could not be written in the end, before the work is done.

        Args:
            table: ``….parquet``.
            regions: the table will have regions.
            overwrite: what is there may be replaced.
            inputs: files of the run, which are not.

        Raises:
            DensescoreError: two files of one name; no regions to write; or a place is taken, where the run is new.
        """
        taken = {os.path.abspath(path): path for path in (table, parts_of(table), table.with_suffix(".zarr"))}
        for name, place in self.places.items():
            if os.path.abspath(place) in taken:
                raise DensescoreError(f"--{name}: {place} is also where another result of this run goes")
            taken[os.path.abspath(place)] = place
        if not regions and (self.coco or self.yolo):
            raise DensescoreError("--coco and --yolo write the regions of mapped classes, of which there are none")
        begun = any(os.path.lexists(path) for path in (table, parts_of(table)))
        if overwrite or not begun:  # otherwise they may be there from before
            for name, place in self.places.items():
                folder = LABELS if name == "yolo" else ""
                check_replaceable(place, overwrite=overwrite, folder=folder, inputs=inputs)

    def write(self, table: Path, *, overwrite: bool = False, inputs: Sequence[str | os.PathLike[str]] = ()) -> None:
        """Write what is asked for and not there.

        Args:
            table: a finished one.
            overwrite: replace what is there.
            inputs: files of the run, which are not replaced.

        Raises:
            DensescoreError: something else is in a place, or it cannot be written.
        """
        for place, fill, folder in (
            (self.csv, _fill_csv, ""),
            (self.coco, _fill_coco, ""),
            (self.yolo, _fill_yolo, LABELS),
        ):
            if place is None or (not overwrite and _is_made(place, table, fill)):
                continue
            with atomic_write(place, overwrite=overwrite, folder=folder, inputs=[table, *inputs]) as temporary:
                fill(table, temporary)


def _is_made(place: Path, table: Path, fill: Callable[[Path, Path], None]) -> bool:
    """Whether what is in a place is what would be written there."""
    if not os.path.lexists(place):
        return False
    try:
        with scratch_folder(place.parent) as scratch:
            made = scratch / "made"
            fill(table, made)
            return _contents(made) == _contents(place) and all(
                filecmp.cmp(made / name, place / name, shallow=False) for name in _contents(made)
            )
    except OSError as error:
        raise WriteError(f"{place}: cannot be written: {error.strerror or error}") from error


def _contents(place: Path) -> set[str]:
    """Names of the files in a folder at any depth, but its mark; of a file, the empty name."""
    if not place.is_dir():
        return {""}
    files = (path for path in place.rglob("*") if not path.is_dir())
    return {os.path.relpath(path, place) for path in files} - {MARK}


def _rows(table: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(table) as file:
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()


def _fill_csv(table: Path, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names: list[tuple[str, str]] = []  # of a column and of its field, if it has fields
    for column in pq.read_schema(table):
        fields = [column.type.field(index).name for index in range(column.type.num_fields)]
        names += [(column.name, field) for field in (fields if pa.types.is_struct(column.type) else [""])]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(f"{name}_{field}" if field else name for name, field in names)
        for row in _rows(table):
            values = (row[name] if not field else (row[name] or {}).get(field) for name, field in names)
            writer.writerow(map(_cell, values))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        formula = value.startswith(("=", "+", "-", "@", "\t", "\r"))
        return json.dumps(value, ensure_ascii=False) if formula else value
    value = _short(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)


def _short(value: Any) -> Any:
    """Plain values with each float32 as the shortest number that stands for it: 0.1, not 0.10000000149011612."""
    if isinstance(value, float):
        return float(str(np.float32(value)))
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list) else value


def _fill_coco(table: Path, path: Path) -> None:
    numbers = _numbers(_images(table))
    categories = _categories(table)
    with path.open("w", encoding="utf-8") as file:
        separator = "["
        for row in _rows(table):
            for region in row["regions"] or ():
                x0, y0, x1, y1 = (region[side] for side in ("x0", "y0", "x1", "y1"))
                record = {
                    "image_id": row["index"] if numbers is None else numbers[row["index"]],
                    "category_id": categories[region["label"]],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": _short(region["score"]),
                    "file_name": row["image"],
                    "category_name": region["label"],
                }
                file.write(f"{separator}\n{json.dumps(record)}")
                separator = ","
        file.write("[]\n" if separator == "[" else "\n]\n")


def _images(table: Path) -> list[str]:
    """The images' paths."""
    import pyarrow.parquet as pq

    return [from_text(name) for name in pq.read_table(table, columns=["image"])["image"].to_pylist()]


def _numbers(images: Sequence[str]) -> list[int] | None:
    """The numbers that the images' files are called by; None where some are not, or two are alike."""
    stems = [Path(image).stem for image in images]
    if not all(stem.isascii() and stem.isdecimal() for stem in stems):
        return None
    found = [int(stem) for stem in stems]
    return found if len(set(found)) == len(found) and max(found) < _MAX_ID else None


def _categories(table: Path) -> dict[str, int]:
    """Each class's column in ``patch_scores``, by its name in the table; groups follow the classes."""
    described = read_description(table) or {}
    names = dict.fromkeys([*described["labels"], *described["classes"]])
    return {as_text(label): column for column, label in enumerate(names)}


def _fill_yolo(table: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
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
            numbers = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
            lines.append(" ".join([str(categories[region["label"]]), *(f"{number:.6f}" for number in numbers)]) + "\n")
        file = folder / "labels" / label_file(os.path.relpath(image, base), taken)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(lines))


def _yaml_text(text: str) -> str:
    """A text in double quotes, as YAML and JSON both read it."""
    quoted = json.dumps(text, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", quoted)


def label_file(image: str, taken: set[str]) -> str:
    """The label file of an image: its own path with ``.txt``, by which YOLO's tools find it.

    Args:
        image: its path below the folder that holds all images.
        taken: label files of images before; the new one is added. Of images that differ in the suffix alone, the later
            ones are numbered.

    Example:
        >>> taken = set()
        >>> [label_file(image, taken) for image in ("a/1.jpg", "b/1.jpg", "b/1.png")]
        ['a/1.txt', 'b/1.txt', 'b/1-2.txt']
    """
    path = Path(image)
    stem = path.stem if len(os.fsencode(path.stem)) <= _MAX_STEM else shorten(path.stem)
    found, number = str(path.with_name(f"{stem}.txt")), 1
    while found in taken:
        number += 1
        found = str(path.with_name(f"{stem}-{number}.txt"))
    taken.add(found)
    return found
