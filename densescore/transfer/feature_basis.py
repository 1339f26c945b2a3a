"""The coordinates that a head is trained in: standardized features, turned to their principal components.

A few hundred images say little about most directions of a feature space. Along the leading principal components a head
trains in a quarter of the time, and generalizes as well or better (benchmarks/results/recipe_search.md). What is
trained there is folded into FCa, so that the layer takes raw features.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densescore.models.adaptation import AdaptationHead
from densescore.transfer.training_patches import TrainingPatches

_ROWS = 65_536  # rows that moments and components are measured on
_CHUNK = 8192  # rows at a time, so that float16 features are not copied whole


@dataclass(frozen=True, eq=False)
class FeatureBasis:
    """Coordinates of features: ``(x - shift) @ axes``.

    Attributes:
        shift: float32 ``[D]``.
        axes: float32 ``[D, d]``.
    """

    shift: Tensor
    axes: Tensor

    def project(self, features: NDArray[np.float16]) -> NDArray[np.float16]:
        """Features ``[..., D]`` in these coordinates, ``[..., d]``."""
        rows = features.reshape(-1, features.shape[-1])
        projected = np.empty((len(rows), self.axes.shape[1]), np.float16)
        for start in range(0, len(rows), _CHUNK):
            part = torch.from_numpy(rows[start : start + _CHUNK]).float()
            projected[start : start + _CHUNK] = ((part - self.shift) @ self.axes).numpy()
        return projected.reshape(*features.shape[:-1], self.axes.shape[1])

    def fold(self, head: AdaptationHead) -> AdaptationHead:
        """The layer for raw features that equals `head`, which takes these coordinates.

        ``W ((x - m) A) + b = (W Aᵀ) x + (b - W Aᵀ m)``.
        """
        width, classes = head.fca.out_features, head.fcb.out_features
        folded = AdaptationHead(len(self.shift), classes, width)
        folded.dropout.p = head.dropout.p
        with torch.no_grad():
            folded.fca.weight.copy_(head.fca.weight @ self.axes.T)
            folded.fca.bias.copy_(head.fca.bias - folded.fca.weight @ self.shift)
            folded.fcb.load_state_dict(head.fcb.state_dict())
        return folded.eval()


def feature_basis(patches: TrainingPatches, components: int) -> FeatureBasis:
    """Standardized features, along their leading principal components.

    Args:
        patches: features of bags are measured, which are all kinds of patches; without bags, those of labeled patches.
        components: d, at most D; 0 for all D features, standardized but not turned.
    """
    measured = patches.bags if len(patches.bags) else patches.features
    rows = measured.reshape(-1, measured.shape[-1])
    rows = rows[:: -(-len(rows) // _ROWS)]  # [N, D]
    parts = [torch.from_numpy(rows[start : start + _CHUNK]) for start in range(0, len(rows), _CHUNK)]
    mean = torch.stack([part.double().sum(0) for part in parts]).sum(0) / len(rows)
    variance = torch.stack([(part.double() - mean).square().sum(0) for part in parts]).sum(0) / len(rows)
    # A feature that never varies carries nothing, and must not be divided by nearly zero.
    shift, scale = mean.float(), variance.clamp(min=1e-6).rsqrt().float()
    width = rows.shape[1]
    if not components or components >= width:
        return FeatureBasis(shift, torch.diag(scale))
    covariance = torch.zeros(width, width, dtype=torch.float64)  # in float32 LAPACK may fail on few different rows
    for part in parts:
        standard = ((part.float() - shift) * scale).double()
        covariance += standard.T @ standard
    turned = torch.linalg.eigh(covariance / len(rows)).eigenvectors[:, -components:].float()  # [D, d]
    return FeatureBasis(shift, scale[:, None] * turned)


def in_basis(patches: TrainingPatches, basis: FeatureBasis) -> TrainingPatches:
    """The same patches, with their features in a basis."""
    bags = basis.project(patches.bags) if len(patches.bags) else patches.bags
    return replace(patches, features=basis.project(patches.features), bags=bags)
