"""Average precision as PASCAL VOC defines it, by the rule of 2007 and by that of 2010 and later.

Source: Everingham et al., "The Pascal Visual Object Classes Challenge" (IJCV 2010), Section 4.2, and the VOC 2012
development kit (``VOCevalcls.m``, ``VOCap.m``).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError

Rule = Literal["voc2007", "voc2010", "coco"]
"""``"voc2007"``: mean of the interpolated precision at recalls 0, 0.1, …, 1. ``"voc2010"``: area under it. ``"coco"``:
mean at recalls 0, 0.01, …, 1."""

_POINTS = {"voc2007": 11, "coco": 101}


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision and recall after each ranked item, best first.

    Attributes:
        recall: float64 ``[N]``, rises to 1 if every positive is ranked.
        precision: float64 ``[N]``.
    """

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]


def rank(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Order of items, best first. Among equal scores, negatives come first, so that ties never raise the precision.

    Args:
        scores: ``[N]``.
        truth: ``[N]``.

    Raises:
        DensescoreError: a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise DensescoreError(f"scores: {int((~np.isfinite(scores)).sum())} of {len(scores)} are not finite")
    return np.lexsort((truth, -scores))  # the last key counts most


def precision_recall(scores: NDArray[np.float64], truth: NDArray[np.bool_], positives: int | None = None) -> Curve:
    """The curve of a ranking.

    Args:
        scores: ``[N]``, higher is more certain; difficult items already taken out.
        truth: ``[N]``, whether the item is a true one.
        positives: all there were to find; by default, the true ones among the items. A detector may miss some.

    Raises:
        DensescoreError: there is no positive, or a score is not finite.
    """
    total = int(truth.sum()) if positives is None else positives
    if total < 1:
        raise DensescoreError("average precision needs at least one positive")
    hits = np.cumsum(truth[rank(scores, truth)])
    return Curve(hits / total, hits / np.arange(1, len(hits) + 1))


def average_precision(curve: Curve, rule: Rule = "voc2010") -> float:
    """Summary of a curve, in [0, 1].

    Args:
        curve: of one class.
        rule: see `Rule`.

    Example:
        >>> curve = precision_recall(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))
        >>> round(average_precision(curve, "voc2010"), 4), round(average_precision(curve, "voc2007"), 4)
        (0.8333, 0.8485)
    """
    # Interpolated precision at a recall is the best at that recall or beyond.
    best = np.maximum.accumulate(curve.precision[::-1])[::-1]
    if rule in _POINTS:
        # A recall of 0.3 that sums to 0.30000000000000004 must still count as reached.
        starts = np.searchsorted(curve.recall, np.linspace(0, 1, _POINTS[rule]) - 1e-9)
        return float(np.append(best, 0.0)[starts].mean())
    if rule == "voc2010":
        return float(np.sum(np.diff(curve.recall, prepend=0.0) * best))
    raise DensescoreError(f"rule must be 'voc2007', 'voc2010' or 'coco', got {rule!r}")
