"""How a source network is trained: as Krizhevsky et al. (NIPS 2012) describe and Oquab et al. repeat."""

import math
from dataclasses import dataclass

from densescore.errors import DensescoreError


@dataclass(frozen=True)
class SourceRecipe:
    """Every choice of a pre-training except its network, images and seed.

    Attributes:
        side: images are scaled so that their short side has as many pixels, and their central square is taken.
        patch: P; training takes random patches of that square and of its mirror image, testing ten fixed ones.
        batch: images per step, of all processes together.
        learning_rate: at first; divided by ten when the validation loss stops improving.
        divisions: how often, until the training ends the next time.
        tolerance: an epoch that brings the validation loss less than this share below the best before is stale.
        patience: stale epochs in a row before a division, and one more brings it (as torch's ReduceLROnPlateau).
        momentum: of SGD.
        weight_decay: of SGD.
        max_epochs: whether the loss still falls or not. Krizhevsky et al. took about 90.
    """

    side: int = 256
    patch: int = 224
    batch: int = 128
    learning_rate: float = 0.01
    divisions: int = 3
    tolerance: float = 1e-3
    patience: int = 1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    max_epochs: int = 90

    def __post_init__(self) -> None:
        if not 0 < self.patch <= self.side:
            raise DensescoreError(f"patch must lie in 1..side, got patch {self.patch} and side {self.side}")
        for name in ("batch", "max_epochs"):
            if getattr(self, name) < 1:
                raise DensescoreError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("divisions", "patience"):
            if getattr(self, name) < 0:
                raise DensescoreError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise DensescoreError(f"learning_rate must be positive and finite, got {self.learning_rate}")
