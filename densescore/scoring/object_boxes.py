"""The box layer beside a classifier: what it needs of the features, and what it gives for an image."""

import torch
from torch import Tensor, nn

from densescore.geometry import Pyramid
from densescore.models.box_layer import BoxLayer, ObjectBoxes


class WithReduced(nn.Module):
    """A classifier and the first step of a box layer: features ``[N, D]`` → ``[N, C + reduced]``.

    Args:
        classifier: features → ``[N, C]`` logits.
        to_features: features in the form that the classifier takes → their values.
        layer: whose `reduce` is taken.
    """

    def __init__(self, classifier: nn.Module, to_features: nn.Module, layer: BoxLayer) -> None:
        super().__init__()
        self.classifier, self.to_features, self.layer = classifier, to_features, layer

    def forward(self, features: Tensor) -> Tensor:
        """Logits, and beside them what the box layer looks at."""
        reduced = self.layer.reduce(self.to_features(features).flatten(1).float())
        return torch.cat([self.classifier(features).float(), reduced], 1)


def split_reduced(layer: BoxLayer | None, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Part the outputs of `WithReduced`.

    Args:
        layer: None if the outputs are logits alone.
        outputs: ``[N, C + reduced]``.

    Returns:
        Logits ``[N, C]``, and what the box layer looks at: ``[N, reduced]``.
    """
    count = 0 if layer is None else layer.reduce.out_features
    return outputs[:, : outputs.shape[1] - count], outputs[:, outputs.shape[1] - count :]


def object_boxes(layer: BoxLayer | None, reduced: Tensor, scores: Tensor, pyramid: Pyramid) -> ObjectBoxes | None:
    """The boxes of an image, if there is a box layer; see `BoxLayer.forward`."""
    if layer is None:
        return None
    with torch.inference_mode():
        return layer(reduced, scores, pyramid)
