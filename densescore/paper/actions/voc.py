"""PASCAL VOC's action sets: ``ImageSets/Action/<set>.txt`` and ``<action>_<set>.txt``, one line per person."""

import os
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from densescore.data.boxed_set import NEGATIVE, POSITIVE, BoxedImage, BoxedSet, Problems, check_box
from densescore.data.voc import find_voc
from densescore.errors import DensescoreError

OTHER = "other"
"""VOC's name for doing none of the actions: a person of no action here, and no action of its own."""


@dataclass(frozen=True, eq=False)
class Person:
    """One person of a set.

    Attributes:
        image: name of the picture.
        index: of the person's object in the annotation, from 1, as the set's files have it.
        path: of the picture.
        height: of the picture in pixels.
        width: of the picture in pixels.
        box: float32 ``[4]``, ``x0 y0 x1 y1`` in pixels, ends excluded.
        actions: bool ``[C]``, what the person does.
    """

    image: str
    index: int
    path: Path
    height: int
    width: int
    box: NDArray[np.float32]
    actions: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ActionSet:
    """The persons of one split.

    Attributes:
        name: of the split.
        actions: C names, in alphabetic order.
        persons: in the order of the split's file.
    """

    name: str
    actions: tuple[str, ...]
    persons: tuple[Person, ...]

    def truth(self) -> NDArray[np.bool_]:
        """What each person does: bool ``[N, C]``."""
        return np.stack([person.actions for person in self.persons])


def read_actions(folder: str | os.PathLike[str], split: str) -> ActionSet:
    """Read one split.

    Args:
        folder: holds ``ImageSets/Action``, or ``VOCdevkit/VOC2012`` that does.
        split: such as ``"train"``.

    Raises:
        DensescoreError: no such layout; or all problems of the data at once, with file and field.
    """
    root = find_voc(Path(folder), "Action")
    if root is None:
        raise DensescoreError(f"{folder}: no ImageSets/Action, nor a VOCdevkit with it")
    sets, problems = root / "ImageSets" / "Action", Problems()
    listed = _read_lines(sets / f"{split}.txt", (2,), problems)
    files = sorted(sets.glob(f"*_{split}.txt"))
    names = tuple(file.stem[: -len(split) - 1] for file in files)
    truth = {name: _read_truth(file, listed, problems) for name, file in zip(names, files, strict=True)}
    actions = tuple(name for name in names if name != OTHER)
    if not actions:
        problems.add(sets, f"no <action>_{split}.txt")
    objects: dict[str, list[_Object]] = {}
    persons = []
    for image, index in ((fields[0], int(fields[1])) for fields in listed):
        if image not in objects:
            objects[image] = _read_objects(root / "Annotations" / f"{image}.xml", problems)
        found = objects[image]
        picture = root / "JPEGImages" / f"{image}.jpg"
        if not picture.is_file():
            problems.add(picture, "no such picture")
        elif not 1 <= index <= len(found):
            problems.add(sets / f"{split}.txt", f"{image}: no object {index}; its annotation has {len(found)}")
        elif (box := found[index - 1].checked(problems)) is not None:
            does = np.array([truth[action].get((image, index), False) for action in actions], bool)
            height, width = found[index - 1].size
            persons.append(Person(image, index, picture, height, width, box, does))
    problems.raise_if_any(root)
    return ActionSet(split, actions, tuple(persons))


def as_boxes(actions: ActionSet) -> BoxedSet:
    """The same data for the sliding-window form: an image shows an action where a person does it.

    A person of one action is a box of that action. Who does several is one difficult box for each, and a person of none
    is a difficult box of every action: patches of them neither teach an action nor the background. An image is positive
    for what any of its persons does.
    """
    by_image: dict[str, list[Person]] = {}
    for person in actions.persons:
        by_image.setdefault(person.image, []).append(person)
    images = []
    for name, persons in by_image.items():
        rows = [(person, action) for person in persons for action in range(len(actions.actions))]
        rows = [(person, action) for person, action in rows if person.actions[action] or not person.actions.any()]
        shown = np.stack([person.actions for person in persons]).any(0)  # [C]
        images.append(
            BoxedImage(
                name,
                persons[0].path,
                persons[0].height,
                persons[0].width,
                np.stack([person.box for person, _ in rows]),
                np.array([action for _, action in rows], np.int64),
                np.array([person.actions.sum() != 1 for person, _ in rows], bool),
                np.where(shown, POSITIVE, NEGATIVE).astype(np.int8),
            )
        )
    return BoxedSet(actions.name, actions.actions, tuple(images))


@dataclass(frozen=True)
class _Object:
    where: str
    corners: tuple[float, float, float, float] | None
    size: tuple[int, int]

    def checked(self, problems: Problems) -> NDArray[np.float32] | None:
        if self.corners is None:
            return None  # noted when it was read
        box = check_box(self.corners, self.size[1], self.size[0], self.where, problems)
        return None if box is None else np.array(box, np.float32)


def _read_lines(path: Path, counts: tuple[int, ...], problems: Problems) -> list[list[str]]:
    if not path.is_file():
        problems.add(path, "no such image set")
        return []
    lines = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fields = line.split()
        if fields and (len(fields) not in counts or not fields[1].isdigit()):
            problems.add(f"{path}:{number}", f"expected an image and an object's number, got {line.strip()!r}")
        elif fields:
            lines.append(fields)
    if not lines:
        problems.add(path, "the set is empty")
    return lines


def _read_truth(path: Path, listed: list[list[str]], problems: Problems) -> dict[tuple[str, int], bool]:
    truth = {}
    for fields in _read_lines(path, (3,), problems):
        if fields[2] not in ("1", "-1"):
            problems.add(path, f"{fields[0]} {fields[1]}: expected 1 or -1, got {fields[2]!r}")
        truth[fields[0], int(fields[1])] = fields[2] == "1"
    for image, index in ((fields[0], int(fields[1])) for fields in listed):
        if (image, index) not in truth:
            problems.add(path, f"{image} {index}: no line, though the set lists it")
    return truth


def _read_objects(path: Path, problems: Problems) -> list[_Object]:
    try:
        root = ElementTree.parse(path).getroot()
        height, width = (int(root.findtext(f"size/{side}") or "") for side in ("height", "width"))
    except (OSError, ElementTree.ParseError, ValueError) as error:
        problems.add(path, f"cannot be read as an annotation: {error}")
        return []
    objects = []
    for index, element in enumerate(root.iter("object"), 1):
        where = f"{path}: object {index}"
        try:
            ends = [float(element.findtext(f"bndbox/{end}") or "") for end in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError as error:
            problems.add(where, f"bndbox: {error}")
            objects.append(_Object(where, None, (height, width)))
            continue
        objects.append(_Object(where, (ends[0] - 1, ends[1] - 1, ends[2], ends[3]), (height, width)))
    return objects
