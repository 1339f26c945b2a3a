"""One square patch per person."""

import cv2
import numpy as np
from numpy.typing import NDArray

from densescore.io.images import Pixels


def person_patch(pixels: Pixels, box: NDArray[np.float32], side: int, margin: float = 1.0) -> Pixels:
    """The square centered on a box, as wide as the box's longer side; past the image's border, pixels are mirrored.

    Args:
        pixels: RGB ``[H, W, 3]``.
        box: ``[4]``, ``x0 y0 x1 y1`` in pixels.
        side: P of the patch.
        margin: side of the square over the box's longer side.

    Returns:
        RGB ``[P, P, 3]`` of the image's dtype.

    Example:
        >>> person_patch(np.zeros((40, 30, 3), np.uint8), np.array([0, 0, 10, 40], np.float32), 224).shape
        (224, 224, 3)
    """
    x0, y0, x1, y1 = (float(end) for end in box)
    size = max(1, round(margin * max(x1 - x0, y1 - y0)))
    left, top = round((x0 + x1 - size) / 2), round((y0 + y1 - size) / 2)
    height, width = pixels.shape[:2]
    inside = pixels[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)]
    if inside.shape[:2] != (size, size):
        # OpenCV mirrors as often as needed, whatever the border's width; the border pixel itself is not repeated.
        borders = (max(-top, 0), max(top + size - height, 0), max(-left, 0), max(left + size - width, 0))
        mirrored = cv2.copyMakeBorder(pixels, *borders, cv2.BORDER_REFLECT_101)
        inside = mirrored[max(top, 0) : max(top, 0) + size, max(left, 0) : max(left, 0) + size]
    method = cv2.INTER_AREA if size > side else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(inside), (side, side), interpolation=method)
