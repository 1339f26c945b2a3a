"""Windows of a feature map → one row per cell. They replace a flatten or a global pool, and FC6 after it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Blocks = Sequence[Tensor]
"""Blocks of the maps of several levels: each ``[1, C, rows + h - 1, cols + w - 1]`` holds rows × cols windows."""


class AveragedWindows(nn.Module):
    """Global average pooling of each window: blocks → ``[cells, *shape]``, shape ``(C,)`` or ``(C, 1, 1)``."""

    def __init__(self, window: tuple[int, int], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.window, self.shape = window, shape

    def forward(self, blocks: Blocks) -> Tensor:
        """The average over each window, cell by cell."""
        pooled = [F.avg_pool2d(block, self.window, stride=1) for block in blocks]
        return torch.cat([rearrange(block, "1 c rows cols -> (rows cols) c") for block in pooled]).reshape(
            -1, *self.shape
        )


class FlattenedWindows(nn.Module):
    """Flattening of each window: blocks → ``[cells, C·h·w]``."""

    def __init__(self, window: tuple[int, int]) -> None:
        super().__init__()
        self.window = window

    def forward(self, blocks: Blocks) -> Tensor:
        """Each window as the classifier's linear layer reads it, cell by cell."""
        height, width = self.window
        views = [block.unfold(2, height, 1).unfold(3, width, 1) for block in blocks]  # [1, C, rows, cols, h, w]
        return torch.cat([rearrange(view, "1 c rows cols h w -> (rows cols) (c h w)") for view in views])


class LinearWindows(FlattenedWindows):
    """Flattening and FC6 of each window: blocks → ``[cells, width of FC6]``, in one matrix product."""

    def __init__(self, window: tuple[int, int], linear: nn.Module) -> None:
        super().__init__(window)
        self.linear = linear

    def forward(self, blocks: Blocks) -> Tensor:
        """FC6 of each window, cell by cell."""
        return self.linear(super().forward(blocks))
