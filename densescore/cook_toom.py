"""FC6 at every cell by fewer multiplications: the Cook–Toom (Winograd) algorithm for a large kernel.

FC6 slid over a map is a convolution with an r×r kernel (6×6 for AlexNet) at stride 1. In one dimension, m outputs of
an r-tap filter are the middle coefficients of a product of polynomials, which m + r - 1 point values determine:

    y = Aᵀ [(G g) ⊙ (Bᵀ d)]        d: m + r - 1 inputs, g: r taps, y: m outputs

In two dimensions Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A takes t² = (m + r - 1)² products where the definition takes m²r²: for
F(3×3, 6×6) 64 instead of 324. Over channels each of the t² products is a matrix product ``[tiles, C] × [C, F]``, and
the tiles of all levels go into it together. (Winograd 1980; Lavin and Gray, CVPR 2016.)

The points are exact fractions, near 1 in size and in pairs ±a, which keeps the matrices' entries, and so the rounding
error, small; ``tests/test_cook_toom.py`` measures it against float64.
"""

from collections.abc import Sequence
from fractions import Fraction

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from densescore.onednn import PackedLinear
from densescore.windows import Blocks, LinearWindows

TILE = 3
"""m: cells per side of a tile, where r allows it."""

_POINTS = [Fraction(*point) for point in ((0, 1), (1, 1), (-1, 1), (1, 2), (-1, 2), (2, 1), (-2, 1))]

MOST_TAPS = len(_POINTS)
"""Largest r, with a tile of 2. A ninth point, ±¼ or ±4, would cost another digit and a half."""

WHOLE_TILES = 6
"""Blocks of so many rows of cells, and multiples of it, fill their tiles."""

_SLICE = 512  # outputs of FC6 computed at a time: their t² products stay near the caches
Matrix = list[list[Fraction]]


def cook_toom(m: int, r: int) -> tuple[Matrix, Matrix, Matrix]:
    """Aᵀ ``[m, t]``, G ``[t, r]`` and Bᵀ ``[t, t]``, t = m + r - 1, with y = Aᵀ [(G g) ⊙ (Bᵀ d)] exactly.

    The last point is infinity.
    """
    t = m + r - 1
    points = _POINTS[: t - 1]
    assert len(points) == t - 1
    zero, one = Fraction(0), Fraction(1)
    output = [[*(point**i for point in points), one if i == m - 1 else zero] for i in range(m)]
    kernel: Matrix = []
    data: Matrix = []
    for point in points:
        others = [other for other in points if other != point]
        scale = one
        for other in others:
            scale *= point - other
        kernel.append([point**i / scale for i in range(r)])
        data.append([*_expand(others), zero])
    kernel.append([zero] * (r - 1) + [one])
    data.append(_expand(points))
    return output, kernel, data


def _expand(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients of ∏ (x - root), the constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *coefficients], [root * c for c in coefficients] + [Fraction(0)]
        coefficients = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients


def tile_side(r: int) -> int:
    """M for an r×r kernel: `TILE`, or what keeps the number of points at eight."""
    return min(TILE, len(_POINTS) + 2 - r)


class CookToomWindows(nn.Module):
    """FC6 at every window of a map by F(m×m, r×r): blocks → ``[cells, width of FC6]``, float32 on a CPU.

    Few cells do not fill tiles, and go the direct way.

    Args:
        direct: FC6 as one product over gathered windows; its weights are transformed once, here, and kept for the
            direct way.
    """

    def __init__(self, direct: LinearWindows) -> None:
        super().__init__()
        self.direct = direct
        (self.r, width), linear = direct.window, direct.linear
        assert self.r == width
        self.tile = tile_side(self.r)
        assert isinstance(linear, nn.Linear)
        self.bias, self.width = linear.bias, linear.out_features
        self.side = self.tile + self.r - 1  # t
        output, kernel, data = (torch.tensor(_floats(matrix)) for matrix in cook_toom(self.tile, self.r))
        self._output = torch.kron(output, output).float()  # [m², t²]
        self._input = torch.kron(data, data).float()  # [t², t²]
        weight = rearrange(linear.weight.detach(), "f (c i j) -> (i j) f c", i=self.r, j=self.r)
        transform = torch.kron(kernel, kernel).float()  # [t², r²]
        # Per slice of FC6's outputs, the t² matrices [slice, C] that take the place of its r² ones.
        self._planes: list[list[PackedLinear]] = []
        for part in weight.split(_SLICE, dim=1):
            planes = (transform @ part.flatten(1)).view(-1, *part.shape[1:])  # [t², slice, C]
            self._planes.append([PackedLinear(plane) for plane in planes])

    def forward(self, blocks: Blocks) -> Tensor:
        """FC6 of each window, cell by cell."""
        grids = [(block.shape[2] - self.r + 1, block.shape[3] - self.r + 1) for block in blocks]
        tiles = [(-(-rows // self.tile), -(-cols // self.tile)) for rows, cols in grids]
        count = sum(down * across for down, across in tiles)
        if 2 * count * self.side**2 > self.r**2 * sum(rows * cols for rows, cols in grids):
            return self.direct(blocks)
        data = self._gather(blocks, tiles, count)  # [t², tiles, C]
        data = (self._input @ data.flatten(1)).view_as(data)
        outputs = torch.empty(self.tile**2, count, self.width)
        scratch = torch.empty(self.side**2, count, _SLICE)
        for start, planes in zip(range(0, self.width, _SLICE), self._planes, strict=True):
            stop = min(start + _SLICE, self.width)
            products = scratch[..., : stop - start]
            for index, plane in enumerate(planes):
                products[index] = plane(data[index])
            outputs[..., start:stop] = (self._output @ products.flatten(1)).view(self.tile**2, count, stop - start)
        del data, scratch
        cells = torch.empty(sum(rows * cols for rows, cols in grids), self.width)
        start = 0
        lots = outputs.split([down * across for down, across in tiles], dim=1)
        for lot, (rows, cols), (down, _) in zip(lots, grids, tiles, strict=True):
            grid = rearrange(lot, "(a b) (d e) f -> d a e b f", a=self.tile, d=down).flatten(0, 1).flatten(1, 2)
            cells[start : start + rows * cols].view(rows, cols, -1).copy_(grid[:rows, :cols])
            start += rows * cols
        return cells if self.bias is None else cells.add_(self.bias)

    def _gather(self, blocks: Blocks, tiles: list[tuple[int, int]], count: int) -> Tensor:
        """The overlapping t×t tiles of all blocks, zeros past their ends: ``[t², tiles, C]``."""
        data = torch.empty(self.side, self.side, count, blocks[0].shape[1])
        start = 0
        for block, (down, across) in zip(blocks, tiles, strict=True):
            past = (across * self.tile + self.r - 1 - block.shape[3], down * self.tile + self.r - 1 - block.shape[2])
            padded = F.pad(block[0], (0, past[0], 0, past[1]))
            views = padded.unfold(1, self.side, self.tile).unfold(2, self.side, self.tile)  # [C, down, across, t, t]
            part = data[:, :, start : start + down * across].unflatten(2, (down, across))
            part.copy_(rearrange(views, "c d e i j -> i j d e c"))
            start += down * across
        return data.flatten(0, 1)


def _floats(matrix: Matrix) -> list[list[float]]:
    return [[float(value) for value in row] for row in matrix]
