"""Decode anything that is a picture, and cut it into the levels of a pyramid."""

import os
from typing import IO, Any, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from densescore.errors import DensescoreError
from densescore.geometry import Level, Pyramid
from densescore.io.decoding import from_file, from_pil
from densescore.io.samples import Pixels, Samples

__all__ = ["ImageLike", "Pixels", "file_of", "level_pixels", "read_image"]

ImageLike: TypeAlias = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | NDArray[np.generic] | torch.Tensor
"""What every public function takes as an image; `read_image` says how each is understood."""


def read_image(source: ImageLike) -> Pixels:
    """Decode an image to RGB.

    Args:
        source: a path; encoded bytes or a binary file object; a PIL image; an array ``[H, W]`` or ``[H, W, 1|3|4]``;
            or a tensor ``[H, W]`` or ``[1|3|4, H, W]``. Arrays and tensors are uint8, or floats in [0, 1].
            Files are turned upright by their EXIF orientation and converted to sRGB by their color profile. The first
            frame of an animation is read; ``clip.mp4#t=12.5`` names a video's frame at 12.5 s. Transparent pixels are
            laid over white. 16-bit gray becomes float32. TIFFs that Pillow does not read right need the extra ``huge``,
            HEIC needs ``heic``, videos need ``video``; docs/formats.md has a table.

    Returns:
        RGB ``[H, W, 3]``, uint8 or float32 in [0, 1], C-contiguous.

    Raises:
        DensescoreError: not a picture, several, truncated, empty, nearly black in 16 bits of which the file does not
            say how many are used, of a kind that needs an extra, larger than Pillow's decompression-bomb limit (twice
            ``PIL.Image.MAX_IMAGE_PIXELS``, which may be raised), or an array of another shape, dtype or range. The
            message names the input.

    Example:
        >>> read_image(np.zeros((4, 6), np.uint8)).shape
        (4, 6, 3)
    """
    if isinstance(source, torch.Tensor):
        name = f"tensor of shape {tuple(source.shape)} and dtype {source.dtype}"
        tensor = source.detach().cpu()
        if tensor.ndim == 3:  # [C, H, W]
            tensor = tensor.permute(1, 2, 0)
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        return _from_array(array, name, expected="[H, W] or [C, H, W] with C = 1, 3 or 4")
    if isinstance(source, np.ndarray):
        name = f"array of shape {source.shape} and dtype {source.dtype}"
        return _from_array(source, name, expected="[H, W] or [H, W, C] with C = 1, 3 or 4")
    if isinstance(source, Image.Image):
        return from_pil(source)
    return from_file(source)


def file_of(source: ImageLike) -> str | None:
    """Absolute path of an image that was given as a file; None where it was given as anything else."""
    return os.path.abspath(os.fspath(source)) if isinstance(source, str | os.PathLike) else None


def _from_array(array: NDArray[Any], name: str, expected: str) -> Pixels:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        hint = "; a batch is scored image by image" if array.ndim == 4 else ""
        raise DensescoreError(f"{name}: expected {expected}, not empty{hint}")
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise DensescoreError(f"{name}: dtype must be uint8 or floating point in [0, 1]")
    samples = Samples("gray" if channels == 1 else "RGB", alpha=3 if channels == 4 else None)
    return samples.to_rgb(array.reshape(*array.shape[:2], channels), name)


def level_pixels(image: Pixels, pyramid: Pyramid, level: Level) -> Pixels:
    """Resize an image to one level and pad it bottom and right by reflection.

    Shrinking averages the pixels under each new one (no aliasing at any ratio); enlarging is bilinear.

    Args:
        image: RGB ``[H, W, 3]`` of the size that the pyramid was laid out for.
        pyramid: the levels of the image.
        level: one of them.

    Returns:
        RGB ``[P + rows'·S, P + cols'·S, 3]`` of the image's dtype (see `Pyramid.padded_size`).
    """
    resized = image
    if (level.height, level.width) != image.shape[:2]:
        shrinks = level.height < image.shape[0] or level.width < image.shape[1]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        resized = cv2.resize(image, (level.width, level.height), interpolation=method)
    height, width = pyramid.padded_size(level)
    # OpenCV's reflect-101 repeats as often as needed, and repeats the pixel itself where there is only one.
    return cv2.copyMakeBorder(resized, 0, height - level.height, 0, width - level.width, cv2.BORDER_REFLECT_101)
