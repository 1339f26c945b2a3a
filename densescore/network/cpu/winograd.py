"""A convolution at stride 1 by fewer multiplications: the Cook–Toom (Winograd) algorithm, as products at full speed.

In one dimension, m outputs of an r-tap filter are the middle coefficients of a product of polynomials, which
t = m + r - 1 point values determine:

    y = Aᵀ [(G g) ⊙ (Bᵀ d)]        d: t inputs, g: r taps, y: m outputs

In two dimensions Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A takes t² products where the definition takes m²r²: F(4×4, 3×3) 36
instead of 144, F(3×3, 6×6), for AlexNet's FC6 slid over a map, 64 instead of 324. Over channels each of the t²
products is a matrix product ``[tiles, C] × [C, F]``. (Winograd 1980; Lavin and Gray, CVPR 2016.)

Two things make it fast on a CPU. The t² matrix products are one 1×1 convolution in t² groups, which oneDNN runs at its
best speed even where each is small; and few enough tiles and outputs are in flight that they stay in the cache.

The rounding error is measured against float64 in ``tests/network/cpu/test_winograd.py``. In bfloat16 only F(2×2, 3×3)
is exact enough; a larger kernel is cut into 3×3 parts, which are added up as if they were channels.
"""

import math
import threading
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from densescore.network.cpu.onednn import PackedConv2d
from densescore.network.dense_network import Blocks, LinearWindows
from densescore.network.folding import Clamp

WHOLE_TILES = 6
"""Rows of FC6's cells that fill their tiles, as do multiples of it."""

_TILES = 320  # computed at a time
# Channels computed at a time. For more, and few tiles, oneDNN would want weights in another layout than they are in,
# and lay them out again at each call: a hundred times slower.
_OUTPUTS = 128

# Near 1 in size and in pairs ±a, which keeps the matrices' entries, and so the rounding error, small.
_POINTS = [Fraction(*point) for point in ((0, 1), (1, 1), (-1, 1), (1, 2), (-1, 2), (2, 1), (-2, 1))]
_ONE = _POINTS.index(Fraction(1))

MAX_TAPS = len(_POINTS)
"""Largest r, with a tile of 2. A ninth point, ±¼ or ±4, would cost another digit and a half."""

Matrix = list[list[Fraction]]


class Tiling(NamedTuple):
    """Tiles and parts by which a kernel is computed."""

    tile: int  # m, outputs per side of a tile
    taps: int  # r, per side of the kernel or of a part of it
    parts: int  # per side of the kernel

    @property
    def side(self) -> int:
        """t, inputs per side of a tile."""
        return self.tile + self.taps - 1


def tiling_of(kernel: int, dtype: torch.dtype) -> Tiling | None:
    """Tiling of a kernel × kernel convolution, or None where the algorithm would be inexact or gain too little."""
    if dtype == torch.float32 and 3 <= kernel <= MAX_TAPS:
        return Tiling(min(4, MAX_TAPS + 2 - kernel), kernel, 1)
    if dtype == torch.bfloat16 and kernel == 6:
        return Tiling(2, 3, 2)
    return None


