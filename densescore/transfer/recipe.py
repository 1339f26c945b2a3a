"""How an adaptation layer is trained: the paper's recipe, and a better one."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from densescore.errors import DensescoreError
from densescore.geometry import PAPER_SCALES
from densescore.transfer.patch_labels import LabelRule

Objective = Literal["softmax", "multilabel"]
"""``"softmax"``: one label per patch among the classes and background, as the paper. ``"multilabel"``: an independent
sigmoid per class, so a patch that shows several classes teaches all of them."""


@dataclass(frozen=True)
class Recipe:
    """Every choice of a training except its data and seed.

    Attributes:
        objective: see `Objective`.
        rule: which patches are positive.
        scales: λ of the levels that patches are taken from.
        test_scales: at which the trained head is used; None for `scales`. Finer scales find small objects. A head
            scores patches of any size, so it need not be trained at each.
        background: share of each image's background patches that is drawn, in (0, 1].
        balance: 0: every drawn patch counts the same (as in the paper, whose only balancing is `background`).
            1: each class is drawn equally often; between, in proportion to ``count^-balance``.
        flips: also train on each image's mirror image.
        standardize: shift and scale each feature to mean 0 and variance 1 over the training patches. The trained layer
            takes raw features all the same: the shift and scale are folded into FCa.
        components: with `standardize`, train along as many principal components of the features; 0 for all features.
        heads: heads to train from different random weights. Their mean is one layer of `heads` times `width`; see
            `densescore.transfer.head_ensemble`.
        width: outputs of FCa, of each head.
        dropout: share of FCa's outputs that is dropped.
        feature_dropout: share of the head's inputs that is dropped, in [0, 1).
        learning_rate: of the first stage; each of two more stages takes a tenth of the one before.
        max_gradient: norm to which a step's gradient is shortened, if it is longer; infinite: never.
        momentum: of SGD.
        weight_decay: of SGD.
        batch: patches per step.
        round: patches per round.
        tolerance: a stage ends when a round's loss is less than this share below the best before.
        patience: consecutive stale rounds that end a stage.
        max_rounds: most rounds of one stage.
        image_rounds: passes over the images at the end, on image labels through the image score; 0 leaves it out.
        label_rounds: passes instead, where not every image has boxes: image labels then carry most of the training.
        image_bag: patches of each image that are kept for that, drawn from all of its patches.
        image_patches: of these, patches per image and step.
        image_batch: images per step.
        image_k: exponent of the image score in that.
        image_learning_rate: of that, after a training on labeled patches; without one, `learning_rate` is.
        patch_weight: of the loss on labeled patches, which goes on beside that on image labels.
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
    max_gradient: float = float("inf")
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
        if not self.max_gradient > 0:
            raise DensescoreError(f"max_gradient must be positive, got {self.max_gradient}")
        if self.components < 0:
            raise DensescoreError(f"components must be at least 0, got {self.components}")
        for name in (
            "heads",
            "width",
            "batch",
            "round",
            "patience",
            "max_rounds",
            "image_bag",
            "image_patches",
            "image_batch",
        ):
            if getattr(self, name) < 1:
                raise DensescoreError(f"{name} must be at least 1, got {getattr(self, name)}")


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
``"paper"`` takes "overlaps no more than one object" to the letter. What each is worth: benchmarks/results.
"""
