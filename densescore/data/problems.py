"""Validates a whole data set: readers collect all problems, which are reported together."""

import math
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from densescore.data.labeled_set import POSITIVE, LabeledSet, Picture, read_size
from densescore.errors import DensescoreError, DensescoreWarning
from densescore.io.find import decode_text, is_file

MAX_OVERHANG = 2.0
"""Pixels past the image that a box may reach and is clipped, as annotation tools round."""

MAX_TEXT = 64 * 2**20
"""Bytes of the largest list, label file or XML annotation; real ones have a few thousand."""

LINE_END = re.compile(r"\r\n|\r|\n")
"""Ends of lines; a text may hold others of Unicode's, such as U+2028."""

_MAX_LISTED = 20  # problems in an error before it only counts

Corners = tuple[float, float, float, float]
"""``x0 y0 x1 y1`` in pixels, ends excluded."""


class Problems:
    """Problems of a data set, which refuse it, and notes, which become warnings."""

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._notes: list[str] = []
        self._clipped = 0

    def __bool__(self) -> bool:
        return bool(self._problems)

    def add(self, where: object, problem: str) -> None:
        """Add a problem of a field; `where` is the file, and the line or object."""
        self._problems.append(f"{where}: {problem}")

    def note(self, text: str) -> None:
        """Add a note for the user."""
        self._notes.append(text)

    def finish(self, folder: Path) -> None:
        """Raise one error that lists every problem; without problems, warn of all notes."""
        if self._problems:
            count = f"{len(self._problems)} problem{'s' if len(self._problems) > 1 else ''}"
            more = [f"… and {len(self._problems) - _MAX_LISTED} more"] if len(self._problems) > _MAX_LISTED else []
            raise DensescoreError("\n  ".join([f"{folder}: {count}", *self._problems[:_MAX_LISTED], *more]))
        if self._clipped:
            boxes = "1 box reaches" if self._clipped == 1 else f"{self._clipped} boxes reach"
            self._notes.append(f"{boxes} up to {MAX_OVERHANG:g} pixels past the image; clipped to its border")
        for note in self._notes:
            warnings.warn(f"{folder}: {note}", DensescoreWarning, stacklevel=3)
        self._notes, self._clipped = [], 0

    def clip(self, corners: Corners, width: int, height: int, where: object) -> Corners | None:
        """Clip a box to its image; None and a problem if it is empty, not finite, or past `MAX_OVERHANG`."""
        x0, y0, x1, y1 = corners
        left, top, right, bottom = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
        overhang = max(-x0, -y0, x1 - width, y1 - height)
        finite = all(map(math.isfinite, corners))
        noise = 1e-6 * max(width, height)  # float noise of normalized coordinates is no overhang
        if finite and overhang <= MAX_OVERHANG + noise and left < right and top < bottom:
            self._clipped += overhang > noise
            return left, top, right, bottom
        outside = "lies outside" if finite and overhang > MAX_OVERHANG else "is empty within"
        shown = tuple(round(corner, 2) for corner in corners)
        self.add(where, f"box {shown} {outside} the image of {width}×{height} pixels (width × height)")
        return None


# --- Files, which may be anything ---


def is_inside(name: str) -> bool:
    """Whether a file name in an annotation stays within the set's folder: not absolute, without ``..``."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    try:
        name.encode()
    except UnicodeError:  # a lone surrogate
        return False
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\0" not in name


def slashed(name: str, *folders: Path) -> str:
    """A file name of an annotation, with Windows's backslashes as slashes unless a file in a folder is called so."""
    return name if any(is_file(folder / name) for folder in folders) else name.replace("\\", "/")


def read_text(path: Path, problems: Problems, declaration: re.Pattern[bytes] | None = None) -> str | None:
    """Text of a regular file of at most `MAX_TEXT` bytes; None and a problem otherwise.

    Its encoding is its byte order mark's, else the group of `declaration` at its beginning, else UTF-8.
    """
    if not is_file(path):
        problems.add(path, "not a regular file" if os.path.lexists(path) else "no such file")
        return None
    encoding = "utf-8"
    try:
        size = path.stat().st_size
        if size > MAX_TEXT:
            problems.add(path, f"has {size:,} bytes, more than {MAX_TEXT:,}")
            return None
        content = path.read_bytes()
        if declaration is not None and (declared := declaration.match(content)):
            encoding = declared[1].decode()
        return decode_text(content, encoding)
    except OSError as error:
        problems.add(path, f"cannot be read: {error.strerror}")
    except (UnicodeError, LookupError) as error:
        problems.add(path, f"not text in the encoding {getattr(error, 'encoding', encoding)}: {error}")
    return None


def read_lines(path: Path, problems: Problems) -> list[tuple[int, str]]:
    """Number (from 1) and stripped text of each line that is not blank."""
    text = read_text(path, problems) or ""
    return [(number, line.strip()) for number, line in enumerate(LINE_END.split(text), 1) if line.strip()]


def find_picture(path: Path, problems: Problems, where: object = None) -> Picture | None:
    """`read_size`; None and a problem (of `where`, by default the picture) if that fails."""
    try:
        return read_size(path)
    except DensescoreError as error:
        reason = str(error)
        problems.add(path if where is None else where, reason.removeprefix(f"{path}: ") if where is None else reason)
        return None


# --- Fields ---


def whole_number(value: object) -> int | None:
    """A positive whole number, such as a width in JSON; None for anything else."""
    number = finite_number(value)
    return int(number) if number is not None and number >= 1 and number == int(number) else None


def finite_number(value: object) -> float | None:
    """A finite number; None for anything else (null, a boolean, a text, NaN)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def repeated(items: Iterable[str]) -> list[str]:
    """Items that occur more than once, sorted."""
    return sorted(item for item, count in Counter(items).items() if count > 1)


def check_class_names(names: Sequence[str], where: object, problems: Problems) -> None:
    """Add problems for class names that are empty or repeated, or if there are none."""
    for name in repeated(names):
        problems.add(where, f"class {name!r} is given more than once")
    for alike in repeated(unicodedata.normalize("NFC", name) for name in dict.fromkeys(names)):
        problems.add(where, f"class {alike!r} has two spellings: accents as part of a letter, and as characters")
    if not all(name.strip() for name in names):
        problems.add(where, "a class has no name")
    if not names:
        problems.add(where, "no classes")


def check_positives(labeled: LabeledSet, folder: Path, problems: Problems) -> None:
    """Add a problem for each class without a positive image, which cannot be learned."""
    shown = (labeled.truth() == POSITIVE).any(0)  # [C]
    for label, any_positive in zip(labeled.classes, shown, strict=True):
        if not any_positive:
            problems.add(folder, f"class {label}: no positive image in set {labeled.name!r}")
