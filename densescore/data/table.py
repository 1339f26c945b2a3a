"""Tables of pictures and labels: CSV, TSV or JSON lines."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from densescore.data.boxed_set import Labels
from densescore.data.labeled_set import NEGATIVE, POSITIVE, UNKNOWN, LabeledImage, LabeledSet, is_split, names_in_set
from densescore.data.problems import (
    Problems,
    check_class_names,
    find_picture,
    is_inside,
    read_lines,
    read_text,
    slashed,
)
from densescore.io.find import is_file

SUFFIXES = (".csv", ".tsv", ".jsonl")
_COLUMNS = {
    "image": ("image", "filename", "file_name", "file", "path"),
    "labels": ("labels", "label", "class", "classes"),
    "split": ("split", "set"),
}
_UNKNOWN = "?"


@dataclass
class _Row:
    """Labels of one picture, of all its rows together."""

    where: str
    shown: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    split: str = ""


@dataclass(frozen=True)
class Table:
    """Split → its table; or ``""`` → the only table, which may have a column of splits."""

    files: dict[str, Path]

    def splits(self) -> list[str]:
        """Names of the splits, or none."""
        if "" not in self.files:
            return list(self.files)
        return sorted({row.split for row in self._rows(self.files[""], Problems()).values()} - {""})

    def read(self, split: str, labels: Labels, problems: Problems) -> LabeledSet:
        """Read one split, or all without splits; classes are the labels of all splits, sorted.

        ``?cat`` leaves a class out for an image, ``?`` all classes that it is not said to show.
        """
        # Read all tables, and their classes
        tables = {path: self._rows(path, problems) for path in self.files.values()}
        every_row = [row for table in tables.values() for row in table.values()]
        classes = tuple(sorted({label for row in every_row for label in row.shown | row.unknown} - {_UNKNOWN}))
        source = self.files.get("", self.files.get(split, next(iter(self.files.values()))))
        if labels in ("box", "both"):
            problems.add(source, "a table has labels only, no boxes")
        check_class_names(classes, source, problems)
        # Choose the rows of the split
        rows = tables[source]
        if "" in self.files and self.splits():
            for name, row in rows.items():
                if not row.split:
                    problems.add(row.where, f"image {name}: no split, though others have one")
            rows = {name: row for name, row in rows.items() if row.split == split}
        if not rows:
            problems.add(source, "no images")
        # Find their pictures
        pictures = {}
        for name, row in rows.items():
            places = [source.parent / name, source.parent / "images" / name]
            path = next(filter(is_file, places), places[0])
            picture = find_picture(path, problems, row.where)
            if path in pictures:
                problems.add(row.where, f"image: {path} is also the picture of another name")
            elif picture is not None:
                pictures[path] = picture, _truth(row, classes)
        images = [
            LabeledImage(name=name, path=path, height=picture.height, width=picture.width, truth=truth)
            for (path, (picture, truth)), name in zip(pictures.items(), names_in_set(list(pictures)), strict=True)
        ]
        return LabeledSet(split, classes, tuple(images))

    def _rows(self, path: Path, problems: Problems) -> dict[str, _Row]:
        """Rows by picture, without those that have problems."""
        rows: dict[str, _Row] = {}
        for where, name, labels, split in _cells(path, problems):
            if not is_inside(name):
                problems.add(where, f"image: expected a path within the table's folder, got {name!r}")
                continue
            name = PurePosixPath(slashed(name, path.parent, path.parent / "images")).as_posix()  # ./a.jpg is a.jpg
            row = rows.setdefault(name, _Row(where, split=split))
            stripped = {label.strip() for label in labels} - {""}
            row.shown |= {label for label in stripped if not label.startswith(_UNKNOWN)}
            row.unknown |= {label[1:].strip() or _UNKNOWN for label in stripped if label.startswith(_UNKNOWN)}
            if split != row.split:
                problems.add(where, f"split: {split!r}, but {row.split!r} in another row of {name}")
            for label in sorted(row.shown & row.unknown):
                problems.add(where, f"labels: {label} is both shown and unknown in {name}")
        return rows


def find_table(path: Path) -> Table | None:
    """The set of a table, or of a folder that holds one, or one per split (``train.csv``, ``val.csv``)."""
    if not path.is_dir():
        return Table({"": path}) if path.suffix.lower() in SUFFIXES and is_file(path) else None
    tables = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and is_file(file))
    by_split = {file.stem: file for file in tables if is_split(file.stem)}
    by_split |= {file.parent.name: file for file in sorted(path.glob("*/_classes.csv")) if is_file(file)}  # Roboflow's
    if by_split:
        return Table(by_split)
    named = [file for file in tables if file.stem == "labels"] or [file for file in tables if _has_columns(file)]
    return Table({"": named[0]}) if len(named) == 1 else None


def _has_columns(path: Path) -> bool:
    """Whether the first row of a file can be read as a picture and its labels."""
    problems = Problems()
    return next(_cells(path, problems), None) is not None and not problems


def _truth(row: _Row, classes: tuple[str, ...]) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    rest = UNKNOWN if _UNKNOWN in row.unknown else NEGATIVE
    values = [POSITIVE if c in row.shown else UNKNOWN if c in row.unknown else rest for c in classes]
    return np.array(values, np.int8)


def _cells(path: Path, problems: Problems) -> Iterator[tuple[str, str, list[str], str]]:
    """Place in the file (for messages), image, labels and split of each row."""
    return _json_cells(path, problems) if path.suffix.lower() == ".jsonl" else _csv_cells(path, problems)


def _csv_cells(path: Path, problems: Problems) -> Iterator[tuple[str, str, list[str], str]]:
    text = read_text(path, problems)
    if text is None:
        return
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        # Columns
        header = [name.strip() for name in next(reader, [])]
        folded = [name.casefold() for name in header]
        columns = {key: [folded.index(name) for name in names if name in folded] for key, names in _COLUMNS.items()}
        others = [index for index in range(len(header)) if [index] not in (columns["image"][:1], columns["split"][:1])]
        if not columns["image"] or not others:
            problems.add(f"{path}:1", f"expected columns image and labels, got {delimiter.join(header)[:80]!r}")
            return
        if {"labels", "confidences"} <= {*folded}:
            problems.add(f"{path}:1", "a table of scores, not of labels")
            return
        # Rows
        for fields in reader:
            where = f"{path}:{reader.line_num}"
            if fields and len(fields) != len(header):
                problems.add(where, f"{len(fields)} fields, but the header has {len(header)}")
            elif fields:
                split = fields[columns["split"][0]].strip() if columns["split"] else ""
                labels = fields[columns["labels"][0]].split(";") if columns["labels"] else None
                if labels is None:
                    labels = _one_hot({header[index]: fields[index].strip() for index in others}, where, problems)
                yield where, fields[columns["image"][0]].strip(), labels, split
    except csv.Error as error:
        problems.add(f"{path}:{reader.line_num}", f"not valid CSV: {error}")


def _one_hot(values: dict[str, str], where: str, problems: Problems) -> list[str]:
    """Labels of a row with a column per class: 1 shown, 0 not shown, ``?`` or empty unknown."""
    for label, value in values.items():
        if value not in ("1", "0", "?", ""):
            problems.add(where, f"{label}: expected 1, 0 or ?, in a table without a column labels, got {value[:40]!r}")
    return [label if value == "1" else f"?{label}" for label, value in values.items() if value != "0"]


def _json_cells(path: Path, problems: Problems) -> Iterator[tuple[str, str, list[str], str]]:
    for number, line in read_lines(path, problems):
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.add(where, f"not valid JSON: {error}")
            continue
        if not isinstance(record, dict):
            problems.add(where, f"expected an object with image and labels, got {line[:80]!r}")
            continue
        image, labels, split = (
            next((record[name] for name in _COLUMNS[key] if name in record), None) for key in _COLUMNS
        )
        labels = labels.split(";") if isinstance(labels, str) else labels
        if not isinstance(image, str):
            problems.add(where, f"image: expected a path, got {image!r}")
        elif not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            problems.add(where, f"labels: expected a text or a list of texts, got {str(labels)[:80]}")
        elif split is not None and not isinstance(split, str):
            problems.add(where, f"split: expected a text, got {split!r}")
        else:
            yield where, image.strip(), labels, (split or "").strip()
