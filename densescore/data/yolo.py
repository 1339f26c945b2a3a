"""YOLO's layout: ``data.yaml``, pictures, and a text file of normalized boxes for each."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from densescore.data.boxed_set import Annotated, Labels, make_image, make_set
from densescore.data.files import is_file, read_lines, read_text
from densescore.data.labeled_set import LabeledSet
from densescore.data.pictures import names_in_set, pictures_in
from densescore.data.problems import Corners, Problems, check_class_names, finite_number, repeated
from densescore.data.splits import ALIASES, is_split
from densescore.errors import DensescoreError, MissingPackageError

_DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_LISTS = ("classes.txt", "obj.names")  # class names, which labeling tools leave among the labels
_MAX_DESCRIPTION = 2**20  # bytes; the YAML of ImageNet's 21,000 classes has 600,000


@dataclass(frozen=True)
class Yolo:
    """A set in YOLO's layout.

    Attributes:
        root: the folder.
        description: ``data.yaml``, or LabelImg's ``classes.txt``, which has a name in each line.
    """

    root: Path
    description: Path

    @cached_property
    def record(self) -> dict[str, Any]:
        """What the YAML says; all scalars are texts, so that a class called ``no`` stays ``no``."""
        problems = Problems()
        if self.description.suffix == ".txt":
            names = [line for _, line in read_lines(self.description, problems)]
            problems.finish(self.root)
            return {"names": names}
        text = read_text(self.description, problems)
        problems.finish(self.root)
        return _parse_yaml(self.description, text or "")

    def splits(self) -> list[str]:
        """Splits that the YAML names, and those of the usual folders that it does not name."""
        named = [key for key in self.record if is_split(key) and self.record[key]]
        folders = [path.name for part in (self.root / "images", self.root) for path in sorted(part.glob("*/"))]
        usual = [name for name in folders if is_split(name) and (self.root / "images" / name).is_dir()]
        usual += [name for name in folders if is_split(name) and (self.root / name / "images").is_dir()]
        covered = {alias for names in ALIASES.values() if set(named) & set(names) for alias in names}
        return named + [name for name in dict.fromkeys(usual) if name.casefold() not in covered]

    def read(self, split: str, labels: Labels, problems: Problems) -> LabeledSet:
        """Read one split, or all where the set has none.

        A picture without a label file shows nothing, as YOLO has it. Without a ``data.yaml`` it was not annotated, and
        is left out. Of a polygon the box around it is taken. The boxes are of the upright picture or of the stored one,
        and nothing in the files tells which: a picture that EXIF turns is refused if it has boxes.
        """
        classes = self._classes(problems)
        names = dict(classes)
        index = {key: number for number, key in enumerate(names)}
        pictures = list(self._pictures(split, problems))
        for name in repeated(str(path) for path, _ in pictures):
            problems.add(self.description, f"{split}: {name} is listed more than once")
        label_files = {path: _labels_of(path, base) for path, base in pictures}
        expected = set(label_files.values())
        for folder in sorted({file.parent for file in expected} - {path.parent for path, _ in pictures}):
            for file in sorted(folder.glob("*.txt")):
                if file not in expected and file.name not in _LISTS:
                    problems.add(file, "no picture of that name")
        if self.description.suffix == ".txt":
            bare = [path for path, file in label_files.items() if not os.path.lexists(file)]
            label_files = {path: file for path, file in label_files.items() if path not in set(bare)}
            if bare:
                problems.note(f"{len(bare)} pictures without a label file left out, such as {bare[0]}")
        if not pictures:
            problems.add(self.description, f"{split}: no pictures")
        images = []
        for (path, file), name in zip(label_files.items(), names_in_set(list(label_files)), strict=True):
            objects = []
            for number, line in read_lines(file, problems) if os.path.lexists(file) else []:
                parsed = _parse_line(line, f"{file}:{number}", index, problems)
                objects += [] if parsed is None else [parsed]
            image = make_image(
                name, path, None, objects, len(names), problems,
                where=file if objects else path, labels="box" if labels == "auto" else labels,
            )  # fmt: skip
            if image is not None:
                images.append(image)
        return make_set(split, tuple(names.values()), images)

    def _classes(self, problems: Problems) -> list[tuple[int, str]]:
        """Index and name of each class, ascending."""
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
        return [(key, name.strip()) for key, name in pairs]

    def _pictures(self, split: str, problems: Problems) -> Iterator[tuple[Path, Path]]:
        """The pictures of a split, and the folder that each is described from."""
        entries = self.record.get(split)
        if not entries:
            usual = [self.root / "images" / split, self.root / split / "images"]
            folder = next((path for path in usual if path.is_dir()), self.root)
            yield from ((path, self.root) for path in pictures_in(folder))
            return
        base = self.root
        if isinstance(given := self.record.get("path"), str) and (self.root / given).is_dir():
            base = self.root / given
        for entry in entries if isinstance(entries, list) else [entries]:
            if not isinstance(entry, str):
                problems.add(self.description, f"{split}: expected a folder or a list of pictures, got {entry!r}")
                continue
            # Roboflow writes ../train/images for what lies beside its data.yaml.
            places = [base / entry, self.root / entry, *(base / entry[3:] for _ in "." if entry.startswith("../"))]
            place = next((path for path in places if path.is_dir() or is_file(path)), None)
            place = None if place is None else Path(os.path.normpath(place))
            if place is None:
                problems.add(self.description, f"{split}: no such folder {places[0]}")
            elif place.is_dir():
                yield from ((path, base) for path in pictures_in(place))
            else:
                for number, line in read_lines(place, problems):
                    found = [path for path in (place.parent / line, base / line) if is_file(path)]
                    if found:
                        yield Path(os.path.normpath(found[0])), base
                    else:
                        problems.add(f"{place}:{number}", f"no such picture {line}")


def find_yolo(folder: Path) -> Yolo | None:
    """The set of a folder that holds a ``data.yaml``."""
    return next((Yolo(folder, folder / name) for name in _DESCRIPTIONS if is_file(folder / name)), None)


def find_labelimg_yolo(folder: Path) -> Yolo | None:
    """The set of a folder with ``classes.txt`` and label files, as LabelImg writes them."""
    for path in (folder / "classes.txt", folder / "labels" / "classes.txt"):
        if is_file(path) and any(is_file(_labels_of(picture, folder)) for picture in pictures_in(folder)):
            return Yolo(folder, path)
    return None


def _labels_of(picture: Path, base: Path) -> Path:
    """The label file of a picture: its last folder called ``images`` becomes ``labels``; or it lies beside it."""
    parts = list(picture.relative_to(base).parts if picture.is_relative_to(base) else picture.parts)
    outside = picture.parts[: len(picture.parts) - len(parts)]
    if "images" in parts[:-1]:
        last = len(parts) - 1 - parts[::-1].index("images", 1)
        parts[last] = "labels"
    return Path(*outside, *parts).with_suffix(".txt")


def _parse_line(line: str, where: str, index: dict[int, int], problems: Problems) -> Annotated | None:
    fields = line.split()
    try:
        numbers = [finite_number(float(field)) for field in fields[1:]]
    except ValueError:
        numbers = [None]
    values = [number for number in numbers if number is not None]
    polygon = len(values) >= 6 and len(values) % 2 == 0
    if len(values) != len(numbers) or not (len(values) == 4 or polygon):
        problems.add(where, f"expected a class and x y width height, or a polygon, got {line[:80]!r}")
    elif not re.fullmatch(r"[0-9]{1,9}", fields[0]) or int(fields[0]) not in index:
        problems.add(where, f"unknown class {fields[0]}: the names have {len(index)}, from {min(index, default=0)} on")
    elif not all(-0.5 <= value <= 1.5 for value in values):
        problems.add(where, f"expected numbers in [0, 1], shares of the picture, got {line[:80]!r}")
    else:
        return Annotated(where, index[int(fields[0])], _corners(values))
    return None


def _corners(values: list[float]) -> Corners:
    if len(values) == 4:
        x, y, width, height = values
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def _parse_yaml(path: Path, text: str) -> dict[str, Any]:
    """Parse a YAML mapping; without aliases, which may unfold to any size, and without repeated keys."""
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

    if len(text) > _MAX_DESCRIPTION:
        raise DensescoreError(f"{path}: has {len(text):,} characters, more than {_MAX_DESCRIPTION:,}")
    try:
        record = yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise DensescoreError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(record, dict):
        raise DensescoreError(f"{path}: names: expected the names of the classes, but the YAML is no mapping")
    return record
