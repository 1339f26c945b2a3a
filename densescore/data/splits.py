"""The splits of a set: which of its own is meant by a name, and how one is drawn where it has none."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from densescore.data.labeled_set import POSITIVE

ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""What tools call the splits; capital letters make no difference."""

WHOLE = ("default", "all")
"""What tools call the split of a set that has none."""

_KNOWN = {alias for names in ALIASES.values() for alias in names}


def is_split(name: str) -> bool:
    """Whether a folder of this name is a split by its name."""
    return name.casefold() in _KNOWN


def match_split(split: str, names: Iterable[str]) -> str | None:
    """Which of a set's splits is meant by a name.

    Args:
        split: as it is asked for, such as ``"val"``.
        names: of the set's splits, such as ``"valid"`` or ``"val2017"``.

    Returns:
        That very name if the set has it, else an alias of it, else the only one with a year or another addition after
        the name (``train2017``, ``train-small``; not ``trainval``); None if there is none, or several.

    Example:
        >>> match_split("val", ("train", "valid")), match_split("train", ("train2017", "trainval2017"))
        ('valid', 'train2017')
    """
    names = list(names)
    if split in names:
        return split
    for alias in ALIASES.get(split, (split,)):
        for name in names:
            if name.casefold() == alias:
                return name
    for addition in (r"[-_]?\d{4}", r"[^a-z].*"):
        found = [name for name in names if re.fullmatch(re.escape(split.casefold()) + addition, name.casefold())]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def draw_val(truth: NDArray[np.int8], share: float, seed: int) -> NDArray[np.bool_]:
    """Draw the validation images of a set, so that each class gets its share.

    Images are grouped by the rarest class that they show, and each group gives its share. What a group's share lacks to
    a whole image goes on to the next, so the total is the share of the whole set.

    Args:
        truth: int8 ``[N, C]``.
        share: of the images, in (0, 1).
        seed: of the draw.

    Returns:
        bool ``[N]``: drawn for validation.
    """
    shown = truth == POSITIVE
    counts = np.where(shown, shown.sum(0), len(truth) + 1)  # [N, C]
    rarest = np.where(shown.any(1), counts.argmin(1), -1) if truth.shape[1] else np.full(len(truth), -1)
    draw, drawn, owed = np.random.default_rng(seed), np.zeros(len(truth), bool), 0.0
    for group in np.unique(rarest):
        members = draw.permutation((rarest == group).nonzero()[0])
        owed += share * len(members)
        count = min(round(owed), len(members))
        drawn[members[:count]] = True
        owed -= count
    return drawn


def listed(names: Sequence[str]) -> str:
    """Names for a message: ``train, val``, or ``none``."""
    return ", ".join(sorted(names)) or "none"
