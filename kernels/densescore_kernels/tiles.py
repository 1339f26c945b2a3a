"""Tiles of many regions in one launch: each program finds its region by a search in a table.

A table is int32 ``[columns, L]``, a column of numbers for each of L regions. Its last row holds the first tile of each
region, so that tile t belongs to the last region whose first tile is at most t.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from densescore_kernels.errors import DensescoreError


class Tiles(NamedTuple):
    """A table of regions, on any device, and the number of tiles that cover them."""

    table: torch.Tensor  # [columns, L] int32
    total: int

    def to(self, device: torch.device) -> Tiles:
        """The same table on another device."""
        return self._replace(table=self.table.to(device, non_blocking=True))


def tile_table(columns: NDArray[np.int64], tiles: NDArray[np.int64]) -> Tiles:
    """Table of ``columns`` ``[n, L]`` for regions of ``tiles`` ``[L]`` tiles each; numbers must fit int32."""
    ends = np.cumsum(tiles)
    table = np.concatenate([columns, (ends - tiles)[None]])  # [n + 1, L]
    if not tiles.size or max(table.max(), ends[-1]) >= 2**31:
        raise DensescoreError(f"regions: got {tiles.size} with numbers up to {table.max(initial=0)}, expected 1 … 2^31")
    return Tiles(torch.from_numpy(table.astype(np.int32, order="C")), int(ends[-1]))
