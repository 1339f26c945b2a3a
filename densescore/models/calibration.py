"""How a confidence becomes the probability that the image shows a class, and from where on that is a yes or a no."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densescore.errors import DensescoreError

Answer = Literal["yes", "no", "unsure"]

MAX_LOG_ODDS = 40.0
"""Log odds are clipped here: confidences down to 1e-17 differ."""


@dataclass(frozen=True)
class Curve:
    """Log odds of a confidence → log odds of a probability, linear between knots: Platt's line or isotonic steps."""

    inputs: tuple[float, ...]  # rising
    outputs: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in zip(self.inputs, self.inputs[1:], strict=False))
        finite = all(map(math.isfinite, (*self.inputs, *self.outputs)))
        if not (self.inputs and len(self.inputs) == len(self.outputs) and rising and finite):
            raise DensescoreError(f"calibration: expected knots whose inputs rise, got {self.inputs}, {self.outputs}")

    @classmethod
    def line(cls, slope: float, intercept: float) -> "Curve":
        """Platt's: ``slope · log odds + intercept``."""
        ends = (-MAX_LOG_ODDS, MAX_LOG_ODDS)
        return cls(ends, tuple(float(slope * end + intercept) for end in ends))

    def __call__(self, confidence: NDArray[Any]) -> NDArray[np.float64]:
        """Probabilities of confidences, both in [0, 1] and of any shape."""
        return sigmoid(np.interp(log_odds(confidence), self.inputs, self.outputs))


@dataclass(frozen=True)
class ClassCalibration:
    """A class's curve, and the probabilities at which the answer changes."""

    curve: Curve
    yes: float | None = None  # lowest probability with the promised precision in cross-validation, if there is one
    absent: float = 0.0  # below it the answer is no
    precision: tuple[float, float, float] | None = None  # at `yes`, with the ends of its 95 % interval
    recall: tuple[float, float, float] | None = None  # at `yes`

    def answer(self, probability: float) -> Answer:
        """``yes``, ``no``, or ``unsure`` between the thresholds."""
        if self.yes is not None and probability >= self.yes:
            return "yes"
        return "no" if probability < self.absent else "unsure"


@dataclass(frozen=True)
class Calibration:
    """Calibrations of a model at its own scales and k, fitted on held-out scores.

    Example:
        >>> calibration = Calibration({"cat": ClassCalibration(Curve.line(2, 1), yes=0.8, absent=0.1)})
        >>> probabilities = calibration.probabilities(np.array([0.5, 0.5]), ("cat", "dog"))
        >>> probabilities.round(2), calibration.answer("cat", probabilities[0])
        (array([0.73,  nan]), 'unsure')
    """

    classes: Mapping[str, ClassCalibration] = field(default_factory=dict)  # without those of too few examples
    shared: ClassCalibration | None = None  # of every other class and group
    sharpness: float | None = None
    """For models of exclusive classes: what is calibrated is ``confidence ** sharpness`` over its sum over all classes;
    a group's is the sum over its classes."""
    boxes: Curve | None = None  # a box's score (`Region`) → probability that it is right at IoU 0.5
    promised: float | None = None  # precision that `ClassCalibration.yes` keeps

    def of(self, label: str) -> ClassCalibration | None:
        """Calibration of a class or group."""
        return self.classes.get(label, self.shared)

    def inputs(self, confidence: Tensor) -> Tensor:
        """Numbers that are calibrated, from the confidences of all classes: ``[C]``."""
        if self.sharpness is None:
            return confidence
        return (confidence.clamp(min=torch.finfo(torch.float32).tiny).log() * self.sharpness).softmax(0)

    def probabilities(self, inputs: NDArray[Any], labels: Sequence[str]) -> NDArray[np.float64]:
        """Probability of each class, from its input: ``[C]``; NaN for a class without calibration."""
        if not self.classes and self.shared is not None:
            return self.shared.curve(inputs)
        found = [self.of(label) for label in labels]
        values = zip(found, inputs, strict=True)
        return np.array([np.nan if each is None else each.curve(value) for each, value in values], np.float64)

    def answer(self, label: str, probability: float) -> Answer | None:
        """Answer of a class at a probability; None without calibration."""
        calibration = self.of(label)
        return None if calibration is None else calibration.answer(probability)

    def at(self, threshold: float) -> "Calibration":
        """The same probabilities, with the answer yes from `threshold` on and no below."""
        changes: dict[str, Any] = {"yes": threshold, "absent": threshold, "precision": None, "recall": None}
        classes = {label: replace(each, **changes) for label, each in self.classes.items()}
        shared = None if self.shared is None else replace(self.shared, **changes)
        return replace(self, classes=classes, shared=shared, promised=None)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Calibration":
        """A calibration from its ``dataclasses.asdict``, read from a file that may hold anything."""
        try:
            numbers = {name: value.get(name) for name in ("sharpness", "promised")}
            if not all(each is None or math.isfinite(each) for each in numbers.values()):
                raise ValueError(numbers)
            return cls(
                {str(label): _read_class(each) for label, each in value["classes"].items()},
                shared=_read_class(value["shared"]) if value.get("shared") else None,
                boxes=_read_curve(value["boxes"]) if value.get("boxes") else None,
                **numbers,
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DensescoreError(f"calibration: expected curves and thresholds by class, got a bad {error}") from error


def _read_curve(value: Any) -> Curve:
    return Curve(tuple(map(float, value["inputs"])), tuple(map(float, value["outputs"])))


def _read_class(value: Any) -> ClassCalibration:
    triples = {name: tuple(map(float, value[name])) if value[name] else None for name in ("precision", "recall")}
    yes = None if value["yes"] is None else float(value["yes"])
    return ClassCalibration(_read_curve(value["curve"]), yes, float(value["absent"]), **triples)  # type: ignore[arg-type]


def log_odds(share: NDArray[Any]) -> NDArray[np.float64]:
    """``log(p / (1 - p))``, clipped to `MAX_LOG_ODDS`."""
    values = np.asarray(share, np.float64)
    with np.errstate(divide="ignore"):
        return np.clip(np.log(values) - np.log1p(-np.minimum(values, 1)), -MAX_LOG_ODDS, MAX_LOG_ODDS)


def sigmoid(values: NDArray[Any]) -> NDArray[np.float64]:
    """Inverse of `log_odds`."""
    return 0.5 * (1 + np.tanh(np.asarray(values, np.float64) / 2))
