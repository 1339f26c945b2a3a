"""The power mean in torch: what a CPU runs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densescore_kernels import DensescoreError, power_mean
from tests.kernels.kernel_cases import (
    DTYPES,
    assert_relative,
    check_nan,
    check_power_mean,
    check_subnormal_powers,
    check_zero_scores,
    scores_of,
)

exponents = st.one_of(st.sampled_from([1.0, 2.0, 5.0, 16.0]), st.floats(1, 12))
shapes = (st.integers(1, 60), st.integers(1, 40), st.integers(1, 6), exponents, st.sampled_from(DTYPES))


@settings(max_examples=40, deadline=None)
@given(*shapes)
def test_power_mean_of_any_shape(rows: int, classes: int, images: int, k: float, dtype: torch.dtype) -> None:
    check_power_mean(rows, classes, images, k, dtype)


def test_one_exponent_is_the_mean_and_a_large_one_follows_the_maximum() -> None:
    scores = scores_of(50, 7).double()
    assert_relative(power_mean(scores, k=1), scores.mean(0, keepdim=True), 1e-12)
    assert_relative(power_mean(scores, k=600) ** (1 / 600), scores.amax(0, keepdim=True), 0.01)


def test_a_million_rows_lose_no_more_than_a_few() -> None:
    scores = torch.rand(1_000_000, 3, generator=torch.Generator().manual_seed(0))
    assert_relative(power_mean(scores), scores.double().pow(5).mean(0, keepdim=True), 1e-6)


@pytest.mark.parametrize("k", [1.0, 2.0, 2.5, 16.0, 17.0])
def test_zero_scores_have_a_value_and_a_slope(k: float) -> None:
    check_zero_scores(k)


@pytest.mark.parametrize("k", [5.0, 4.5])
def test_powers_below_the_normal_range_keep_their_digits(k: float) -> None:
    check_subnormal_powers(k)


def test_nan_is_not_hidden() -> None:
    check_nan()


@pytest.mark.parametrize("k", [1.0, 2.0, 2.5, 5.0, 20.0])
def test_gradients(k: float) -> None:
    offsets = torch.tensor([0, 1, 6])
    x = torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).add_(0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda scores: power_mean(scores, offsets, k), x)


def test_the_same_bits_each_time() -> None:
    scores = torch.rand(3000, 21)
    first, again = (power_mean(scores) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": torch.rand(3)}, r"scores: got shape \[3\], expected \[M, C\]"),
        ({"scores": torch.ones(3, 2, dtype=torch.int64)}, "scores: got torch.int64"),
        ({"offsets": torch.tensor([0, 2, 2, 4])}, "rows 2 to 2 for image 1, expected at least one row"),
        ({"offsets": torch.tensor([0, 3])}, "offsets: got 0 to 3, expected 0 to the number of rows, 4"),
        ({"offsets": torch.tensor([0, 4], dtype=torch.int32)}, "offsets: got torch.int32, expected torch.int64"),
        ({"offsets": torch.tensor([4])}, r"offsets: got shape \[1\]"),
        ({"scores": torch.rand(0, 2)}, "rows 0 to 0 for image 0"),
        ({"k": 0.5}, "k: got 0.5, expected a number from 1 to 10,000"),
        ({"k": math.inf}, "k: got inf"),
        ({"backend": "cuda"}, "backend: got 'cuda', expected one of auto, torch, triton"),
    ],
)
def test_errors_name_the_argument(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DensescoreError, match=message):
        power_mean(**({"scores": torch.rand(4, 2)} | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [1.01, 1.5, 2.5, 7.3, 15.9, 33.7, 60.5, 77.7, 300.3])
def test_exponents_that_are_not_whole_keep_the_documented_error(k: float) -> None:
    scores = torch.logspace(-min(126 / k, 60), 0, 20_000, base=2, dtype=torch.float64).float()[None]  # an image each
    exact = scores.double() ** k
    error = (power_mean(scores, k=k).double() / exact - 1).abs() * 2**22
    assert (error <= 64 + k * (1 + scores.double().log2().abs())).all()
