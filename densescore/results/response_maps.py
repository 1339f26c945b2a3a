"""Response maps of several images: one operation for all that have the same size."""

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
    alike: defaultdict[tuple[Grid, torch.device], list[int]] = defaultdict(list)
    for index, scores in enumerate(images):
        alike[scores._grid, scores.patch_scores.device].append(index)
    found: dict[int, Tensor] = {}
    for (grid, _), members in alike.items():
        columns = []
        for index in members:
            scores = images[index]
            names = [labels] if isinstance(labels, str) else labels
            columns.append(scores.patch_scores if names is None else scores.columns(names))
        # The patches are in the same places, so that images are to the operation what classes are.
        maps = response_map(torch.cat(columns, 1), grid)
        found |= zip(members, maps.split([part.shape[1] for part in columns]), strict=True)
    return [found[index] for index in range(len(images))]
