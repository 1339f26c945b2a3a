"""Boxed images and their set; turns a reader's annotations into images of a set."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from densescore.data.labeled_set import DIFFICULT, NEGATIVE, POSITIVE, LabeledImage, LabeledSet, Picture
from densescore.data.problems import Corners, Problems, find_picture

Labels = Literal["auto", "image", "box", "both"]
"""What is read: boxes if the layout has them; image labels only; boxes of every image; boxes of images with boxes."""


@dataclass(frozen=True, eq=False, kw_only=True)
class BoxedImage(LabeledImage):
    """One image with a box around each object of the set's classes.

    Attributes:
        boxes: float32 ``[B, 4]``, ``x0 y0 x1 y1`` in pixels of the upright picture, ``x1`` and ``y1`` exclusive, inside
            the image.
        classes: int64 ``[B]``, index of each box's class in the set's `classes`.
        difficult: bool ``[B]``, boxes ignored in training and evaluation.
        crowd: bool ``[B]``, difficult boxes that hold many objects (COCO's ``iscrowd``); none by default.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    difficult: NDArray[np.bool_]
    crowd: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))

    def __post_init__(self) -> None:
        if not len(self.crowd):
            object.__setattr__(self, "crowd", np.zeros(len(self.boxes), bool))


@dataclass(frozen=True, eq=False)
class BoxedSet(LabeledSet):
    """A `LabeledSet` whose every image is a `BoxedImage`."""

    images: Sequence[BoxedImage]

    def find(self, name: str) -> BoxedImage:
        """See `LabeledSet.find`."""
        image = super().find(name)
        assert isinstance(image, BoxedImage)
        return image


def boxed_part(labeled: LabeledSet) -> BoxedSet:
    """The boxed images of a set, in their order."""
    return BoxedSet(labeled.name, labeled.classes, tuple(i for i in labeled.images if isinstance(i, BoxedImage)))


def make_set(name: str, classes: tuple[str, ...], images: Sequence[LabeledImage]) -> LabeledSet:
    """A `BoxedSet` if every image has boxes, else a `LabeledSet`."""
    labeled = LabeledSet(name, classes, tuple(images))
    boxed = boxed_part(labeled)
    return boxed if images and len(boxed.images) == len(images) else labeled


def select_classes(labeled: LabeledSet, names: Sequence[str]) -> LabeledSet:
    """The set with some of its classes, in its order; objects of the others are no objects."""
    columns = [column for column, label in enumerate(labeled.classes) if label in names]
    numbers = np.full(len(labeled.classes), -1)
    numbers[columns] = np.arange(len(columns))
    images = []
    for image in labeled.images:
        changes: dict[str, Any] = {"truth": image.truth[columns]}
        if isinstance(image, BoxedImage):
            kept = numbers[image.classes] >= 0
            changes |= {name: getattr(image, name)[kept] for name in ("boxes", "difficult", "crowd")}
            changes["classes"] = numbers[image.classes][kept]
        images.append(replace(image, **changes))
    return make_set(labeled.name, tuple(labeled.classes[column] for column in columns), images)


@dataclass(frozen=True)
class Annotated:
    """One object of an annotation."""

    where: object  # file and object, for messages
    label: str
    corners: Corners | None  # in pixels of the annotation's size, or shares of the picture
    difficult: bool = False
    crowd: bool = False
    rotation: float = 0.0  # degrees, about the center of the corners' box


