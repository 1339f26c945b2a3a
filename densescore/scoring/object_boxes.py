"""The box layer beside a classifier: what it needs of the features, and what it gives for an image."""

from typing import Any

import torch
from torch import Tensor, nn

from densescore.geometry import Pyramid
from densescore.models.box_layer import BoxLayer


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


def object_boxes(layer: BoxLayer | None, outputs: Tensor, pyramid: Pyramid) -> tuple[Tensor, dict[str, Any]]:
    """Part the outputs of `WithReduced` for all patches of an image.

    Args:
        layer: None if the outputs are logits alone.
        outputs: ``[M, C + reduced]``.
        pyramid: the geometry.

    Returns:
        Logits ``[M, C]``; and the fields ``object_boxes`` and ``box_qualities`` of `DenseScores`.
    """
    if layer is None:
        return outputs, {}
    count = layer.reduce.out_features
    with torch.inference_mode():
        boxes, qualities = layer(outputs[:, -count:], pyramid)
    return outputs[:, :-count], {"object_boxes": boxes, "box_qualities": qualities}
