"""Colors as sRGB: color profiles, CMYK, CIELab and YCbCr."""

import io
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from densescore.errors import DensescoreWarning

_SRGB_TOLERANCE = 2  # of 255: profiles this close count as sRGB, which writers round differently
_MODES = {"gray": "L", "RGB": "RGB", "CMYK": "CMYK", "YCbCr": "YCbCr", "Lab": "LAB"}
CHANNELS = {"gray": 1, "RGB": 3, "CMYK": 4, "YCbCr": 3, "Lab": 3}
"""Color space → number of channels."""


def usable_profile(profile: bytes | None, space: str, name: str) -> bytes | None:
    """An image's profile; None, with a warning, if it is broken or for another color space (viewers ignore it too)."""
    if profile is None or space == "Lab":
        return None
    try:
        _transform(profile, _MODES[space])
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        warnings.warn(
            f"{name}: its color profile is ignored, colors are taken for sRGB: {error}", DensescoreWarning, stacklevel=2
        )
        return None
    return profile


def to_srgb(values: NDArray[Any], space: str, profile: bytes | None) -> NDArray[Any]:
    """Convert colors ``[h, w, C]``, uint8 or float32 in [0, 1], to sRGB ``[h, w, 3]`` or gray ``[h, w, 1]``.

    CMYK without a profile is Pillow's; CIELab is uint8 with signed a, b, of D50.
    """
    if space == "Lab":
        return _apply(_from_lab(), values, "LAB")
    if space == "YCbCr":
        values, space = np.array(_image(values, "YCbCr").convert("RGB")), "RGB"
    source, transform = (space, None) if profile is None else _transform(profile, _MODES[space])
    if transform is not None:  # on 8 bits; an RGB profile takes gray as R = G = B
        return _apply(transform, np.repeat(values, CHANNELS[source] // values.shape[2], axis=2), _MODES[source])
    return np.array(_image(values, "CMYK").convert("RGB")) if space == "CMYK" else values


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """Color space of a profile, and its conversion to sRGB (None if it changes nothing).

    Raises PyCMSError for no profile, or one of another space than Pillow's `mode`.
    """
    opened = ImageCms.getOpenProfile(io.BytesIO(profile))
    space = opened.profile.xcolor_space.strip().replace("GRAY", "gray")
    mode = "RGB" if mode == "YCbCr" else mode
    if _MODES.get(space) not in (mode, "RGB" if mode == "L" else mode):
        raise ImageCms.PyCMSError(f"it is for {space}, the image is {'gray' if mode == 'L' else mode}")
    transform = _to_srgb_transform(opened, _MODES[space])
    # Does it change any of a grid of colors?
    if mode == "CMYK":
        return space, transform
    axis = np.linspace(0, 255, 256 if mode == "L" else 16).astype(np.uint8)
    colors = np.stack(np.meshgrid(*[axis] * (1 if mode == "L" else 3)), axis=-1)
    colors = colors.reshape(16, -1, colors.shape[-1])  # [16, n, 1 or 3]
    after = _apply(transform, np.repeat(colors, CHANNELS[space] // colors.shape[2], axis=2), _MODES[space])
    return space, None if np.abs(after.astype(int) - colors).max() <= _SRGB_TOLERANCE else transform


@lru_cache(maxsize=1)
def _from_lab() -> ImageCms.ImageCmsTransform:
    return _to_srgb_transform(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), "LAB")


def _to_srgb_transform(profile: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB", intent, flags)


def _apply(transform: ImageCms.ImageCmsTransform, values: NDArray[Any], mode: str) -> NDArray[np.uint8]:
    converted = ImageCms.applyTransform(_image(values, mode), transform)
    assert converted is not None  # None only for in-place conversions
    return np.array(converted)


def _image(values: NDArray[Any], mode: str) -> Image.Image:
    """A Pillow image of ``[h, w, C]``, rounded to 8 bits."""
    if values.dtype != np.uint8:
        values = np.rint(values * 255).astype(np.uint8)
    return Image.frombytes(mode, (values.shape[1], values.shape[0]), np.ascontiguousarray(values).tobytes())
