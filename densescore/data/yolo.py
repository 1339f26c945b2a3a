"""YOLO: ``data.yaml``, pictures, and a text file of normalized boxes for each."""

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from densescore.data.boxed_set import Annotated, Labels, make_image, make_set
from densescore.data.labeled_set import SPLIT_ALIASES, LabeledSet, is_split, names_in_set
from densescore.data.problems import (
    Corners,
    Problems,
    check_class_names,
    finite_number,
    read_lines,
    read_text,
    repeated,
    slashed,
)
from densescore.errors import DensescoreError, MissingPackageError
from densescore.io.find import is_file, pictures_in

_DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_CLASS_LISTS = ("classes.txt", "obj.names")  # left among the labels by labeling tools
_MAX_YAML = 2**20  # characters; the YAML of ImageNet's 21,000 classes has 600,000


@dataclass(frozen=True)
class Yolo:
    """A set in YOLO's layout, described by ``data.yaml``, or by LabelImg's ``classes.txt`` (a name a line)."""

    root: Path
    description: Path

    @cached_property
    def record(self) -> dict[str, Any]:
        """Content of the YAML; scalars are texts, so that a class called ``no`` stays ``no``."""
        problems = Problems()
        if self.description.suffix == ".txt":
            names = [line for _, line in read_lines(self.description, problems)]
            problems.finish(self.root)
            return {"names": names}
        text = read_text(self.description, problems)
        problems.finish(self.root)
        return _parse_yaml(self.description, text or "")

    def splits(self) -> list[str]:
        """Splits of the YAML, and of the usual folders if the YAML does not name them."""
        named = [key for key in self.record if is_split(key) and self.record[key]]
        folders = [path.name for part in (self.root / "images", self.root) for path in sorted(part.glob("*/"))]
        usual = [name for name in folders if is_split(name) and (self.root / "images" / name).is_dir()]
        usual += [name for name in folders if is_split(name) and (self.root / name / "images").is_dir()]
        covered = {alias for names in SPLIT_ALIASES.values() if set(named) & set(names) for alias in names}
        return named + [name for name in dict.fromkeys(usual) if name.casefold() not in covered]

    def read(self, split: str, labels: Labels, problems: Problems) -> LabeledSet:
        """Read one split, or all without splits; a polygon becomes the box around it, key points are left out.

        A picture without a label file shows nothing, as in YOLO; with ``classes.txt`` it was not annotated.
        """
        # Pair pictures and label files
        names = self._names(problems)
        classes = tuple(dict.fromkeys(names.values()))
        index = {label: number for number, label in enumerate(classes)}
        pictures = list(self._pictures(split, problems))
        for name in repeated(str(path) for path, _ in pictures):
            problems.add(self.description, f"{split}: {name} is listed more than once")
        label_files = {path: _labels_of(path, base) for path, base in pictures}
        expected = set(label_files.values())
        for folder in sorted({file.parent for file in expected} - {path.parent for path, _ in pictures}):
            for file in sorted(folder.glob("*.txt")):
                if file not in expected and file.name not in _CLASS_LISTS:
                    problems.add(file, "no picture of that name")
        if self.description.suffix == ".txt":
            bare = [path for path, file in label_files.items() if not os.path.lexists(file)]
            label_files = {path: file for path, file in label_files.items() if os.path.lexists(file)}
            if bare:
                problems.note(f"{len(bare)} pictures without a label file left out, such as {bare[0]}")
        if not pictures:
            problems.add(self.description, f"{split}: no pictures")
        # Make the images
        points = self._key_point_numbers()
        images = []
        for (path, file), name in zip(label_files.items(), names_in_set(list(label_files)), strict=True):
            lines = read_lines(file, problems) if os.path.lexists(file) else []
            parsed = [_parse_line(line, f"{file}:{number}", names, points, problems) for number, line in lines]
            objects = [item for item in parsed if item is not None]
            where = file if objects else path
            image = make_image(name, path, None, objects, index, problems, where=where, labels=labels)
            if image is not None:
                images.append(image)
        return make_set(split, classes, images)

    def _names(self, problems: Problems) -> dict[int, str]:
        """Number of a class in label files → its name, ascending."""
        where, names = f"{self.description}: names", self.record.get("names")
        if isinstance(names, list):
            pairs = list(enumerate(names))
        elif isinstance(names, dict) and all(re.fullmatch(r"[0-9]{1,9}", key) for key in names):
            pairs = sorted((int(key), name) for key, name in names.items())
        else:
            raise DensescoreError(f"{where}: expected a list of class names, or index: name, got {str(names)[:80]!r}")
        if not all(isinstance(name, str) for _, name in pairs):
            raise DensescoreError(f"{where}: expected texts, got {str(names)[:80]!r}")
        for key in repeated(str(key) for key, _ in pairs):
            problems.add(where, f"index {key} is given more than once")
        check_class_names([name.strip() for _, name in pairs], where, problems)
        count = self.record.get("nc")
        if count is not None and count != str(len(pairs)):
            problems.add(f"{self.description}: nc", f"{count!r}, but there are {len(pairs)} names")
        return {key: name.strip() for key, name in pairs}

    def _key_point_numbers(self) -> int | None:
        """Numbers of a line's key points after its box, if the YAML has ``kpt_shape``; else None."""
        shape = self.record.get("kpt_shape")
        if shape is None:
            return None
        if not isinstance(shape, list) or not all(re.fullmatch("[1-9][0-9]{0,3}", str(side)) for side in shape):
            raise DensescoreError(f"{self.description}: kpt_shape: expected [points, 2 or 3], got {str(shape)[:80]!r}")
        return math.prod(map(int, shape))

    def _pictures(self, split: str, problems: Problems) -> Iterator[tuple[Path, Path]]:
        """Pictures of a split, each with the folder that its path starts from."""
        entries = self.record.get(split)
        # Without an entry, of the usual folders
        if not entries:
            usual = [self.root / "images" / split, self.root / split / "images"]
            folder = next((path for path in usual if path.is_dir()), self.root)
            yield from ((path, self.root) for path in pictures_in(folder))
            return
        # Else of the folders, and lists of pictures, of the YAML
        base = self.root
        if isinstance(path := self.record.get("path"), str) and (self.root / slashed(path)).is_dir():
            base = self.root / slashed(path)
        for entry in entries if isinstance(entries, list) else [entries]:
            if not isinstance(entry, str):
                problems.add(self.description, f"{split}: expected a folder or a list of pictures, got {entry!r}")
                continue
            entry = slashed(entry, base, self.root)
            # Roboflow writes ../train/images for a folder beside its data.yaml.
            places = [base / entry, self.root / entry, *(base / entry[3:] for _ in "." if entry.startswith("../"))]
            place = next((Path(os.path.normpath(path)) for path in places if path.is_dir() or is_file(path)), None)
            if place is None:
                problems.add(self.description, f"{split}: no such folder {places[0]}")
            elif place.is_dir():
                yield from ((path, base) for path in pictures_in(place))
            else:
                for number, line in read_lines(place, problems):
                    line = slashed(line, place.parent, base)
                    picture = next(filter(is_file, (place.parent / line, base / line)), None)
                    if picture is None:
                        problems.add(f"{place}:{number}", f"no such picture {line}")
                    else:
                        yield Path(os.path.normpath(picture)), base


