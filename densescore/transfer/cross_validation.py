"""Held-out scores of the training images, and what follows from them: average precision, and the head's calibration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from densescore.data.boxed_set import BoxedImage
from densescore.data.labeled_set import POSITIVE, UNKNOWN, LabeledImage, LabeledSet
from densescore.evaluation.average_precision import ImageBoxes, average_precision, match, precision_recall
from densescore.models.calibration import Calibration, ClassCalibration, Curve, log_odds
from densescore.models.head import BACKGROUND, AdaptationHead
from densescore.results.scores import DenseScores
from densescore.transfer.recipe import Recipe
from densescore.transfer.train_head import Callback, Round, count_stages, train_heads, within
from densescore.transfer.training_set import FeatureBasis, TrainingPatches

FOLDS = 5

MAX_ROUNDS = 4
"""Most rounds of a stage on labeled patches in cross-validation, which trains a single head per fold."""

PRECISION = 0.9
"""Promised precision of a yes, unless asked otherwise."""

MIN_POSITIVES = 10
"""Classes with fewer positive images, or negative ones, share one curve."""

PRIOR = 10.0
"""Inverse strength of the prior on the slope of Platt's line."""

MARGIN, FLOOR = 0.5, 2 / 3
"""Standard errors by which a threshold's precision must exceed the promised one, and least threshold as a share of it.
Of promises from two thirds of voc2012-mini's held-out scores, 0.81 hold to within 0.05 on the rest; else 0.74."""


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """Confidences of images by heads that have not seen them."""

    folds: NDArray[np.int64]  # [I], fold that each image is held out of; -1 before its turn
    confidences: NDArray[np.float64]  # [I, C]
    truth: NDArray[np.int8]  # [I, C]
    heads: Sequence[AdaptationHead]  # per fold, trained on the others

    def average_precisions(self) -> list[float | None]:
        """Held-out AP of each class; None with fewer than two positive images, or without a negative one."""
        values = []
        for column in range(self.truth.shape[1]):
            confidences, shown = self.judged(column)
            few = shown.sum() < 2 or shown.all()
            values.append(None if few else average_precision(precision_recall(confidences, shown)))
        return values

    def judged(self, column: int) -> "Sample":
        """The images that count for a class."""
        known = self.truth[:, column] != UNKNOWN
        return self.confidences[known, column], self.truth[known, column] == POSITIVE


def draw_folds(truth: NDArray[np.int8], seed: int) -> NDArray[np.int64]:
    """A fold per image, ``[I]``, stratified by the rarest class that it shows; truth ``[I, C]``."""
    shown = truth == POSITIVE
    rarest = np.where(shown, shown.sum(0), len(truth) + 1).argmin(1)
    order = np.lexsort((np.random.default_rng(seed).random(len(truth)), rarest))
    folds = np.empty(len(truth), np.int64)
    folds[order] = np.arange(len(truth)) % FOLDS
    return folds


def cross_validate(
    images: LabeledSet,
    patches: TrainingPatches,
    basis: FeatureBasis | None,
    recipe: Recipe,
    seed: int,
    score: Callable[[AdaptationHead, LabeledImage], DenseScores],
    callback: Callback = lambda _: None,
) -> CrossValidation:
    """Train a head on all folds but one, and score that one's images, fold by fold.

    `basis`: the one that the patches' features are in. Rounds tell the mean AP on the folds before.
    """
    truth, classes = images.truth(), len(images.classes)
    folds, short = draw_folds(truth, seed), replace(recipe, heads=1, max_rounds=min(recipe.max_rounds, MAX_ROUNDS))
    confidences, heads = np.zeros(truth.shape), list[AdaptationHead]()
    mean: float | None = None
    for fold in range(FOLDS):
        # Train on the other images
        others = folds != fold
        part = patches.of_images(others if others.any() else ~others)  # of a set of one image
        stages = count_stages(part, short)
        inner = partial(_tell, within(callback, fold * stages, FOLDS * stages), mean)
        heads.append(train_heads(part, classes, short, seed, basis=basis, callback=inner))

        # Score those of the fold
        for index in (folds == fold).nonzero()[0]:
            scores = score(heads[-1], images.images[index])
            confidences[index] = scores.confidence()[:classes].double().cpu().numpy()
        done = folds <= fold
        mean = mean_ap(CrossValidation(folds[done], confidences[done], truth[done], heads).average_precisions())
    return CrossValidation(folds, confidences, truth, heads)


def _tell(callback: Callback, held_out: float | None, done: Round) -> None:
    callback(done._replace(part="cross-validation", held_out=held_out))


