"""Inputs, comparisons and checks that the kernel tests share; test_cases.py tests them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from densescore_kernels import Grid, GridLevel, power_mean, response_map
from densescore_kernels.depthwise import reference as depthwise_reference
from densescore_kernels.depthwise.op import depthwise_conv2d, region_tiles
from densescore_kernels.image_levels import reference as levels_reference
from densescore_kernels.image_levels.op import PlacedLevel, image_levels, level_tiles
from densescore_kernels.power_mean import reference as power_reference
from densescore_kernels.response_map import reference as map_reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TINIEST = 2.0**-149  # of float32: what is smaller than 2^-126 is rounded to a multiple of it
MARGIN = 4096  # elements of NaN before and after a poisoned tensor


def grid_of(
    height: int, width: int, scales: Sequence[float] = (1.0, 1.6, 3.0), patch: int = 224, stride: int = 32
) -> Grid:
    """The cells of an image, as densescore lays them: the short side is ``patch · scale`` level pixels."""
    levels = []
    for scale in scales:
        ratio = patch * scale / min(height, width)
        h, w = round(height * ratio), round(width * ratio)
        rows, cols = (math.ceil(max(side - patch, 0) / stride) + 1 for side in (h, w))
        levels.append(GridLevel(h, w, rows, cols))
    return Grid(height, width, patch, stride, tuple(levels))


SMALL = Grid(19, 31, patch=7, stride=3, levels=(GridLevel(17, 25, 5, 7), GridLevel(20, 40, 6, 12)))
PAPER = grid_of(375, 500, (1, 1.3, 1.6, 2, 2.4, 2.8, 3.2, 3.6, 4))


def poisoned(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, inside a larger buffer of NaN, so that reading outside shows."""
    buffer = torch.full((tensor.numel() + 2 * MARGIN,), math.nan, dtype=tensor.dtype, device=tensor.device)
    inside = buffer[MARGIN : MARGIN + tensor.numel()].view(tensor.shape)
    return inside.copy_(tensor)


