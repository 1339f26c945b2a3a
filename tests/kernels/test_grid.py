"""The integer geometry against the comparison that defines it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densescore_kernels import DensescoreError, Grid, GridLevel
from densescore_kernels.grid import axis, run_starts
from tests.kernels.kernel_cases import PAPER


@given(st.integers(1, 60), st.integers(1, 90), st.integers(1, 12), st.integers(1, 9))
def test_segments_hold_what_the_definition_holds(pixels: int, length: int, stride: int, overlap: int) -> None:
    patch = stride * overlap + overlap % 2
    cells = -(-max(length - patch, 0) // stride) + 1
    at = axis(pixels, length, cells, patch, stride)
    for x in range(pixels):
        held = [
            j
            for j in range(cells)
            if 2 * pixels * j * stride <= (2 * x + 1) * length < 2 * pixels * (j * stride + patch)
        ]
        segment = at.segment[x]
        first = at.first[segment]
        assert held == list(range(first, first + at.cells[segment]))


def test_runs_start_where_anything_changes() -> None:
    assert run_starts(np.array([1, 1, 2, 2, 2]), np.array([0, 0, 0, 0, 5])).tolist() == [0, 2, 4]


def test_the_paper_setting_has_few_distinct_values() -> None:
    rows = run_starts(*(PAPER.down(level).segment for level in range(9)))
    cols = run_starts(*(PAPER.across(level).segment for level in range(9)))
    assert (PAPER.cells, rows.size, cols.size) == (2343, 104, 137)


@pytest.mark.parametrize("name", ["height", "width", "rows", "cols"])
def test_a_level_names_what_is_wrong(name: str) -> None:
    numbers = {"height": 9, "width": 9, "rows": 2, "cols": 2} | {name: 0}
    with pytest.raises(DensescoreError, match=rf"GridLevel\.{name}: got 0, expected an integer of at least 1"):
        GridLevel(**numbers)


def test_a_grid_without_levels_or_with_a_bare_pixel_is_refused() -> None:
    with pytest.raises(DensescoreError, match="at least one GridLevel"):
        Grid(4, 4, 2, 2, ())
    with pytest.raises(DensescoreError, match="pixel 2 of 6 is held by no cell"):
        Grid(6, 6, patch=2, stride=4, levels=(GridLevel(6, 6, 2, 2),))
