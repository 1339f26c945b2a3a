"""Labeled images and their set; sizes of pictures, names of images, and names of splits."""

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from densescore.errors import DensescoreError
from densescore.io.find import is_file
from densescore.io.images import register_heif

POSITIVE, UNKNOWN, NEGATIVE = 1, 0, -1
"""Truth of an image for a class, as in PASCAL VOC's set files: shown, left out, not shown."""

DIFFICULT = UNKNOWN
"""VOC's word for a class whose only objects in an image are too hard to count; left out like an unknown class."""

SPLIT_ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Split → its names in various tools, in lower case."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LabeledImage:
    """One image of a set, and its classes.

    Attributes:
        name: unique in the set: VOC's image id, or the picture's path from the set's folder without its extension.
        path: picture file.
        height: pixels of the upright picture, as `read_image` gives it.
        width: pixels of the upright picture.
        truth: int8 ``[C]``: `POSITIVE`, `NEGATIVE`, or `UNKNOWN` (left out of training and evaluation).
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
        name: split, such as ``"train"``.
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
            DensescoreError: no image, or several; the message lists them.
        """
        parts = PurePosixPath(name).parts
        matches = [image for image in self.images if image.name == name]
        if not matches and parts:
            ends = [(image, image.path.parts[-len(parts) :]) for image in self.images]
            matches = [image for image, end in ends if parts in (end, (*end[:-1], PurePosixPath(end[-1]).stem))]
        if len(matches) == 1:
            return matches[0]
        if matches:
            paths = ", ".join(str(image.path) for image in matches)
            raise DensescoreError(f"{name!r} is one of several images: {paths}")
        raise DensescoreError(f"set {self.name!r} has no image {name!r}")


@dataclass(frozen=True)
class Picture:
    """Upright size in pixels of a picture file, and its EXIF orientation, 1 to 8."""

    path: Path
    height: int
    width: int
    orientation: int

    @property
    def stored(self) -> tuple[int, int]:
        """Width and height of the stored pixels, before EXIF turns them."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_size(path: Path) -> Picture:
    """Size and orientation of a picture; pixels are not decoded."""
    if not is_file(path):
        raise DensescoreError(f"{path}: no such picture")
    if path.suffix.lower() in (".heic", ".heif"):
        register_heif(str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large or odd files that it opens
            with Image.open(path) as image:
                width, height = image.size
                # A PNG's EXIF may follow its pixels, which Pillow then decodes: only if there is any.
                marks = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
                has_exif = image.format != "PNG" or any(mark in path.read_bytes() for mark in marks)
                exif = image.getexif().get(ExifTags.Base.Orientation, 1) if has_exif else 1
                if image.format == "TIFF":  # Pillow gives their upright size
                    width, height = image.tag_v2[256], image.tag_v2[257]  # type: ignore[attr-defined]
    except Exception as error:  # decoders meet broken files in many ways
        raise DensescoreError(f"{path}: cannot be read as a picture: {error}") from error
    orientation = exif if exif in range(2, 9) else 1
    return Picture(path, *((width, height) if orientation >= 5 else (height, width)), orientation)


def check_size(image: LabeledImage) -> None:
    """Raise if an image's picture has changed its size since the set was read."""
    picture = read_size(image.path)
    if (picture.height, picture.width) != (image.height, image.width):
        raise DensescoreError(
            f"{image.path}: the picture has {picture.width}×{picture.height} pixels (width × height, upright), not "
            f"{image.width}×{image.height} as its set says"
        )


def names_in_set(paths: Sequence[Path], folder: Path | None = None) -> list[str]:
    """Unique names of pictures: paths without the extension, or with it where that repeats.

    Paths start from `folder`, by default the nearest folder that holds all pictures.
    """
    if folder is None:
        folder = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    relative = [path.relative_to(folder) if path.is_relative_to(folder) else path for path in paths]
    stems = [path.with_suffix("").as_posix() for path in relative]
    counts = Counter(stems)
    return [stem if counts[stem] == 1 else path.as_posix() for path, stem in zip(relative, stems, strict=True)]


def is_split(name: str) -> bool:
    """Whether a name is one of `SPLIT_ALIASES`, in upper or lower case."""
    return any(name.casefold() in aliases for aliases in SPLIT_ALIASES.values())
