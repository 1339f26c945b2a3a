"""Decode anything that is a picture, and cut it into the levels of a pyramid."""

import io
import os
import warnings
from pathlib import Path
from typing import IO, Any, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from densescore.errors import DensescoreError
from densescore.geometry import Level, Pyramid

ImageLike: TypeAlias = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | NDArray[np.generic] | torch.Tensor
"""What every public function takes as an image; `read_image` says how each is understood."""

Pixels: TypeAlias = NDArray[Any]
"""RGB ``[H, W, 3]``: uint8, or float32 in [0, 1]."""


def read_image(source: ImageLike) -> Pixels:
    """Decode an image to RGB.

    Args:
        source: a path; encoded bytes or a binary file object; a PIL image; an array ``[H, W]`` or ``[H, W, 1|3|4]``;
            or a tensor ``[H, W]`` or ``[1|3|4, H, W]``. Arrays and tensors are uint8, or floats in [0, 1].
            Files are turned upright by their EXIF orientation; of an animation the first frame is read; gray, palette
            and CMYK become RGB; transparent pixels are laid over white; 16-bit gray keeps its precision as float32.

    Returns:
        RGB ``[H, W, 3]``, uint8 or float32 in [0, 1], C-contiguous.

    Raises:
        DensescoreError: not a picture, truncated, empty, larger than Pillow's decompression-bomb limit (twice
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
        return _from_pil(source, f"PIL image of mode {source.mode} and size {source.size}")
    return _from_file(source)


def _from_file(source: str | os.PathLike[str] | bytes | IO[bytes]) -> Pixels:
    file: IO[bytes] | None
    if isinstance(source, str | os.PathLike):
        name, file = os.fspath(source), None
    elif isinstance(source, bytes | bytearray | memoryview):
        name, file = f"image of {len(source)} bytes", io.BytesIO(source)
    elif hasattr(source, "read"):
        name, file = str(getattr(source, "name", "file object")), source
    else:
        raise DensescoreError(
            "an image must be a path, bytes, a binary file, a PIL image, an array or a tensor, "
            f"got {type(source).__name__}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large or odd files that it still decodes
            with Image.open(Path(name) if file is None else file) as image:
                return _from_pil(image, name)
    except Image.DecompressionBombError as error:
        raise DensescoreError(f"{name}: {error}; raise PIL.Image.MAX_IMAGE_PIXELS if the file is trusted") from error
    except UnidentifiedImageError as error:
        raise DensescoreError(f"{name}: not an image that Pillow can read, or an empty file") from error
    except DensescoreError:
        raise
    except Exception as error:  # a decoder meets a broken file in many ways: OSError, SyntaxError, struct.error, …
        raise DensescoreError(f"{name}: cannot be read as an image: {error}") from error


def _from_pil(image: Image.Image, name: str) -> Pixels:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # 16- and 32-bit gray
        values = np.asarray(image)
        if image.mode == "F":
            return _from_array(values, name, expected="floats in [0, 1]")
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise DensescoreError(f"{name}: 32-bit gray must hold 16-bit values, got {values.min()}..{values.max()}")
        return _from_array((values / np.float32(65535)).astype(np.float32), name, expected="")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(image.convert("RGB"))


def _from_array(array: NDArray[Any], name: str, expected: str) -> Pixels:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        hint = "; a batch is scored image by image" if array.ndim == 4 else ""
        raise DensescoreError(f"{name}: expected {expected}, not empty{hint}")
    pixels: Pixels
    if array.dtype == np.uint8:
        pixels = array
    elif np.issubdtype(array.dtype, np.floating):
        pixels = array.astype(np.float32)
        if not np.isfinite(pixels).all():
            raise DensescoreError(f"{name}: holds NaN or infinity")
        if pixels.min() < 0 or pixels.max() > 1:
            raise DensescoreError(
                f"{name}: floats must lie in [0, 1], got {pixels.min():g}..{pixels.max():g}; "
                "divide by 255, or pass uint8 (normalization is the scorer's)"
            )
    else:
        raise DensescoreError(f"{name}: dtype must be uint8 or floating point in [0, 1]")
    if pixels.ndim == 2 or channels == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    if channels == 4:
        white = 255 if pixels.dtype == np.uint8 else 1
        alpha = pixels[..., 3:].astype(np.float32) / white
        over = pixels[..., :3] * alpha + white * (1 - alpha)
        pixels = np.rint(over).astype(np.uint8) if white == 255 else over.astype(np.float32)
    return np.ascontiguousarray(pixels)


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
