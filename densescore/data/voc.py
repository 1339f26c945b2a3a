"""PASCAL VOC's layout: ``JPEGImages``, ``Annotations/*.xml``, ``ImageSets/Main/<set>.txt`` and ``<class>_<set>.txt``.

torchvision's ``VOCDetection`` stops at the first problem and knows no ``<class>_<set>.txt``, so files are read here.
"""

from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from densescore.data.boxed_set import (
    NEGATIVE,
    POSITIVE,
    BoxedImage,
    BoxedSet,
    Problems,
    check_box,
    check_positives,
    truth_from_boxes,
)


def find_voc(folder: Path, task: str = "Main") -> Path | None:
    """The folder that holds ``ImageSets/<task>``: `folder`, or a year of its ``VOCdevkit`` (the newest)."""
    candidates = [folder, *sorted(folder.glob("VOC[0-9]*"), reverse=True)]
    candidates += sorted(folder.glob("VOCdevkit/VOC*"), reverse=True)
    return next((path for path in candidates if (path / "ImageSets" / task).is_dir()), None)


def read_voc(folder: Path, split: str, *, need_positives: bool = False) -> BoxedSet:
    """Read one split.

    Args:
        folder: holds ``ImageSets/Main``.
        split: name of an image set, such as ``"train"``.
        need_positives: every class must have a positive image, as training needs.

    Returns:
        The images in the order of ``<set>.txt``. Classes are those of ``<class>_<set>.txt``, in alphabetic order, or of
        the annotations where there are no such files. VOC counts pixels from 1 and includes both ends; boxes here
        start from 0 and exclude their ends.

    Raises:
        DensescoreError: lists every problem with its file and field.
    """
    problems = Problems()
    sets = folder / "ImageSets" / "Main"
    names = _read_names(sets / f"{split}.txt", problems)
    truth = _read_truth(sets, split, names, problems)
    parsed = {name: _parse(folder / "Annotations" / f"{name}.xml", problems) for name in names}
    classes = tuple(sorted(truth)) or tuple(sorted({o.label for p in parsed.values() if p for o in p.objects}))
    images = []
    for name in names:
        picture = folder / "JPEGImages" / f"{name}.jpg"
        if not picture.is_file():
            problems.add(picture, "no such picture")
        annotation = parsed[name]
        if annotation is not None:
            images.append(_build(name, picture, annotation, classes, truth, problems))
    boxed = BoxedSet(split, classes, tuple(images))
    if need_positives:
        check_positives(boxed, sets, problems)
    problems.raise_if_any(folder)
    return boxed


class _Object(NamedTuple):
    where: str
    label: str
    corners: tuple[float, float, float, float]
    difficult: bool


class _Annotation(NamedTuple):
    width: int
    height: int
    objects: list[_Object]


def _read_names(path: Path, problems: Problems) -> list[str]:
    if not path.is_file():
        sets = sorted(file.stem for file in path.parent.glob("*.txt") if "_" not in file.stem)
        problems.add(path, f"no such image set; there are {', '.join(sets) or 'none'}")
        return []
    names = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    if not names:
        problems.add(path, "the image set is empty")
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.add(path, f"image {name} is listed more than once")
    return names


def _read_truth(sets: Path, split: str, names: list[str], problems: Problems) -> dict[str, dict[str, int]]:
    """Per class and image, the number in ``<class>_<set>.txt``."""
    truth: dict[str, dict[str, int]] = {}
    for path in sorted(sets.glob(f"*_{split}.txt")):
        label = path.stem[: -len(split) - 1]
        rows: dict[str, int] = {}
        for number, line in enumerate(path.read_text().splitlines(), 1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) != 2 or fields[1] not in ("1", "0", "-1"):
                problems.add(f"{path}:{number}", f"expected an image and 1, 0 or -1, got {line.strip()!r}")
            else:
                rows[fields[0]] = int(fields[1])
        for name in names:
            if name not in rows:
                problems.add(path, f"image {name}: no line, though {split}.txt lists it")
        truth[label] = rows
    return truth


def _parse(path: Path, problems: Problems) -> _Annotation | None:
    if not path.is_file():
        problems.add(path, "no such annotation")
        return None
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        problems.add(path, f"not valid XML: {error}")
        return None
    width, height = (_number(root, f"size/{side}", path, problems) for side in ("width", "height"))
    objects = []
    for index, element in enumerate(root.iter("object"), 1):
        where = f"{path}: object {index}"
        label = (element.findtext("name") or "").strip()
        if not label:
            problems.add(where, "name: missing")
        ends = [_number(element, f"bndbox/{end}", where, problems) for end in ("xmin", "ymin", "xmax", "ymax")]
        flag = (element.findtext("difficult") or "0").strip()
        if flag not in ("0", "1"):
            problems.add(where, f"difficult: expected 0 or 1, got {flag!r}")
        if label and None not in ends:
            x0, y0, x1, y1 = (float(end) for end in ends if end is not None)
            objects.append(_Object(where, label, (x0 - 1, y0 - 1, x1, y1), flag == "1"))
    if not width or not height:
        return None
    return _Annotation(int(width), int(height), objects)


def _number(element: ElementTree.Element, field: str, where: object, problems: Problems) -> float | None:
    text = element.findtext(field)
    try:
        return float(text or "")
    except ValueError:
        problems.add(where, f"{field}: expected a number, got {text!r}")
        return None


def _build(
    name: str,
    picture: Path,
    annotation: _Annotation,
    classes: tuple[str, ...],
    official: dict[str, dict[str, int]],
    problems: Problems,
) -> BoxedImage:
    boxes, indices, difficult = [], [], []
    for item in annotation.objects:
        if item.label not in classes:
            problems.add(item.where, f"name: unknown class {item.label!r}, not one of {', '.join(classes)}")
            continue
        corners = check_box(item.corners, annotation.width, annotation.height, item.where, problems)
        if corners is not None:
            boxes.append(corners)
            indices.append(classes.index(item.label))
            difficult.append(item.difficult)
    hard = np.array(difficult, bool)
    present = np.array(indices, np.int64)
    truth = truth_from_boxes(present, hard, len(classes))
    if official:
        truth = _official_truth(name, truth, classes, official, problems)
    return BoxedImage(
        name,
        picture,
        annotation.height,
        annotation.width,
        np.array(boxes, np.float32).reshape(-1, 4),
        present,
        hard,
        truth,
    )


def _official_truth(
    name: str,
    boxed: NDArray[np.int8],
    classes: tuple[str, ...],
    official: dict[str, dict[str, int]],
    problems: Problems,
) -> NDArray[np.int8]:
    truth = np.array([official[label].get(name, NEGATIVE) for label in classes], np.int8)
    for label, said, seen in zip(classes, truth, boxed, strict=True):
        # A box without a listing occurs in real sets (difficult, or truncated); a listing without any box is wrong.
        if said == POSITIVE and seen == NEGATIVE:
            problems.add(f"image {name}", f"class {label}: listed as positive, but no box in its annotation")
    return truth
