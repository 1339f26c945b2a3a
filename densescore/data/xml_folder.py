"""VOC's XML files beside the pictures, without image sets: what LabelImg, Roboflow and many others write."""

import contextlib
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from densescore.data.boxed_set import Labels, make_image, make_set
from densescore.data.files import is_file
from densescore.data.labeled_set import LabeledSet
from densescore.data.pictures import common_tail, is_picture, names_in_set, walk
from densescore.data.problems import Problems, check_class_names
from densescore.data.splits import is_split
from densescore.data.voc_xml import read_annotation


@dataclass(frozen=True)
class XmlFolder:
    """A folder of XML files and pictures, at any depth.

    Attributes:
        root: the folder. Where all XML files lie under folders called ``train``, ``valid``, …, these are the splits.
    """

    root: Path

    @cached_property
    def files(self) -> list[Path]:
        """All files of the folder."""
        return walk(self.root)

    @cached_property
    def annotations(self) -> list[Path]:
        """The XML files."""
        return [path for path in self.files if path.suffix.lower() == ".xml"]

    def splits(self) -> list[str]:
        """Names of the splits, or none."""
        found = [self._split(path) for path in self.annotations]
        return sorted({name for name in found if name}) if all(found) else []

    def read(self, split: str, labels: Labels, problems: Problems) -> LabeledSet:
        """Read one split, or all where the set has none; classes are those of the objects, in alphabetic order.

        A picture without an XML file was not annotated; it is left out, and counted in a warning.
        """
        split_there = bool(self.splits())
        paths = [path for path in self.annotations if not split_there or self._split(path) == split]
        stems: dict[str, list[Path]] = {}
        pictures = [path for path in self.files if is_picture(path)]
        for path in pictures:
            stems.setdefault(path.stem, []).append(path)
        pairs = {path: self._picture(path, stems.get(path.stem, []), problems) for path in paths}
        for shared, count in Counter(pairs.values()).items():
            if shared is not None and count > 1:
                problems.add(shared, f"{count} XML files of that name")
        used = {picture for picture in pairs.values() if picture is not None}
        unused = [path for path in pictures if path not in used and (not split_there or self._split(path) == split)]
        if unused:
            number = f"{len(unused)} picture{'s' if len(unused) > 1 else ''}"
            problems.note(f"{number} without an XML file left out, such as {unused[0]}")
        parsed = {path: read_annotation(path, problems, boxes=labels != "image") for path in paths}
        classes = tuple(sorted({item.label for one in parsed.values() if one for item in one.objects}))
        check_class_names(classes, self.root, problems)
        index = {label: number for number, label in enumerate(classes)}
        images = []
        names = dict(zip(sorted(used), names_in_set(sorted(used)), strict=True))
        for path, annotation in parsed.items():
            picture = pairs[path]
            if annotation is None or picture is None:
                continue
            image = make_image(
                names[picture], picture, annotation.size, annotation.annotated(index, problems), len(classes), problems,
                where=path, labels=labels,
            )  # fmt: skip
            if image is not None:
                images.append(image)
        return make_set(split, classes, images)

    def _split(self, path: Path) -> str | None:
        return next((part for part in path.relative_to(self.root).parts[:-1] if is_split(part)), None)

    def _picture(self, path: Path, candidates: list[Path], problems: Problems) -> Path | None:
        """The picture of an XML file: beside it, or the one whose folders have most in common with its own."""
        beside = [picture for picture in candidates if picture.parent == path.parent]
        own = path.relative_to(self.root).with_suffix("").parts

        def likeness(picture: Path) -> tuple[int, int]:
            other = picture.relative_to(self.root).with_suffix("").parts
            return common_tail(own, other), len(set(own) & set(other))

        best = max(map(likeness, candidates), default=(0, 0))
        found = beside or [picture for picture in candidates if likeness(picture) == best]
        if len(found) == 1:
            return found[0]
        several = f"several pictures of that name: {', '.join(map(str, found))}"
        problems.add(path, several if found else "no picture of that name")
        return None


def find_xml_folder(folder: Path) -> XmlFolder | None:
    """The set of a folder, if it holds an XML file with VOC's root element."""
    found = XmlFolder(folder)
    for path in found.annotations:
        if not is_file(path):
            continue
        with contextlib.suppress(OSError), path.open("rb") as file:
            if b"<annotation" in file.read(4096).replace(b"\0", b""):  # in UTF-16 each second byte is zero
                return found
    return None
