"""Pixels as a network takes them."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densescore.io.images import Pixels


def normalize(
    pixels: Pixels, mean: Sequence[float], std: Sequence[float], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Subtract the mean and divide by the standard deviation.

    Args:
        pixels: RGB ``[h, w, 3]``: uint8, or float32 in [0, 1].
        mean: one number per channel, subtracted from pixels in [0, 1].
        std: one number per channel, divided by.
        device: of the result.
        dtype: of the result.

    Returns:
        ``[1, 3, h, w]``, channels last.
    """
    # By numpy and OpenCV: torch's threads would go on spinning for a while, in the way of the trunk's.
    if pixels.dtype != np.uint8:
        scaled = (pixels - np.array(mean, np.float32)) / np.array(std, np.float32)
        return torch.from_numpy(scaled).permute(2, 0, 1)[None].to(device, dtype)
    values = torch.from_numpy(cv2.LUT(pixels, _table(tuple(mean), tuple(std), dtype))).view(dtype)  # [h, w, 3]
    return values.permute(2, 0, 1)[None].to(device)


def normalize_on_device(pixels: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """`normalize` for pixels that are on their device already, by the same arithmetic.

    Args:
        pixels: RGB ``[N, h, w, 3]``: uint8, or float32 in [0, 1].
        mean: as for `normalize`.
        std: as for `normalize`.
        dtype: of the result.

    Returns:
        ``[N, 3, h, w]``, channels last.
    """
    values = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    values = (values - torch.tensor(mean, device=pixels.device)) / torch.tensor(std, device=pixels.device)
    return values.to(dtype).permute(0, 3, 1, 2)


@lru_cache(maxsize=16)
def _table(mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype) -> NDArray[Any]:
    """What each byte of a channel becomes: ``[1, 256, 3]``. OpenCV knows no half floats, so it moves their bits."""
    table = ((torch.arange(256)[:, None] / 255 - torch.tensor(mean)) / torch.tensor(std)).to(dtype)
    bits = table.view(torch.int16) if table.itemsize == 2 else table
    return bits.numpy()[None]
