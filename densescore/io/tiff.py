"""TIFF: which image of the file is meant, what its numbers mean, and whether Pillow reads them right."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from densescore.errors import DensescoreError, MissingPackageError
from densescore.io.samples import Samples
from densescore.io.windows import Windows, choose_channels

_SPACES = {0: "gray", 1: "gray", 2: "RGB", 3: "RGB", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
"""PhotometricInterpretation → color space. 0 is white, 3 a palette."""

_JPEG = (6, 7, 33007, 34892)
_PILLOWS = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946)
"""Compressions that each build of Pillow decodes: none, CCITT, LZW, JPEG, deflate and PackBits."""

_ANY_STACK = ("generic", "uniform", "shaped", "imagej")
"""Kinds of tifffile's series that say nothing of how the images of a file belong together."""


def is_tiff(start: bytes) -> bool:
    """Whether a file that begins so is TIFF or BigTIFF."""
    return start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def one_page(image: Image.Image) -> bool:
    """Whether a TIFF that Pillow opened holds one image, and no thumbnails, pyramid or OME metadata to tell apart."""
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    described = str(tags.get(270, ""))
    return (
        getattr(image, "n_frames", 1) == 1 and 330 not in tags and not tags.get(254, 0) & 1 and "<OME" not in described
    )


def pillow_is_right(image: Image.Image) -> bool:
    """Whether Pillow decodes this page of a TIFF as its tags say, and loses no precision.

    That is uint8 gray, palettes, RGB and CMYK, 1 to 4 bits, CIELab, JPEG, and gray of 16 bits and float32.
    """
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    photometric, extra, compression = tags.get(262), tags.get(338, ()), tags.get(259, 1)
    bits, formats = set(tags.get(258, (1,))), set(tags.get(339, (1,)))
    if photometric not in _SPACES or len(bits) != 1 or len(formats) != 1:
        return False
    channels = 1 if photometric == 3 else Samples(_SPACES[photometric]).channels
    if tags.get(277, 1) != channels + len(extra) or tags.get(284, 1) != 1 or compression not in _PILLOWS:
        return False
    match photometric, bits.pop(), formats.pop(), extra:
        case (0 | 1, 1 | 2 | 4 | 8, 1, ()) | (1, 8, 1, (2,)) | (2, 8, 1, () | (0,) | (1,) | (2,)) | (5 | 8, 8, 1, ()):
            return tags.get(332, 1) == 1  # InkSet: CMYK
        case (1, 16, 1, ()):
            return 281 not in tags  # MaxSampleValue
        case (1, 32, 3, ()):
            return tags.prefix == b"II"  # of big-endian floats Pillow swaps the bytes twice
        case (3, 1 | 2 | 4 | 8, 1, ()):
            return max(tags.get(320, (0,))) > 255  # a palette of 8 bits comes out black
        case (6, 8, 1, ()):
            return compression in _JPEG
    return False


def read_tiff(file: Any, name: str) -> tuple[NDArray[Any], Samples]:
    """The numbers ``[H, W, C]`` of a TIFF that Pillow does not read right, by tifffile, and what they mean.

    Raises:
        DensescoreError: tifffile is not there, the file holds several images, or what is no picture.
    """
    try:
        import tifffile
    except ImportError as error:
        raise MissingPackageError(
            f"{name}: this kind of TIFF needs tifffile: pip install 'densescore[huge]'"
        ) from error
    with tifffile.TiffFile(file) as tiff:
        level = main_level(tiff, name)
        image, limit = describe(tiff, level, name), Image.MAX_IMAGE_PIXELS
        if limit is not None and image.height * image.width > 2 * limit:
            raise DensescoreError(
                f"{name}: {image.width}×{image.height} pixels are more than {2 * limit}: score it by windows with "
                "densescore huge, or raise PIL.Image.MAX_IMAGE_PIXELS if the file is trusted"
            )
        image = replace(image, array=level.asarray())
    image.check_brightness()
    return image.values(0, image.height, 0, image.width), image.samples


def describe(tiff: Any, level: Any, name: str, bands: Sequence[int] | None = None) -> Windows:
    """What an image of an open TIFF holds. Its `array` is `level`, which has a shape but gives no numbers.

    Args:
        tiff: tifffile's ``TiffFile``.
        level: what `main_level` gave.
        name: of the file.
        bands: see `choose_channels`.

    Raises:
        DensescoreError: several images, or what is no picture.
    """
    if any(one is None for one in level):
        raise DensescoreError(f"{name}: some of its planes are in other files, which are not there")
    page = level.keyframe
    orientation = page.tags.valueof(274, 1)
    orientation = int(orientation) if orientation in range(1, 9) else 1
    image = Windows(name, level, level.axes.lower(), _samples(tiff, page, name), orientation)
    return choose_channels(image, tuple(map(int, page.extrasamples)), bands)


