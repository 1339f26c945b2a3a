"""Collects all that is wrong with a data set, so that a user mends it at once."""

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from densescore.data.labeled_set import POSITIVE, LabeledSet
from densescore.errors import DensescoreError, DensescoreWarning

MAX_OVERHANG = 2.0
"""Pixels past its image that a box may reach and is clipped: annotators' tools round. Real sets hold such boxes."""

_SHOWN = 20  # problems that an error lists before it only counts

Corners = tuple[float, float, float, float]
"""``x0 y0 x1 y1`` in pixels, ends excluded."""


class Problems:
    """What was found while a set was read: problems, which refuse it, and notes, which are warnings."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._notes: list[str] = []
        self._clipped = 0

    @property
    def found(self) -> bool:
        """Whether there is a problem."""
        return bool(self._found)

    def add(self, where: object, what: str) -> None:
        """Note a problem: the file (and line), then the field and what is wrong with it."""
        self._found.append(f"{where}: {what}")

    def note(self, what: str) -> None:
        """Note what a user should know, though the set can be read."""
        self._notes.append(what)

    def finish(self, folder: Path) -> None:
        """Raise one error that lists every problem; if there is none, warn of what was noted.

        Raises:
            DensescoreError: there is a problem.
        """
        if self._found:
            count = f"{len(self._found)} problem{'s' if len(self._found) > 1 else ''}"
            more = [f"… and {len(self._found) - _SHOWN} more"] if len(self._found) > _SHOWN else []
            raise DensescoreError("\n  ".join([f"{folder}: {count}", *self._found[:_SHOWN], *more]))
        if self._clipped:
            boxes = "1 box reaches" if self._clipped == 1 else f"{self._clipped} boxes reach"
            self._notes.append(f"{boxes} up to {MAX_OVERHANG:g} pixels past the image; clipped to its border")
        for note in self._notes:
            warnings.warn(f"{folder}: {note}", DensescoreWarning, stacklevel=3)
        self._notes, self._clipped = [], 0

    def clip(self, corners: Corners, width: int, height: int, where: object) -> Corners | None:
        """Clip a box to its image, and count it if it reached past the border.

        Args:
            corners: in pixels of the image.
            width: of the image.
            height: of the image.
            where: the file and object, for the message.

        Returns:
            The clipped box. None, with a problem noted, if the box is empty, reaches more than `MAX_OVERHANG` outside,
            or is not finite.
        """
        x0, y0, x1, y1 = corners
        inside = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
        overhang = max(-x0, -y0, x1 - width, y1 - height)
        finite = all(map(math.isfinite, corners))
        # Float noise of normalized coordinates is no overhang.
        if (
            finite
            and overhang <= MAX_OVERHANG + 1e-6 * max(width, height)
            and inside[0] < inside[2]
            and inside[1] < inside[3]
        ):
            self._clipped += overhang > 1e-6 * max(width, height)
            return inside
        outside = "lies outside" if finite and overhang > MAX_OVERHANG else "is empty within"
        shown = tuple(round(corner, 2) for corner in corners)
        self.add(where, f"box {shown} {outside} the image of {width}×{height} pixels (width × height)")
        return None


def whole_number(value: object) -> int | None:
    """A positive whole number that JSON or a text holds, such as a picture's width; None if it is anything else."""
    number = finite_number(value)
    return int(number) if number is not None and number >= 1 and number == int(number) else None


def finite_number(value: object) -> float | None:
    """A finite number; None if it is anything else (null, a boolean, a text, NaN)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def repeated(items: Iterable[str]) -> list[str]:
    """Those that occur more than once, in alphabetic order."""
    return sorted(item for item, count in Counter(items).items() if count > 1)


def check_class_names(names: Sequence[str], where: object, problems: Problems) -> None:
    """Note names of classes that are empty or given twice."""
    for name in repeated(names):
        problems.add(where, f"class {name!r} is given more than once")
    if not all(name.strip() for name in names):
        problems.add(where, "a class has no name")
    if not names:
        problems.add(where, "no classes")


def check_positives(labeled: LabeledSet, folder: Path, problems: Problems) -> None:
    """Note the classes that no image of the set shows: nothing could be learned of them."""
    shown = (labeled.truth() == POSITIVE).any(0)  # [C]
    for label, any_positive in zip(labeled.classes, shown, strict=True):
        if not any_positive:
            problems.add(folder, f"class {label}: no positive image in set {labeled.name!r}")