@contextmanager
def poisoned_outputs() -> Iterator[None]:
    """Every tensor made without values is NaN and lies inside a buffer of NaN, which must still be NaN at the end."""
    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like
    buffers: list[torch.Tensor] = []

    def guarded(size: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        count = math.prod(size)
        buffers.append(torch.full((count + 2 * MARGIN,), math.nan, dtype=dtype, device=device))
        return buffers[-1][MARGIN : MARGIN + count].view(*size)

    def poisoned_new_empty(
        self: torch.Tensor, *size: Any, dtype: torch.dtype | None = None, **rest: Any
    ) -> torch.Tensor:
        if rest:  # Triton's interpreter, which makes headers for tensors that it moves
            return new_empty(self, *size, dtype=dtype, **rest)
        return guarded(size[0] if isinstance(size[0], tuple | list) else size, dtype or self.dtype, self.device)

    def poisoned_empty_like(like: torch.Tensor, **options: Any) -> torch.Tensor:
        return guarded(like.shape, like.dtype, like.device)

    torch.Tensor.new_empty = poisoned_new_empty  # type: ignore[method-assign,assignment]
    torch.empty_like = poisoned_empty_like  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.Tensor.new_empty = new_empty  # type: ignore[method-assign]
        torch.empty_like = empty_like
    for buffer in buffers:
        assert buffer[:MARGIN].isnan().all(), "something was written before a tensor"
        assert buffer[-MARGIN:].isnan().all(), "something was written past a tensor"


def assert_relative(got: torch.Tensor, want: torch.Tensor, rtol: float, atol: float | torch.Tensor = 0.0) -> None:
    """Each element within ``rtol`` of its own size (plus ``atol``); NaN and infinity must be where they should."""
    assert got.shape == want.shape, f"shape {list(got.shape)}, expected {list(want.shape)}"
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    same = (got == want) | (got.isnan() & want.isnan())
    near = (got - want).abs() <= rtol * want.abs() + atol
    wrong = ~(same | near)
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(f"{int(wrong.sum())} of {wrong.numel()} differ, first at {at}: {got[at]} not {want[at]}")


def scores_of(rows: int, classes: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Probabilities from about 1e-3 to 1, rounded to ``dtype``: ``[rows, classes]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.exp(-7 * torch.rand(rows, classes, generator=generator)).to(dtype)


def bounds_of(rows: int, images: int) -> list[int]:
    """Unequal images: the first has one row, the last has most."""
    return [*range(min(images, rows)), rows]


def check_power_mean(
    rows: int, classes: int, images: int = 2, k: float = 5.0, dtype: torch.dtype = torch.float32, backend: str = "torch"
) -> None:
    """Value and gradient of the power mean against the definition and the float64 formula."""
    scores, bounds = scores_of(rows, classes, dtype), bounds_of(rows, images)
    offsets = torch.tensor(bounds)
    x = poisoned(scores).requires_grad_()
    weights = 1 + torch.rand(len(bounds) - 1, classes, generator=torch.Generator().manual_seed(1))
    with poisoned_outputs():
        means = power_mean(x, offsets, k, backend)
        (slope,) = torch.autograd.grad(means, x, poisoned(weights))
    assert means.dtype == torch.float32
    assert_relative(means, power_reference.power_mean(scores, bounds, k), 5e-6, TINIEST)
    assert slope.dtype == dtype
    counts = torch.tensor(bounds).diff()
    per_row = (weights.double() * k / counts[:, None]).repeat_interleave(counts, 0)
    assert_relative(slope, per_row * scores.double() ** (k - 1), *_rounding(dtype))


def check_zero_scores(k: float, backend: str = "torch") -> None:
    """Zero scores have a value and a slope."""
    scores = torch.zeros(4, 3, requires_grad=True)
    mean = power_mean(scores, k=k, backend=backend)
    mean.sum().backward()
    assert (mean == 0).all()
    assert scores.grad is not None
    assert (scores.grad == (0.25 if k == 1 else 0)).all()


def check_subnormal_powers(k: float, backend: str = "torch") -> None:
    """Powers below the normal range keep their digits."""
    scores = torch.full((6, 5), 3e-8)  # y^5 is 2.4e-38 in float64, and 1e-7 times smaller halfway through the sum
    scores[0] = 4e-9  # y^5 is 1e-42: subnormal in float32
    means = power_mean(scores, k=k, backend=backend)
    assert_relative(means, scores.double().pow(k).mean(0, keepdim=True), 5e-6)


def check_nan(backend: str = "torch") -> None:
    """NaN reaches its class, its image, and the pixels of its cell, and no others."""
    scores = torch.rand(5, 4)
    scores[2, 1] = math.nan
    assert power_mean(scores, backend=backend).isnan().tolist() == [[False, True, False, False]]
    means = power_mean(scores, torch.tensor([0, 2, 5]), backend=backend)
    assert means.isnan().any(1).tolist() == [False, True]
    grid = Grid(4, 4, patch=2, stride=2, levels=(GridLevel(4, 4, 2, 2),))
    cells = torch.tensor([[math.nan], [1.0], [1.0], [1.0]])
    assert int(response_map(cells, grid, backend=backend).isnan().sum()) == 4


def check_response_map(
    grids: Sequence[Grid],
    classes: int,
    chosen: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    out: torch.dtype = torch.float32,
    backend: str = "torch",
) -> None:
    """The maps of some images against the loop over cells."""
    parts = [scores_of(grid.cells, classes, dtype, seed) for seed, grid in enumerate(grids)]
    with poisoned_outputs():
        maps = response_map(poisoned(torch.cat(parts)), grids, chosen, out, backend)
    for grid, part, got in zip(grids, parts, maps, strict=True):
        assert got.dtype == out
        rtol, atol = (5e-6, 0.0) if out == torch.float32 else (2.0**-10, 2.0**-24)
        assert_relative(got, map_reference.response_map(part, grid, chosen), rtol, atol)


def check_depthwise(
    k: int,
    stride: int,
    channels: int,
    dtype: torch.dtype = torch.float32,
    maps: Sequence[tuple[int, int, int, int, int]] = ((0, 0, 0, 9, 11), (0, 12, 2, 8, 7), (1, 2, 14, 7, 9)),
    backend: str = "torch",
) -> None:
    """Maps on canvases of NaN, each against the loops over itself alone; positions of no map stay unwritten."""
    generator = torch.Generator().manual_seed(0)
    canvases = torch.full((2, 20, 24, channels), math.nan, dtype=dtype)
    for n, top, left, height, width in maps:
        values = 4 * torch.randn(height, width, channels, generator=generator)
        canvases[n, top : top + height, left : left + width] = values.to(dtype)
    x = poisoned(canvases).permute(0, 3, 1, 2)
    weight, bias = torch.randn(k, k, channels, generator=generator), torch.randn(channels, generator=generator)
    padding = (k // 2 - stride + 1, k // 2, k // 2, k // 2 - stride + 1)  # what "same" asks for, in two ways
    limits = ((0.0, 6.0), (-1.5, 5.0), 0.25)
    with poisoned_outputs():
        out = depthwise_conv2d(
            x, poisoned(weight), poisoned(bias), stride=stride, padding=padding, input_clamp=limits[0], clamp=limits[1],
            pad_value=limits[2], regions=region_tiles(maps, k, stride, padding), backend=backend,
        )  # fmt: skip
    assert out.dtype == dtype
    unwritten = out.isnan()
    for n, top, left, height, width in maps:
        alone = x[n, :, top : top + height, left : left + width]
        want = depthwise_reference.depthwise_conv2d(alone, weight, bias, stride, padding, *limits)
        rows, columns = (
            slice(first // stride, first // stride + size)
            for first, size in zip((top, left), want.shape[1:], strict=True)
        )
        rtol = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
        assert_relative(out[n, :, rows, columns], want, rtol, rtol * float(weight.abs().sum((0, 1)).max()))
        unwritten[n, :, rows, columns] = True
    assert unwritten.all()


LEVELS = (  # image, level, padded level: shrunk, as it is, enlarged, halved, one pixel high, shrunk far
    ((17, 25), (11, 16), (16, 16)),
    ((10, 9), (10, 9), (13, 20)),
    ((5, 4), (13, 11), (16, 16)),
    ((12, 20), (6, 10), (6, 10)),
    ((1, 5), (1, 8), (4, 8)),
    ((31, 22), (4, 3), (8, 8)),
)


def check_image_levels(
    pixels: torch.dtype = torch.uint8, dtype: torch.dtype = torch.float32, backend: str = "torch"
) -> None:
    """Levels of several images against the loops over each; zero outside them."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(*size, 3, generator=generator) for size, _, _ in LEVELS]
    if pixels == torch.uint8:
        images = [(255 * image).to(torch.uint8) for image in images]
    places, source, rows = [], 0, 7
    for size, level, padded in LEVELS:
        places.append(PlacedLevel(source, *size, *level, *padded, target=rows, row=padded[1] + 2))
        source, rows = source + size[0] * size[1], rows + padded[0] * (padded[1] + 2) + 3
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.5, 1.5)
    flat = torch.cat([image.reshape(-1, 3) for image in images])
    out = image_levels(flat, level_tiles(places), rows, mean=mean, std=std, dtype=dtype, backend=backend)
    assert out.dtype == dtype
    outside = torch.ones(rows, dtype=torch.bool)
    for image, place, (_, level, padded) in zip(images, places, LEVELS, strict=True):
        want = levels_reference.image_level(image, level, padded)
        at = place.target + torch.arange(padded[0])[:, None] * place.row + torch.arange(padded[1])  # [h, w]
        got = out[at].double() * torch.tensor(std) + torch.tensor(mean)
        atol = 2 * torch.finfo(dtype).eps * (1 if dtype == torch.float32 else 2)
        if pixels == torch.uint8:
            assert_relative(got * 255, (want + 0.5).floor(), 0.0, 1.0 + 255 * atol)  # 1: a half that is rounded down
            assert dtype != torch.float32 or (got * 255 - want).abs().mean() < 0.3
        else:
            assert_relative(got, want, 0.0, 5e-7 + atol)
        outside[at.ravel()] = False
    assert (out[outside] == 0).all()


def _rounding(dtype: torch.dtype) -> tuple[float, float]:
    """Relative and absolute error that rounding to ``dtype`` allows, with some float32 arithmetic before it."""
    if dtype == torch.float32:
        return 5e-6, TINIEST
    return torch.finfo(dtype).eps, 2.0**-24