def main_level(tiff: Any, name: str) -> Any:
    """The level of tifffile's series that is the picture; of a pyramid the full size.

    Slide formats say which of their images are a label or a thumbnail, so there it is the largest. In other files it
    is the only image that is not marked as a thumbnail or a mask.

    Raises:
        DensescoreError: there are several, or none.
    """
    series = [one for one in tiff.series if one.keyframe.imagewidth]
    full = [one for one in series if not one.keyframe.is_reduced and not one.keyframe.is_mask] or series
    if not full:
        raise DensescoreError(f"{name}: a TIFF without an image")
    if all(one.kind not in _ANY_STACK for one in full):
        largest = max(map(_area, full))
        full = [one for one in full if _area(one) == largest]
    if len(full) > 1:
        pages = "; ".join(
            f"page {one.keyframe.index} of {one.keyframe.imagewidth}×{one.keyframe.imagelength}" for one in full[:9]
        )
        raise DensescoreError(f"{name}: expected one image, got {len(full)} ({pages}); extract the one that is meant")
    return full[0].levels[0]


def _area(series: Any) -> int:
    return int(series.keyframe.imagewidth) * int(series.keyframe.imagelength)


def _samples(tiff: Any, page: Any, name: str) -> Samples:
    photometric, bits = int(page.photometric), int(page.bitspersample)
    inks = int(page.tags.valueof(332, 1))
    if photometric not in _SPACES or (photometric == 5 and inks != 1):
        kind = getattr(page.photometric, "name", photometric) if inks == 1 else f"inks other than CMYK ({inks})"
        raise DensescoreError(f"{name}: colors are {kind}; expected gray, RGB, a palette, CMYK, YCbCr or CIELab")
    kind, space = np.dtype(page.dtype), _SPACES[photometric]
    if kind.kind not in "buif":
        raise DensescoreError(f"{name}: pixels are {kind}; expected integers or floats in [0, 1]")
    white, stated = _white(tiff, page, bits)
    if kind.kind in "ui" and not stated and (kind.kind == "i" or bits > 16):
        raise DensescoreError(
            f"{name}: pixels are {kind}, and the file does not say which number is white: expected uint8, uint16, "
            "floats in [0, 1], or a MaxSampleValue of 2ⁿ-1"
        )
    jpeg = page.compression in _JPEG
    if space == "YCbCr" and jpeg:
        if page.extrasamples:
            raise DensescoreError(f"{name}: JPEG of YCbCr with another channel")
        space = "RGB"  # the decoder converts it
    if space == "YCbCr" and (
        page.tags.valueof(530, (2, 2)) != (1, 1)
        or not _near(page.tags.valueof(529), (0.299, 1, 0.587, 1, 0.114, 1))
        or not _near(page.tags.valueof(532), (0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1))
    ):
        raise DensescoreError(f"{name}: YCbCr that is subsampled, or not as in JPEG: store it as RGB")
    if space in ("CMYK", "YCbCr", "Lab") and (kind != np.uint8 or bits != 8) and not (space == "CMYK" and bits == 16):
        raise DensescoreError(f"{name}: {space} of {bits} bits; expected 8")
    palette = None
    if photometric == 3:
        colors = np.asarray(page.colormap)  # [3, N], 16 bits, or 8 in old files
        palette = (colors // 256 if colors.max() > 255 else colors).astype(np.uint8).T
    return Samples(
        space=space,
        white=white if kind.kind in "bui" else None,
        white_is_stated=stated or bits != 16,
        inverted=photometric == 0,
        palette=palette,
        profile=page.iccprofile,
    )


def _white(tiff: Any, page: Any, bits: int) -> tuple[int, bool]:
    """The number of full intensity, and whether the file says so beyond its BitsPerSample.

    MaxSampleValue is no statement where it is only the largest number of this image, so it must be 2ⁿ-1, n > 8.
    """
    values = page.tags.valueof(281)
    values = values if isinstance(values, tuple) else (values,)
    largest = int(values[0] or 0)
    is_mask = largest >= 511 and (largest + 1) & largest == 0
    if len(set(values)) == 1 and is_mask and (largest < 2**bits - 1 or bits > 16):
        return largest, True
    if found := re.search(r'SignificantBits="(\d+)"', tiff.ome_metadata or ""):
        return 2 ** int(found[1]) - 1, True
    return 2**bits - 1, False


def _near(fractions: tuple[int, ...] | None, expected: tuple[float, ...]) -> bool:
    """Whether a tag of fractions is absent, or holds the expected ones."""
    if fractions is None:
        return True
    return len(fractions) == len(expected) and all(
        abs(fractions[at] * expected[at + 1] - expected[at] * fractions[at + 1]) <= 1e-3 * abs(fractions[at + 1] or 1)
        for at in range(0, len(expected), 2)
    )
