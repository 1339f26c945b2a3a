"""From examples, pictures with a box, to the vector that is similar to places like them."""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

from densescore.errors import DensescoreError
from densescore.io.images import ImageLike, file_of, read_image
from densescore.scoring.scorer import DenseScorer
from densescore.search.codec import Codec, Vectors

Box: TypeAlias = tuple[float, float, float, float]
"""``x0 y0 x1 y1`` in pixels of the picture."""

Example: TypeAlias = tuple[ImageLike, Box | None]
"""A picture, and the box of the example in it; None for the whole picture."""

_FITS = (0.8, 1.0)  # sides of an example's patches over the longer side of its box
_SURROUNDINGS = 1.5  # sides of the box, to each side, that the network sees
_MIN_SHARE = 0.1  # of the smallest patch: a smaller box is a few pixels of its level


def mean_vector(scorer: DenseScorer, codec: Codec, examples: Sequence[Example]) -> Vectors:
    """Mean of the examples' vectors, of unit length: ``[d]``."""
    features = [row for image, box in examples for row in _example_features(scorer, image, box)]
    mean: Vectors = codec.vectors(np.stack(features)).mean(0)
    return mean / np.linalg.norm(mean)


def _example_features(scorer: DenseScorer, image: ImageLike, box: Box | None) -> Iterator[Vectors]:
    """Features ``[D]`` of the patches that fit the example's box, and of its mirror image's."""
    name, pixels = file_of(image) or "the example", read_image(image)
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = box or (0, 0, width, height)
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise DensescoreError(
            f"{name}: box {x0:g},{y0:g},{x1:g},{y1:g} is empty or outside the {width}×{height} pixels"
        )
    side = min(max(x1 - x0, y1 - y0), height, width)
    smallest = min(min(height, width) / scale for scale in scorer.scales)
    if side < _MIN_SHARE * smallest:
        raise DensescoreError(
            f"{name}: the box is {side:g} pixels large, and the smallest patches of this index are {smallest:.0f}: "
            "make an index with larger --scales"
        )
    # Cut out the surroundings that a patch sees, and take the patch of each size nearest to the box's center
    across, down = (x0 + x1) / 2, (y0 + y1) / 2
    reach = _SURROUNDINGS * side
    left, top = max(0, int(across - reach)), max(0, int(down - reach))
    cut = pixels[top : int(down + reach) + 1, left : int(across + reach) + 1]
    fitted = scorer.with_scales(patch_sizes=[fit * side for fit in _FITS])
    for mirrored in (False, True):
        center = (cut.shape[1] - (across - left) if mirrored else across - left, down - top)
        patches = fitted.patches(np.ascontiguousarray(cut[:, ::-1] if mirrored else cut))
        boxes = patches.pyramid.boxes()  # [M, 4]
        distances = np.hypot(*((boxes[:, :2] + boxes[:, 2:]) / 2 - center).T)
        for level in patches.pyramid.levels:
            nearest = level.start + int(distances[level.cells].argmin())
            yield patches.features[nearest].float().cpu().numpy()
