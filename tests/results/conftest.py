"""Scores drawn at random."""

from collections.abc import Sequence

import torch

from densescore import DenseScores, Pyramid


def make(
    labels: Sequence[str] = "abc", height: int = 90, width: int = 130, seed: int = 0, scales: tuple[float, ...] = (1, 2)
) -> DenseScores:
    """Softmax of random logits, on patches of 20 pixels every 4."""
    pyramid = Pyramid.of(height, width, scales=scales, patch=20, stride=4)
    logits = 2 * torch.randn(len(pyramid), len(labels), generator=torch.Generator().manual_seed(seed))
    return DenseScores(logits.softmax(1), tuple(labels), pyramid, model="toy", timings={"trunk": 0.5})
