"""Fewer multiplications, the same convolution: exact in fractions, close in float32."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from densescore.cook_toom import MOST_TAPS, CookToomWindows, cook_toom, tile_side
from densescore.onednn import PackedLinear
from densescore.windows import FlattenedWindows, LinearWindows

SIZES = [(m, r) for m in range(1, 6) for r in range(1, 8) if m + r - 1 <= 8]


@pytest.mark.parametrize(("m", "r"), SIZES)
def test_the_identity_holds_exactly_in_fractions(m: int, r: int) -> None:
    output, kernel, data = cook_toom(m, r)
    t = m + r - 1
    taps = [Fraction(3 * i + 1, i + 2) for i in range(r)]
    inputs = [Fraction(i * i - 4, 2 * i + 1) for i in range(t)]
    transformed_taps = [sum(a * b for a, b in zip(row, taps, strict=True)) for row in kernel]
    transformed_inputs = [sum(a * b for a, b in zip(row, inputs, strict=True)) for row in data]
    products = [a * b for a, b in zip(transformed_taps, transformed_inputs, strict=True)]
    outputs = [sum(a * b for a, b in zip(row, products, strict=True)) for row in output]
    assert outputs == [sum(inputs[i + j] * taps[j] for j in range(r)) for i in range(m)]


def fc6(r: int, channels: int = 8, width: int = 20, seed: int = 0) -> LinearWindows:
    torch.manual_seed(seed)
    return LinearWindows((r, r), nn.Linear(channels * r * r, width))


def blocks_of(grids: list[tuple[int, int]], r: int, channels: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.rand(1, channels, rows + r - 1, cols + r - 1, generator=generator).to(memory_format=torch.channels_last)
        for rows, cols in grids
    ]


def in_float64(direct: LinearWindows, blocks: list[Tensor]) -> Tensor:
    assert isinstance(direct.linear, nn.Linear)
    weight, bias = direct.linear.weight.double(), direct.linear.bias.double()
    return nn.functional.linear(FlattenedWindows(direct.window)([block.double() for block in blocks]), weight, bias)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3),
    st.integers(3, MOST_TAPS),
    st.integers(0, 3),
)
@torch.no_grad()
def test_every_grid_gives_fc6_of_its_windows(grids: list[tuple[int, int]], r: int, seed: int) -> None:
    direct = fc6(r, seed=seed)
    blocks = blocks_of(grids, r)
    expected = in_float64(direct, blocks).float()
    for actual in (CookToomWindows(direct)(blocks), direct(blocks)):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("r", range(3, MOST_TAPS + 1))
def test_the_rounding_error_of_a_wide_fc6(r: int) -> None:
    """AlexNet's has r = 6, VGG's 7. The transforms cost about a digit; the contract has more to spare."""
    direct = fc6(r, channels=256, width=600)  # not a multiple of the slice
    blocks = blocks_of([(7, 11), (14, 20)], r, channels=256)
    fast, slow, exact = CookToomWindows(direct)(blocks), direct(blocks), in_float64(direct, blocks)
    scale = exact.abs().max()
    assert not torch.equal(fast, slow)  # the fast way was taken
    assert (fast - exact).abs().max() / scale < 2e-5
    assert (slow - exact).abs().max() / scale < 2e-5


@torch.no_grad()
def test_few_cells_go_the_direct_way() -> None:
    direct = fc6(6)
    blocks = blocks_of([(1, 1)], 6)
    assert torch.equal(CookToomWindows(direct)(blocks), direct(blocks))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_packed_linear_layers_multiply_alike(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(70, 33, bias=bias).to(dtype)
    x = torch.randn(5, 70, dtype=dtype)
    expected = nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double() if bias else None)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    actual = PackedLinear.of(linear)(x)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


def test_tiles_shrink_to_keep_the_points_at_eight() -> None:
    assert [tile_side(r) for r in (3, 6, MOST_TAPS)] == [3, 3, 2]
