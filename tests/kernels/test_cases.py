"""The helpers that the other tests lean on."""

import math

import pytest
import torch

from densescore_kernels import GridLevel
from tests.kernels.kernel_cases import MARGIN, PAPER, assert_relative, poisoned, poisoned_outputs


def test_the_paper_grid_is_the_one_on_paper() -> None:
    assert PAPER.levels[0] == GridLevel(224, 299, 1, 4)
    assert PAPER.levels[-1] == GridLevel(896, 1195, 22, 32)
    assert len(PAPER.levels) == 9


def test_relative_comparison_refuses_zeros_for_small_numbers() -> None:
    small = torch.full((3,), 1e-30, dtype=torch.float64)
    assert_relative(small * (1 + 1e-7), small, 1e-6)
    with pytest.raises(AssertionError, match="3 of 3 differ"):
        assert_relative(torch.zeros(3), small, 1e-6)
    with pytest.raises(AssertionError, match="differ"):
        assert_relative(torch.tensor([math.nan]), torch.tensor([1.0]), 1e-6)
    with pytest.raises(AssertionError, match="shape"):
        assert_relative(torch.zeros(3), torch.zeros(2), 1e-6)


def test_poison_surrounds_the_values() -> None:
    inside = poisoned(torch.ones(2, 3))
    around = inside.as_strided((2 * MARGIN + 6,), (1,), 0)
    assert (inside == 1).all()
    assert int(around.isnan().sum()) == 2 * MARGIN


def test_a_write_past_an_output_is_seen() -> None:
    with pytest.raises(AssertionError, match="past"), poisoned_outputs():
        out = torch.ones(1).new_empty(4)
        out.as_strided((5,), (1,)).fill_(0)
    with poisoned_outputs():
        assert torch.ones(1).new_empty(2, 2).isnan().all()
        assert torch.empty_like(torch.ones(3)).isnan().all()
