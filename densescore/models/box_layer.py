"""A layer that predicts, for the patches of a class, the box of the object that they show, and how well it fits.

A class's scores on the patches around a patch tell where its object ends. So the layer takes the features and the class
scores of the patch, of neighbors in its own level, and of finer patches inside it. It has no weights per class, so few
boxes teach it.

Source of the idea: Sermanet et al., "OverFeat" (ICLR 2014), Section 4; Tian et al., "FCOS" (ICCV 2019), for the form of
the box and for merging by its quality.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from densescore.errors import DensescoreError
from densescore.geometry import Level, Pyramid

BESIDE = (-3 / 7, 0, 3 / 7)
"""Offsets, across and down, from a patch's center to its neighbors of the same level, in sides of the patch."""

INSIDE = (-1 / 2, -1 / 4, 0, 1 / 4, 1 / 2)
"""Offsets to its neighbors of a finer level, whose patches are about half as wide."""

NEIGHBORS = len(BESIDE) ** 2 + len(INSIDE) ** 2

FINER = (1.4, 2.9)
"""Range of a finer level's scale, relative to the patch's own level."""

REACH = 1 / 8
"""Distance past the outermost patches of a level at which an offset still has a neighbor, in sides of a patch."""

MAX_CANDIDATES = 400
"""Patches per class that get a box: the highest scores."""

MAX_LOGIT = 8.0
"""Logits are clipped here; a score below 0.0003 counts as none."""


class ObjectBoxes(NamedTuple):
    """Boxes of the objects of each class, from its K patches of the highest scores."""

    patches: Tensor  # int64 [C, K], indices of patches
    boxes: Tensor  # float32 [C, K, 4], x0 y0 x1 y1 in image pixels
    qualities: Tensor  # float32 [C, K] in [0, 1], predicted intersection over union

    def check(self, patches: int, classes: int) -> None:
        """Refuse boxes of another image: wrong shapes, or indices outside its patches."""
        count = self.patches.shape[-1] if self.patches.ndim else 0
        expected = [(classes, count), (classes, count, 4), (classes, count)]
        shapes = [tuple(part.shape) for part in self]
        if shapes != expected:
            raise DensescoreError(f"object_boxes: expected shapes {expected}, got {shapes}")
        if self.patches.device.type == "cpu" and count and not 0 <= self.patches.min() <= self.patches.max() < patches:
            raise DensescoreError(f"object_boxes: a patch lies outside 0..{patches - 1}")

    def select(self, groups: Sequence[Sequence[int]], scores: Tensor) -> "ObjectBoxes":
        """Boxes per group of classes: the K of the highest patch scores ``[M, C]`` among its classes."""
        selected = []
        for group in groups:
            columns = torch.tensor(list(group)).to(scores.device, non_blocking=True)
            patches, boxes, qualities = (part[columns].flatten(0, 1) for part in self)
            owners = columns.repeat_interleave(self.patches.shape[1])
            best = scores[patches, owners].topk(self.patches.shape[1]).indices
            selected.append((patches[best], boxes[best], qualities[best]))
        return ObjectBoxes(*map(torch.stack, zip(*selected, strict=True)))


