"""Source pre-training as Krizhevsky et al. (NIPS 2012) describe and Oquab et al. repeat: classes, images, training."""

import math
from dataclasses import dataclass

from densescore.errors import DensescoreError


@dataclass(frozen=True)
class SourceRecipe:
    """Every choice of a pre-training except its network, images and seed."""

    side: int = 256  # pixels of the central square of an image, its short side scaled to it
    patch: int = 224  # P; training takes random patches of the square, testing ten fixed ones
    batch: int = 128  # images per step, of all processes together
    learning_rate: float = 0.01  # at first; divided by ten when the validation loss stops improving
    divisions: int = 3  # of the learning rate; the next one would end the training
    tolerance: float = 1e-3  # an epoch whose validation loss falls by a smaller share of the best is stale
    patience: int = 1  # stale epochs in a row before the one that divides, as in torch's ReduceLROnPlateau
    momentum: float = 0.9
    weight_decay: float = 5e-4
    max_epochs: int = 90  # about as many as Krizhevsky et al. took

    def __post_init__(self) -> None:
        if not 0 < self.patch <= self.side:
            raise DensescoreError(f"patch must lie in 1..side, got patch {self.patch} and side {self.side}")
        for name, least in (("batch", 1), ("max_epochs", 1), ("divisions", 0), ("patience", 0)):
            if getattr(self, name) < least:
                raise DensescoreError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise DensescoreError(f"learning_rate must be positive and finite, got {self.learning_rate}")
