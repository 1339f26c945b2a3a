"""Several images in one pass: fewer and larger operations, for devices on which launching one costs more than its work.

Levels of all images lie side by side on a few canvases, and go through the trunk together; see
`densescore.network.mosaic`. Where a network does not allow that, levels of one size are stacked. The head runs over the
cells of all images, and one call gives the image scores of all.

On a CPU each level goes through the trunk by itself, whose layers gain nothing from more. But a head with fully
connected layers reads all of their weights once per pass, which for few patches takes most of the time.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from densescore.geometry import Pyramid
from densescore.io.images import Pixels
from densescore.network.dense_network import DenseNetwork
from densescore.network.windows import LinearWindows
from densescore.results.scores import DenseScores
from densescore.scoring.clock import Clock
from densescore.scoring.crop_network import PatchNetwork
from densescore.scoring.dense_pass import head_outputs, trunk_maps
from densescore.scoring.freed_memory import freed_memory
from densescore.scoring.object_boxes import split_reduced
from densescore.scoring.out_of_memory import is_out_of_memory
from densescore.scoring.staging import Staged, stage, staged_outputs
from densescore_kernels import power_mean

if TYPE_CHECKING:
    from densescore.scoring.scorer import DenseScorer

BATCH_PIXELS = 64 * 10**6
"""Pixels of all levels of one pass: 0.2 GB, and their maps half as much. One image alone may have more."""

BATCH = 8
"""Images in one pass."""

HEAD_CELLS = 1000
"""Cells in one pass of a head on a CPU, past which more of them do not make it faster."""

Batching = Literal["canvases", "head"] | None
"""How a scorer takes several images together: all of the network, or the head alone; None: it does not."""


def find_batching(network: PatchNetwork, device: torch.device) -> Batching:
    """What takes less time for several images together.

    Args:
        network: before its layers are replaced by faster ones.
        device: that it runs on.
    """
    if not isinstance(network, DenseNetwork) or network.phases > 1:
        return None
    if device.type != "cpu":
        return "canvases"
    return "head" if isinstance(network.project, LinearWindows) else None


def score_batch(scorer: "DenseScorer", images: Sequence[Pixels]) -> list[DenseScores]:
    """Score images ``[h, w, 3]`` in as few passes as memory allows; see `DenseScorer.score_batch`."""
    try:
        return [scores for group in groups(scorer, images) for scores in _score_together(scorer, group)]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    return [scorer.score(image) for image in images]  # here, where the error holds no memory any more


def groups(scorer: "DenseScorer", images: Sequence[Pixels]) -> Iterator[Sequence[Pixels]]:
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
    if scorer.batching == "canvases":
        return score_staged(scorer, stage(scorer, images))
    clock = Clock(scorer.device)
    pyramids = [scorer.pyramid(*image.shape[:2]) for image in images]
    network = scorer.dense
    with torch.inference_mode():
        levels = (
            level
            for image, pyramid in zip(images, pyramids, strict=True)
            for level in scorer.levels(image, pyramid, clock)
        )
        grids = [level for pyramid in pyramids for level in pyramid.levels]
        outputs = head_outputs(network, scorer.with_reduced, trunk_maps(network, levels, clock), grids, clock)
    freed_memory.after_image()
    return _results(scorer, pyramids, outputs, clock)


def score_staged(scorer: "DenseScorer", staged: Staged) -> list[DenseScores]:
    """Score images that `stage` has brought to the device."""
    clock = Clock(scorer.device)
    clock.timings["pyramid"] = staged.seconds
    outputs = staged_outputs(scorer, staged, scorer.with_reduced, clock)
    return _results(scorer, staged.pyramids, outputs, clock)


def _results(scorer: "DenseScorer", pyramids: Sequence[Pyramid], outputs: Tensor, clock: Clock) -> list[DenseScores]:
    """The scores of each image, of the outputs of all ``[ΣM, …]``."""
    sizes = [len(pyramid) for pyramid in pyramids]
    logits, reduced = split_reduced(scorer.box_layer, outputs)
    probabilities = scorer.probabilities(logits)  # [ΣM, C]
    image_scores = power_mean(probabilities, torch.tensor([0, *accumulate(sizes)]), scorer.k)  # [B, C]
    share = {name: seconds / len(pyramids) for name, seconds in clock.timings.items()}
    return [
        scorer.scores_of(part.clone(), looks, pyramid, "image", timings=dict(share), own_scores=own)
        for part, looks, pyramid, own in zip(
            probabilities.split(sizes), reduced.split(sizes), pyramids, image_scores, strict=True
        )
    ]
