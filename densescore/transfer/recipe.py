"""How an adaptation layer is trained: the paper's recipe, and a better one."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from densescore.errors import DensescoreError
from densescore.geometry import PAPER_SCALES
from densescore.transfer.patch_labels import LabelRule

Objective = Literal["softmax", "multilabel"]
"""``"softmax"``: one label per patch among the classes and background, as the paper. ``"multilabel"``: an independent
sigmoid per class, so a patch that shows several classes teaches all of them."""

_COUNTS = ("heads", "width", "batch", "round", "patience", "max_rounds", "image_bag", "image_patches", "image_batch")


@dataclass(frozen=True)
class Recipe:
    """Every choice of a training except its data and seed.

    Attributes:
        objective: see `Objective`.
        rule: thresholds that make a patch positive.
        scales: λ of the levels to train on.
        test_scales: λ of the levels to score at, or None for `scales`. Finer scales find small objects; a head scores
            patches of any size.
        background: share of each image's background patches to draw, in (0, 1].
        balance: 0 draws patches uniformly (as in the paper, whose only balancing is `background`); 1 draws each class
            equally often; values between, in proportion to ``count^-balance``.
        flips: also train on each image's mirror image.
        standardize: shift and scale each feature to mean 0 and variance 1 over the training patches. The trained layer
            takes raw features all the same: shift and scale are folded into FCa.
        components: with `standardize`, number of principal components of the features to train on; 0 for all features.
        heads: number of heads to train from different first weights. Their mean is one layer of `heads` times `width`.
        width: outputs of FCa, per head.
        dropout: dropout of FCa's outputs, in [0, 1).
        feature_dropout: dropout of the head's inputs, in [0, 1).
        learning_rate: learning rate of the first stage; each of two more stages takes a tenth of the one before.
        max_gradient: norm to which a step's gradient is clipped, or None.
        momentum: momentum of SGD.
        weight_decay: weight decay of SGD.
        batch: patches per step.
        round: patches per round.
        tolerance: a round is stale if its loss is less than this share below the best before.
        patience: consecutive stale rounds that end a stage.
        max_rounds: most rounds of a stage.
        image_rounds: passes over the images at the end, on image labels through the image score; 0 for none.
        label_rounds: passes instead, where not every image has boxes: image labels then carry most of the training.
        image_bag: patches of each image in memory for the image-label stages, drawn from all of its patches.
        image_patches: patches per image and step in these stages, drawn from the bag.
        image_batch: images per step.
        image_k: exponent of the image score.
        image_learning_rate: learning rate of the image-label stages; `learning_rate` if no patch is labeled.
        patch_weight: weight of the loss on labeled patches in the image-label stages.

    Raises:
        DensescoreError: a value out of its range.

    Example:
        >>> Recipe(objective="multilabel", scales=(1.0, 2.0)).width
        2048
    """

    objective: Objective = "softmax"
    rule: LabelRule = field(default_factory=LabelRule)
    scales: tuple[float, ...] = PAPER_SCALES
    test_scales: tuple[float, ...] | None = None
    background: float = 0.1
    balance: float = 0.0
    flips: bool = True
    standardize: bool = True
    components: int = 0
    heads: int = 1
    width: int = 2048
    dropout: float = 0.5
    feature_dropout: float = 0.0
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    max_gradient: float | None = None
    batch: int = 256
    round: int = 32_768
    tolerance: float = 0.01
    patience: int = 1
    max_rounds: int = 12
    image_rounds: int = 0
    label_rounds: int = 16
    image_bag: int = 256
    image_patches: int = 96
    image_batch: int = 8
    image_k: float = 5.0
    image_learning_rate: float = 0.01
    patch_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):
            raise DensescoreError(f"objective must be one of {', '.join(get_args(Objective))}, got {self.objective!r}")
        if not 0 < self.background <= 1:
            raise DensescoreError(f"background must lie in (0, 1], got {self.background}")
        for name in ("dropout", "feature_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise DensescoreError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):  # a head's file has all of them, in JSON
                raise DensescoreError(f"{name} must be finite, got {value}")
        if self.max_gradient is not None and self.max_gradient <= 0:
            raise DensescoreError(f"max_gradient must be positive, got {self.max_gradient}")
        if self.components < 0:
            raise DensescoreError(f"components must be at least 0, got {self.components}")
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise DensescoreError(f"{name} must be at least 1, got {getattr(self, name)}")


def change_recipe(recipe: Recipe, *, scales: tuple[float, ...] | None = None, **changes: Any) -> Recipe:
    """The recipe with all changes that are not None; changed training scales are also the test scales.

    Example:
        >>> changed = change_recipe(Recipe(test_scales=(1, 2)), scales=(1.0,), flips=None)
        >>> changed.scales, changed.test_scales, changed.flips
        ((1.0,), None, True)
    """
    if scales is not None:
        recipe = replace(recipe, scales=scales, test_scales=None)
    return replace(recipe, **{name: value for name, value in changes.items() if value is not None})


RECIPES: dict[str, Recipe] = {
    "default": Recipe(
        objective="multilabel",
        scales=(0.7, 1.0, 1.3, 2.0, 2.8),
        test_scales=(0.7, 1.0, 1.3, 2.0, 2.8, 4.0),
        components=384,
        heads=4,
        width=512,
        feature_dropout=0.4,
        max_gradient=2.0,
        round=16_384,
        tolerance=0.05,
        max_rounds=4,
        image_rounds=8,
        image_patches=48,
        image_learning_rate=0.005,
        patch_weight=2.0,
    ),
    "paper": Recipe(rule=LabelRule(overlap="touch"), flips=False, standardize=False),
}
"""``"default"`` differs from the paper by: independent sigmoids, so that crowded patches teach; fewer scales, one
wider than the image; mirror images; standardized features; shorter stages; and fine-tuning on image labels.
``"paper"`` takes "overlaps no more than one object" to the letter. The worth of each choice: benchmarks/results.
"""
