"""Confidences → probabilities and answers: curves, thresholds, their file, and how they are fitted."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from densescore import DensescoreError, DenseScores, Pyramid
from densescore.io.names import to_json
from densescore.models.calibration import Calibration, ClassCalibration, Curve, log_odds, sigmoid
from densescore.transfer.cross_validation import CrossValidation, draw_folds, find_thresholds, fit_calibration


def test_log_odds_and_sigmoid_undo_each_other() -> None:
    shares = np.array([0, 1e-15, 0.2, 0.5, 0.999, 1])
    assert np.allclose(sigmoid(log_odds(shares)), shares, rtol=1e-9, atol=1e-15)


def test_a_line_is_platts_and_a_curve_interpolates_and_stays_flat_outside() -> None:
    shares = np.array([0.001, 0.3, 0.9])
    assert np.allclose(Curve.line(2, -1)(shares), 1 / (1 + np.exp(1) * ((1 - shares) / shares) ** 2))
    steps = Curve((-1.0, 1.0), (-2.0, 2.0))
    assert np.allclose(log_odds(steps(sigmoid(np.array([-9, -0.5, 9])))), [-2, -1, 2])


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 3}, {"classes": {"cat": {}}}, {"sharpness": "2"}, {"promised": float("nan")},
        {"boxes": {"inputs": [1, 0], "outputs": [0, 1]}}, {"boxes": {"inputs": [0, 1], "outputs": [0]}},
        {"boxes": {"inputs": [], "outputs": []}}, {"shared": {"curve": {"inputs": [0], "outputs": ["x"]}}},
    ],
)  # fmt: skip
def test_a_calibration_of_a_file_is_read_back_or_refused(change: dict[str, object]) -> None:
    one = ClassCalibration(Curve.line(1.5, 0.2), 0.7, 0.1, (0.9, 0.8, 1.0), (0.5, 0.4, 0.6))
    whole = Calibration({"cat": one}, replace(one, yes=None), 2.0, Curve.line(1, 0), 0.9)
    assert Calibration.from_json(asdict(whole)) == whole
    assert '"yes"' in to_json(asdict(whole))
    with pytest.raises(DensescoreError, match="calibration: expected"):
        Calibration.from_json(asdict(whole) | change)


def test_answers_follow_the_thresholds() -> None:
    sure = ClassCalibration(Curve.line(1, 0), yes=0.8, absent=0.1)
    assert [sure.answer(share) for share in (0.05, 0.1, 0.79, 0.8)] == ["no", "unsure", "unsure", "yes"]
    assert replace(sure, yes=None).answer(0.99) == "unsure"
    assert [Calibration({"a": sure}).at(0.3).answer("a", share) for share in (0.29, 0.3)] == ["no", "yes"]


def held_out(images: int = 600, seed: int = 0, shift: float = -2.0) -> CrossValidation:
    """Images whose true probabilities are known: classes common, rare, single and everywhere."""
    draw = np.random.default_rng(seed)
    odds = draw.normal(shift, 2.5, (images, 4))
    truth = np.where(draw.random(odds.shape) < sigmoid(odds), 1, -1).astype(np.int8)
    truth[6:, 1] = -1  # few
    truth[:, 2], truth[:, 3] = -1, 1
    truth[:3, 1], truth[0, 2] = 1, 1
    return CrossValidation(draw_folds(truth, 0), sigmoid(odds / 2 - 1), truth, ())


def test_probabilities_hold_and_thresholds_keep_their_promise() -> None:
    calibration = fit_calibration(held_out(), ("common", "few", "single", "everywhere"), 0.9, 0)
    assert set(calibration.classes) == {"common", "few"}  # neither one example nor one everywhere can be calibrated
    fresh = held_out(4000, seed=1)
    confidences, shown = fresh.judged(0)
    probabilities = calibration.probabilities(confidences, ["common"] * len(confidences))
    assert np.abs(probabilities - sigmoid(2 * (log_odds(confidences) + 1))).mean() < 0.04
    common = calibration.classes["common"]
    assert common.yes is not None
    assert common.precision is not None
    assert common.recall is not None
    said = probabilities >= common.yes
    assert 0.87 < shown[said].mean() < 0.97
    assert common.recall[1] - 0.05 <= said[shown].mean() <= common.recall[2] + 0.05
    assert common.precision[1] < common.precision[0] < common.precision[2]
    assert abs((probabilities < common.absent)[shown].mean() - 0.1) < 0.06


def test_a_class_that_cannot_promise_says_so() -> None:
    draw = np.random.default_rng(0)
    shown = draw.random(300) < 0.3
    guess = find_thresholds(Curve.line(0, 0), np.full(300, 0.3), shown, 0.9)
    assert (guess.yes, guess.precision, guess.answer(0.3)) == (None, None, "unsure")


def test_folds_hold_equal_shares_of_each_class() -> None:
    truth = held_out(503).truth
    folds = draw_folds(truth, 3)
    assert np.ptp(np.bincount(folds)) <= 1
    assert np.ptp(np.bincount(folds[truth[:, 1] == 1], minlength=5)) <= 1
    assert (draw_folds(truth, 3) == folds).all()
    assert (draw_folds(truth, 4) != folds).any()


def test_scores_have_probabilities_through_selection_pickle_and_file(tmp_path: object) -> None:
    """With `sharpness`, a class's share of all classes is calibrated; selection keeps it."""
    pyramid = Pyramid.of(224, 224, scales=(1,))
    shared = ClassCalibration(Curve.line(1, 0), yes=0.6, absent=0.2)
    scores = DenseScores(
        torch.tensor([[0.4, 0.2, 0.1]]), ("a", "b", "c"), pyramid, calibration=Calibration(shared=shared, sharpness=2.0)
    )
    expected = torch.tensor([0.16, 0.04, 0.01]) / 0.21
    probabilities = scores.image_probabilities()
    assert probabilities is not None
    torch.testing.assert_close(probabilities, expected, rtol=1e-3, atol=1e-5)
    assert [best.answer for best in scores.top()] == ["yes", "no", "no"]
    assert scores.probability("b") == pytest.approx(0.04 / 0.21, rel=1e-3)
    path = f"{tmp_path}/scores.safetensors"
    scores.select(["c", "a"]).save(path)
    assert [best.probability for best in DenseScores.load(path).top()] == pytest.approx(
        [0.16 / 0.21, 0.01 / 0.21], 1e-3
    )
    plain = replace(scores, calibration=None)
    assert (plain.image_probabilities(), plain.probability("a"), plain.top(1)[0].answer) == (None, None, None)
    assert plain.top(1)[0].shown == plain.top(1)[0].confidence


def test_a_class_without_calibration_has_no_probability() -> None:
    one = ClassCalibration(Curve.line(1, 0), yes=0.6, absent=0.2)
    pyramid = Pyramid.of(224, 224, scales=(1,))
    scores = DenseScores(torch.tensor([[0.4, 0.9]]), ("a", "b"), pyramid, calibration=Calibration({"a": one}))
    assert [best.probability for best in scores.top()] == [None, pytest.approx(0.4)]
    assert scores.probability("b") is None
