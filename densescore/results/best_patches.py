"""The patches that an image's score comes from."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from densescore.geometry import Pyramid
from densescore.results.scores import DenseScores


class BestPatch(NamedTuple):
    """A patch with a high score: its box in image pixels, its score, and its share of the image's score."""

    box: tuple[float, float, float, float]
    score: float
    share: float


def best_patches(scores: DenseScores, label: str, count: int = 6) -> list[BestPatch]:
    """The patches that add most to a class's image score, most first.

    By eq. (1) the image's score is ``Σ y_i^k / M``, so a patch's share of it is ``y_i^k / Σ y_j^k``.

    Args:
        scores: of one image.
        label: a class name, or a group's.
        count: patches to give, or as many as there are.

    Example:
        >>> import densescore, skimage
        >>> best = best_patches(densescore.classify(skimage.data.chelsea(), scales=(1, 1.3)), "Egyptian cat", 100)
        >>> round(sum(patch.share for patch in best), 3)
        1.0
    """
    column = scores.select(label).patch_scores[:, 0].cpu().numpy()  # [M]
    return rank_patches(column, scores.pyramid, scores.k, count)


def rank_patches(column: NDArray[np.float32], pyramid: Pyramid, k: float, count: int) -> list[BestPatch]:
    """As `best_patches`, for the scores ``[M]`` of one class."""
    top = max(float(column.max()), 1e-300)
    total = float(((column / top).astype(np.float64) ** k).sum())  # relative to the best patch: no underflow
    found = []
    for index in np.argsort(-column, kind="stable")[:count].tolist():
        level, row, col = pyramid.locate(index)
        x0, y0, x1, y1 = pyramid.window(level, row, col)
        across, down = pyramid.width / level.width, pyramid.height / level.height
        score = float(column[index])
        found.append(BestPatch((x0 * across, y0 * down, x1 * across, y1 * down), score, (score / top) ** k / total))
    return found