class CookToom(nn.Module):
    """A convolution at stride 1 over maps of any sizes, all tiles together; on a CPU, without gradients."""

    def __init__(
        self,
        weight: Tensor,  # [F, C / groups, kernel, kernel], float32 or bfloat16; transformed once, here
        bias: Tensor | None,  # [F]
        tiling: Tiling,  # of at least three points
        *,
        groups: int = 1,
        clamp: Clamp = (None, None),
    ) -> None:
        super().__init__()
        self.tiling, self.groups, self.clamp = tiling, groups, clamp
        self.kernel, self.dtype, self.width = weight.shape[-1], weight.dtype, weight.shape[0]

        # Transforms of outputs, kernel and data
        matrices = cook_toom(tiling.tile, tiling.taps)
        output, kernel, data = (torch.tensor([[float(x) for x in row] for row in matrix]) for matrix in matrices)
        self._output = torch.kron(output, output).to(self.dtype)  # [m², t²]
        # Bᵀ d B in two steps takes fewer multiplications, but in one it is rounded once.
        self._data = (data if self.dtype == torch.float32 else torch.kron(data, data)).to(self.dtype)  # [t or t²]²
        transform = torch.kron(kernel, kernel).float()  # [t², r²]

        # Weights: per slice of outputs, t² matrices in place of r²
        self._planes: list[PackedConv2d] = []
        slices = weight.detach().unflatten(0, (groups, -1)).split(_OUTPUTS, dim=1)  # [g, slice, C, kernel, kernel]
        # All slices are transformed in the memory of the first. If each had its own, freed between weights that stay,
        # something small would cut into it, and the next would not fit: the holes take as much as the weights.
        largest = slices[0].numel() // tiling.taps**2
        taps_memory, planes_memory = (torch.empty(points * largest) for points in (tiling.taps**2, tiling.side**2))
        biases = None if bias is None else bias.detach().unflatten(0, (groups, -1)).split(_OUTPUTS, dim=1)
        for index, part in enumerate(slices):
            numbers = part.numel() // tiling.taps**2  # g · slice · C', C' = C · parts²
            taps = taps_memory[: tiling.taps**2 * numbers].view(-1, numbers)  # [r², g · slice · C']
            taps.view(tiling.taps, tiling.taps, groups, -1, tiling.parts, tiling.parts, weight.shape[1]).copy_(
                rearrange(part, "g f c (p i) (q j) -> i j g f p q c", p=tiling.parts, q=tiling.parts)
            )
            planes = torch.mm(transform, taps, out=planes_memory[: len(transform) * numbers].view(-1, numbers))
            planes = planes.view(-1, weight.shape[1] * tiling.parts**2, 1, 1)  # [t² · g · slice, C', 1, 1]
            added = None if biases is None else self._spread(biases[index])
            self._planes.append(
                PackedConv2d(planes.to(self.dtype), added, groups=tiling.side**2 * groups, size=(_TILES, 1))
            )

    def _spread(self, bias: Tensor) -> Tensor:
        """A bias ``[g, slice]`` of the outputs as one of the products, ``[t² · g · slice]``.

        A number added at the point (1, 1) is added to each output of a tile, as 1 to any power is 1.
        """
        t = self.tiling.side
        spread = bias.new_zeros(t, t, bias.numel())
        spread[_ONE, _ONE] = bias.flatten()
        return spread.flatten()

    def saves(self, grids: Sequence[tuple[int, int]]) -> bool:
        """Whether outputs of these rows and columns fill their tiles: at most two thirds of the products are left."""
        tiles = sum(down * across for down, across in map(self._tiles, grids))
        products = tiles * (self.tiling.side * self.tiling.parts) ** 2
        return 3 * products <= 2 * self.kernel**2 * sum(rows * cols for rows, cols in grids)

    def forward(self, maps: Sequence[Tensor], outputs: Sequence[Tensor], padding: tuple[int, int] = (0, 0)) -> None:
        """Convolve maps ``[1, C, h, w]`` into outputs ``[h', w', F]``; rows of tiles of several maps at a time."""
        grids = [(output.shape[0], output.shape[1]) for output in outputs]
        padded = [self._pad(feature_map, padding, grid) for feature_map, grid in zip(maps, grids, strict=True)]
        places = [output.unflatten(2, (self.groups, -1)) for output in outputs]  # [h', w', g, F / g]
        batch: list[tuple[Tensor, Tensor, range]] = []
        count = 0
        for source, place, (down, across) in zip(padded, places, map(self._tiles, grids), strict=True):
            row = 0
            while row < down:
                rows = range(row, min(down, row + max(1, (_TILES - count) // across)))
                batch.append((source, place, rows))
                count += len(rows) * across
                row = rows.stop
                if count + across > _TILES:
                    self._convolve(batch)
                    batch, count = [], 0
        if batch:
            self._convolve(batch)

    def _tiles(self, grid: tuple[int, int]) -> tuple[int, int]:
        return -(-grid[0] // self.tiling.tile), -(-grid[1] // self.tiling.tile)

    def _pad(self, feature_map: Tensor, padding: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        """With zeros around, and past the end until the tiles are full: ``[h, w, C]``."""
        _, channels, height, width = feature_map.shape
        over = self.tiling.taps * self.tiling.parts - 1
        down, across = self._tiles(grid)
        padded = feature_map.new_zeros(down * self.tiling.tile + over, across * self.tiling.tile + over, channels)
        padded[padding[0] : padding[0] + height, padding[1] : padding[1] + width] = feature_map[0].permute(1, 2, 0)
        return padded

    def _convolve(self, batch: list[tuple[Tensor, Tensor, range]]) -> None:
        """Rows of tiles of padded maps ``[h, w, C]`` into outputs ``[h', w', g, F / g]``."""
        m, r, parts = self.tiling
        t, g = self.tiling.side, self.groups
        grids = [(len(rows), self._tiles((0, place.shape[1]))[1]) for _, place, rows in batch]
        counts = [down * across for down, across in grids]
        tiles, channels = sum(counts), batch[0][0].shape[2] // g

        # Bᵀ d B: tiles → points
        data = _scratch("data", self.dtype, tiles, t, t, g, parts, parts, channels)
        for part, (padded, _, rows), grid in zip(data.split(counts), batch, grids, strict=True):
            y, x, _ = padded.stride()
            shape, strides = (t, t, g, parts, parts, channels), (y, x, channels, r * y, r * x, 1)
            tiled = padded.as_strided((*grid, *shape), (m * y, m * x, *strides), rows.start * m * y)
            part.unflatten(0, grid).copy_(tiled)
        points = self._points(data.view(tiles, t * t, -1))
        points = points.view(1, tiles, 1, -1).permute(0, 3, 1, 2)  # [1, t² · g · C, tiles, 1]

        # One matrix product per point, then Aᵀ … A: points → outputs
        values = _scratch("values", self.dtype, tiles, m, m, g, self.width // g)
        start = 0
        for plane in self._planes:
            products = plane(points).permute(0, 2, 3, 1).view(tiles, t * t, -1)  # [tiles, t², g · slice]
            part = _scratch("part", self.dtype, tiles, m * m, products.shape[2])
            torch.bmm(self._output.expand(tiles, -1, -1), products, out=part)  # Aᵀ … A
            part = part.view(tiles, m, m, g, -1)
            stop = start + part.shape[4]
            values[..., start:stop] = part
            start = stop
        if self.clamp != (None, None):
            values.clamp_(*self.clamp)

        # Lay the tiles of outputs side by side
        for part, (_, place, rows), grid in zip(values.split(counts), batch, grids, strict=True):
            _place(part.unflatten(0, grid), place[rows.start * m : rows.stop * m])

    def _points(self, data: Tensor) -> Tensor:
        """``Bᵀ d B`` of each tile and channel: ``[tiles, t², C]`` → ``[tiles, t², C]``; `data` is written over."""
        tiles, _, channels = data.shape
        points = _scratch("points", self.dtype, *data.shape)
        if self.dtype == torch.bfloat16:
            return torch.bmm(self._data.repeat(tiles, 1, 1), data, out=points)
        t = self.tiling.side
        half = points.view(tiles, t, t * channels)
        torch.bmm(self._data.expand(tiles, -1, -1), data.view(tiles, t, -1), out=half)
        whole = data.view(tiles * t, t, channels)
        return torch.bmm(self._data.expand(tiles * t, -1, -1), half.view(tiles * t, t, channels), out=whole)


def _place(tiles: Tensor, output: Tensor) -> None:
    """Tiles ``[down, across, m, m, g, F]`` into ``[h, w, g, F]``, which may end within a tile."""
    m = tiles.shape[2]
    for i, down, height in _spans(output.shape[0], m):
        for j, across, width in _spans(output.shape[1], m):
            part = output[i * m : i * m + down * height, j * m : j * m + across * width]
            part = part.unflatten(0, (down, height)).unflatten(2, (across, width))
            part.copy_(tiles[i : i + down, j : j + across, :height, :width].transpose(1, 2))


def _spans(length: int, m: int) -> list[tuple[int, int, int]]:
    """Whole tiles, and the one that is cut: (first tile, number of tiles, cells of each)."""
    whole, rest = divmod(length, m)
    return [span for span in ((0, whole, m), (whole, 1, rest)) if span[1] and span[2]]


_buffers = threading.local()


def _scratch(name: str, dtype: torch.dtype, *shape: int) -> Tensor:
    """A buffer that is reused by a thread: fresh memory costs more time than the arithmetic done in it."""
    count = math.prod(shape)
    buffer: Tensor | None = getattr(_buffers, name, None)
    if buffer is None or buffer.dtype != dtype or len(buffer) < count:
        with torch.inference_mode(mode=False):  # else it could be written to in inference mode only
            buffer = torch.empty(count, dtype=dtype)
        setattr(_buffers, name, buffer)
    return buffer[:count].view(shape)


class CookToomWindows(nn.Module):
    """FC6 at every window of some maps: blocks → ``[cells, width of FC6]``.

    The weights are transformed only: one window alone takes t² products instead of r², and that much memory is saved.
    """

    def __init__(self, direct: LinearWindows, tiling: Tiling) -> None:
        super().__init__()
        self.window, linear = direct.window, direct.linear
        assert isinstance(linear, nn.Linear)
        height, width = self.window
        weight = rearrange(linear.weight, "f (c i j) -> f c i j", i=height, j=width)
        self.convolution = CookToom(weight, linear.bias, tiling)
        per_tile = (tiling.side * tiling.parts) ** 2 * weight.shape[1]
        self.numbers = -(-per_tile // tiling.tile**2)  # that one cell takes while it is projected

    def forward(self, blocks: Blocks) -> Tensor:
        """FC6 of each window, cell by cell."""
        height, width = self.window
        grids = [(block.shape[2] - height + 1, block.shape[3] - width + 1) for block in blocks]
        counts = [rows * cols for rows, cols in grids]
        cells = torch.empty(sum(counts), self.convolution.width, dtype=blocks[0].dtype)
        parts = [part.view(*grid, -1) for part, grid in zip(cells.split(counts), grids, strict=True)]
        self.convolution(blocks, parts)
        return cells


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
