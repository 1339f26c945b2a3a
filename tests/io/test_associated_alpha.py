"""Colors that are stored multiplied by their alpha: exact, however they are read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from densescore import read_image

tifffile = pytest.importorskip("tifffile", reason="needs the extra: pip install 'densescore[huge]'")


def stored() -> NDArray[np.uint8]:
    """Each alpha with each color up to it, and some beyond: ``[256, 256, 4]``."""
    color, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    return np.stack([np.minimum(color, alpha), np.minimum(color[:, ::-1], alpha), color, alpha], 2)


def expected(values: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Over white, by the definition: straight colors rounded to 8 bits, then blended."""
    color, alpha = values[..., :3].astype(float), values[..., 3:].astype(float)
    straight = np.rint(np.minimum(255 * color / np.maximum(alpha, 1e-9), 255))
    return np.floor((straight * alpha + 255 * (255 - alpha) + 127) / 255)


def by_tiff(values: NDArray[np.uint8], folder: Path) -> object:
    tifffile.imwrite(folder / "a.tif", values, photometric="rgb", extrasamples=["assocalpha"])
    return folder / "a.tif"


def by_opened_tiff(values: NDArray[np.uint8], folder: Path) -> object:
    return Image.open(by_tiff(values, folder))  # type: ignore[arg-type]


def by_pillow(values: NDArray[np.uint8], folder: Path) -> object:
    return Image.frombytes("RGBa", values.shape[1::-1], values.tobytes())


@pytest.mark.parametrize("make", [by_tiff, by_opened_tiff, by_pillow])
def test_associated_alpha(make: Callable[[NDArray[np.uint8], Path], object], tmp_path: Path) -> None:
    values = stored()
    pixels = read_image(make(values, tmp_path))  # type: ignore[arg-type]
    np.testing.assert_array_equal(pixels, expected(values))


def test_associated_alpha_of_gray() -> None:
    values = stored()[..., [0, 0, 0, 3]]
    gray = Image.frombytes("La", values.shape[1::-1], values[..., 2:].tobytes())
    np.testing.assert_array_equal(read_image(gray), expected(values))
