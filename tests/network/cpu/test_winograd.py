"""Fewer multiplications, the same convolution: exact in fractions, close in float32."""

from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

import densescore.network.cpu.winograd
from densescore.network.cpu import onednn
from densescore.network.cpu.onednn import PackedLinear
from densescore.network.cpu.winograd import MAX_TAPS, CookToom, CookToomWindows, Tiling, cook_toom, tiling_of
from densescore.network.dense_network import FlattenedWindows, LinearWindows
from densescore.network.folding import Clamp

SIZES = [(m, r) for m in range(1, 6) for r in range(1, 8) if m + r - 1 <= 8]

NEEDS_BFLOAT16 = pytest.mark.skipif(
    not onednn.available(torch.bfloat16), reason="oneDNN does not compute in bfloat16 on this processor"
)


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


def fast(direct: LinearWindows) -> CookToomWindows:
    tiling = tiling_of(direct.window[0], torch.float32)
    assert tiling is not None
    return CookToomWindows(direct, tiling)


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
    st.integers(3, MAX_TAPS),
    st.integers(0, 3),
)
@torch.no_grad()
def test_every_grid_gives_fc6_of_its_windows(grids: list[tuple[int, int]], r: int, seed: int) -> None:
    direct = fc6(r, seed=seed)
    blocks = blocks_of(grids, r)
    expected = in_float64(direct, blocks).float()
    for actual in (fast(direct)(blocks), direct(blocks)):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("r", range(3, MAX_TAPS + 1))
def test_the_rounding_error_of_a_wide_fc6(r: int) -> None:
    """AlexNet's has r = 6, VGG's 7. The transforms cost about a digit; the contract has more to spare."""
    direct = fc6(r, channels=256, width=600)  # not a multiple of the slice
    blocks = blocks_of([(7, 11), (14, 20)], r, channels=256)
    quick, slow, exact = fast(direct)(blocks), direct(blocks), in_float64(direct, blocks)
    scale = exact.abs().max()
    assert not torch.equal(quick, slow)  # the fast way was taken
    assert (quick - exact).abs().max() / scale < 2e-5
    assert (slow - exact).abs().max() / scale < 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=NEEDS_BFLOAT16)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_packed_linear_layers_multiply_alike(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(70, 33, bias=bias).to(dtype)
    x = torch.randn(5, 70, dtype=dtype)
    expected = nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double() if bias else None)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    actual = PackedLinear(linear.weight, linear.bias)(x)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


def test_tiles_shrink_to_keep_the_points_at_eight() -> None:
    sides = [tiling_of(r, torch.float32) for r in range(3, MAX_TAPS + 1)]
    assert [tiling.tile for tiling in sides if tiling] == [4, 4, 4, 3, 2]
    assert max(tiling.side for tiling in sides if tiling) == 8
    assert tiling_of(2, torch.float32) is tiling_of(8, torch.float32) is tiling_of(6, torch.float16) is None


@pytest.mark.parametrize("clamp", [(None, None), (0, None), (0, 6)])
@pytest.mark.parametrize("groups", [1, 2])
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 2)),  # r, parts
    st.integers(1, 4),  # tile
    st.lists(st.tuples(st.integers(1, 11), st.integers(1, 11)), min_size=1, max_size=3),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.booleans(),
)
@torch.no_grad()
def test_maps_of_any_size_are_convolved(
    groups: int,
    clamp: Clamp,
    kernel: tuple[int, int],
    tile: int,
    grids: list[tuple[int, int]],
    padding: tuple[int, int],
    bias: bool,
) -> None:
    """Tiles that the map cuts, kernels in parts, groups, padding on one axis, many maps at once."""
    taps, parts = kernel
    assume(tile + taps > 3)  # with fewer than three points, (1, 1) is none of them
    torch.manual_seed(0)
    side = taps * parts
    layer = nn.Conv2d(6, 8, side, padding=padding, groups=groups, bias=bias)
    maps = [
        torch.randn(1, 6, max(1, rows + side - 1 - 2 * padding[0]), max(1, cols + side - 1 - 2 * padding[1]))
        for rows, cols in grids
    ]
    expected = (
        [layer.double()(feature_map.double()).clamp(*clamp) for feature_map in maps]
        if clamp != (None, None)
        else [layer.double()(feature_map.double()) for feature_map in maps]
    )
    layer.float()
    outputs = [torch.full((*want.shape[2:], 8), torch.nan) for want in expected]
    CookToom(layer.weight, layer.bias, Tiling(tile, taps, parts), groups=groups, clamp=clamp)(maps, outputs, padding)
    for output, want in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output.permute(2, 0, 1)[None], want.float(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_more_tiles_than_are_computed_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 300, 3)  # more outputs than a slice has
    maps = [torch.randn(1, 8, 31, 22), torch.randn(1, 8, 9, 60)]
    convolution = CookToom(layer.weight, layer.bias, Tiling(4, 3, 1))
    results = []
    for tiles in (1, 10, 1000):
        monkeypatch.setattr(densescore.network.cpu.winograd, "_TILES", tiles)
        outputs = [torch.full((a.shape[2] - 2, a.shape[3] - 2, 300), torch.nan) for a in maps]
        convolution(maps, outputs)
        results.append(outputs)
    for outputs in results:
        for output, feature_map in zip(outputs, maps, strict=True):
            torch.testing.assert_close(output.permute(2, 0, 1)[None], layer(feature_map), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@NEEDS_BFLOAT16
def test_bfloat16_keeps_its_digits() -> None:
    """Cut into 3×3 parts, the transforms' factors are 0, ±1 and ±½: they cost little more than rounding itself."""
    direct = fc6(6, channels=64, width=96)
    assert isinstance(direct.linear, nn.Linear)
    blocks = [block.bfloat16() for block in blocks_of([(9, 13)], 6, channels=64)]
    direct.linear.bfloat16()
    exact, slow = in_float64(direct, blocks), direct(blocks)
    tiling = tiling_of(6, torch.bfloat16)
    assert tiling == Tiling(2, 3, 2)
    quick = CookToomWindows(direct, tiling)(blocks)
    assert quick.dtype == torch.bfloat16
    assert not torch.equal(quick, slow)
    root_mean_square = exact.square().mean().sqrt()
    assert (slow - exact).square().mean().sqrt() / root_mean_square < 3e-3
    assert (quick - exact).square().mean().sqrt() / root_mean_square < 8e-3
