"""What every reader gives: images with boxes, and which classes each image shows."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError

POSITIVE, DIFFICULT, NEGATIVE = 1, 0, -1
"""Truth of an image for a class, as PASCAL VOC's set files write it; `DIFFICULT` is left out of every evaluation."""

_SHOWN = 20  # problems that an error lists before it only counts
_BORDER = 1.0  # pixels past its image that a box may reach: annotators' tools round; real sets hold such boxes


@dataclass(frozen=True, eq=False)
class BoxedImage:
    """One image of a set.

    Attributes:
        name: unique in the set; VOC's image id.
        path: of the picture.
        height: in pixels.
        width: in pixels.
        boxes: float32 ``[B, 4]``, ``x0 y0 x1 y1`` in pixels, ``x1`` and ``y1`` exclusive, inside the image.
        classes: int64 ``[B]``, index of each box's class in the set's `classes`.
        difficult: bool ``[B]``.
        truth: int8 ``[C]``, `POSITIVE`, `DIFFICULT` or `NEGATIVE` per class.
    """

    name: str
    path: Path
    height: int
    width: int
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    difficult: NDArray[np.bool_]
    truth: NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class BoxedSet:
    """The images of one split.

    Attributes:
        name: of the split, such as ``"train"``.
        classes: C names.
        images: in the order of the split's file.
    """

    name: str
    classes: tuple[str, ...]
    images: tuple[BoxedImage, ...]

    def truth(self) -> NDArray[np.int8]:
        """Truth of each image for each class: int8 ``[N, C]``."""
        return np.stack([image.truth for image in self.images])


class Problems:
    """Collects what is wrong with a data set, so that a user mends all of it at once."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def add(self, where: object, what: str) -> None:
        """Note a problem: the file (and line), then the field and what is wrong with it."""
        self._found.append(f"{where}: {what}")

    def raise_if_any(self, folder: Path) -> None:
        """Raise one error that lists every problem.

        Raises:
            DensescoreError: there is one.
        """
        if self._found:
            count = f"{len(self._found)} problem{'s' if len(self._found) > 1 else ''}"
            more = [f"… and {len(self._found) - _SHOWN} more"] if len(self._found) > _SHOWN else []
            raise DensescoreError("\n  ".join([f"{folder}: {count}", *self._found[:_SHOWN], *more]))


def check_box(
    corners: tuple[float, float, float, float], width: int, height: int, where: object, problems: Problems
) -> tuple[float, float, float, float] | None:
    """Clip a box to its image; None, and a problem noted, if it is empty or reaches more than a pixel outside.

    Args:
        corners: ``x0 y0 x1 y1`` in pixels, exclusive ends.
        width: of the image.
        height: of the image.
        where: the file and object, for the message.
        problems: where a problem is noted.
    """
    x0, y0, x1, y1 = corners
    outside = x0 < -_BORDER or y0 < -_BORDER or x1 > width + _BORDER or y1 > height + _BORDER
    x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    if not outside and x0 < x1 and y0 < y1:
        return x0, y0, x1, y1
    reason = "lies outside the image of" if outside else "is empty within the image of"
    problems.add(where, f"box {tuple(round(c, 2) for c in corners)} {reason} {width}×{height} pixels (width × height)")
    return None


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


def check_positives(boxed: BoxedSet, folder: Path, problems: Problems) -> None:
    """Note the classes that no image of the set shows; nothing could be learned of them."""
    shown = (boxed.truth() == POSITIVE).any(0) if boxed.images else np.zeros(len(boxed.classes), bool)
    for label, any_positive in zip(boxed.classes, shown, strict=True):
        if not any_positive:
            problems.add(folder, f"class {label}: no positive image in set {boxed.name!r}")
