"""Inputs, comparisons and checks that the kernel tests share; they have tests of their own in test_cases.py."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from densescore_kernels import Grid, GridLevel, power_mean, response_map, softmax_power_mean
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


def logits_of(rows: int, classes: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Logits around 0, a few of them large, rounded to ``dtype``: ``[rows, classes]``."""
    return (3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))).to(dtype)


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
    share = 1 + torch.rand(len(bounds) - 1, classes, generator=torch.Generator().manual_seed(1))
    with poisoned_outputs():
        means = power_mean(x, offsets, k, backend)
        (slope,) = torch.autograd.grad(means, x, poisoned(share))
    assert means.dtype == torch.float32
    assert_relative(means, power_reference.power_mean(scores, bounds, k), 5e-6, TINIEST)
    assert slope.dtype == dtype
    counts = torch.tensor(bounds).diff()
    per_row = (share.double() * k / counts[:, None]).repeat_interleave(counts, 0)
    assert_relative(slope, per_row * scores.double() ** (k - 1), *_rounding(dtype))


def check_softmax_power_mean(
    rows: int, classes: int, images: int = 2, k: float = 5.0, dtype: torch.dtype = torch.float32, backend: str = "torch"
) -> None:
    """Value, probabilities and gradient of the fused softmax and power mean."""
    logits, bounds = logits_of(rows, classes, dtype), bounds_of(rows, images)
    offsets = torch.tensor(bounds)
    generator = torch.Generator().manual_seed(1)
    share = 1 + torch.rand(len(bounds) - 1, classes, generator=generator)
    share_y = torch.rand(rows, classes, generator=generator)
    x = poisoned(logits).requires_grad_()
    with poisoned_outputs():
        alone = softmax_power_mean(x, offsets, k, backend=backend)
        (slope,) = torch.autograd.grad(alone, x, poisoned(share))
        means, y = softmax_power_mean(x, offsets, k, return_probabilities=True, backend=backend)
        (slope_y,) = torch.autograd.grad((means, y), x, (poisoned(share), poisoned(share_y)))
    want = power_reference.softmax_power_mean(logits, bounds, k)
    assert_relative(means, want, 5e-5, TINIEST)
    assert_relative(alone, want, 5e-5, TINIEST)
    softmax = power_reference.softmax(logits)
    assert_relative(y, softmax, 1e-5)
    counts = torch.tensor(bounds).diff()
    t = (share.double() * k / counts[:, None]).repeat_interleave(counts, 0) * softmax**k
    for got, terms in ((slope, t), (slope_y, t + share_y.double() * softmax)):
        assert got.dtype == dtype
        total = terms.sum(1, keepdim=True)
        rtol, atol = _rounding(dtype)
        size = terms + softmax * total  # what is subtracted sets the error, not what is left
        assert_relative(got, terms - softmax * total, rtol, 5e-5 * size + atol)


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


def _rounding(dtype: torch.dtype) -> tuple[float, float]:
    """Relative and absolute error that rounding to ``dtype`` allows, with some float32 arithmetic before it."""
    if dtype == torch.float32:
        return 5e-6, TINIEST
    return torch.finfo(dtype).eps, 2.0**-24