class BoxLayer(nn.Module):
    """Features ``[M, D]``, reduced to a few linear combinations, and scores of an image's patches → `ObjectBoxes`.

    `width`: first hidden layer; the second has half of it. Names of the submodules are names in files.
    """

    def __init__(self, features: int, reduced: int = 64, width: int = 256) -> None:
        super().__init__()
        self.reduce = nn.Linear(features, reduced)
        self.look = nn.Linear(NEIGHBORS * reduced, width)
        self.evidence = nn.Linear(2 * NEIGHBORS, width)
        self.hidden = nn.Linear(width, width // 2)
        self.out = nn.Linear(width // 2, 5)
        self.dropout = nn.Dropout(0.3)

    def logits(self, neighbor_features: Tensor, neighbor_scores: Tensor) -> Tensor:
        """Neighbors' features ``[n, NEIGHBORS·reduced]`` and scores ``[n, 2·NEIGHBORS]`` → ``[n, 5]``: box and quality.

        See `gather_neighbors`, `gather_scores` and `decode`.
        """
        return self._logits(self.look(self.dropout(neighbor_features)), neighbor_scores)

    def _logits(self, embedded: Tensor, neighbor_scores: Tensor) -> Tensor:
        """`logits` from embedded features ``[n, width]``, which are the same for all classes."""
        first = self.dropout(torch.relu(embedded + self.evidence(neighbor_scores)))
        return self.out(self.dropout(torch.relu(self.hidden(first))))

    def forward(self, reduced: Tensor, scores: Tensor, pyramid: Pyramid) -> ObjectBoxes:
        """Boxes of an image, clipped to it, from reduced features ``[M, reduced]`` and scores ``[M, C]`` in [0, 1]."""
        # Embed each candidate patch once for all classes
        candidates = scores.T.topk(min(MAX_CANDIDATES, len(scores)), 1).indices  # [C, K]
        if scores.device.type == "cpu":
            patches, places = candidates.unique(return_inverse=True)  # [n], [C, K]
        else:  # all patches: to count the candidates, the host would wait
            patches, places = torch.arange(len(scores), device=scores.device), candidates
        near = torch.from_numpy(neighbors(pyramid)).to(scores.device, non_blocking=True)  # [M, NEIGHBORS]
        embedded = self.look(gather_neighbors(reduced.float(), near[patches]))  # [n, width]

        # Predict boxes class by class, from its own scores
        corners = torch.from_numpy(pyramid.boxes()).to(embedded, non_blocking=True)
        limit = torch.tensor([pyramid.width, pyramid.height] * 2).to(embedded, non_blocking=True)
        all_logits, boxes, qualities = score_logits(scores), [], []
        for column, (rows, place) in enumerate(zip(candidates, places, strict=True)):
            neighbor_scores = gather_scores(all_logits, near[rows], torch.full_like(rows, column))
            outputs = self._logits(embedded[place], neighbor_scores)  # [K, 5]
            boxes.append(torch.minimum(decode(outputs, corners[rows]).clamp(min=0), limit))
            qualities.append(outputs[:, 4].sigmoid())
        return ObjectBoxes(candidates, torch.stack(boxes), torch.stack(qualities))


def neighbors(pyramid: Pyramid) -> NDArray[np.int64]:
    """Indices of each patch's neighbors: int64 ``[M, NEIGHBORS]``, M where there is none.

    Neighbors of its own level come first, row by row, then those of the finer level.
    """
    corners = pyramid.boxes()
    rows = []
    for level in pyramid.levels:
        patches, finer = corners[level.cells], _finer(pyramid, level)
        beside = [_nearest(pyramid, level, patches, *offset) for offset in itertools.product(BESIDE, repeat=2)]
        inside = [_nearest(pyramid, finer, patches, *offset) for offset in itertools.product(INSIDE, repeat=2)]
        rows.append(np.stack(beside + inside, 1))
    return np.concatenate(rows)


def _finer(pyramid: Pyramid, level: Level) -> Level | None:
    """The level whose patches are closest to half as wide, if there is one in `FINER`."""
    ratios = {other.scale / level.scale: other for other in pyramid.levels}
    usable = [ratio for ratio in ratios if FINER[0] <= ratio <= FINER[1]]
    return ratios[min(usable, key=lambda ratio: abs(math.log(ratio / 2)))] if usable else None


def _nearest(
    pyramid: Pyramid, level: Level | None, patches: NDArray[np.float32], down: float, across: float
) -> NDArray[np.int64]:
    """The level's patch nearest to each patch's center plus an offset in its sides; M where none is within reach."""
    if level is None:
        return np.full(len(patches), len(pyramid))
    low, sides = patches[:, :2], patches[:, 2:] - patches[:, :2]  # [n, 2], x and y
    points = low + (0.5 + np.array([across, down])) * sides
    shrunk = np.array([level.width / pyramid.width, level.height / pyramid.height])
    cells = (points * shrunk - pyramid.patch / 2) / pyramid.stride  # [n, 2], a cell's center is a whole number
    nearest = np.clip(np.rint(cells), 0, [level.cols - 1, level.rows - 1])
    within = (np.abs(cells - nearest) <= 0.5 + REACH * pyramid.patch / pyramid.stride).all(1)
    return np.where(within, level.start + nearest[:, 1] * level.cols + nearest[:, 0], len(pyramid)).astype(np.int64)


def gather_neighbors(reduced: Tensor, near: Tensor) -> Tensor:
    """Features ``[M, r]`` at rows of `neighbors` ``[n, NEIGHBORS]``, zeros outside the grid: ``[n, NEIGHBORS·r]``."""
    padded = torch.cat([reduced, reduced.new_zeros(1, reduced.shape[1])])
    return padded[near].flatten(1)


def score_logits(scores: Tensor) -> Tensor:
    """Clipped logits of scores ``[M, C]``, and a last row of the lowest for what is outside: ``[M + 1, C]``."""
    logits = torch.logit(scores.float()).clamp(-MAX_LOGIT, MAX_LOGIT)
    return torch.cat([logits, logits.new_full((1, logits.shape[1]), -MAX_LOGIT)])


def gather_scores(logits: Tensor, near: Tensor, classes: Tensor) -> Tensor:
    """Class logits and scores of each patch's neighbors: ``[n, 2·NEIGHBORS]``.

    `logits`: of `score_logits`; `near`: rows of `neighbors`; `classes`: int64 ``[n]``, one per patch.
    """
    neighbor_logits = logits[near, classes[:, None]]
    return torch.cat([neighbor_logits / 4, neighbor_logits.sigmoid()], 1)


def decode(outputs: Tensor, patches: Tensor) -> Tensor:
    """Boxes ``[n, 4]`` from outputs ``[n, 5]``: center and log size relative to the patches ``[n, 4]``."""
    low, high = patches.split(2, 1)
    sides = high - low  # [n, 2]
    center = (low + high) / 2 + outputs[:, :2].clamp(-2, 2) * sides
    half = sides * outputs[:, 2:4].clamp(-4, 2).exp() / 2
    return torch.cat([center - half, center + half], 1)
