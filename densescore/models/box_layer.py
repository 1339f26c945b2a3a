"""A layer that gives the patches of a class the box of the object that they show, and how well it fits.

A class's scores on the patches around one say where its object ends: it leaves some of them and fills others. So the
layer looks at a patch, at patches beside it and at finer ones in it, at what they look like and at their scores for the
class. It has no weights of its own per class, so that few boxes teach it.

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
"""Across and down, from a patch's center to those of the patches of its own level that are looked at; in its sides."""

INSIDE = (-1 / 2, -1 / 4, 0, 1 / 4, 1 / 2)
"""The same, for patches of a finer level: those about half as wide."""

NEIGHBORS = len(BESIDE) ** 2 + len(INSIDE) ** 2

FINER = (1.4, 2.9)
"""A finer level's scale, over that of the patch's own."""

REACH = 1 / 8
"""How far past the outermost patches of a level a place may lie and still have the nearest of them; in their sides."""

CANDIDATES = 400
"""Patches of each class that get a box: those of its highest scores."""

FAINT = 8.0
"""Logits beyond are as good as none: scores of less than 0.0003."""


class ObjectBoxes(NamedTuple):
    """Boxes of the objects of each class.

    Attributes:
        patches: int64 ``[C, K]``: the patches of a class's highest scores.
        boxes: float32 ``[C, K, 4]``: of the object that each shows, ``x0 y0 x1 y1`` in image pixels.
        qualities: float32 ``[C, K]`` in [0, 1]: how well each fits, as an intersection over union.
    """

    patches: Tensor
    boxes: Tensor
    qualities: Tensor

    def check(self, patches: int, classes: int) -> None:
        """Refuse boxes that are not those of an image of so many patches, and so many classes.

        Raises:
            DensescoreError: a shape, or the index of a patch, does not fit.
        """
        count = self.patches.shape[-1] if self.patches.ndim else 0
        expected = [(classes, count), (classes, count, 4), (classes, count)]
        shapes = [tuple(part.shape) for part in self]
        if shapes != expected:
            raise DensescoreError(f"object_boxes: expected shapes {expected}, got {shapes}")
        if self.patches.device.type == "cpu" and count and not 0 <= self.patches.min() <= self.patches.max() < patches:
            raise DensescoreError(f"object_boxes: a patch lies outside 0..{patches - 1}")

    def select(self, groups: Sequence[Sequence[int]], scores: Tensor) -> "ObjectBoxes":
        """Those of some classes, and of groups of classes together.

        Args:
            groups: columns of one or more classes each.
            scores: of the patches, ``[M, C]``; of a group's boxes, those of its highest scores are kept.
        """
        kept = []
        for group in groups:
            columns = torch.tensor(list(group), device=scores.device)
            patches, boxes, qualities = (part[columns].flatten(0, 1) for part in self)
            owners = columns.repeat_interleave(self.patches.shape[1])
            best = scores[patches, owners].topk(self.patches.shape[1]).indices
            kept.append((patches[best], boxes[best], qualities[best]))
        return ObjectBoxes(*map(torch.stack, zip(*kept, strict=True)))


