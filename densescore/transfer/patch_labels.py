"""Labels of patches from an image's boxes: Section 3.2 of the paper.

A patch P is positive for class o if some box B of o has ``|P∩B| ≥ 0.2 |P|`` (the object fills enough of the patch) and
``|P∩B| ≥ 0.6 |B|`` (the patch holds most of the object), and P overlaps no more than one object. Background overlaps
no object. All other patches are ambiguous: training ignores them.

Source: Oquab, Bottou, Laptev, Sivic, CVPR 2014, Section 3.2 ("Generating training data for the target task").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError

Overlap = Literal["touch", "part", "rule", "class"]
"""Overlap of P with a second object, which the text leaves open; from the strictest reading to the loosest:

- ``"touch"``: they share any area. The literal reading. Crowded images lose most of their positives.
- ``"part"``: P holds at least `LabelRule.part` of the second object, or the second object fills as much of P.
- ``"rule"``: the second object also meets both conditions above, so P would be positive for both.
- ``"class"``: as ``"rule"``, but two objects of one class are no conflict.
"""

AMBIGUOUS = -1
"""Label of patches ignored in training."""


@dataclass(frozen=True)
class LabelRule:
    """Thresholds of Section 3.2."""

    patch_share: float = 0.2  # least |P∩B| / |P| of a positive
    object_share: float = 0.6  # least |P∩B| / |B| of a positive
    overlap: Overlap = "class"
    part: float = 0.2  # threshold for overlap="part"

    def __post_init__(self) -> None:
        for name in ("patch_share", "object_share", "part"):
            if not 0 < getattr(self, name) <= 1:
                raise DensescoreError(f"{name} must lie in (0, 1], got {getattr(self, name)}")
        if self.overlap not in get_args(Overlap):
            raise DensescoreError(f"overlap must be one of {', '.join(get_args(Overlap))}, got {self.overlap!r}")


def shared_area(patches: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    """|P∩B| of patches ``[M, 4]`` and boxes ``[B, 4]``, ``x0 y0 x1 y1``: float64 ``[M, B]``, in square pixels."""
    p, b = patches.astype(np.float64)[:, None], boxes.astype(np.float64)[None]  # [M, 1, 4], [1, B, 4]
    sides = np.minimum(p[..., 2:], b[..., 2:]) - np.maximum(p[..., :2], b[..., :2])  # [M, B, 2]
    return np.prod(np.maximum(sides, 0), axis=-1)


def label_patches(
    patches: NDArray[np.float32],
    boxes: NDArray[np.float32],
    classes: NDArray[np.int64],
    count: int,
    rule: LabelRule | None = None,
    difficult: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """One label per patch, int64 ``[M]``: a class, `count` for background, or `AMBIGUOUS`; for a softmax.

    Patches ``[M, 4]`` and boxes ``[B, 4]`` in pixels. `difficult` ``[B]`` objects make no patch positive.
    """
    rule = rule or LabelRule()
    shared, _, usable = _positives(patches, boxes, rule, difficult)
    labels = np.full(len(patches), AMBIGUOUS, np.int64)
    labels[~(shared > 0).any(1)] = count
    if len(boxes) == 0:
        return labels
    owner = _owner(shared, usable)
    shows = usable.any(1) & ~_conflicts(patches, boxes, classes, owner, rule).any(1)  # [M]
    labels[shows] = classes[owner][shows]
    return labels


def why_left_out(
    patches: NDArray[np.float32],
    boxes: NDArray[np.float32],
    classes: NDArray[np.int64],
    names: Sequence[str],
    rule: LabelRule | None = None,
    difficult: NDArray[np.bool_] | None = None,
) -> list[str]:
    r"""A reason for each of `label_patches`' ambiguous patches, with the classes' names.

    Example:
        >>> patches, cat = np.array([[0, 0, 10, 10]], np.float32), np.array([[5, 0, 15, 10]], np.float32)
        >>> why_left_out(patches, cat, np.array([0]), ["cat"])
        ['holds 50\xa0% of cat, under 60\xa0%']
    """
    rule = rule or LabelRule()
    shared, positive, usable = _positives(patches, boxes, rule, difficult)
    conflicts = _conflicts(patches, boxes, classes, _owner(shared, usable), rule)
    fills, holds = shared / _areas(patches)[:, None], shared / np.maximum(_areas(boxes), 1e-12)  # [M, B]
    nearest = np.argmax(np.minimum(fills / rule.patch_share, holds / rule.object_share), axis=1)  # [M]
    verb = {"touch": "also touches", "part": "also holds a part of"}.get(rule.overlap, "also shows")
    reasons = []
    for m, b in enumerate(nearest.tolist()):
        parts = []
        if usable[m].any():
            parts.append(f"{verb} {', '.join(dict.fromkeys(names[c] for c in classes[conflicts[m]]))}")
        elif positive[m].any():
            parts.append(f"shows only {names[classes[b]]}, which is difficult")
        else:
            if fills[m, b] < rule.patch_share:
                parts.append(f"{names[classes[b]]} fills {_percent(fills[m, b])} of it, under {rule.patch_share:.0%}")
            if holds[m, b] < rule.object_share:
                parts.append(f"holds {_percent(holds[m, b])} of {names[classes[b]]}, under {rule.object_share:.0%}")
        reasons.append("; ".join(parts).replace("%", "\u00a0%"))
    return reasons


def _percent(share: float) -> str:
    """Rounded down: a share under a threshold never reads as the threshold."""
    return "under 1%" if share < 0.01 else f"{int(100 * share)}%"


def _owner(shared: NDArray[np.float64], usable: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The usable box that shares the largest area with each patch: ``[M]``."""
    return np.argmax(np.where(usable, shared, -1.0), axis=1)