def find_yolo(folder: Path) -> Yolo | None:
    """The set of a folder with a ``data.yaml``."""
    return next((Yolo(folder, folder / name) for name in _DESCRIPTIONS if is_file(folder / name)), None)


def find_labelimg_yolo(folder: Path) -> Yolo | None:
    """The set of a folder with ``classes.txt`` and label files, as LabelImg writes them."""
    for path in (folder / "classes.txt", folder / "labels" / "classes.txt"):
        if is_file(path) and any(is_file(_labels_of(picture, folder)) for picture in pictures_in(folder)):
            return Yolo(folder, path)
    return None


def _labels_of(picture: Path, base: Path) -> Path:
    """Label file of a picture: in ``labels`` instead of the last folder ``images`` below `base`, or beside it."""
    parts = list(picture.relative_to(base).parts if picture.is_relative_to(base) else picture.parts)
    outside = picture.parts[: len(picture.parts) - len(parts)]
    if "images" in parts[:-1]:
        last = len(parts) - 1 - parts[::-1].index("images", 1)
        parts[last] = "labels"
    return Path(*outside, *parts).with_suffix(".txt")


def _parse_line(
    line: str, where: str, names: dict[int, str], points: int | None, problems: Problems
) -> Annotated | None:
    fields = line.split()
    try:
        numbers = [finite_number(float(field)) for field in fields[1:]]
    except ValueError:
        numbers = [None]
    values = [number for number in numbers if number is not None]
    complete = len(values) == len(numbers)
    if points is not None:
        complete, values = complete and len(values) == 4 + points, values[:4]
        expected = f"x y width height, and {points} numbers of key points"
    else:
        complete = complete and (len(values) == 4 or (len(values) >= 6 and len(values) % 2 == 0))
        expected = "x y width height, or a polygon"
    if not complete:
        problems.add(where, f"expected a class and {expected}, got {line[:80]!r}")
    elif not re.fullmatch(r"[0-9]{1,9}", fields[0]) or int(fields[0]) not in names:
        problems.add(where, f"unknown class {fields[0]}: the names have {len(names)}, from {min(names, default=0)} on")
    elif not all(-0.5 <= value <= 1.5 for value in values):
        problems.add(where, f"expected numbers in [0, 1], shares of the picture, got {line[:80]!r}")
    else:
        return Annotated(where, names[int(fields[0])], _corners(values))
    return None


def _corners(values: list[float]) -> Corners:
    if len(values) == 4:
        x, y, width, height = values
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def _parse_yaml(path: Path, text: str) -> dict[str, Any]:
    """Parse a YAML mapping without aliases (which may unfold to any size) and repeated keys."""
    try:
        import yaml
    except ImportError as error:
        raise MissingPackageError("YOLO data needs PyYAML: pip install 'densescore[train]'") from error

    class Loader(yaml.BaseLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise yaml.YAMLError("aliases are not read")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            for key in repeated(str(key.value) for key, _ in node.value):
                raise yaml.YAMLError(f"{key[:40]!r} is given more than once")
            return super().construct_mapping(node, deep)

    if len(text) > _MAX_YAML:
        raise DensescoreError(f"{path}: has {len(text):,} characters, more than {_MAX_YAML:,}")
    try:
        record = yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise DensescoreError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(record, dict):
        raise DensescoreError(f"{path}: names: expected the names of the classes, but the YAML is no mapping")
    return record
