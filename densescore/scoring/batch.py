"""Several images in one pass: fewer and larger operations, for devices on which launching one costs more than its work.

Levels of one size go through the trunk together, whichever images they are of. Levels are relative to the short side
and padded to P + nS pixels, so photographs of one aspect ratio share them all. The head runs over the cells of all
images, and one call gives the image scores of all.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from densescore.io.images import Pixels
from densescore.network.dense_network import DenseNetwork
from densescore.network.tiling import TRUNK_BYTES, bytes_per_pixel, trunk_over
from densescore.results.scores import DenseScores
from densescore.scoring.clock import Clock
from densescore.scoring.dense_pass import head_outputs
from densescore.scoring.object_boxes import object_boxes
from densescore.scoring.out_of_memory import is_out_of_memory
from densescore_kernels import power_mean

if TYPE_CHECKING:
    from densescore.scoring.scorer import DenseScorer

BATCH_PIXELS = 64 * 10**6
"""Pixels of all levels of one pass: about 1 GB with their maps. One image alone may have more."""


def score_batch(scorer: "DenseScorer", images: Sequence[Pixels]) -> list[DenseScores]:
    """Score images ``[h, w, 3]`` in as few passes as memory allows; see `DenseScorer.score_batch`."""
    try:
        return [scores for group in _groups(scorer, images) for scores in _score_together(scorer, group)]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    return [scorer.score(image) for image in images]  # here, where the error holds no memory any more


def _groups(scorer: "DenseScorer", images: Sequence[Pixels]) -> Iterator[Sequence[Pixels]]:
    """Cut images, in order, into runs of at most `BATCH_PIXELS`."""
    start = total = 0
    for index, image in enumerate(images):
        pyramid = scorer.pyramid(*image.shape[:2])
        pixels = sum(height * width for height, width in map(pyramid.padded_size, pyramid.levels))
        if index > start and total + pixels > BATCH_PIXELS:
            yield images[start:index]
            start, total = index, 0
        total += pixels
    yield images[start:]


def _score_together(scorer: "DenseScorer", images: Sequence[Pixels]) -> list[DenseScores]:
    clock = Clock(scorer.device)
    pyramids = [scorer.pyramid(*image.shape[:2]) for image in images]
    grids = [level for pyramid in pyramids for level in pyramid.levels]
    with torch.inference_mode():
        levels = [
            scorer.level(image, pyramid, level)
            for image, pyramid in zip(images, pyramids, strict=True)
            for level in pyramid.levels
        ]
        clock.lap("pyramid")
        maps = _maps(scorer.dense, levels)
        clock.lap("trunk")
        outputs = head_outputs(scorer.dense, scorer.with_reduced, maps, grids, clock)
    sizes = [len(pyramid) for pyramid in pyramids]
    parts, boxes = zip(
        *(
            object_boxes(scorer.box_layer, part, pyramid)
            for part, pyramid in zip(outputs.split(sizes), pyramids, strict=True)
        ),
        strict=True,
    )
    probabilities = scorer.probabilities(torch.cat(parts))  # [ΣM, C]
    image_scores = power_mean(probabilities, torch.tensor([0, *accumulate(sizes)]), scorer.k)  # [B, C]
    share = {stage: seconds / len(images) for stage, seconds in clock.timings.items()}
    return [
        scorer.scores_of(part.clone(), pyramid, "image", timings=dict(share), own_scores=own, **found)
        for part, pyramid, own, found in zip(probabilities.split(sizes), pyramids, image_scores, boxes, strict=True)
    ]


def _maps(network: DenseNetwork, levels: Sequence[Tensor]) -> list[Tensor]:
    """The trunk's map of each level, ``[1, C, h, w]``; levels of one size together, as many as memory allows."""
    alike: defaultdict[torch.Size, list[int]] = defaultdict(list)
    for index, level in enumerate(levels):
        alike[level.shape].append(index)
    maps: dict[int, Tensor] = {}
    for shape, members in alike.items():
        most = max(1, int(TRUNK_BYTES / (bytes_per_pixel(network) * shape[2] * shape[3])))
        for start in range(0, len(members), most):
            chosen = members[start : start + most]
            stacked = torch.cat([levels[index] for index in chosen])
            found = network.fast_trunk(stacked) if len(chosen) > 1 else trunk_over(network, stacked)
            maps |= zip(chosen, found.split(1), strict=True)
    return [maps[index] for index in range(len(levels))]
