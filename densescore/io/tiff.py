"""TIFF: the picture among a file's images, the meaning of its numbers, and whether Pillow decodes it right."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from densescore.errors import DensescoreError, MissingPackageError
from densescore.io.color import usable_profile
from densescore.io.samples import BRIGHT, Pixels, Samples

_BLOCK = 2**24  # pixels per step of the search for a bright one
_UPSIDE_DOWN, _MIRRORED = (3, 4, 7, 8), (2, 3, 6, 7)  # EXIF orientations; those from 5 on are transposed first


def upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """An upright view of pixels ``[h, w, C]`` that are stored in an EXIF orientation."""
    values = values.transpose(1, 0, 2) if orientation > 4 else values
    return values[:: -1 if orientation in _UPSIDE_DOWN else 1, :: -1 if orientation in _MIRRORED else 1]


@dataclass(frozen=True)
class Windows:
    """An image whose numbers are read by windows."""

    name: str  # file name, for messages
    array: Any  # numbers, NumPy's or zarr's
    axes: str  # a letter per axis of `array`: y, x, c and s (channels); others have size 1
    samples: Samples
    orientation: int = 1  # EXIF's, 1 to 8
    bands: tuple[int, ...] | None = None  # channels to take; None for all

    @property
    def height(self) -> int:
        """Height in pixels, upright."""
        return int(self.array.shape[self.axes.index("x" if self.orientation > 4 else "y")])

    @property
    def width(self) -> int:
        """Width in pixels, upright."""
        return int(self.array.shape[self.axes.index("y" if self.orientation > 4 else "x")])

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Pixels:
        """RGB ``[h, w, 3]`` of the window ``[y0, y1) × [x0, x1)``, equal to `densescore.read_image`'s pixels."""
        return self.samples.to_rgb(self.values(y0, y1, x0, x1), f"{self.name} at {y0}:{y1}, {x0}:{x1}")

    def values(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[Any]:
        """Numbers ``[h, w, C]`` of an upright window."""
        if self.orientation in _UPSIDE_DOWN:
            y0, y1 = self.height - y1, self.height - y0
        if self.orientation in _MIRRORED:
            x0, x1 = self.width - x1, self.width - x0
        if self.orientation > 4:
            y0, y1, x0, x1 = x0, x1, y0, y1
        return upright(self._stored(slice(y0, y1), slice(x0, x1)), self.orientation)

    def check_brightness(self) -> None:
        """Refuse 16-bit numbers without a bright one (see `Samples.check_brightness`); reads until it meets one."""
        if not self.samples.may_be_dim:
            return
        brightest = 0
        height, width = (self.array.shape[self.axes.index(axis)] for axis in "yx")
        chunks = dict(zip(self.axes, getattr(self.array, "chunks", self.array.shape), strict=True))
        rows = max(1, _BLOCK // width // chunks["y"]) * chunks["y"]
        for y in range(0, height, rows):
            values = self._stored(slice(y, min(y + rows, height)), slice(0, width))
            brightest = max(brightest, int(values[..., : self.samples.channels].max()))
            if brightest >= BRIGHT:
                return
        self.samples.check_brightness(brightest, self.name)

    def _stored(self, rows: slice, cols: slice) -> NDArray[Any]:
        """Numbers ``[h, w, C]`` of a window of `array`."""
        index = {"y": rows, "x": cols, "c": slice(None), "s": slice(None)}
        axes = [axis for axis in self.axes if axis in index]
        try:
            values = np.asarray(self.array[tuple(index.get(axis, 0) for axis in self.axes)])
        except Exception as error:  # a codec meets broken data in many ways
            place = f"{rows.start}:{rows.stop}, {cols.start}:{cols.stop}"
            raise DensescoreError(f"{self.name}: cannot be read at {place}: {error}") from error
        values = values.transpose([axes.index(axis) for axis in "yxcs" if axis in axes])
        values = values.reshape(*values.shape[:2], -1).astype(values.dtype.newbyteorder("="), copy=False)
        return values if self.bands is None else values[..., list(self.bands)]


def choose_channels(image: Windows, extra: Sequence[int] = (), bands: Sequence[int] | None = None) -> Windows:
    """The image with its color and transparency channels, or with one or three `bands` as gray or RGB.

    `extra` is TIFF's ExtraSamples of the channels after the color: 1 premultiplied alpha, 2 alpha, 0 other.
    """
    name, samples = image.name, image.samples
    shape = dict(zip(image.axes, image.array.shape, strict=True))
    if (
        len(shape) < len(image.axes)
        or not {"y", "x"} <= set(shape)
        or any(size > 1 for axis, size in shape.items() if axis not in "yxcs")
        or 0 in shape.values()
    ):
        raise DensescoreError(
            f"{name}: expected one image, got axes {image.axes!r} of {tuple(image.array.shape)}; extract one plane"
        )
    channels = shape.get("c", 1) * shape.get("s", 1)
    # Bands by the user's choice
    if bands is not None:
        if len(bands) not in (1, 3) or not all(0 <= band < channels for band in bands):
            raise DensescoreError(f"{name}: bands must be one or three of 0..{channels - 1}, got {tuple(bands)}")
        if samples.space not in ("gray", "RGB") or samples.palette is not None:
            raise DensescoreError(f"{name}: bands are for gray and RGB; the colors are {samples.space} or a palette")
        space = "gray" if len(bands) == 1 else "RGB"
        return replace(image, bands=tuple(bands), samples=replace(samples, space=space, profile=None))
    # Color and ExtraSamples by the file's tags
    alphas = [samples.channels + at for at, kind in enumerate(extra) if kind in (1, 2)]
    only_alpha = samples.channels > 1 or len(alphas) == len(extra)  # channels after RGB are not color
    if channels == samples.channels + len(extra) and only_alpha:
        if alphas:
            premultiplied = extra[alphas[0] - samples.channels] == 1
            samples = replace(samples, alpha=alphas[0], premultiplied=premultiplied)
    elif channels == 3 and samples.space == "gray" and samples.palette is None:
        samples = replace(samples, space="RGB")
    else:
        raise DensescoreError(
            f"{name}: {channels} channels: say with bands which to take as gray or RGB, e.g. 0,1,2 "
            "(densescore huge --bands; elsewhere pass an array of them)"
        )
    return replace(image, samples=replace(samples, profile=usable_profile(samples.profile, samples.space, name)))


_SPACES = {0: "gray", 1: "gray", 2: "RGB", 3: "RGB", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
"""PhotometricInterpretation → color space. 0 is white, 3 a palette."""

_JPEG = (6, 7, 33007, 34892)
_PILLOW_CODECS = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946)  # none, CCITT, LZW, JPEG, deflate, PackBits: in each build
_ANY_STACK = ("generic", "uniform", "shaped", "imagej")  # tifffile's series that do not relate a file's images


def is_tiff(start: bytes) -> bool:
    """Whether a file's first bytes are those of TIFF or BigTIFF."""
    return start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def one_page(image: Image.Image) -> bool:
    """Whether a TIFF that Pillow opened holds one image: no thumbnails, pyramid or OME metadata."""
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    described = str(tags.get(270, ""))
    return (
        getattr(image, "n_frames", 1) == 1 and 330 not in tags and not tags.get(254, 0) & 1 and "<OME" not in described
    )


def pillow_is_right(image: Image.Image) -> bool:
    """Whether Pillow decodes this page of a TIFF as its tags say, without loss of precision."""
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    photometric, extra, compression = tags.get(262), tags.get(338, ()), tags.get(259, 1)
    bits, formats = set(tags.get(258, (1,))), set(tags.get(339, (1,)))
    if photometric not in _SPACES or len(bits) != 1 or len(formats) != 1:
        return False
    channels = 1 if photometric == 3 else Samples(_SPACES[photometric]).channels
    if tags.get(277, 1) != channels + len(extra) or tags.get(284, 1) != 1 or compression not in _PILLOW_CODECS:
        return False
    # Gray, palettes, RGB, CMYK and CIELab of 8 bits, 1 to 4 bits, JPEG, gray of 16 bits and float32
    match photometric, bits.pop(), formats.pop(), extra:
        case (0 | 1, 1 | 2 | 4 | 8, 1, ()) | (1, 8, 1, (2,)) | (2, 8, 1, () | (0,) | (1,) | (2,)) | (5 | 8, 8, 1, ()):
            return tags.get(332, 1) == 1  # InkSet: CMYK
        case (1, 16, 1, ()):
            return 281 not in tags  # MaxSampleValue
        case (1, 32, 3, ()):
            return tags.prefix == b"II"  # Pillow swaps big-endian floats twice
        case (3, 1 | 2 | 4 | 8, 1, ()):
            return max(tags.get(320, (0,))) > 255  # Pillow makes 8-bit palettes black
        case (6, 8, 1, ()):
            return compression in _JPEG
    return False


def read_tiff(file: Any, name: str) -> tuple[NDArray[Any], Samples]:
    """Numbers ``[H, W, C]`` of a TIFF, decoded by tifffile, and their meaning."""
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
    """The image of an open TIFF. Its `array` is `level`, of `main_level`: it has a shape but gives no numbers."""
    if any(one is None for one in level):
        raise DensescoreError(f"{name}: some of its planes are in other files, which are not there")
    page = level.keyframe
    orientation = page.tags.valueof(274, 1)
    orientation = int(orientation) if orientation in range(1, 9) else 1
    image = Windows(name, level, level.axes.lower(), _samples(tiff, page, name), orientation)
    return choose_channels(image, tuple(map(int, page.extrasamples)), bands)


def main_level(tiff: Any, name: str) -> Any:
    """The full-size level of the one picture in a tifffile ``TiffFile``."""
    # Neither thumbnail nor mask; of slide formats, whose other images are labels and previews, the largest
    series = [one for one in tiff.series if one.keyframe.imagewidth]
    full = [one for one in series if not one.keyframe.is_reduced and not one.keyframe.is_mask] or series
    if not full:
        raise DensescoreError(f"{name}: a TIFF without an image")
    if all(one.kind not in _ANY_STACK for one in full):
        areas = [int(one.keyframe.imagewidth) * int(one.keyframe.imagelength) for one in full]
        full = [one for one, area in zip(full, areas, strict=True) if area == max(areas)]
    if len(full) > 1:
        pages = "; ".join(
            f"page {one.keyframe.index} of {one.keyframe.imagewidth}×{one.keyframe.imagelength}" for one in full[:9]
        )
        raise DensescoreError(f"{name}: expected one image, got {len(full)} ({pages}); extract the one that is meant")
    return full[0].levels[0]


def _samples(tiff: Any, page: Any, name: str) -> Samples:
    photometric, bits = int(page.photometric), int(page.bitspersample)
    inks = int(page.tags.valueof(332, 1))
    if photometric not in _SPACES or (photometric == 5 and inks != 1):
        kind = getattr(page.photometric, "name", photometric) if inks == 1 else f"inks other than CMYK ({inks})"
        raise DensescoreError(f"{name}: colors are {kind}; expected gray, RGB, a palette, CMYK, YCbCr or CIELab")
    # Data type and white
    kind, space = np.dtype(page.dtype), _SPACES[photometric]
    if kind.kind not in "buif":
        raise DensescoreError(f"{name}: pixels are {kind}; expected integers or floats in [0, 1]")
    white, stated = _white(tiff, page, bits)
    if kind.kind in "ui" and not stated and (kind.kind == "i" or bits > 16):
        raise DensescoreError(
            f"{name}: pixels are {kind}, and the file does not say which number is white: expected uint8, uint16, "
            "floats in [0, 1], or a MaxSampleValue of 2ⁿ-1"
        )
    # Colors that are stored otherwise than RGB
    if space == "YCbCr" and page.compression in _JPEG:
        if page.extrasamples:
            raise DensescoreError(f"{name}: JPEG of YCbCr with another channel")
        space = "RGB"  # the decoder converts it
    if space == "YCbCr" and (
        page.tags.valueof(530, (2, 2)) != (1, 1)
        or not _near(page.tags.valueof(529), (0.299, 0.587, 0.114))
        or not _near(page.tags.valueof(532), (0, 255, 128, 255, 128, 255))
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
    """Number of full intensity, and whether the file states it beyond its BitsPerSample.

    MaxSampleValue may be only the image's largest number, so it counts if it is 2ⁿ-1, n > 8.
    """
    values = page.tags.valueof(281)
    values = values if isinstance(values, tuple) else (values,)
    largest = int(values[0] or 0)
    is_mask = largest >= 511 and (largest + 1) & largest == 0
    if len(set(values)) == 1 and is_mask and (largest < 2**bits - 1 or bits > 16):
        return largest, True
    if match := re.search(r'SignificantBits="(\d+)"', tiff.ome_metadata or ""):
        return 2 ** int(match[1]) - 1, True
    return 2**bits - 1, False


def _near(fractions: tuple[int, ...] | None, expected: tuple[float, ...]) -> bool:
    """Whether a tag of fractions is absent, or close to `expected`."""
    if fractions is None:
        return True
    if np.size(fractions) != 2 * len(expected):
        return False
    above, below = np.reshape(fractions, (-1, 2)).T.astype(float)
    return bool((np.abs(above - expected * below) <= 1e-3 * np.abs(below)).all())
