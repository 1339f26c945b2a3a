"""A layer that gives each patch the box of the object that it shows, and how well that box fits.

Source of the idea: Sermanet et al., "OverFeat" (ICLR 2014), Section 4; Tian et al., "FCOS" (ICCV 2019), for the form of
the box and for merging by its quality.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from densescore.geometry import Pyramid

NEIGHBORS = 9
"""Patches that the layer looks at: a patch, and those `STEP` away in each direction."""

STEP = 3 / 7
"""From a patch to its neighbors, as a share of its side. A mean over a window does not say where in it an object is,
but the windows next to it do: the object leaves some and fills others."""


class BoxLayer(nn.Module):
    """``[M, D]`` features of an image's patches → their boxes and qualities.

    Args:
        features: D, width of the transferred features.
        reduced: of these, linear combinations that the layer looks at.
        width: of its hidden layer.
    """

    def __init__(self, features: int, reduced: int = 128, width: int = 256) -> None:
        super().__init__()
        self.reduce = nn.Linear(features, reduced)
        self.hidden = nn.Linear(NEIGHBORS * reduced, width)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(0.3)
        self.out = nn.Linear(width, 5)

    def raw(self, neighborhoods: Tensor) -> Tensor:
        """Reduced features of patches and their neighbors, ``[n, 9·reduced]`` → ``[n, 5]``; see `decode`."""
        return self.out(self.dropout(self.relu(self.hidden(self.dropout(neighborhoods)))))

    def forward(self, reduced: Tensor, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """Boxes ``[M, 4]`` in image pixels, clipped to the image, and qualities ``[M]`` in [0, 1].

        Args:
            reduced: what `reduce` gives of the features of all patches of an image, ``[M, reduced]``.
            pyramid: their geometry.
        """
        outputs = self.raw(around(reduced.float(), neighbors(pyramid)))
        boxes = decode(outputs, torch.from_numpy(pyramid.boxes()).to(outputs))
        limit = boxes.new_tensor([pyramid.width, pyramid.height] * 2)
        return torch.minimum(boxes.clamp(min=0), limit), outputs[:, 4].sigmoid()


def neighbors(pyramid: Pyramid) -> NDArray[np.int64]:
    """Indices of each patch's `NEIGHBORS`, row by row; M for those outside the grid: int64 ``[M, 9]``."""
    step = max(1, round(STEP * pyramid.patch / pyramid.stride))  # cells
    shifts = (0, step, 2 * step)
    found = []
    for level in pyramid.levels:
        cells = np.arange(level.cells.start, level.cells.stop).reshape(level.rows, level.cols)
        grid = np.pad(cells, step, constant_values=len(pyramid))
        views = [grid[down : down + level.rows, across : across + level.cols] for down in shifts for across in shifts]
        found.append(np.stack(views, -1).reshape(-1, NEIGHBORS))
    return np.concatenate(found)


def around(reduced: Tensor, chosen: NDArray[np.int64]) -> Tensor:
    """Reduced features of patches' neighbors, zeros outside the grid: ``[n, 9·reduced]``.

    Args:
        reduced: of all patches of an image, ``[M, reduced]``.
        chosen: rows of `neighbors`, ``[n, 9]``.
    """
    padded = torch.cat([reduced, reduced.new_zeros(1, reduced.shape[1])])
    return padded[torch.from_numpy(chosen).to(reduced.device)].flatten(1)


def decode(outputs: Tensor, patches: Tensor) -> Tensor:
    """Boxes ``[n, 4]`` from the layer's first four outputs: center and logarithm of the size, relative to the patch.

    Args:
        outputs: ``[n, 5]``.
        patches: ``[n, 4]``, ``x0 y0 x1 y1``.
    """
    low, high = patches.split(2, 1)
    sides = high - low  # [n, 2]
    center = (low + high) / 2 + outputs[:, :2].clamp(-2, 2) * sides
    half = sides * outputs[:, 2:4].clamp(-4, 2).exp() / 2
    return torch.cat([center - half, center + half], 1)
