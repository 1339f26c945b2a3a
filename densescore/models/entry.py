"""A named network before it is built. `registry` has the table of all, `zoos` makes entries of other packages."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from densescore.geometry import PAPER_SCALES
from densescore.models.labels import imagenet_labels

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelEntry:
    """A named network: how to build it, its weights, its preprocessing and its origin."""

    description: str
    build: Callable[[dict[str, Tensor] | None], nn.Module]  # state_dict, or None for random weights → module
    published: Callable[[], dict[str, Tensor]] | None  # → published state_dict
    license: str  # of the published weights
    origin: str  # of code and weights
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    patch_size: int = 224
    scales: tuple[float, ...] = PAPER_SCALES  # λ per level by default
    labels: Callable[[], tuple[str, ...]] = imagenet_labels  # → class names of the published weights