def mean_ap(values: Sequence[float | None]) -> float | None:
    """Mean over the classes that have an average precision."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


# Calibration

Sample = tuple[NDArray[np.float64], NDArray[np.bool_]]
"""Confidences ``[n]`` and truth ``[n]``."""

Fit = Callable[[NDArray[np.float64], NDArray[np.bool_]], Curve]


def fit_calibration(result: CrossValidation, classes: Sequence[str], precision: float, seed: int) -> Calibration:
    """Curves and thresholds of every class with at least two positive images and two negative ones.

    `precision`: share of the images answered yes that must show the class. Classes with few images share one curve.
    """
    judged = {label: result.judged(column) for column, label in enumerate(classes)}
    usable = {label: each for label, each in judged.items() if min(_counts(each[1])) >= 2}
    few = [label for label, (_, shown) in usable.items() if min(_counts(shown)) < MIN_POSITIVES]
    if not usable:
        return Calibration(promised=precision)

    # Classes with few images share a curve; if together they are still few, with all others
    members = few if sum(min(_counts(usable[label][1])) for label in few) >= MIN_POSITIVES else [*usable]
    confidences, truths = zip(*(usable[label] for label in members), strict=True)
    pooled = np.concatenate(confidences), np.concatenate(truths)
    samples = {label: pooled if label in few else each for label, each in usable.items()}

    # Lines or steps, whichever has the lower loss over all classes: for one class the difference is mostly chance
    fit = _better_fit([*samples.values()], seed)
    calibrations = {}
    for label, (values, shown) in usable.items():
        curve = fit(*samples[label])
        calibrations[label] = find_thresholds(curve, curve(values), shown, precision)
    return Calibration(calibrations, promised=precision)


def fit_box_curve(images: Sequence[BoxedImage], scores: Callable[[BoxedImage], DenseScores], seed: int) -> Curve | None:
    """Score of a box → probability that it hits an object at IoU 0.5, one curve for all classes, on held-out images."""
    certainty, right = list[float](), list[bool]()
    for image in images:
        result = scores(image)
        labels = [label for label in result.labels if label != BACKGROUND]
        for column, regions in enumerate(result.class_boxes(labels).values()):
            of_class = image.classes == column
            boxes = np.array([region.box for region in regions], np.float32)
            found = np.array([region.score for region in regions])
            hits, counted = match(ImageBoxes(boxes, found, image.boxes[of_class], image.difficult[of_class]), 0.5)
            certainty += found[counted].tolist()
            right += hits[counted].tolist()
    sample = np.array(certainty), np.array(right, bool)
    return _better_fit([sample], seed)(*sample) if min(_counts(sample[1])) >= 2 else None


def _counts(shown: NDArray[np.bool_]) -> tuple[int, int]:
    return int(shown.sum()), int((~shown).sum())


def _better_fit(samples: Sequence[Sample], seed: int) -> Fit:
    """Line or steps: the lower sum of held-out losses."""
    fits: tuple[Fit, Fit] = (fit_line, fit_steps)
    return min(fits, key=lambda fit: sum(_held_out_loss(fit, each, seed) for each in samples))


def _held_out_loss(fit: Fit, sample: Sample, seed: int) -> float:
    """Cross-validated log loss of a kind of curve."""
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    confidences, shown = sample
    held_out = np.zeros(len(shown))
    splits = StratifiedKFold(min(FOLDS, *_counts(shown)), shuffle=True, random_state=seed)
    for train, test in splits.split(confidences, shown):
        held_out[test] = fit(confidences[train], shown[train])(confidences[test])
    return float(log_loss(shown, held_out))


def fit_line(confidences: NDArray[np.float64], shown: NDArray[np.bool_]) -> Curve:
    """Platt's logistic regression of the truth ``[n]`` on the log odds of confidences ``[n]``."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=PRIOR).fit(log_odds(confidences)[:, None], shown)
    slope = float(model.coef_[0, 0])
    if slope <= 0:  # a head that knows nothing of the class
        return Curve.line(0.0, float(log_odds(shown.mean())))
    return Curve.line(slope, float(model.intercept_[0]))


def fit_steps(confidences: NDArray[np.float64], shown: NDArray[np.bool_]) -> Curve:
    """Isotonic regression, on the same."""
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression().fit(log_odds(confidences), shown)
    least = 1 / (len(shown) + 2)  # a share of 0 or 1 among n images is not certainty
    inputs, first = np.unique(model.X_thresholds_, return_index=True)
    outputs = log_odds(model.y_thresholds_[first].clip(least, 1 - least))
    return Curve(tuple(inputs.tolist()), tuple(outputs.tolist()))


def find_thresholds(
    curve: Curve, probabilities: NDArray[np.float64], shown: NDArray[np.bool_], precision: float
) -> ClassCalibration:
    """Thresholds of held-out probabilities ``[n]`` with their truth ``[n]``."""
    order = np.argsort(-probabilities, kind="stable")
    ranked, hits = probabilities[order], shown[order].cumsum()
    count = np.arange(1, len(order) + 1)

    # Yes: the lowest threshold whose precision, less a margin for chance, is the promised one
    share = hits / count
    last = np.append(ranked[1:] < ranked[:-1], True)  # equal probabilities get one answer
    kept = (last & (share - MARGIN * np.sqrt(share * (1 - share) / count) >= precision)).nonzero()[0]
    # No: below the highest threshold that keeps as large a share of the positive images
    absent = float(ranked[(hits >= precision * hits[-1]).nonzero()[0][0]])
    if not len(kept) or ranked[0] < FLOOR * precision:
        return ClassCalibration(curve, absent=absent)
    yes = max(float(ranked[kept[-1]]), FLOOR * precision)

    said = probabilities >= yes
    right = int((said & shown).sum())
    return ClassCalibration(
        curve, yes, min(absent, yes), _with_interval(right, int(said.sum())), _with_interval(right, int(shown.sum()))
    )


def _with_interval(right: int, count: int) -> tuple[float, float, float]:
    """A share, and Jeffreys' 95 % interval: bootstrap gives none where all are right, as often among few images."""
    from scipy.stats import beta

    low, high = beta.ppf((0.025, 0.975), right + 0.5, count - right + 0.5)
    return right / count, float(low), float(high)
