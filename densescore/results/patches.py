"""The patches of an image one by one, each with its box."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densescore.errors import DensescoreError
from densescore.geometry import Pyramid

PATCH_IOU, PATCH_SHARE = 0.2, 0.3
"""Best patches overlap by no more than the first (intersection over union), since others show the same, and reach the
second, a share of the best one's score, since others add nothing to the image's."""


class Patch(NamedTuple):
    """One patch of an image.

    Attributes:
        box: ``x0 y0 x1 y1`` in image pixels, not clipped to the image.
        scale: λ of its level.
        values: its scores ``[C]``, or its features ``[D]``.
    """

    box: tuple[float, float, float, float]
    scale: float
    values: Tensor

    def __repr__(self) -> str:
        box = ", ".join(f"{side:.1f}" for side in self.box)
        return f"Patch(box=({box}), scale={self.scale:g}, values=[{len(self.values):,} numbers])"


class BestPatch(NamedTuple):
    """A patch with a high score: its box in image pixels, its score, and its share of the image's score."""

    box: tuple[float, float, float, float]
    score: float
    share: float


@dataclass(frozen=True, eq=False, repr=False)
class PatchFeatures:
    """The features of every patch of an image, and where the patches are. Iteration gives each as a `Patch`.

    Attributes:
        features: ``[M, D]``, in the scorer's dtype.
        pyramid: the geometry: image size, levels, patch and stride.

    Example:
        >>> patches = PatchFeatures(torch.rand(2, 8), Pyramid.of(224, 256, scales=(1,)))
        >>> patches
        PatchFeatures(2 patches of a 224×256 image at scale 1, 8 features each)
        >>> [patch.box for patch in patches]
        [(0.0, 0.0, 224.0, 224.0), (32.0, 0.0, 256.0, 224.0)]
    """

    features: Tensor
    pyramid: Pyramid

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: the features on the host."""
        return {**self.__dict__, "features": self.features.cpu()}

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or len(self.features) != len(self.pyramid):
            raise DensescoreError(
                f"features: expected [M, D] with M = {len(self.pyramid)}, got {tuple(self.features.shape)}"
            )

    @cached_property
    def boxes(self) -> Tensor:
        """Every patch in image pixels, ``x0 y0 x1 y1``, not clipped to the image: float32 ``[M, 4]``."""
        return torch.from_numpy(self.pyramid.boxes()).to(self.features.device, non_blocking=True)

    def __len__(self) -> int:
        """M, the number of patches."""
        return len(self.features)

    def __iter__(self) -> Iterator[Patch]:
        """The patches, in the order of the rows."""
        return each_patch(self.pyramid, self.features)

    def __repr__(self) -> str:
        return f"PatchFeatures({describe_patches(self.pyramid)}, {self.features.shape[1]:,} features each)"


def each_patch(pyramid: Pyramid, values: Tensor) -> Iterator[Patch]:
    """The patches of an image, in the order of the rows of `values`, ``[M, …]``."""
    for box, scale, row in zip(pyramid.boxes().tolist(), patch_scales(pyramid), values, strict=True):
        yield Patch(tuple(box), float(scale), row)


def patch_scales(pyramid: Pyramid) -> NDArray[np.float64]:
    """The scale λ of each patch: ``[M]``."""
    levels = pyramid.levels
    return np.repeat([level.scale for level in levels], [level.rows * level.cols for level in levels])


def describe_patches(pyramid: Pyramid) -> str:
    """``600 patches of a 480×640 image at scales 1, 1.3, 2``: height × width, as in ``[H, W]``."""
    scales = ", ".join(f"{level.scale:.3g}" for level in pyramid.levels)
    count = len(pyramid)
    return (
        f"{count:,} patch{'es' * (count != 1)} of a {pyramid.height}×{pyramid.width} image at "
        f"scale{'s' * (len(pyramid.levels) != 1)} {scales}"
    )


def rank_patches(column: NDArray[np.float32], pyramid: Pyramid, k: float, count: int) -> list[BestPatch]:
    """The patches with the highest scores ``[M]`` of one class, best first; see `best_patches`."""
    # Powers relative to the best patch do not underflow; if even its score does, all patches add the same
    top = float(column.max())
    powers = (column / top).astype(np.float64) ** k if top else np.ones(len(column))
    shares = powers / powers.sum()
    boxes = pyramid.boxes()
    strong = np.flatnonzero(column >= PATCH_SHARE * top)
    corners = np.concatenate([boxes[strong, :2], boxes[strong, 2:] - boxes[strong, :2]], 1)  # x y width height
    different = cv2.dnn.NMSBoxes(corners.tolist(), (1 + column[strong]).tolist(), 0.0, PATCH_IOU)[:count]
    best = strong[np.array(different, int).ravel()].tolist()
    return [BestPatch(tuple(boxes[index].tolist()), float(column[index]), float(shares[index])) for index in best]
