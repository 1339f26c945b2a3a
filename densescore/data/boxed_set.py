"""Images with boxes, and how a reader's annotations become images of a set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from densescore.data.labeled_set import DIFFICULT, NEGATIVE, POSITIVE, LabeledImage, LabeledSet
from densescore.data.pictures import find_picture, placing, turned_silently
from densescore.data.problems import Corners, Problems

Labels = Literal["auto", "image", "box", "both"]
"""What is read: whatever is there; image labels, boxes ignored; boxes of every image; boxes where an image has them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class BoxedImage(LabeledImage):
    """One image whose objects are boxed: all objects of the set's classes that it shows.

    Attributes:
        boxes: float32 ``[B, 4]``, ``x0 y0 x1 y1`` in pixels of the upright picture, ``x1`` and ``y1`` exclusive, inside
            the image.
        classes: int64 ``[B]``, index of each box's class in the set's `classes`.
        difficult: bool ``[B]``: boxes that are examples of nothing.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    difficult: NDArray[np.bool_]


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
    """The images of a set that have boxes, in their order; none, if the set has only labels."""
    return BoxedSet(labeled.name, labeled.classes, tuple(i for i in labeled.images if isinstance(i, BoxedImage)))


def make_set(name: str, classes: tuple[str, ...], images: Sequence[LabeledImage]) -> LabeledSet:
    """A `BoxedSet` if every image has boxes, else a `LabeledSet`."""
    boxed = [image for image in images if isinstance(image, BoxedImage)]
    if images and len(boxed) == len(images):
        return BoxedSet(name, classes, tuple(boxed))
    return LabeledSet(name, classes, tuple(images))


@dataclass(frozen=True)
class Annotated:
    """One object of an annotation.

    Attributes:
        where: the file and object, for messages.
        label: index of its class.
        corners: ``x0 y0 x1 y1``, ends excluded, in pixels of the annotation's size; None if it has no box.
        difficult: its box is an example of nothing.
    """

    where: object
    label: int
    corners: Corners | None
    difficult: bool = False


def make_image(
    name: str,
    path: Path,
    size: tuple[int, int] | None,
    objects: Sequence[Annotated],
    count: int,
    problems: Problems,
    *,
    where: object,
    labels: Labels = "box",
    truth: NDArray[np.int8] | None = None,
) -> LabeledImage | None:
    """Put an image of a set together, its boxes turned to the upright picture and clipped to it.

    Args:
        name: unique in the set.
        path: of the picture.
        size: width and height that the annotation gives; None if corners are shares of the picture, in [0, 1].
        objects: of the annotation.
        count: C, classes of the set.
        problems: notes a picture that cannot be read, a size that is not the picture's, and bad boxes.
        where: the annotation, for messages.
        labels: ``"image"`` leaves boxes out; ``"both"`` leaves them out if an object has none.
        truth: int8 ``[C]``, where a file says it; from the objects by default.

    Returns:
        A `BoxedImage`, or a `LabeledImage` without boxes; None if a problem was noted of its picture or size.
    """
    picture = find_picture(path, problems, where)
    if picture is None:
        return None
    all_classes = np.array([item.label for item in objects], np.int64)
    all_difficult = np.array([item.difficult for item in objects], bool)
    truth = truth_from_boxes(all_classes, all_difficult, count) if truth is None else truth
    common = {"name": name, "path": path, "height": picture.height, "width": picture.width, "truth": truth}
    unboxed = [item for item in objects if item.corners is None]
    if labels == "image" or (labels == "both" and unboxed):
        return LabeledImage(**common)  # type: ignore[arg-type]
    for item in unboxed:
        problems.add(item.where, "has no box")
    boxes, kept = list[Corners](), list[Annotated]()
    if objects:
        if size is None:
            if picture.orientation != 1:
                turned_silently(picture, where, problems)
                return None
            size, scale = picture.stored, picture.stored
        else:
            scale = (1, 1)
        place = placing(picture, size, where, problems)
        if place is None:
            return None
        for item in objects:
            if item.corners is None:
                continue
            x0, y0, x1, y1 = item.corners
            scaled = place((x0 * scale[0], y0 * scale[1], x1 * scale[0], y1 * scale[1]))
            inside = problems.clip(scaled, picture.width, picture.height, item.where)
            if inside is not None:
                boxes.append(inside)
                kept.append(item)
    return BoxedImage(
        **common,  # type: ignore[arg-type]
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        classes=np.array([item.label for item in kept], np.int64),
        difficult=np.array([item.difficult for item in kept], bool),
    )


def truth_from_boxes(classes: NDArray[np.int64], difficult: NDArray[np.bool_], count: int) -> NDArray[np.int8]:
    """An image's truth per class: difficult where all boxes of the class are.

    Args:
        classes: ``[B]`` class of each box.
        difficult: ``[B]``.
        count: C, classes of the set.

    Returns:
        int8 ``[C]``.
    """
    truth = np.full(count, NEGATIVE, np.int8)
    truth[classes[difficult]] = DIFFICULT
    truth[classes[~difficult]] = POSITIVE
    return truth
