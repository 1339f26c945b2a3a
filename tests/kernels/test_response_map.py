"""Response maps in torch: what a CPU runs. Answers that are known on paper come first."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densescore_kernels import DensescoreError, Grid, GridLevel, response_map
from tests.kernels.kernel_cases import (
    DTYPES,
    PAPER,
    SMALL,
    assert_relative,
    check_response_map,
    grid_of,
    scores_of,
)


def test_a_constant_stays_a_constant() -> None:
    assert_relative(response_map(torch.full((PAPER.cells, 2), 0.3), PAPER), torch.full((2, 375, 500), 0.3), 1e-6)


def test_one_hot_cell_leaves_its_own_footprint() -> None:
    grid = Grid(12, 16, patch=4, stride=2, levels=(GridLevel(12, 16, 5, 7),))
    scores = torch.zeros(grid.cells, 1)
    scores[2 * 7 + 3] = 1  # cell (2, 3) holds rows 4 to 7 and columns 6 to 9
    hot = response_map(scores, grid)[0].nonzero()
    assert hot.amin(0).tolist() == [4, 6]
    assert hot.amax(0).tolist() == [7, 9]
    assert len(hot) == 16


@pytest.mark.parametrize("width", [40, 56])
def test_a_symmetric_picture_stays_symmetric(width: int) -> None:
    grid = Grid(20, width, patch=8, stride=4, levels=(GridLevel(8, 32, 1, 7), GridLevel(20, 56, 4, 13)))
    ramp = torch.cat([(torch.arange(r * c) % c - (c - 1) / 2) for r, c in ((1, 7), (4, 13))])[:, None].double()
    seen = response_map(ramp, grid)[0].double()
    assert float(seen.max()) > 3
    assert_relative(seen, -seen.flip(1), 1e-6, 1e-6)  # half a pixel of shift would break it


def test_maps_of_one_window_per_pixel_are_the_scores() -> None:
    grid = Grid(3, 5, patch=1, stride=1, levels=(GridLevel(3, 5, 3, 5),))
    scores = torch.rand(15, 4)
    assert torch.equal(response_map(scores, grid), scores.T.reshape(4, 3, 5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_the_loop(dtype: torch.dtype) -> None:
    check_response_map([SMALL], 3, dtype=dtype)


@pytest.mark.parametrize("out", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("chosen", [None, [3], [4, 0, 4]], ids=["all", "one", "three"])
def test_unequal_images_and_chosen_classes(out: torch.dtype, chosen: Sequence[int] | None) -> None:
    check_response_map([grid_of(30, 44), SMALL], 5, chosen, out=out)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_grid(data: st.DataObject) -> None:
    patch, stride = data.draw(st.sampled_from([(7, 3), (8, 4), (5, 5), (9, 2)]))
    height, width = data.draw(st.integers(3, 40)), data.draw(st.integers(3, 40))
    scales = data.draw(st.lists(st.floats(1, 4), min_size=1, max_size=3))
    check_response_map([grid_of(height, width, scales, patch, stride)], data.draw(st.integers(1, 9)))


def test_bands_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    from densescore_kernels.response_map import torch_version as version

    monkeypatch.setattr(version, "BAND", 1)
    check_response_map([SMALL], 3)


def test_float64_is_computed_in_float64() -> None:
    scores = scores_of(SMALL.cells, 2).double()
    single = response_map(scores.float(), SMALL)
    assert_relative(single, response_map(scores, SMALL), 3e-7)


def test_the_error_does_not_grow_with_the_map() -> None:
    """A summed-area table in float32 loses digits where its running sums are large; a sum of windows does not."""
    grid = Grid(4000, 40, patch=7, stride=1, levels=(GridLevel(4000, 40, 3994, 34),))
    scores = scores_of(grid.cells, 1)
    scores[: grid.cells // 2] = 1.0  # bright above, dim below
    scores[grid.cells // 2 :] *= 1e-3
    want = response_map(scores.double(), grid)
    bound = (2 * 7 + 1 + 2) * 2.0**-24
    assert_relative(response_map(scores, grid), want, bound)
    table = torch.zeros(3995, 35)
    table[1:, 1:] = scores.view(3994, 34).cumsum(0).cumsum(1)
    window = (table[7:, 7:] - table[:-7, 7:] - table[7:, :-7] + table[:-7, :-7]) / 49
    inside = want[0, 6:3994, 6:34]
    assert float(((window - inside).abs() / inside).max()) > 100 * bound


def test_the_same_bits_each_time() -> None:
    scores = scores_of(PAPER.cells, 3)
    assert torch.equal(response_map(scores, PAPER), response_map(scores, PAPER))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": torch.rand(3, 2)}, r"scores: got 3 rows, expected 107, one for each cell"),
        ({"classes": [2]}, r"classes: got \[2\], expected numbers between 0 and 1"),
        ({"classes": [-1]}, r"classes: got \[-1\]"),
        ({"classes": []}, "classes: got .*, expected at least one whole number"),
        ({"dtype": torch.int32}, "dtype: got torch.int32, expected one of torch.float32, torch.float16"),
        ({"grid": []}, "grid: got .*, expected a Grid or a sequence"),
    ],
)
def test_errors_name_the_argument(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DensescoreError, match=message):
        response_map(**({"scores": torch.rand(SMALL.cells, 2), "grid": SMALL} | arguments))  # type: ignore[call-overload]
