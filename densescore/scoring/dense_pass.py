"""The dense pass: the trunk once over each level, the head once over the cells of all levels."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from densescore.geometry import Level
from densescore.network.dense_network import DenseNetwork
from densescore.network.tiling import trunk_over
from densescore.scoring.cell_batches import cell_batches
from densescore.scoring.clock import Clock
from densescore.scoring.finite import check_outputs

HEAD_BYTES = 96 * 2**20
"""Memory that the windows and the head's outputs of one product may take; the cells per product follow from it."""


def trunk_maps(network: DenseNetwork, levels: Iterable[Tensor], clock: Clock, parts: int = 1) -> Iterator[Tensor]:
    """The trunk's map of each level.

    Args:
        network: whose trunk runs.
        levels: normalized pixels, ``[1, 3, P + nS, P + mS]`` each.
        clock: for the stage "trunk".
        parts: above 1, each level is cut into about so many tiles. A large one is cut in any case.

    Raises:
        DensescoreError: a map is not finite.

    Yields:
        ``[phases², C, rows + h - 1, cols + w - 1]`` per level.
    """
    for level in levels:
        feature_map = trunk_over(network, level, parts)
        if feature_map.device.type == "cpu":  # elsewhere it would wait for the device; there NaN passes through clamps
            check_outputs(feature_map, "the trunk's features")
        clock.lap("trunk")
        yield feature_map


def head_outputs(
    network: DenseNetwork,
    classifier: nn.Module,
    maps: Iterable[Tensor],
    levels: Sequence[Level],
    clock: Clock | None = None,
    parts: int = 1,
) -> Tensor:
    """The classifier's output for every cell, in order: ``[M, …]``.

    Args:
        network: cuts windows out of the maps and embeds them.
        classifier: ``[N, D]`` features → outputs.
        maps: per level, as `trunk_maps` gives them.
        levels: their grids.
        clock: for the stage "head".
        parts: the products are so many times smaller.
    """
    batches = []
    for blocks in cell_batches(maps, levels, network, HEAD_BYTES // parts):
        batches.append(classifier(network.embed_blocks(blocks)))
        if clock:
            clock.lap("head")
    outputs = torch.cat(batches)
    if network.phases == 1:
        return outputs
    cells = [phase.ravel() for level in levels for phase in level.phases(network.phases)]
    return outputs[torch.from_numpy(np.argsort(np.concatenate(cells))).to(outputs.device)]
