"""PASCAL VOC: its folders of image sets, and its XML beside pictures, as LabelImg and other tools write it.

torchvision's ``VOCDetection`` stops at the first problem and ignores ``<class>_<set>.txt``, so files are read here.
"""

import contextlib
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from densescore.data.boxed_set import Annotated, BoxedImage, Labels, make_image, make_set
from densescore.data.labeled_set import NEGATIVE, POSITIVE, LabeledSet, is_split, names_in_set
from densescore.data.problems import (
    Corners,
    Problems,
    check_class_names,
    finite_number,
    is_inside,
    read_lines,
    read_text,
    repeated,
    whole_number,
)
from densescore.io.find import files_in, is_file, is_picture, pictures_in

_ENCODING = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_ENDS = ("bndbox/xmin", "bndbox/ymin", "bndbox/xmax", "bndbox/ymax")
_TURNED = ("robndbox/cx", "robndbox/cy", "robndbox/w", "robndbox/h", "robndbox/angle")
_LABELED = re.compile(r"(.*\S)\s+(1|0|-1)")  # a line of <class>_<set>.txt


# --- One XML file ---


@dataclass(frozen=True)
class XmlAnnotation:
    """An XML file: the picture's width and height, and its objects by their number from 1."""

    path: Path
    size: tuple[int, int]
    objects: dict[int, Annotated]


def read_annotation(path: Path, problems: Problems, *, boxes: bool = True) -> XmlAnnotation | None:
    """Read one XML file; None and a problem if it or its size is unreadable, and without objects that have problems.

    Corners count from 0 with ends excluded (VOC's from 1, included). Without `boxes`, only the labels are read.
    """
    text = read_text(path, problems, _ENCODING)
    if text is None:
        return None
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        problems.add(path, f"not valid XML: {error}")
        return None
    if root.tag != "annotation":
        problems.add(path, f"expected <annotation>, got <{root.tag}>")
        return None
    sides = []
    for field in ("size/width", "size/height") if boxes else ():
        sides.append(whole_number(_float(root.findtext(field))))
        if sides[-1] is None:
            problems.add(path, f"{field}: expected a whole number from 1 on, got {root.findtext(field)!r}")
    numbered = enumerate(root.findall("object"), 1)
    objects = {number: _object(path, number, item, boxes, problems) for number, item in numbered}
    if None in sides:
        return None
    width, height = (side or 1 for side in sides or (1, 1))
    return XmlAnnotation(path, (width, height), {number: item for number, item in objects.items() if item})


