"""PASCAL VOC's layout: ``JPEGImages``, ``Annotations/*.xml``, ``ImageSets/Main/<set>.txt`` and ``<class>_<set>.txt``.

torchvision's ``VOCDetection`` stops at the first problem and knows no ``<class>_<set>.txt``, so files are read here.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from densescore.data.boxed_set import BoxedImage, Labels, make_image, make_set
from densescore.data.files import is_file, is_inside, read_lines
from densescore.data.labeled_set import NEGATIVE, POSITIVE, LabeledSet
from densescore.data.pictures import by_name
from densescore.data.problems import Problems, check_class_names, repeated
from densescore.data.voc_xml import XmlAnnotation, read_annotation

_LABELED = re.compile(r"(.*\S)\s+(1|0|-1)")  # a line of <class>_<set>.txt


def find_voc(folder: Path, task: str = "Main") -> Path | None:
    """The folder that holds ``ImageSets/<task>``: `folder`, or a year of its ``VOCdevkit`` (the newest)."""
    candidates = [folder, *sorted(folder.glob("VOC[0-9]*"), reverse=True)]
    candidates += sorted(folder.glob("VOCdevkit/VOC*"), reverse=True)
    return next((path for path in candidates if (path / "ImageSets" / task).is_dir()), None)


@dataclass(frozen=True)
class Voc:
    """A set in VOC's layout.

    Attributes:
        root: holds ``ImageSets/Main``.
    """

    root: Path

    @property
    def lists(self) -> Path:
        """The folder of the image sets."""
        return self.root / "ImageSets" / "Main"

    @cached_property
    def pictures(self) -> dict[str, list[Path]]:
        """Pictures by their names in the image sets, whatever their extension."""
        return by_name(self.root / "JPEGImages")

    def splits(self) -> list[str]:
        """Names of the image sets."""
        return sorted(path.stem for path in self.lists.glob("*.txt") if "_" not in path.stem or self._is_list(path))

    def read(self, split: str, labels: Labels, problems: Problems) -> LabeledSet:
        """Read one split, in the order of ``<set>.txt``.

        Classes are those of ``<class>_<set>.txt``, in alphabetic order, or of the annotations where there are no such
        files. Annotations are needed for boxes only; with ``"both"``, of the images that have one.
        """
        names = self._names(split, problems)
        official = self._official(split, names, problems)
        has_xml = (self.root / "Annotations").is_dir()
        if labels == "auto":
            labels = "box" if has_xml else "image"
        annotations: dict[str, XmlAnnotation | None] = {}
        if not has_xml and not official:
            problems.add(self.root, f"neither Annotations nor ImageSets/Main/<class>_{split}.txt")
            names = []
        for name in names:
            path = self.root / "Annotations" / f"{name}.xml"
            optional = labels == "image" or (labels == "both" and not is_file(path))
            if not (official and optional):
                annotations[name] = read_annotation(path, problems, boxes=labels != "image")
        found = {item.label for annotation in annotations.values() if annotation for item in annotation.objects}
        classes = tuple(sorted(official or found))
        check_class_names(classes, self.lists, problems)
        index = {label: number for number, label in enumerate(classes)}
        images = []
        for name in names:
            picture = self._picture(name, problems)
            annotation = annotations.get(name)
            if picture is None or (name in annotations and annotation is None):
                continue
            truth = np.array([official[label].get(name, NEGATIVE) for label in classes], np.int8) if official else None
            image = make_image(
                name, picture, annotation.size if annotation else (1, 1),
                annotation.annotated(index, problems) if annotation else [], len(classes), problems,
                where=annotation.path if annotation else self.lists / f"{split}.txt",
                labels=labels if annotation else "image", truth=truth,
            )  # fmt: skip
            if image is not None:
                images.append(image)
            if isinstance(image, BoxedImage) and truth is not None:
                _check_listed(image, classes, truth, problems)
        return make_set(split, classes, images)

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
        found = self.pictures.get(name, [])
        if len(found) == 1:
            return found[0]
        several = f"several pictures: {', '.join(path.name for path in found)}"
        problems.add(self.root / "JPEGImages" / f"{name}.jpg", several if found else "no such picture")
        return None

    def _is_list(self, path: Path) -> bool:
        """Whether a file lists images, as ``train_val.txt`` may, and is no ``<class>_<set>.txt``."""
        lines = [line for _, line in read_lines(path, Problems())]
        return bool(lines) and all(line in self.pictures or not _LABELED.fullmatch(line) for line in lines)

    def _official(self, split: str, names: list[str], problems: Problems) -> dict[str, dict[str, int]]:
        """Per class and image, the number in ``<class>_<set>.txt``."""
        official: dict[str, dict[str, int]] = {}
        paths = sorted(path for path in self.lists.glob("*.txt") if path.stem.endswith(f"_{split}"))
        longer = [f"_{path.stem}" for path in paths if self._is_list(path)]
        for path in paths:
            if f"_{path.stem}" in longer or any(path.stem.endswith(other) for other in longer):
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
            official[path.stem[: -len(split) - 1]] = rows
        return official


def _check_listed(image: BoxedImage, classes: tuple[str, ...], truth: NDArray[np.int8], problems: Problems) -> None:
    # A box without a listing occurs in real sets (difficult, or truncated); a listing without any box is wrong.
    for index in ((truth == POSITIVE) & ~np.isin(np.arange(len(classes)), image.classes)).nonzero()[0]:
        problems.add(f"image {image.name}", f"class {classes[index]}: listed as positive, but no box in its annotation")
