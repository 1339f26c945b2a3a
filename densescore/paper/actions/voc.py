"""PASCAL VOC's action sets: ``ImageSets/Action/<set>.txt`` and ``<action>_<set>.txt``, one line per person."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from densescore.data.boxed_set import BoxedImage, BoxedSet
from densescore.data.files import is_file, read_lines
from densescore.data.labeled_set import NEGATIVE, POSITIVE
from densescore.data.pictures import Picture, find_picture, placing
from densescore.data.problems import Corners, Problems
from densescore.data.voc import find_voc
from densescore.data.voc_xml import XmlObject, read_annotation
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
    annotated: dict[str, _Annotated | None] = {}
    persons = []
    for image, index in ((fields[0], int(fields[1])) for fields in listed):
        if image not in annotated:
            annotated[image] = _read_annotated(root, image, problems)
        found = annotated[image]
        if found is None:
            continue  # noted when it was read
        if index not in found.objects:
            problems.add(sets / f"{split}.txt", f"{image}: no object {index}; its annotation has {len(found.objects)}")
        elif (box := found.box(index, problems)) is not None:
            does = np.array([truth[action].get((image, index), False) for action in actions], bool)
            picture = found.picture
            persons.append(Person(image, index, picture.path, picture.height, picture.width, box, does))
    problems.finish(root)
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
                name=name,
                path=persons[0].path,
                height=persons[0].height,
                width=persons[0].width,
                boxes=np.stack([person.box for person, _ in rows]),
                classes=np.array([action for _, action in rows], np.int64),
                difficult=np.array([person.actions.sum() != 1 for person, _ in rows], bool),
                truth=np.where(shown, POSITIVE, NEGATIVE).astype(np.int8),
            )
        )
    return BoxedSet(actions.name, actions.actions, tuple(images))


@dataclass(frozen=True)
class _Annotated:
    """A picture, its objects by number, and how their boxes come to lie in the upright picture."""

    picture: Picture
    objects: dict[int, XmlObject]
    place: Callable[[Corners], Corners]

    def box(self, index: int, problems: Problems) -> NDArray[np.float32] | None:
        """An object's box in the upright picture: float32 ``[4]``; None, with a problem noted, if there is none."""
        item = self.objects[index]
        if item.corners is None:
            problems.add(item.where, "bndbox: missing")
            return None
        box = problems.clip(self.place(item.corners), self.picture.width, self.picture.height, item.where)
        return None if box is None else np.array(box, np.float32)


def _read_lines(path: Path, counts: tuple[int, ...], problems: Problems) -> list[list[str]]:
    lines = []
    for number, line in read_lines(path, problems):
        fields = line.split()
        if len(fields) not in counts or not fields[1].isdecimal():
            problems.add(f"{path}:{number}", f"expected an image and an object's number, got {line!r}")
        else:
            lines.append(fields)
    if not lines and is_file(path):
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


def _read_annotated(root: Path, image: str, problems: Problems) -> _Annotated | None:
    """None, with a problem noted, if the annotation or the picture cannot be read, or their sizes differ."""
    path = root / "Annotations" / f"{image}.xml"
    annotation = read_annotation(path, problems)
    picture = find_picture(root / "JPEGImages" / f"{image}.jpg", problems)
    if annotation is None or picture is None:
        return None
    place = placing(picture, annotation.size, path, problems)
    return None if place is None else _Annotated(picture, {item.index: item for item in annotation.objects}, place)
