"""Every kernel, interpreted on the CPU, against the float64 definitions; outputs and margins are poisoned with NaN.

Run in a process of its own: ``TRITON_INTERPRET=1 pytest -m triton_interpret tests/kernels``.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densescore_kernels import power_mean
from tests.kernels.kernel_cases import (
    DTYPES,
    SMALL,
    assert_relative,
    check_depthwise,
    check_image_levels,
    check_nan,
    check_power_mean,
    check_response_map,
    check_subnormal_powers,
    check_zero_scores,
    grid_of,
    poisoned,
)

pytestmark = [
    pytest.mark.triton_interpret,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1 before import"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, for log2(0) and for lanes that are masked out
]
drawn = settings(max_examples=10, deadline=None, derandomize=True)
dtypes = st.sampled_from(DTYPES)
exponents = st.sampled_from([1.0, 1.03125, 2.0, 2.5, 5.0, 7.25])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 21, 30, 32, 40, 131, 136, 1031])
def test_power_mean(classes: int, dtype: torch.dtype) -> None:
    check_power_mean(63, classes, images=3, dtype=dtype, backend="triton")


def test_the_most_classes() -> None:
    check_power_mean(2, 21_841, images=1, backend="triton")


@pytest.mark.parametrize("classes", [21, 40, 2049])
def test_chunks_of_several_tiles(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from densescore_kernels.power_mean import triton as triton_version

    monkeypatch.setattr(triton_version, "PROGRAMS", 2)
    triton_version._chunks.cache_clear()
    check_power_mean(331, classes, images=2, backend="triton")
    triton_version._chunks.cache_clear()


@drawn
@given(st.integers(1, 70), st.integers(1, 150), st.integers(1, 5), exponents, dtypes)
def test_power_mean_of_any_shape(rows: int, classes: int, images: int, k: float, dtype: torch.dtype) -> None:
    check_power_mean(rows, classes, images, k, dtype, backend="triton")


@pytest.mark.parametrize("k", [1.0, 2.0, 2.5, 16.0, 17.0])
def test_zero_scores_have_a_value_and_a_slope(k: float) -> None:
    check_zero_scores(k, backend="triton")


@pytest.mark.parametrize("k", [5.0, 4.5])
def test_powers_below_the_normal_range_keep_their_digits(k: float) -> None:
    check_subnormal_powers(k, backend="triton")


def test_nan_is_not_hidden() -> None:
    check_nan(backend="triton")


def test_unaligned_views_are_copied() -> None:
    scores = poisoned(torch.rand(9, 8)).flatten()[3:67].view(8, 8)
    assert scores.data_ptr() % 16
    assert_relative(power_mean(scores, backend="triton"), scores.double().pow(5).mean(0, keepdim=True), 5e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 5, 8, 21])
def test_response_map(classes: int, dtype: torch.dtype) -> None:
    check_response_map([SMALL], classes, dtype=dtype, backend="triton")


@pytest.mark.parametrize("out", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("chosen", [None, [3], [4, 0, 4, 1, 2]], ids=["all", "one", "five"])
def test_response_maps_of_unequal_images(out: torch.dtype, chosen: list[int] | None) -> None:
    grids = [grid_of(13, 20, (1.0, 1.6)), SMALL, grid_of(28, 8, (1.0,), patch=8, stride=8)]
    check_response_map(grids, 5, chosen, out=out, backend="triton")
    check_response_map([grid_of(12, 16, (1, 2)), grid_of(8, 20, (1,))], 5, chosen, out=out, backend="triton")


def test_a_map_wider_and_taller_than_a_tile() -> None:
    check_response_map([grid_of(90, 300, (1.0, 1.3), patch=8, stride=8)], 2, backend="triton")


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_response_map_of_any_grid(data: st.DataObject) -> None:
    patch, stride = data.draw(st.sampled_from([(7, 3), (8, 4), (5, 5), (9, 2)]))
    height, width = data.draw(st.integers(3, 40)), data.draw(st.integers(3, 40))
    scales = data.draw(st.lists(st.floats(1, 4), min_size=1, max_size=3))
    grid = grid_of(height, width, scales, patch, stride)
    check_response_map([grid], data.draw(st.integers(1, 9)), dtype=data.draw(dtypes), backend="triton")


def test_the_same_bits_each_time() -> None:
    scores = torch.rand(300, 21)
    first, again = (power_mean(scores, backend="triton") for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("k", "stride", "channels", "dtype"),
    [(3, 1, 40, torch.float32), (3, 2, 8, torch.bfloat16), (5, 2, 36, torch.float32), (7, 1, 8, torch.float16)],
    ids=str,
)
def test_depthwise(k: int, stride: int, channels: int, dtype: torch.dtype) -> None:
    check_depthwise(k, stride, channels, dtype, backend="triton")


@pytest.mark.parametrize(
    ("pixels", "dtype"), [(torch.uint8, torch.bfloat16), (torch.uint8, torch.float32), (torch.float32, torch.float32)]
)
def test_image_levels(pixels: torch.dtype, dtype: torch.dtype) -> None:
    check_image_levels(pixels, dtype, backend="triton")
