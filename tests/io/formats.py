"""One table of picture formats: files that other libraries write, and the pixels that a viewer shows of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

tifffile: Any = pytest.importorskip("tifffile")

Array = NDArray[Any]
H, W = 37, 53
_random = np.random.default_rng(0)
RGB: Array = _random.integers(0, 256, (H, W, 3), dtype=np.uint8)
RGB16: Array = _random.integers(0, 65536, (H, W, 3), dtype=np.uint16)
GRAY, GRAY16, ALPHA = RGB[..., 0], RGB16[..., 0], RGB[::-1, ..., 1]
SMOOTH: Array = cv2.resize(RGB[:3, :4] // 2 + 60, (W, H), interpolation=cv2.INTER_LINEAR)  # what JPEG keeps
INDEX: Array = (GRAY // 64).astype(np.uint8)
COLORS: Array = _random.integers(0, 256, (256, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Case:
    """A file, and what is read of it.

    Attributes:
        kind: a row of docs/formats.md.
        name: of the case.
        write: makes the file.
        expected: ``[H, W]`` or ``[H, W, 3]``, uint8 or floats in [0, 1]; or the message of the error.
        tolerance: of 255.
        huge: whether `open_huge` opens it too.
        suffix: of the file.
    """

    kind: str
    name: str
    write: Callable[[Path], Any]
    expected: Array | str
    tolerance: float = 0
    huge: bool = True
    suffix: str = ".tif"

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


def over_white(color: Array, alpha: Array) -> Array:
    """Both in [0, 1], in float64, by the definition."""
    return color * alpha[..., None] + 1 - alpha[..., None]


def unit(values: Array, white: float | None = None) -> Array:
    """[0, 1], in float64."""
    return values / (white or np.iinfo(values.dtype).max)


def turned(values: Array, orientation: int) -> Array:
    """As EXIF defines it: where the stored first row and column belong."""
    turns: dict[int, Callable[[Array], Array]] = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2), 8: lambda a: np.rot90(a),
    }  # fmt: skip
    return turns[orientation](values)


def tiff(data: Array, **options: Any) -> Callable[[Path], Any]:
    return lambda path: tifffile.imwrite(path, data, **{"metadata": None, **options})


def pillow(image: Image.Image, **options: Any) -> Callable[[Path], Any]:
    return lambda path: image.save(path, **options)
