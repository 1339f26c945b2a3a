"""PASCAL VOC's action sets: ``ImageSets/Action/<set>.txt`` and ``<action>_<set>.txt``, one line per person."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from densescore.data.boxed_set import Annotated, BoxedImage, BoxedSet, placing
from densescore.data.labeled_set import NEGATIVE, POSITIVE, Picture
from densescore.data.problems import Corners, Problems, find_picture, read_lines
from densescore.data.voc import find_voc, read_annotation
from densescore.errors import DensescoreError
from densescore.io.find import is_file

OTHER = "other"
"""VOC's name for none of the actions; not among `ActionSet.actions`."""


@dataclass(frozen=True, eq=False)
class Person:
    """One person of a set."""

    image: str
    index: int  # of the object in the annotation, from 1
    path: Path
    height: int  # of the picture
    width: int
    box: NDArray[np.float32]  # [4], x0 y0 x1 y1 in pixels, ends excluded
    actions: NDArray[np.bool_]  # [C]


@dataclass(frozen=True, eq=False)
class ActionSet:
    """The persons of one split."""

    name: str
    actions: tuple[str, ...]  # [C], sorted
    persons: tuple[Person, ...]  # [N], in the order of the split's file

    def truth(self) -> NDArray[np.bool_]:
        """Actions of each person: bool ``[N, C]``."""
        return np.stack([person.actions for person in self.persons])


def read_actions(folder: str | os.PathLike[str], split: str) -> ActionSet:
    """Read one split of a folder with ``ImageSets/Action``, or of one with ``VOCdevkit/VOC2012``.

    All problems of the data are reported together, with file and field.
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
        annotation = annotated[image]
        if annotation is None:
            continue  # reported when it was read
        if index not in annotation.objects:
            problems.add(
                sets / f"{split}.txt", f"{image}: no object {index}; its annotation has {len(annotation.objects)}"
            )
        elif (box := annotation.box(index, problems)) is not None:
            row = np.array([truth[action].get((image, index), False) for action in actions], bool)
            picture = annotation.picture
            persons.append(Person(image, index, picture.path, picture.height, picture.width, box, row))
    problems.finish(root)
    return ActionSet(split, actions, tuple(persons))


def as_boxes(actions: ActionSet) -> BoxedSet:
    """The same data for dense scoring: an image is positive for the actions of its persons.

    A person of one action is its box; one of several, a difficult box of each; one of none, a difficult box of all.
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
    """A picture and its annotation."""

    picture: Picture
    objects: dict[int, Annotated]  # by number
    place: Callable[[Corners], Corners]  # into the upright picture

    def box(self, index: int, problems: Problems) -> NDArray[np.float32] | None:
        """An object's box in the upright picture, float32 ``[4]``; None after a reported problem."""
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
    """A picture and its annotation; None after a reported problem."""
    path = root / "Annotations" / f"{image}.xml"
    annotation = read_annotation(path, problems)
    picture = find_picture(root / "JPEGImages" / f"{image}.jpg", problems)
    if annotation is None or picture is None:
        return None
    place = placing(picture, annotation.size, path, problems)
    return None if place is None else _Annotated(picture, annotation.objects, place)
