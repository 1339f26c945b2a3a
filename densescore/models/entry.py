"""What is known of a named network before it is built."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from densescore.geometry import PAPER_SCALES
from densescore.models.labels import imagenet_labels

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelEntry:
    """A named network.

    Attributes:
        description: what it is, in a line.
        build: state_dict or None (random) → module; the number of classes is counted from the state_dict.
        published: gives the published state_dict; None where there is none.
        license: of the published weights.
        origin: where code and weights come from.
        mean: as in `Classifier`.
        std: as in `Classifier`.
        patch_size: P.
        scales: λ per level by default.
        labels: gives the class names of the published weights.
    """

    description: str
    build: Callable[[dict[str, Tensor] | None], nn.Module]
    published: Callable[[], dict[str, Tensor]] | None
    license: str
    origin: str
    mean: tuple[float, float, float] = field(default=IMAGENET_MEAN)
    std: tuple[float, float, float] = field(default=IMAGENET_STD)
    patch_size: int = 224
    scales: tuple[float, ...] = PAPER_SCALES
    labels: Callable[[], tuple[str, ...]] = imagenet_labels
