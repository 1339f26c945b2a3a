"""What every reader gives: images, and which classes each image shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError

POSITIVE, UNKNOWN, NEGATIVE = 1, 0, -1
"""Truth of an image for a class, as PASCAL VOC's set files write it: shown, left out, not shown."""

DIFFICULT = UNKNOWN
"""VOC's word for a class that an image shows only in objects too hard to count; left out, as what is unknown."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LabeledImage:
    """One image of a set, and the classes that it shows.

    Attributes:
        name: unique in the set: VOC's image id, or the picture's path from the set's folder without its extension.
        path: of the picture.
        height: in pixels, of the picture as `read_image` gives it: upright.
        width: in pixels, of the upright picture.
        truth: int8 ``[C]``: `POSITIVE`, `NEGATIVE`, or `UNKNOWN`, which training and evaluation leave out.
    """

    name: str
    path: Path
    height: int
    width: int
    truth: NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class LabeledSet:
    """The images of one split. Those with boxes are `BoxedImage`; if all have boxes, the set is a `BoxedSet`.

    Attributes:
        name: of the split, such as ``"train"``.
        classes: C names, all different.
        images: in the order of the split's file.

    Example:
        >>> image = LabeledImage(name="a", path=Path("a.jpg"), height=60, width=80, truth=np.array([1, -1], np.int8))
        >>> LabeledSet("train", ("cat", "dog"), (image,)).truth()
        array([[ 1, -1]], dtype=int8)
    """

    name: str
    classes: tuple[str, ...]
    images: Sequence[LabeledImage]

    def truth(self) -> NDArray[np.int8]:
        """Truth of each image for each class: int8 ``[N, C]`` of `POSITIVE`, `UNKNOWN` and `NEGATIVE`."""
        return np.array([image.truth for image in self.images], np.int8).reshape(len(self.images), len(self.classes))

    def find(self, name: str) -> LabeledImage:
        """The image of a name, or the only one whose path ends in it (with or without the extension).

        Raises:
            DensescoreError: there is none, or several; the message lists them.
        """
        parts = PurePosixPath(name).parts
        found = [image for image in self.images if image.name == name]
        if not found and parts:
            ends = [(image, image.path.parts[-len(parts) :]) for image in self.images]
            found = [image for image, end in ends if parts in (end, (*end[:-1], PurePosixPath(end[-1]).stem))]
        if len(found) == 1:
            return found[0]
        if found:
            raise DensescoreError(f"{name!r} is one of several images: {', '.join(str(image.path) for image in found)}")
        raise DensescoreError(f"set {self.name!r} has no image {name!r}")