def make_image(
    name: str,
    path: Path,
    size: tuple[int, int] | None,
    objects: Sequence[Annotated],
    classes: Mapping[str, int],
    problems: Problems,
    *,
    where: object,
    labels: Labels = "box",
    truth: NDArray[np.int8] | None = None,
) -> LabeledImage | None:
    """An image of a set, its boxes turned to the upright picture and clipped; None if its picture or size is wrong.

    `size`: the annotation's width and height, None for corners in [0, 1]; `classes`: name → index; `truth`: int8 [C].
    """
    # Read the picture's size
    picture = find_picture(path, problems, where)
    if picture is None:
        return None
    # Label it by its objects, unless a file of the set gives its truth [C]
    for item in objects:
        if item.label not in classes:
            problems.add(item.where, f"name: unknown class {item.label!r}, not one of {', '.join(classes)}")
    objects = [item for item in objects if item.label in classes]
    if truth is None:
        truth = np.full(len(classes), NEGATIVE, np.int8)
        truth[[classes[item.label] for item in objects if item.difficult]] = DIFFICULT
        truth[[classes[item.label] for item in objects if not item.difficult]] = POSITIVE
    image = LabeledImage(name=name, path=path, height=picture.height, width=picture.width, truth=truth)
    unboxed = [item for item in objects if item.corners is None]
    if labels == "image" or (labels == "both" and unboxed):
        return image
    for item in unboxed:
        problems.add(item.where, "has no box")
    # Turn and clip the boxes
    place = placing(picture, size, where, problems) if objects else None
    if objects and place is None:
        return None
    boxes, boxed = list[Corners](), list[Annotated]()
    for item in objects:
        if place is None or item.corners is None:
            continue
        corners = place(around(item.corners, item.rotation))
        if item.rotation:  # the corners of a turned box may lie outside
            ends = (picture.width, picture.height) * 2
            x0, y0, x1, y1 = (min(max(corner, 0.0), end) for corner, end in zip(corners, ends, strict=True))
            corners = x0, y0, x1, y1
        inside = problems.clip(corners, picture.width, picture.height, item.where)
        if inside is not None:
            boxes.append(inside)
            boxed.append(item)
    return BoxedImage(
        **vars(image),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        classes=np.array([classes[item.label] for item in boxed], np.int64),
        difficult=np.array([item.difficult for item in boxed], bool),
        crowd=np.array([item.crowd for item in boxed], bool),
    )


def around(corners: Corners, rotation: float) -> Corners:
    """The upright box around a box that is turned about its center, by degrees."""
    x0, y0, x1, y1 = corners
    if not rotation or x0 >= x1 or y0 >= y1:
        return corners
    cos, sin = abs(math.cos(math.radians(rotation))), abs(math.sin(math.radians(rotation)))
    width, height = (x1 - x0) * cos + (y1 - y0) * sin, (x1 - x0) * sin + (y1 - y0) * cos
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def placing(
    picture: Picture, size: tuple[int, int] | None, where: object, problems: Problems
) -> Callable[[Corners], Corners] | None:
    """Function that moves a box of an annotation of this size into the upright picture; None and a problem otherwise.

    A turned picture whose size cannot tell whether its boxes are of stored or of upright pixels is a problem.
    """
    width, height = picture.stored
    if size not in (None, picture.stored, (picture.width, picture.height)):
        turned = f", or {picture.width}×{picture.height} upright" if picture.orientation >= 5 else ""
        pixels = f"{width}×{height} pixels (width × height){turned}"
        problems.add(where, f"size: {size[0]}×{size[1]}, but the picture {picture.path} has {pixels}")
        return None
    if picture.orientation == 1:
        scale = (1, 1) if size else picture.stored
        return lambda box: (box[0] * scale[0], box[1] * scale[1], box[2] * scale[0], box[3] * scale[1])
    if size is None or picture.stored == (picture.width, picture.height):
        problems.add(
            where,
            f"the picture {picture.path} is turned by its EXIF orientation {picture.orientation}, and nothing tells "
            "whether its boxes are of the stored or of the upright pixels: save it upright, without that tag",
        )
        return None
    return partial(upright, picture=picture) if size == picture.stored else lambda box: box


def upright(corners: Corners, picture: Picture) -> Corners:
    """Turn a box of the stored pixels as EXIF turns the picture."""
    width, height = picture.stored

    def turn(x: float, y: float) -> tuple[float, float]:
        return {
            1: (x, y), 2: (width - x, y), 3: (width - x, height - y), 4: (x, height - y),
            5: (y, x), 6: (height - y, x), 7: (height - y, width - x), 8: (y, width - x),
        }[picture.orientation]  # fmt: skip

    (x0, y0), (x1, y1) = turn(*corners[:2]), turn(*corners[2:])
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
