"""Response maps of several images at once."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from densescore.results.scores import DenseScores
from densescore_kernels import Grid, response_map


def response_maps(images: Sequence[DenseScores], labels: str | Sequence[str] | None = None) -> list[Tensor]:
    """`DenseScores.response_map` of several images, with one call for all images of the same size and scales.

    Args:
        images: their scores; each image may have other labels.
        labels: names of classes, or of groups; all classes by default.

    Returns:
        Per image, float32 ``[len(labels), H, W]`` in [0, 1].

    Raises:
        DensescoreError: no such class or group.

    Example:
        >>> from densescore import Pyramid
        >>> pyramid = Pyramid.of(224, 256, scales=(1,))  # two patches
        >>> images = [DenseScores(torch.tensor([[a], [b]]), ("cat",), pyramid) for a, b in ((0.9, 0.5), (0.1, 0.3))]
        >>> [maps[0, 0, [0, 128, 255]] for maps in response_maps(images)]
        [tensor([0.9000, 0.7000, 0.5000]), tensor([0.1000, 0.2000, 0.3000])]
    """
    by_grid: defaultdict[tuple[Grid, torch.device], list[int]] = defaultdict(list)
    for index, scores in enumerate(images):
        by_grid[scores.grid, scores.patch_scores.device].append(index)
    maps: dict[int, Tensor] = {}
    for (grid, _), members in by_grid.items():
        # Columns of images with one grid are to the operation what classes of one image are.
        columns = [images[index].columns(labels) for index in members]
        joined = response_map(torch.cat(columns, 1), grid)
        maps |= zip(members, joined.split([part.shape[1] for part in columns]), strict=True)
    return [maps[index] for index in range(len(images))]
