"""Average precision: published values, scikit-learn, ties, difficult images."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from densescore import DensescoreError
from densescore.evaluation.average_precision import average_precision, precision_recall
from tests.conftest import DATA


def test_a_ranking_on_paper() -> None:
    curve = precision_recall(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False]))
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 2 / 3, 1 / 2])
    np.testing.assert_allclose(curve.recall, [0.5, 0.5, 1, 1])
    assert average_precision(curve) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(curve, "voc2007") == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_recall_that_rounds_still_counts_as_reached() -> None:
    # Three of ten: a recall of 0.3 as ten sums of a tenth is not exactly 0.3.
    truth = np.array([True] * 3 + [False] * 5)
    curve = precision_recall(np.arange(8, 0, -1.0), truth, positives=10)
    assert average_precision(curve, "voc2007") == pytest.approx(4 / 11)


@given(st.lists(st.booleans(), min_size=1, max_size=40).filter(any), st.randoms(use_true_random=False))
def test_scikit_learn_agrees_on_falling_curves(truth: list[bool], random: object) -> None:
    """scikit-learn does not interpolate, so it gives the same only after the curve is made to fall."""
    scores = np.random.default_rng(sum(truth)).permutation(len(truth)).astype(float)
    flags = np.array(truth)
    curve = precision_recall(scores, flags)
    plain = float(np.sum(np.diff(curve.recall, prepend=0.0) * curve.precision))
    assert plain == pytest.approx(average_precision_score(flags, scores), rel=1e-9)
    falls = bool((np.diff(curve.precision[flags[np.argsort(-scores)]]) <= 0).all())
    if falls:
        assert average_precision(curve) == pytest.approx(plain, rel=1e-9)
    else:
        assert average_precision(curve) > plain


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=20), st.randoms())
def test_ties_are_independent_of_the_order_of_images(items: list[tuple[int, bool]], random: object) -> None:
    if not any(flag for _, flag in items):
        return
    order = np.random.default_rng(len(items)).permutation(len(items))
    scores, truth = np.array([float(s) for s, _ in items]), np.array([t for _, t in items])
    first = average_precision(precision_recall(scores, truth))
    assert average_precision(precision_recall(scores[order], truth[order])) == first


def test_constant_scores_have_the_share_of_positives() -> None:
    truth = np.array([True, False, False, False])
    assert average_precision(precision_recall(np.ones(4), truth)) == pytest.approx(1 / 4)


def test_wrong_arguments_raise() -> None:
    with pytest.raises(DensescoreError, match="at least one positive"):
        precision_recall(np.array([1.0]), np.array([False]))
    with pytest.raises(DensescoreError, match="1 of 2 are not finite"):
        precision_recall(np.array([1.0, np.nan]), np.array([True, False]))
    with pytest.raises(DensescoreError, match="rule must be"):
        average_precision(precision_recall(np.array([1.0]), np.array([True])), "hoc")  # type: ignore[arg-type]


def read_boxes(folder: Path, scored: bool) -> dict[str, list[tuple[float, NDArray[np.float64]]]]:
    """Per image: (confidence, x y w h)."""
    boxes: dict[str, list[tuple[float, NDArray[np.float64]]]] = defaultdict(list)
    for path in sorted(folder.glob("*.txt")):
        for line in path.read_text().splitlines():
            numbers = [float(field) for field in line.split()[1:]]
            boxes[path.stem].append((numbers[0] if scored else 1.0, np.array(numbers[-4:])))
    return boxes


def iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    # The published values count pixels inclusively, as VOC does.
    ends_a, ends_b = a[:2] + a[2:], b[:2] + b[2:]
    sides = np.minimum(ends_a, ends_b) - np.maximum(a[:2], b[:2]) + 1
    if (sides <= 0).any():
        return 0.0
    common = float(np.prod(sides))
    return common / (float(np.prod(a[2:] + 1)) + float(np.prod(b[2:] + 1)) - common)


def test_published_values_of_a_detector() -> None:
    folder = DATA / "ap-vectors" / "odm_sample2"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, which the repository does not ship")
    boxes = read_boxes(folder / "groundtruths", scored=False)
    detections = [(s, n, b) for n, items in read_boxes(folder / "detections", scored=True).items() for s, b in items]
    taken: set[tuple[str, int]] = set()
    truth = []
    for _, name, box in sorted(detections, key=lambda item: -item[0]):
        ious = [iou(box, other) for _, other in boxes[name]]
        best = int(np.argmax(ious)) if ious else -1
        hit = best >= 0 and ious[best] >= 0.3 and (name, best) not in taken
        if hit:
            taken.add((name, best))
        truth.append(hit)
    ranks = -np.arange(len(truth), dtype=float)  # the detector's own order, ties included
    curve = precision_recall(ranks, np.array(truth), positives=sum(map(len, boxes.values())))
    assert average_precision(curve, "voc2007") == pytest.approx(0.2684, abs=5e-5)
    assert average_precision(curve, "voc2010") == pytest.approx(0.2456, abs=1e-4)  # published as 24.56 %, cut off