def _conflicts(
    patches: NDArray[np.float32],
    boxes: NDArray[np.float32],
    classes: NDArray[np.int64],
    owner: NDArray[np.int64],
    rule: LabelRule,
) -> NDArray[np.bool_]:
    """Boxes except the owner that a patch overlaps in the sense of the rule: bool ``[M, B]``."""
    shared, overlaps, _ = _positives(patches, boxes, rule)  # a box that meets the rule overlaps by any reading
    if rule.overlap == "touch":
        overlaps = shared > 0
    elif rule.overlap == "part":
        overlaps |= (shared >= rule.part * _areas(boxes)) | (shared >= rule.part * _areas(patches)[:, None])
    if rule.overlap == "class":
        return overlaps & (classes != classes[owner][:, None])
    return overlaps & (np.arange(len(boxes)) != owner[:, None])


def label_patches_per_class(
    patches: NDArray[np.float32],
    boxes: NDArray[np.float32],
    classes: NDArray[np.int64],
    count: int,
    rule: LabelRule | None = None,
    difficult: NDArray[np.bool_] | None = None,
) -> NDArray[np.int8]:
    """A label per patch and class, for independent sigmoids: int8 ``[M, C]``; arguments as in `label_patches`.

    1: a box of the class meets both conditions; -1: none touches the patch; 0: between. `LabelRule.overlap` is ignored.
    """
    shared, _, usable = _positives(patches, boxes, rule or LabelRule(), difficult)
    member = classes[:, None] == np.arange(count)  # [B, C]
    touched, shown = (shared > 0) @ member, usable @ member  # [M, C] bool
    return np.where(shown, 1, np.where(touched, 0, -1)).astype(np.int8)


def shown_object(
    patches: NDArray[np.float32],
    boxes: NDArray[np.float32],
    rule: LabelRule | None = None,
    difficult: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """The box with the largest overlap among those that each patch is positive for: int64 ``[M]``, -1 for none."""
    if len(boxes) == 0:
        return np.full(len(patches), -1)
    shared, _, usable = _positives(patches, boxes, rule or LabelRule(), difficult)
    overlap = shared / (_areas(patches)[:, None] + _areas(boxes) - shared)  # [M, B]
    return np.where(usable.any(1), np.argmax(np.where(usable, overlap, -1.0), axis=1), -1)


def _areas(boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2].astype(np.float64)
    return np.prod(sides, axis=1)


def _positives(
    patches: NDArray[np.float32],
    boxes: NDArray[np.float32],
    rule: LabelRule,
    difficult: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """|P∩B|, boxes that meet both conditions, and those of them that are not difficult: each ``[M, B]``."""
    shared = shared_area(patches, boxes)
    positive = (shared >= rule.patch_share * _areas(patches)[:, None]) & (shared >= rule.object_share * _areas(boxes))
    return shared, positive, positive if difficult is None else positive & ~difficult
