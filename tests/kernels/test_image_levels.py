"""Image levels in torch against the definition and OpenCV, and their refusals."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densescore_kernels import DensescoreError
from densescore_kernels.image_levels.op import PlacedLevel, image_levels, level_tiles
from tests.kernels.kernel_cases import DTYPES, check_image_levels

ZERO, UNIT = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)
"""Mean and standard deviation that leave bytes as they are."""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pixels", [torch.uint8, torch.float32], ids=str)
def test_levels_of_several_images(pixels: torch.dtype, dtype: torch.dtype) -> None:
    check_image_levels(pixels, dtype)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 90), st.integers(1, 90), st.floats(0.05, 4.0), st.integers(0, 40), st.integers(0, 40))
def test_within_one_of_opencv(height: int, width: int, ratio: float, below: int, right: int) -> None:
    image = np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    h, w = max(1, round(height * ratio)), max(1, round(width * ratio))
    method = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR
    resized = image if (h, w) == (height, width) else cv2.resize(image, (w, h), interpolation=method)
    want = cv2.copyMakeBorder(resized, 0, below, 0, right, cv2.BORDER_REFLECT_101)
    place = PlacedLevel(0, height, width, h, w, h + below, w + right, 0, w + right)
    flat = torch.from_numpy(image).view(-1, 3)
    got = (
        image_levels(flat, level_tiles([place]), (h + below) * (w + right), mean=ZERO, std=UNIT)
        .view(want.shape)
        .numpy()
    )
    assert np.abs(got - want).max() <= 1.001
    assert np.abs(got - want).mean() < 0.3


def test_wrong_arguments_are_named() -> None:
    levels = level_tiles([PlacedLevel(0, 2, 2, 2, 2, 2, 2, 0, 2)])
    for pixels, dtype, message in (
        (torch.zeros(4, 3, dtype=torch.int32), torch.float32, "int32"),
        (torch.zeros(2, 2, 3), torch.float32, r"\[2, 2, 3\]"),
        (torch.zeros(4, 3), torch.float64, "float64"),
    ):
        with pytest.raises(DensescoreError, match=message):
            image_levels(pixels, levels, 4, mean=ZERO, std=UNIT, dtype=dtype)
    with pytest.raises(DensescoreError, match="expected 1"):
        level_tiles([PlacedLevel(0, 2, 2, 2, 2, 2, 2, 2**31, 2)])


def test_opcheck() -> None:
    levels = level_tiles([PlacedLevel(0, 2, 3, 4, 6, 4, 6, 0, 6)])
    arguments = (torch.rand(6, 3), levels.table, levels.total, 24, [1.0] * 3, [0.0] * 3, torch.float32, "torch")
    torch.library.opcheck(torch.ops.densescore.image_levels.default, arguments)
