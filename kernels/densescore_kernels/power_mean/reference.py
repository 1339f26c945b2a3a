"""The definitions, as plain float64 loops. Slow and obvious: never edited to match a kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch


def power_mean(scores: torch.Tensor, offsets: Sequence[int], k: float) -> torch.Tensor:
    """Mean of the k-th powers of each image's scores: ``[M, C]`` → ``[B, C]`` float64."""
    rows = scores.double().tolist()  # [M][C]
    means = []
    for start, stop in pairwise(offsets):
        powers = [[y**k for y in row] for row in rows[start:stop]]
        means.append([math.fsum(column) / (stop - start) for column in zip(*powers, strict=True)])
    return torch.tensor(means, dtype=torch.float64)


def softmax(logits: torch.Tensor) -> torch.Tensor:
    """Softmax of each row: ``[M, C]`` → ``[M, C]`` float64."""
    rows = []
    for row in logits.double().tolist():
        top = max(row)
        total = math.fsum(math.exp(z - top) for z in row)
        rows.append([math.exp(z - top) / total for z in row])
    return torch.tensor(rows, dtype=torch.float64)


def softmax_power_mean(logits: torch.Tensor, offsets: Sequence[int], k: float) -> torch.Tensor:
    """Power mean of the softmax of each row: ``[M, C]`` → ``[B, C]`` float64."""
    return power_mean(softmax(logits), offsets, k)
