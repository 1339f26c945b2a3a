"""Levels, cells, windows and boxes: the design's arithmetic, checked as properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densescore import PAPER_SCALES, DensescoreError, Level, Pyramid

sides = st.integers(1, 300)
scale_lists = st.lists(st.floats(0.3, 3), min_size=1, max_size=3)
networks = st.sampled_from([(224, 32), (227, 32), (20, 4), (7, 7), (5, 8)])


def pyramid_of(height: int, width: int, scales: list[float], network: tuple[int, int]) -> Pyramid:
    return Pyramid.of(height, width, scales=scales, patch=network[0], stride=network[1], max_cells=10**9)


@given(sides, sides, scale_lists, networks)
def test_every_pixel_is_covered_at_every_scale(
    height: int, width: int, scales: list[float], network: tuple[int, int]
) -> None:
    pyramid = pyramid_of(height, width, scales, network)
    boxes = pyramid.boxes().astype(np.float64)
    for level in pyramid.levels:
        own = boxes[level.cells]
        for size, low, high in ((width, own[:, 0], own[:, 2]), (height, own[:, 1], own[:, 3])):
            centers = np.arange(size) + 0.5
            held = (low[None] <= centers[:, None]) & (centers[:, None] < high[None])  # [pixels, cells]
            if level.rows * level.cols and network[0] >= network[1]:  # S > P leaves gaps by design
                assert held.any(axis=1).all()


@given(sides, sides, scale_lists, networks)
def test_boxes_of_a_level_tile_at_the_stride(
    height: int, width: int, scales: list[float], network: tuple[int, int]
) -> None:
    pyramid = pyramid_of(height, width, scales, network)
    for level in pyramid.levels:
        grid = pyramid.boxes()[level.cells].reshape(level.rows, level.cols, 4)
        last_digit = 2.4e-7 * float(np.abs(grid).max())  # of the largest box's float32
        step_x, step_y = pyramid.stride * width / level.width, pyramid.stride * height / level.height
        np.testing.assert_allclose(np.diff(grid, axis=1)[..., 0], step_x, rtol=1e-5, atol=last_digit)
        np.testing.assert_allclose(np.diff(grid, axis=0)[..., 1], step_y, rtol=1e-5, atol=last_digit)
        np.testing.assert_allclose(np.diff(grid, axis=1)[..., 1], 0, atol=0)
        np.testing.assert_allclose(
            grid[..., 2] - grid[..., 0], pyramid.patch * width / level.width, rtol=1e-5, atol=last_digit
        )
        np.testing.assert_allclose(
            grid[..., 3] - grid[..., 1], pyramid.patch * height / level.height, rtol=1e-5, atol=last_digit
        )
        assert grid[0, 0, 0] == grid[0, 0, 1] == 0


@given(sides, sides, scale_lists, networks)
def test_padding_is_less_than_a_stride_past_a_patch(
    height: int, width: int, scales: list[float], network: tuple[int, int]
) -> None:
    pyramid = pyramid_of(height, width, scales, network)
    patch, stride = network
    for level in pyramid.levels:
        for length, padded in zip((level.height, level.width), pyramid.padded_size(level), strict=True):
            assert padded >= length
            assert (padded - patch) % stride == 0
            assert padded - length < stride or padded == patch


@given(sides, sides, scale_lists, networks)
def test_indices_windows_and_boxes_agree(
    height: int, width: int, scales: list[float], network: tuple[int, int]
) -> None:
    pyramid = pyramid_of(height, width, scales, network)
    boxes = pyramid.boxes()
    assert boxes.shape == (len(pyramid), 4)
    for index in np.linspace(0, len(pyramid) - 1, 7).astype(int):
        level, row, col = pyramid.locate(index)
        assert level.start + row * level.cols + col == index
        x0, y0, x1, y1 = pyramid.window(level, row, col)
        to_x, to_y = width / level.width, height / level.height
        np.testing.assert_allclose(boxes[index], [x0 * to_x, y0 * to_y, x1 * to_x, y1 * to_y], rtol=1e-6)


@given(st.integers(1, 2000))
def test_scale_one_on_a_square_image_is_the_image(side: int) -> None:
    pyramid = Pyramid.of(side, side, scales=(1,))
    assert pyramid.levels == (Level(1.0, 224, 224, 1, 1, 0),)
    np.testing.assert_allclose(pyramid.boxes(), [[0, 0, side, side]])


def test_levels_of_the_papers_setting_by_hand() -> None:
    pyramid = Pyramid.of(375, 500)
    assert [level.scale for level in pyramid.levels] == list(PAPER_SCALES)
    # λ = 2: r = 224 · 2 / 375; 448 and 500r = 597.3; (448 - 224) / 32 = 7 and (597 - 224) / 32 = 11.7 steps.
    assert pyramid.levels[3] == Level(2.0, 448, 597, 8, 13, sum(n.rows * n.cols for n in pyramid.levels[:3]))
    assert pyramid.padded_size(pyramid.levels[3]) == (448, 608)
    assert len(pyramid) == 2343


def test_absolute_patch_sizes() -> None:
    pyramid = Pyramid.of(1000, 3000, patch_sizes=(224, 448))
    assert [(level.height, level.width) for level in pyramid.levels] == [(1000, 3000), (500, 1500)]
    first = pyramid.boxes()[[level.start for level in pyramid.levels]]
    np.testing.assert_allclose(first, [[0, 0, 224, 224], [0, 0, 448, 448]])


def test_the_bound_on_cells_names_the_bound_and_the_ways_out() -> None:
    with pytest.raises(DensescoreError, match=r"1×5000 .*max_cells=100,000.*patch_sizes"):
        Pyramid.of(1, 5000)
    assert len(Pyramid.of(375, 500, max_cells=2343)) == 2343
    with pytest.raises(DensescoreError, match="2,343 patches"):
        Pyramid.of(375, 500, max_cells=2342)
    assert len(Pyramid.of(50, 1000)) < 100_000  # 20:1 works as it comes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scales": ()}, "scales must be one or more positive"),
        ({"scales": (1, -2)}, "scales must be"),
        ({"scales": (math.nan,)}, "scales must be"),
        ({"patch_sizes": (0,)}, "patch_sizes must be"),
    ],
)
def test_bad_arguments(arguments: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(DensescoreError, match=message):
        Pyramid.of(10, 10, **arguments)  # type: ignore[arg-type]


def test_bad_cells_and_sizes() -> None:
    pyramid = Pyramid.of(375, 500)
    with pytest.raises(DensescoreError, match="at least 1×1, got 0×5"):
        Pyramid.of(0, 5)
    with pytest.raises(DensescoreError, match=r"cell \(0, 4\) is outside the level's 1×4"):
        pyramid.window(pyramid.levels[0], 0, 4)
    with pytest.raises(DensescoreError, match=r"patch index 2343 is outside 0..2342"):
        pyramid.locate(2343)
