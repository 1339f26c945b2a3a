"""A classifier with FCa and FCb in place of its last layer, cut where its frozen part ends."""

from typing import Literal

import torch
from timm.models import EfficientNet
from torch import Tensor, nn
from torchvision.transforms import v2

from densescore.errors import DensescoreError
from densescore.models.adaptation import AdaptationHead
from densescore.models.registry import Classifier

Retrain = Literal["none", "last", "all"]
"""What is trained with FCa and FCb: nothing; the last stage of the trunk (lite0), or FC6 (the paper's PRE-1512U, for
networks with fully connected layers); or every layer."""


class PersonNetwork(nn.Module):
    """uint8 patches ``[N, 3, P, P]`` → logits ``[N, outputs]``: frozen part, retrained part, frozen rest, head.

    Args:
        classifier: whose layers are transferred; they are shared, not copied.
        outputs: of the head.
        retrain: see `Retrain`.
        width: of FCa.

    Raises:
        DensescoreError: `retrain` is ``"last"``, and the network has no part that is known as its last.
    """

    def __init__(self, classifier: Classifier, outputs: int, retrain: Retrain, width: int = 2048) -> None:
        super().__init__()
        normalize = _Normalize(classifier.mean, classifier.std)
        early, last, late = _stages(classifier.module)
        nothing = nn.Sequential
        self.frozen, self.retrained, self.rest = {
            "none": (nn.Sequential(normalize, early, last, late), nothing(), nothing()),
            "last": (nn.Sequential(normalize, early), last, late),
            "all": (nothing(), nn.Sequential(normalize, early, last, late), nothing()),
        }[retrain]
        self.retrain = retrain
        for parameter in (*self.frozen.parameters(), *self.rest.parameters()):
            parameter.requires_grad_(False)
        side = classifier.patch_size
        with torch.inference_mode():
            sample = torch.zeros(1, 3, side, side, dtype=torch.uint8)
            features = self.eval().rest(self.retrained(self.frozen(sample))).flatten(1).shape[1]
        self.head = AdaptationHead(features, outputs, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """``[N, 3, P, P]`` uint8 → ``[N, outputs]``."""
        return self.finish(self.frozen(pixels))

    def finish(self, frozen: Tensor) -> Tensor:
        """The frozen part's output → ``[N, outputs]``."""
        return self.head(self.rest(self.retrained(frozen)).flatten(1))

    def trained_state(self) -> dict[str, Tensor]:
        """All that training changes, by name."""
        return {name: value for name, value in self.state_dict().items() if name.startswith(("retrained.", "head."))}


class _Normalize(nn.Module):
    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self._mean, self._std = list(mean), list(std)

    def forward(self, pixels: Tensor) -> Tensor:
        return v2.functional.normalize(pixels.float() / 255, self._mean, self._std)


def _stages(module: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    """A classifier without its last layer, in three parts: up to the last stage or FC6; that; and what follows."""
    if isinstance(module, EfficientNet):
        early = nn.Sequential(module.conv_stem, module.bn1, *module.blocks[:-1])
        last = nn.Sequential(module.blocks[-1], module.conv_head, module.bn2)
        return early, last, module.global_pool
    layers = getattr(module, "classifier", None)
    if isinstance(layers, nn.Sequential) and hasattr(module, "features") and isinstance(layers[-1], nn.Linear):
        end = next(index for index, layer in enumerate(layers) if isinstance(layer, nn.ReLU)) + 1
        parts = [part for name, part in module.named_children() if name in ("features", "avgpool")]
        return nn.Sequential(*parts, nn.Flatten()), layers[:end], layers[end:-1]
    raise DensescoreError(
        f"{type(module).__name__}: action recognition knows lite0 and networks of features and fully connected layers"
    )
