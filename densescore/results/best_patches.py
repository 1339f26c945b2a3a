"""The patches that an image's score comes from."""

from typing import NamedTuple

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
        label: a class name.
        count: patches to give, or as many as there are.

    Example:
        >>> import densescore, skimage
        >>> best = best_patches(densescore.classify(skimage.data.chelsea(), scales=(1, 1.3)), "Egyptian cat", 100)
        >>> round(sum(patch.share for patch in best), 3)
        1.0
    """
    column = scores.patch_scores[:, scores.index(label)].double().cpu()  # [M]
    powers = (column / column.max().clamp_min(1e-300)) ** scores.k  # of the best one 1: no underflow
    shares = powers / powers.sum()
    order = column.argsort(descending=True, stable=True)[:count].tolist()
    boxes = scores.boxes.tolist()
    return [BestPatch(tuple(boxes[i]), column[i].item(), shares[i].item()) for i in order]