def _object(path: Path, index: int, element: ElementTree.Element, boxes: bool, problems: Problems) -> Annotated | None:
    where = f"{path}: object {index}"
    label = (element.findtext("name") or "").strip()
    if not label:
        problems.add(where, "name: missing")
    difficult = (element.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        problems.add(where, f"difficult: expected 0 or 1, got {difficult!r}")
    corners: Corners | None = None
    rotation = 0.0

    def read(field: str, text: str | None) -> float:
        number = finite_number(_float(text))
        if number is None:
            problems.add(where, f"{field}: expected a number, got {text!r}")
        return math.nan if number is None else number

    if boxes and element.find("bndbox") is not None:
        ends = [read(field, element.findtext(field)) for field in _ENDS]
        corners = ends[0] - 1, ends[1] - 1, ends[2], ends[3]
        for attribute in element.findall("attributes/attribute"):  # CVAT's
            if attribute.findtext("name") == "rotation":
                rotation = read("rotation", attribute.findtext("value"))
    elif boxes and element.find("robndbox") is not None:  # roLabelImg's, in radians
        x, y, width, height, angle = (read(field, element.findtext(field)) for field in _TURNED)
        corners, rotation = (x - width / 2, y - height / 2, x + width / 2, y + height / 2), math.degrees(angle)
    if corners is not None and any(map(math.isnan, (*corners, rotation))):
        return None
    return Annotated(where, label, corners, difficult == "1", rotation=rotation) if label else None


def _float(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


class _Entry(NamedTuple):
    """An image of a set; `picture` is None if it is a problem, `xml` if it is not needed."""

    name: str
    picture: Path | None
    xml: Path | None


def _read_entries(
    split: str,
    entries: list[_Entry],
    labels: Labels,
    problems: Problems,
    where: Path,
    listed: Mapping[str, Mapping[str, int]] | None = None,
) -> LabeledSet:
    """Read the XML files of a split, and make its images.

    Classes, and truth by class and image, are those of `listed`, else of the objects; `where` is for messages.
    """
    # Read the XML files and the classes
    annotations = {entry.xml: read_annotation(entry.xml, problems, boxes=labels != "image")
                   for entry in entries if entry.xml is not None}  # fmt: skip
    seen = {item.label for annotation in annotations.values() if annotation for item in annotation.objects.values()}
    classes = tuple(sorted(listed or seen))
    check_class_names(classes, where, problems)
    # Make the images
    index = {label: number for number, label in enumerate(classes)}
    images = []
    for entry in entries:
        annotation = None if entry.xml is None else annotations[entry.xml]
        if entry.picture is None or (entry.xml is not None and annotation is None):
            continue
        truth = np.array([listed[c].get(entry.name, NEGATIVE) for c in classes], np.int8) if listed else None
        image = make_image(
            entry.name, entry.picture, annotation.size if annotation else (1, 1),
            list(annotation.objects.values()) if annotation else [], index, problems,
            where=entry.xml or where, labels=labels if annotation else "image", truth=truth,
        )  # fmt: skip
        if image is not None:
            images.append(image)
        # A box without a listing occurs in real sets (difficult, or truncated); a listing without any box is wrong.
        if isinstance(image, BoxedImage) and truth is not None:
            for number in np.setdiff1d((truth == POSITIVE).nonzero()[0], image.classes):
                problem = f"class {classes[number]}: listed as positive, but no box in its annotation"
                problems.add(f"image {image.name}", problem)
    return make_set(split, classes, images)


# --- VOC's folders ---


def find_voc(folder: Path, task: str = "Main") -> Path | None:
    """The folder that holds ``ImageSets/<task>``: `folder`, or the newest year of its ``VOCdevkit``."""
    candidates = [folder, *sorted(folder.glob("VOC[0-9]*"), reverse=True)]
    candidates += sorted(folder.glob("VOCdevkit/VOC*"), reverse=True)
    return next((path for path in candidates if (path / "ImageSets" / task).is_dir()), None)


@dataclass(frozen=True)
class Voc:
    """``JPEGImages``, ``Annotations/*.xml``, ``ImageSets/Main/<set>.txt`` and ``<class>_<set>.txt`` below `root`."""

    root: Path

    @property
    def lists(self) -> Path:
        """Folder of the image sets."""
        return self.root / "ImageSets" / "Main"

    @cached_property
    def pictures(self) -> dict[str, list[Path]]:
        """Pictures by their name in image sets: relative path without the extension."""
        folder = self.root / "JPEGImages"
        by_name: dict[str, list[Path]] = {}
        for path in pictures_in(folder):
            by_name.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
        return by_name

    def splits(self) -> list[str]:
        """Names of the image sets."""
        return sorted(path.stem for path in self.lists.glob("*.txt") if "_" not in path.stem or self._is_list(path))

    def read(self, split: str, labels: Labels, problems: Problems) -> LabeledSet:
        """Read one split, in the order of ``<set>.txt``; classes are those of ``<class>_<set>.txt``, else of the XML.

        XML is needed only for boxes, or without class files; with ``"both"``, boxes are of images that have XML.
        """
        names = self._names(split, problems)
        listed = self._read_class_files(split, names, problems)
        has_xml = (self.root / "Annotations").is_dir()
        if labels == "auto":
            labels = "box" if has_xml else "image"
        if not has_xml and not listed:
            problems.add(self.root, f"neither Annotations nor ImageSets/Main/<class>_{split}.txt")
            names = []
        entries = []
        for name in names:
            xml = self.root / "Annotations" / f"{name}.xml"
            optional = labels == "image" or (labels == "both" and not is_file(xml))
            entries.append(_Entry(name, self._picture(name, problems), None if listed and optional else xml))
        return _read_entries(split, entries, labels, problems, self.lists / f"{split}.txt", listed)

    def _names(self, split: str, problems: Problems) -> list[str]:
        path = self.lists / f"{split}.txt"
        names = [line for _, line in read_lines(path, problems)]
        if not names and is_file(path):
            problems.add(path, "the image set is empty")
        for name in repeated(names):
            problems.add(path, f"image {name} is listed more than once")
        for name in names:
            if not is_inside(name):
                problems.add(path, f"expected a name within JPEGImages, got {name!r}")
        return [name for name in dict.fromkeys(names) if is_inside(name)]

    def _picture(self, name: str, problems: Problems) -> Path | None:
        paths = self.pictures.get(name, [])
        if len(paths) == 1:
            return paths[0]
        several = f"several pictures: {', '.join(path.name for path in paths)}"
        problems.add(self.root / "JPEGImages" / f"{name}.jpg", several if paths else "no such picture")
        return None

    def _is_list(self, path: Path) -> bool:
        """Whether a file such as ``train_val.txt`` lists images, and is no ``<class>_<set>.txt``."""
        lines = [line for _, line in read_lines(path, Problems())]
        return bool(lines) and all(line in self.pictures or not _LABELED.fullmatch(line) for line in lines)

    def _read_class_files(self, split: str, names: list[str], problems: Problems) -> dict[str, dict[str, int]]:
        """Truth by class and image of ``<class>_<set>.txt``."""
        truth: dict[str, dict[str, int]] = {}
        paths = sorted(path for path in self.lists.glob("*.txt") if path.stem.endswith(f"_{split}"))
        other_sets = tuple(f"_{path.stem}" for path in paths if self._is_list(path))
        for path in paths:
            if f"_{path.stem}".endswith(other_sets):
                continue  # another set's list, or a class file of that set
            rows: dict[str, int] = {}
            for number, line in read_lines(path, problems):
                if (row := _LABELED.fullmatch(line)) is None:
                    problems.add(f"{path}:{number}", f"expected an image and 1, 0 or -1, got {line!r}")
                else:
                    rows[row[1]] = int(row[2])
            for name in names:
                if name not in rows:
                    problems.add(path, f"image {name}: no line, though {split}.txt lists it")
            truth[path.stem[: -len(split) - 1]] = rows
        return truth


# --- XML beside pictures ---


@dataclass(frozen=True)
class XmlFolder:
    """XML files and pictures at any depth below `root`; if all XML lies in folders like ``train``, they are splits."""

    root: Path

    @cached_property
    def files(self) -> list[Path]:
        """All files of the folder."""
        return files_in(self.root)

    @cached_property
    def annotations(self) -> list[Path]:
        """XML files of the folder."""
        return [path for path in self.files if path.suffix.lower() == ".xml"]

    def splits(self) -> list[str]:
        """Names of the splits, or none."""
        names = [self._split(path) for path in self.annotations]
        return sorted({name for name in names if name}) if all(names) else []

    def read(self, split: str, labels: Labels, problems: Problems) -> LabeledSet:
        """Read one split, or all without splits. Pictures without XML are left out, and counted in a warning."""
        # Pair XML files with pictures of their name
        has_splits = bool(self.splits())
        in_split = [path for path in self.files if not has_splits or self._split(path) == split]
        pictures: dict[str, list[Path]] = {}
        for path in filter(is_picture, self.files):
            pictures.setdefault(path.stem, []).append(path)
        xml = [path for path in in_split if path.suffix.lower() == ".xml"]
        pairs = {path: self._picture(path, pictures.get(path.stem, []), problems) for path in xml}
        for picture, count in Counter(pairs.values()).items():
            if picture is not None and count > 1:
                problems.add(picture, f"{count} XML files of that name")
        # Count pictures without one
        used = {picture for picture in pairs.values() if picture is not None}
        unused = [path for path in in_split if is_picture(path) and path not in used]
        if unused:
            number = f"{len(unused)} picture{'s' if len(unused) > 1 else ''}"
            problems.note(f"{number} without an XML file left out, such as {unused[0]}")
        names: dict[Path | None, str] = dict(zip(sorted(used), names_in_set(sorted(used)), strict=True))
        entries = [_Entry(names.get(picture, ""), picture, path) for path, picture in pairs.items()]
        return _read_entries(split, entries, labels, problems, self.root)

    def _split(self, path: Path) -> str | None:
        return next((part for part in path.relative_to(self.root).parts[:-1] if is_split(part)), None)

    def _picture(self, xml: Path, candidates: list[Path], problems: Problems) -> Path | None:
        """The picture beside an XML file, else the one whose folders have most in common with the XML file's."""
        parts = xml.relative_to(self.root).with_suffix("").parts

        def likeness(picture: Path) -> tuple[int, int]:
            others = picture.relative_to(self.root).with_suffix("").parts
            pairs = list(zip(reversed(parts), reversed(others), strict=False))
            common_end = next((n for n, (part, other) in enumerate(pairs) if part != other), len(pairs))
            return common_end, len(set(parts) & set(others))

        best = max(map(likeness, candidates), default=(0, 0))
        pictures = [picture for picture in candidates if picture.parent == xml.parent]
        pictures = pictures or [picture for picture in candidates if likeness(picture) == best]
        if len(pictures) == 1:
            return pictures[0]
        several = f"several pictures of that name: {', '.join(map(str, pictures))}"
        problems.add(xml, several if pictures else "no picture of that name")
        return None


def find_xml_folder(folder: Path) -> XmlFolder | None:
    """The set of a folder that holds an XML file with VOC's root element."""
    layout = XmlFolder(folder)
    for path in filter(is_file, layout.annotations):
        with contextlib.suppress(OSError), path.open("rb") as file:
            if b"<annotation" in file.read(4096).replace(b"\0", b""):  # in UTF-16 each second byte is zero
                return layout
    return None
