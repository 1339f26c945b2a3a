"""Pictures of a data set: their sizes as decoded, the turn that EXIF asks for, and their names in the set."""

import functools
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from PIL import ExifTags, Image

from densescore.data.files import is_file
from densescore.data.labeled_set import LabeledImage
from densescore.data.problems import Corners, Problems
from densescore.errors import DensescoreError

_EXIF_MARKS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


@dataclass(frozen=True)
class Picture:
    """A picture's size.

    Attributes:
        path: of the file.
        height: in pixels, upright: as `read_image` gives the picture.
        width: in pixels, upright.
        orientation: EXIF's, 1 to 8. `read_image` turns the stored pixels by it.
    """

    path: Path
    height: int
    width: int
    orientation: int

    @property
    def stored(self) -> tuple[int, int]:
        """Width and height of the stored pixels, before they are turned."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_size(path: Path) -> Picture:
    """Read a picture's size and orientation; pixels are not decoded.

    Raises:
        DensescoreError: not a file, or not a picture.
    """
    if not is_file(path):
        raise DensescoreError(f"{path}: no such picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large or odd files that it still opens
            with Image.open(path) as image:
                width, height = image.size
                # PNG's EXIF may follow its pixels, and Pillow then decodes them all: only if there is any.
                has_exif = image.format != "PNG" or any(mark in path.read_bytes() for mark in _EXIF_MARKS)
                found = image.getexif().get(ExifTags.Base.Orientation, 1) if has_exif else 1
                if image.format == "TIFF":  # Pillow gives the upright size of these
                    width, height = image.tag_v2[256], image.tag_v2[257]  # type: ignore[attr-defined]
    except Exception as error:  # a decoder meets a broken file in many ways
        raise DensescoreError(f"{path}: cannot be read as a picture: {error}") from error
    orientation = found if found in range(2, 9) else 1
    return Picture(path, *((width, height) if orientation >= 5 else (height, width)), orientation)


def check_size(image: LabeledImage) -> None:
    """Refuse an image whose picture has another size than its boxes and patches are laid out for.

    Raises:
        DensescoreError: it has; or the picture cannot be read.
    """
    picture = read_size(image.path)
    if (picture.height, picture.width) != (image.height, image.width):
        raise DensescoreError(
            f"{image.path}: the picture has {picture.width}×{picture.height} pixels (width × height, upright), not "
            f"{image.width}×{image.height} as its set says"
        )


def find_picture(path: Path, problems: Problems, where: object = None) -> Picture | None:
    """`read_size`; None, with a problem noted, where that raises."""
    try:
        return read_size(path)
    except DensescoreError as error:
        problems.add(
            path if where is None else where, str(error).removeprefix(f"{path}: ") if where is None else str(error)
        )
        return None


def upright(corners: Corners, picture: Picture) -> Corners:
    """Turn a box of the stored pixels as EXIF's orientation turns the picture.

    Args:
        corners: in the stored pixels.
        picture: its size and orientation.

    Returns:
        The box in the upright picture.
    """
    width, height = picture.stored

    def turn(x: float, y: float) -> tuple[float, float]:
        return {
            1: (x, y), 2: (width - x, y), 3: (width - x, height - y), 4: (x, height - y),
            5: (y, x), 6: (height - y, x), 7: (height - y, width - x), 8: (y, width - x),
        }[picture.orientation]  # fmt: skip

    (x0, y0), (x1, y1) = turn(*corners[:2]), turn(*corners[2:])
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def placing(
    picture: Picture, size: tuple[int, int], where: object, problems: Problems
) -> Callable[[Corners], Corners] | None:
    """How boxes of an annotation come to lie in the upright picture.

    Args:
        picture: the file's own size and orientation.
        size: width and height that the annotation gives.
        where: the annotation, for messages.
        problems: notes a size that is not the picture's, and a turned picture whose size does not tell whether its
            boxes are of the stored or of the upright pixels.

    Returns:
        Box of the annotation → box of the upright picture; None if a problem was noted.
    """
    shown = f"the picture {picture.path}"
    if size not in (picture.stored, (picture.width, picture.height)):
        turned = f", or {picture.width}×{picture.height} upright" if picture.orientation >= 5 else ""
        pixels = f"{picture.stored[0]}×{picture.stored[1]} pixels (width × height){turned}"
        problems.add(where, f"size: {size[0]}×{size[1]}, but {shown} has {pixels}")
        return None
    if picture.orientation == 1:
        return lambda corners: corners
    if picture.stored == (picture.width, picture.height):
        turned_silently(picture, where, problems)
        return None
    return functools.partial(upright, picture=picture) if size == picture.stored else lambda corners: corners


def turned_silently(picture: Picture, where: object, problems: Problems) -> None:
    """Note a turned picture whose annotation may be of the stored or of the upright pixels."""
    problems.add(
        where,
        f"the picture {picture.path} is turned by its EXIF orientation {picture.orientation}, and nothing tells "
        "whether its boxes are of the stored or of the upright pixels: save it upright, without that tag",
    )


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """Extensions of the formats that Pillow reads, in lower case."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def is_picture(path: PurePath) -> bool:
    """Whether a file's extension is a picture's; hidden files, such as macOS's ``._a.jpg``, are none."""
    return path.suffix.lower() in picture_suffixes() and not path.name.startswith(".")


def walk(folder: Path) -> list[Path]:
    """All files of a folder at any depth, sorted, without hidden ones; linked folders are entered once."""
    files, seen = list[Path](), set[str]()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            files += [Path(place, name) for name in names if not name.startswith(".")]
        seen.add(real)
    return sorted(files)


def pictures_in(folder: Path) -> list[Path]:
    """All pictures of a folder at any depth, sorted."""
    return [path for path in walk(folder) if is_picture(path)]


def by_name(folder: Path) -> dict[str, list[Path]]:
    """Pictures of a folder at any depth, by their path from it without the extension."""
    found: dict[str, list[Path]] = {}
    for path in pictures_in(folder):
        found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return found


def names_in_set(paths: Sequence[Path], folder: Path | None = None) -> list[str]:
    """A name for each picture, unique among them: its path without the extension, or with it where that repeats.

    Args:
        paths: of the pictures.
        folder: that the names start from; the nearest one that holds all pictures by default.
    """
    if folder is None:
        folder = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    relative = [path.relative_to(folder) if path.is_relative_to(folder) else path for path in paths]
    counts = Counter(path.with_suffix("").as_posix() for path in relative)
    return [_name(path, counts) for path in relative]


def _name(path: Path, counts: Counter[str]) -> str:
    short = path.with_suffix("").as_posix()
    return short if counts[short] == 1 else path.as_posix()


def common_tail(one: Iterable[str], other: Iterable[str]) -> int:
    """How many parts two paths have in common, from their ends."""
    count = 0
    for left, right in zip(reversed(list(one)), reversed(list(other)), strict=False):
        if left != right:
            break
        count += 1
    return count
