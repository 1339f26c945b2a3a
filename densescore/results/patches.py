"""The patches of an image one by one, each with its box."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from densescore.errors import DensescoreError
from densescore.geometry import Pyramid


class Patch(NamedTuple):
    """One patch of an image.

    Attributes:
        box: ``x0 y0 x1 y1`` in image pixels, not clipped to the image.
        scale: λ of its level.
        values: what the network gave for it: scores ``[C]``, or features ``[D]``.
    """

    box: tuple[float, float, float, float]
    scale: float
    values: Tensor


def each_patch(pyramid: Pyramid, values: Tensor) -> Iterator[Patch]:
    """The patches of an image, in the order of the rows of `values`, ``[M, …]``."""
    scales = [level.scale for level in pyramid.levels for _ in range(level.rows * level.cols)]
    for box, scale, row in zip(pyramid.boxes().tolist(), scales, values, strict=True):
        yield Patch(tuple(box), scale, row)


@dataclass(frozen=True, eq=False, repr=False)
class PatchFeatures:
    """The features of every patch of an image, and where the patches are. Iteration gives each as a `Patch`.

    Attributes:
        features: ``[M, D]``, in the scorer's dtype.
        pyramid: the geometry: image size, levels, patch and stride.

    Example:
        >>> found = PatchFeatures(torch.rand(2, 8), Pyramid.of(224, 256, scales=(1,)))
        >>> found
        PatchFeatures(2 patches of a 224×256 image at scale 1, 8 features each)
        >>> [patch.box for patch in found]
        [(0.0, 0.0, 224.0, 224.0), (32.0, 0.0, 256.0, 224.0)]
    """

    features: Tensor
    pyramid: Pyramid

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or len(self.features) != len(self.pyramid):
            raise DensescoreError(
                f"features: expected [M, D] with M = {len(self.pyramid)}, got {tuple(self.features.shape)}"
            )

    @cached_property
    def boxes(self) -> Tensor:
        """Every patch in image pixels, ``x0 y0 x1 y1``, not clipped to the image: float32 ``[M, 4]``."""
        return torch.from_numpy(self.pyramid.boxes())

    def __len__(self) -> int:
        """M, the number of patches."""
        return len(self.features)

    def __iter__(self) -> Iterator[Patch]:
        """The patches, in the order of the rows."""
        return each_patch(self.pyramid, self.features)

    def __repr__(self) -> str:
        return f"PatchFeatures({describe_patches(self.pyramid)}, {self.features.shape[1]:,} features each)"


def describe_patches(pyramid: Pyramid) -> str:
    """``600 patches of a 480×640 image at scales 1, 1.3, 2``: height × width, as in ``[H, W]``."""
    scales = ", ".join(f"{level.scale:.3g}" for level in pyramid.levels)
    count = len(pyramid)
    return (
        f"{count:,} patch{'es' * (count != 1)} of a {pyramid.height}×{pyramid.width} image at "
        f"scale{'s' * (len(pyramid.levels) != 1)} {scales}"
    )
