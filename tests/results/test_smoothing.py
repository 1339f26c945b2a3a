"""Means over a neighborhood of each pixel."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from densescore.results.smoothing import smooth


@pytest.mark.parametrize(("height", "width", "radius"), [(13, 9, 1), (9, 13, 4), (1, 7, 2), (5, 5, 20), (6, 4, 0)])
def test_it_is_the_mean_of_the_pixels_around_taken_twice(height: int, width: int, radius: int) -> None:
    values = np.random.default_rng(0).random((height, width))

    def once(given: NDArray[np.float64]) -> NDArray[np.float64]:
        rows, cols = range(height), range(width)
        parts = [
            [given[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1] for x in cols]
            for y in rows
        ]
        return np.array([[part.mean() for part in row] for row in parts])

    smoothed = smooth(torch.from_numpy(values.astype(np.float32)), radius).numpy()
    np.testing.assert_allclose(smoothed, once(once(values.astype(np.float32).astype(np.float64))), rtol=1e-12)


def test_a_flat_map_stays_flat_up_to_its_border() -> None:
    torch.testing.assert_close(
        smooth(torch.full((20, 30), 0.7), 6), torch.full((20, 30), 0.7, dtype=torch.float32).double()
    )
