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