class BoxLayer(nn.Module):
    """Features and scores of an image's patches → `ObjectBoxes`.

    Args:
        features: D, width of the transferred features.
        reduced: of these, linear combinations that the layer looks at.
        width: of its first hidden layer; the second has half of it.
    """

    def __init__(self, features: int, reduced: int = 64, width: int = 256) -> None:
        super().__init__()
        self.reduce = nn.Linear(features, reduced)
        self.look = nn.Linear(NEIGHBORS * reduced, width)
        self.evidence = nn.Linear(2 * NEIGHBORS, width)
        self.hidden = nn.Linear(width, width // 2)
        self.out = nn.Linear(width // 2, 5)
        self.dropout = nn.Dropout(0.3)

    def raw(self, looks: Tensor, evidence: Tensor) -> Tensor:
        """What patches and their neighbors look like, and what they say of a class → ``[n, 5]``; see `decode`.

        Args:
            looks: reduced features, ``[n, NEIGHBORS·reduced]``; see `around`.
            evidence: ``[n, 2·NEIGHBORS]``; see `evidence_of`.
        """
        return self._out(self.look(self.dropout(looks)), evidence)

    def _out(self, looks: Tensor, evidence: Tensor) -> Tensor:
        first = self.dropout(torch.relu(looks + self.evidence(evidence)))
        return self.out(self.dropout(torch.relu(self.hidden(first))))

    def forward(self, reduced: Tensor, scores: Tensor, pyramid: Pyramid) -> ObjectBoxes:
        """The boxes of an image, clipped to it.

        Args:
            reduced: what `reduce` gives of the features of all patches, ``[M, reduced]``.
            scores: of the patches, ``[M, C]`` in [0, 1].
            pyramid: their geometry.
        """
        patches = scores.T.topk(min(CANDIDATES, len(scores)), 1).indices  # [C, K]
        chosen, place = patches.unique(return_inverse=True)  # each patch is looked at once for all classes
        near = torch.from_numpy(neighbors(pyramid)).to(patches.device)
        looks = self.look(around(reduced.float(), near[chosen]))  # [n, width]
        corners = torch.from_numpy(pyramid.boxes()).to(looks)
        limit = looks.new_tensor([pyramid.width, pyramid.height] * 2)
        logits, boxes, qualities = logits_of(scores), [], []
        for column, (own, rows) in enumerate(zip(patches, place, strict=True)):
            outputs = self._out(looks[rows], evidence_of(logits, near[own], torch.full_like(own, column)))
            boxes.append(torch.minimum(decode(outputs, corners[own]).clamp(min=0), limit))
            qualities.append(outputs[:, 4].sigmoid())
        return ObjectBoxes(patches, torch.stack(boxes), torch.stack(qualities))


def neighbors(pyramid: Pyramid) -> NDArray[np.int64]:
    """Indices of each patch's `NEIGHBORS`; M for those outside the grid, or of a level that is not there.

    Returns:
        int64 ``[M, NEIGHBORS]``: first those of its own level, row by row, then those of the finer one.
    """
    corners = pyramid.boxes()
    found = []
    for level in pyramid.levels:
        own = corners[level.cells]
        finer = _finer(pyramid, level)
        beside = [_nearest(pyramid, level, own, down, across) for down, across in itertools.product(BESIDE, repeat=2)]
        inside = [_nearest(pyramid, finer, own, down, across) for down, across in itertools.product(INSIDE, repeat=2)]
        found.append(np.stack(beside + inside, 1))
    return np.concatenate(found)


def _finer(pyramid: Pyramid, level: Level) -> Level | None:
    """The level whose patches are closest to half as wide, if there is one in `FINER`."""
    ratios = {other.scale / level.scale: other for other in pyramid.levels}
    usable = [ratio for ratio in ratios if FINER[0] <= ratio <= FINER[1]]
    return ratios[min(usable, key=lambda ratio: abs(math.log(ratio / 2)))] if usable else None


def _nearest(
    pyramid: Pyramid, level: Level | None, patches: NDArray[np.float32], down: float, across: float
) -> NDArray[np.int64]:
    """The patch of a level nearest to a place in or beside each of some patches; M where there is none within reach.

    Args:
        pyramid: of the image.
        level: None where there is no such level.
        patches: ``[n, 4]`` in image pixels.
        down: from a patch's center to the place, in its sides.
        across: the same.
    """
    if level is None:
        return np.full(len(patches), len(pyramid))
    low, sides = patches[:, :2], patches[:, 2:] - patches[:, :2]  # [n, 2], x and y
    places = low + (0.5 + np.array([across, down])) * sides
    shrunk = np.array([level.width / pyramid.width, level.height / pyramid.height])
    cells = (places * shrunk - pyramid.patch / 2) / pyramid.stride  # [n, 2], a cell's center is a whole number
    nearest = np.clip(np.rint(cells), 0, [level.cols - 1, level.rows - 1])
    within = (np.abs(cells - nearest) <= 0.5 + REACH * pyramid.patch / pyramid.stride).all(1)
    return np.where(within, level.start + nearest[:, 1] * level.cols + nearest[:, 0], len(pyramid)).astype(np.int64)


def around(reduced: Tensor, near: Tensor) -> Tensor:
    """Reduced features of patches' neighbors, zeros outside the grid: ``[n, NEIGHBORS·reduced]``.

    Args:
        reduced: of all patches of an image, ``[M, reduced]``.
        near: rows of `neighbors`, ``[n, NEIGHBORS]``.
    """
    padded = torch.cat([reduced, reduced.new_zeros(1, reduced.shape[1])])
    return padded[near].flatten(1)


def logits_of(scores: Tensor) -> Tensor:
    """Logits of patches' scores, and a last row for what is outside the grid, where nothing is seen of any class.

    Args:
        scores: of all patches of an image, ``[M, C]`` in [0, 1].

    Returns:
        ``[M + 1, C]``, from ``-FAINT`` to `FAINT`.
    """
    logits = torch.logit(scores.float()).clamp(-FAINT, FAINT)
    return torch.cat([logits, logits.new_full((1, logits.shape[1]), -FAINT)])


def evidence_of(logits: Tensor, near: Tensor, classes: Tensor) -> Tensor:
    """What patches' neighbors say of a class: their logits, and their scores.

    Args:
        logits: see `logits_of`.
        near: rows of `neighbors`, ``[n, NEIGHBORS]``.
        classes: the class that each is asked for, int64 ``[n]``.

    Returns:
        ``[n, 2·NEIGHBORS]``.
    """
    said = logits[near, classes[:, None]]
    return torch.cat([said / 4, said.sigmoid()], 1)


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
