"""Windows of a feature map → one row per cell. They replace a flatten or a global pool, and FC6 after it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Blocks = Sequence[Tensor]
"""Blocks of the maps of several levels: each ``[1, C, rows + h - 1, cols + w - 1]`` holds rows × cols windows."""


class Windows(nn.Module):
    """Cuts windows out of maps and makes a row of each: blocks → ``[cells, …]``."""

    def __init__(self, window: tuple[int, int]) -> None:
        super().__init__()
        self.window = window

    def grid(self, maps: Tensor) -> Tensor:
        """What `rows` takes of each window, by position: ``[N, C, rows + h - 1, …]`` → ``[N, rows, cols, …]``."""
        raise NotImplementedError

    def rows(self, windows: Tensor) -> Tensor:
        """``[cells, …]`` of `grid` → one row per cell."""
        raise NotImplementedError

    def forward(self, blocks: Blocks) -> Tensor:
        """The row of each window, cell by cell."""
        return self.rows(torch.cat([self.grid(block).flatten(0, 2) for block in blocks]))


class AveragedWindows(Windows):
    """Global average pooling of each window: blocks → ``[cells, *shape]``, shape ``(C,)`` or ``(C, 1, 1)``."""

    def __init__(self, window: tuple[int, int], shape: tuple[int, ...]) -> None:
        super().__init__(window)
        self.shape = shape

    def grid(self, maps: Tensor) -> Tensor:
        """``[N, rows, cols, C]``."""
        return F.avg_pool2d(maps, self.window, stride=1).permute(0, 2, 3, 1)

    def rows(self, windows: Tensor) -> Tensor:
        """``[cells, C]`` → ``[cells, *shape]``."""
        return windows.reshape(-1, *self.shape)


class FlattenedWindows(Windows):
    """Flattening of each window: blocks → ``[cells, C·h·w]``."""

    def grid(self, maps: Tensor) -> Tensor:
        """``[N, rows, cols, C, h, w]``, a view."""
        height, width = self.window
        return maps.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)

    def rows(self, windows: Tensor) -> Tensor:
        """Each window as the classifier's linear layer reads it."""
        return windows.flatten(1)


class LinearWindows(FlattenedWindows):
    """Flattening and FC6 of each window: blocks → ``[cells, width of FC6]``, in one matrix product."""

    def __init__(self, window: tuple[int, int], linear: nn.Module) -> None:
        super().__init__(window)
        self.linear = linear

    def rows(self, windows: Tensor) -> Tensor:
        """FC6 of each window."""
        return self.linear(super().rows(windows))
