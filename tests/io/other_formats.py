"""Color profiles, zarr, and the formats that Pillow reads, by other libraries, and their pixels."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, features

from tests.io.formats import (
    ALPHA,
    COLORS,
    GRAY,
    GRAY16,
    INDEX,
    RGB,
    RGB16,
    SMOOTH,
    Array,
    Case,
    H,
    W,
    over_white,
    pillow,
    tiff,
    turned,
    unit,
)

imagecodecs: Any = pytest.importorskip("imagecodecs")
zarr: Any = pytest.importorskip("zarr")


def profile(space: str) -> bytes:
    """ICC profiles by LittleCMS, through imagecodecs."""
    d65 = (0.3127, 0.3290, 1.0)
    match space:
        case "Display P3":
            primaries = (0.68, 0.32, 1, 0.265, 0.69, 1, 0.15, 0.06, 1)
        case "Adobe RGB":
            primaries = (0.64, 0.33, 1, 0.21, 0.71, 1, 0.15, 0.06, 1)
        case "sRGB":
            return bytes(imagecodecs.cms_profile("srgb"))
        case "gray":
            return bytes(imagecodecs.cms_profile("gray", whitepoint=d65, gamma=1.2))
    return bytes(imagecodecs.cms_profile("rgb", whitepoint=d65, primaries=primaries, gamma=2.2))


def in_srgb(values: Array, space: str) -> Array:
    srgb = imagecodecs.cms_profile("srgb")
    mode = "gray" if values.ndim == 2 else "rgb"
    return imagecodecs.cms_transform(
        values, profile(space), srgb, colorspace=mode, outcolorspace="rgb", intent=1, outdtype=values.dtype
    )


def profiles() -> Iterator[Case]:
    for space in ("Display P3", "Adobe RGB", "sRGB"):
        icc = profile(space)
        shown, tolerance = (RGB, 0) if space == "sRGB" else (in_srgb(RGB, space), 1)
        image = Image.fromarray(RGB)
        for suffix, options in ((".png", {}), (".webp", {"lossless": True}), (".jp2", {})):
            if suffix != ".jp2":  # Pillow writes none there
                yield Case("Color profiles", f"{space} {suffix}", pillow(image, icc_profile=icc, **options), shown,
                           tolerance, huge=False, suffix=suffix)  # fmt: skip
        for compression in (None, "zlib"):
            write = tiff(RGB, photometric="rgb", iccprofile=icc, compression=compression)
            yield Case("Color profiles", f"{space} TIFF {compression}", write, shown, tolerance)
        write = tiff(RGB16, photometric="rgb", iccprofile=icc, compression="zlib")
        wide = unit(RGB16) if space == "sRGB" else in_srgb(np.rint(unit(RGB16) * 255).astype(np.uint8), space)
        yield Case("Color profiles", f"{space} TIFF 16 bits", write, wide, 1)
        rgba = np.dstack([RGB, ALPHA])
        shown_over = np.rint(over_white(unit(shown), unit(ALPHA)) * 255).astype(np.uint8)
        yield Case("Color profiles", f"{space} RGBA", pillow(Image.fromarray(rgba), icc_profile=icc), shown_over, 1.01,
                   huge=False, suffix=".png")  # fmt: skip
        write = tiff(rgba, photometric="rgb", extrasamples=["unassalpha"], iccprofile=icc)
        yield Case("Color profiles", f"{space} TIFF alpha", write, shown_over, 1.01)
        gray = shown if space == "sRGB" else in_srgb(np.dstack([GRAY] * 3), space)
        gray = GRAY if space == "sRGB" else gray
        yield Case("Color profiles", f"{space} of gray", pillow(Image.fromarray(GRAY), icc_profile=icc), gray, 1,
                   huge=False, suffix=".png")  # fmt: skip
        yield Case("Color profiles", f"{space} of gray TIFF", tiff(GRAY, iccprofile=icc), gray, 1)
        image = Image.fromarray(SMOOTH)
        yield Case("Color profiles", f"{space} JPEG", pillow(image, icc_profile=icc, quality=98, subsampling=0),
                   SMOOTH if space == "sRGB" else in_srgb(SMOOTH, space), 9, huge=False, suffix=".jpg")  # fmt: skip
    icc, shown = profile("gray"), in_srgb(GRAY, "gray")
    yield Case(
        "Color profiles", "gray", pillow(Image.fromarray(GRAY), icc_profile=icc), shown, 1, huge=False, suffix=".png"
    )
    yield Case("Color profiles", "gray TIFF", tiff(GRAY, iccprofile=icc), shown, 1)
    wide16 = in_srgb(np.rint(unit(GRAY16) * 255).astype(np.uint8), "gray")
    yield Case("Color profiles", "gray TIFF 16 bits", tiff(GRAY16, iccprofile=icc), wide16, 1)


def zarrs() -> Iterator[Case]:
    def array(data: Array, **options: Any) -> Callable[[Path], Any]:
        return lambda path: zarr.create_array(path, data=data, chunks=(16,) * data.ndim, **options)

    many = np.concatenate([RGB, RGB, RGB[..., :2]], axis=2)
    floats = unit(RGB16).astype(np.float32)
    five = "channels: say with bands"
    cases: list[tuple[str, Callable[[Path], Any], Array | str, float]] = [
        ("[H, W]", array(GRAY), GRAY, 0),
        ("[H, W] 16 bits", array(GRAY16), unit(GRAY16), 0.01),
        ("[H, W, 1]", array(GRAY[..., None]), GRAY, 0),
        ("[H, W, 3]", array(RGB), RGB, 0),
        ("[H, W, 3] floats", array(floats), floats, 0.01),
        ("[H, W, 3] version 2", array(RGB, zarr_format=2), RGB, 0),
        ("[3, H, W]", array(RGB.transpose(2, 0, 1)), RGB, 0),
        ("[H, W, 4]", array(np.dstack([RGB, ALPHA])),
         np.rint(over_white(unit(RGB), unit(ALPHA)) * 255).astype(np.uint8), 0),
        ("[H, W, 8]", array(many), "8 " + five, 0),
        ("[8, H, W]", array(many.transpose(2, 0, 1)), "8 " + five, 0),
        ("y, x, band", array(many, dimension_names=("y", "x", "band")), "8 " + five, 0),
        ("x, y", array(GRAY.T, dimension_names=("x", "y")), GRAY, 0),
        ("time, y, x", array(GRAY[None], dimension_names=("time", "y", "x")), GRAY, 0),
        ("band, lat, lon", array(RGB.transpose(2, 0, 1), dimension_names=("band", "lat", "lon")), RGB, 0),
        ("four bands", array(many[..., :4], dimension_names=("y", "x", "band")), "4 " + five, 0),
        ("names of xarray", array(many, zarr_format=2, attributes={"_ARRAY_DIMENSIONS": ["y", "x", "band"]}),
         "8 " + five, 0),
        ("[2, 3, H, W]", array(np.stack([RGB.transpose(2, 0, 1)] * 2)), "expected one image", 0),
        ("int16", array(GRAY.astype(np.int16)), "pixels are int16", 0),
        ("12 bits in 16", array(GRAY16 >> 4), "nearly black", 0),
    ]  # fmt: skip
    for name, write, expected, tolerance in cases:
        yield Case("zarr", name, write, expected, tolerance, suffix=".zarr")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    import struct
    import zlib

    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(image: Array, kind: bytes, data: bytes) -> Callable[[Path], Any]:
    """A PNG by OpenCV, with one more chunk after its header."""
    encoded = cv2.imencode(".png", image if image.ndim == 2 else image[..., ::-1])[1].tobytes()
    return lambda path: path.write_bytes(encoded[:33] + png_chunk(kind, data) + encoded[33:])


def pillow_files() -> Iterator[Case]:
    import zlib

    def case(kind: str, name: str, write: Callable[[Path], Any], expected: Array | str, tolerance: float = 0) -> Case:
        suffix = "." + kind.split()[0].lower().replace("2000", "")
        return Case(kind, name, write, expected, tolerance, huge=False, suffix={".jpeg": ".jpg"}.get(suffix, suffix))

    rgba = np.dstack([RGB, ALPHA])
    shown = np.rint(over_white(unit(RGB), unit(ALPHA)) * 255).astype(np.uint8)
    image = Image.fromarray(RGB)
    palette = Image.fromarray(INDEX).convert("P")
    palette.putpalette(COLORS.tobytes())
    yield case("PNG", "1 bit", pillow(Image.fromarray(GRAY > 99)), (GRAY > 99) * np.uint8(255))
    yield case("PNG", "gray", lambda path: cv2.imwrite(str(path), GRAY), GRAY)
    yield case("PNG", "RGB", lambda path: cv2.imwrite(str(path), RGB[..., ::-1]), RGB)
    yield case("PNG", "RGBA", lambda path: cv2.imwrite(str(path), rgba[..., [2, 1, 0, 3]]), shown)
    yield case("PNG", "gray and alpha", pillow(Image.fromarray(np.dstack([GRAY, ALPHA]), "LA")),
               np.rint(over_white(unit(np.dstack([GRAY] * 3)), unit(ALPHA)) * 255).astype(np.uint8))  # fmt: skip
    yield case("PNG", "palette", pillow(palette), COLORS[INDEX])
    half = over_white(unit(COLORS[INDEX]), np.array([1, 0.2, 0, 0.6])[INDEX])
    yield case("PNG", "palette with alphas", pillow(palette, transparency=bytes([255, 51, 0, 153])),
               np.rint(half * 255).astype(np.uint8))  # fmt: skip
    yield case("PNG", "16-bit gray", lambda path: cv2.imwrite(str(path), GRAY16), unit(GRAY16), 0.01)
    yield case("PNG", "16-bit RGB", lambda path: cv2.imwrite(str(path), RGB16[..., ::-1]), unit(RGB16), 0.01)
    rgba16 = np.dstack([RGB16, RGB16[::-1, ..., 1]])
    yield case("PNG", "16-bit RGBA", lambda path: cv2.imwrite(str(path), rgba16[..., [2, 1, 0, 3]]),
               over_white(unit(RGB16), unit(rgba16[..., 3])), 0.01)  # fmt: skip
    yield case("PNG", "12 bits in 16, RGB", lambda path: cv2.imwrite(str(path), RGB16 >> 4), "nearly black")
    yield case("PNG", "12 bits in 16", lambda path: cv2.imwrite(str(path), GRAY16 >> 4), "nearly black")
    for name, data, hidden in (("gray", GRAY, GRAY[3, 5]), ("16-bit gray", GRAY16, GRAY16[3, 5])):
        expected = np.where(data == hidden, 1, unit(data))
        expected = np.rint(expected * 255).astype(np.uint8) if data.dtype == np.uint8 else expected
        yield case("PNG", f"tRNS of {name}", with_chunk(data, b"tRNS", int(hidden).to_bytes(2, "big")), expected, 0.01)
    hidden = RGB[3, 5]
    expected = np.where((hidden == RGB).all(2, keepdims=True), np.uint8(255), RGB)
    yield case("PNG", "tRNS of RGB", with_chunk(RGB, b"tRNS", hidden.astype(">u2").tobytes()), expected)
    hidden = RGB16[3, 5]
    expected = np.where((hidden == RGB16).all(2, keepdims=True), 1, unit(RGB16))
    yield case("PNG", "tRNS of 16-bit RGB", with_chunk(RGB16, b"tRNS", hidden.astype(">u2").tobytes()), expected, 0.01)
    text = b"Comment\0\0" + zlib.compress(b"a" * 2_000_000)
    yield case("PNG", "a long text", with_chunk(RGB, b"zTXt", text), RGB)
    international = b"Comment\0\1\0\0\0" + zlib.compress(b"a" * 2_000_000)
    yield case("PNG", "a long international text", with_chunk(RGB, b"iTXt", international), RGB)
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        for kind, options in (("PNG", {}), ("WebP", {"lossless": True})):
            yield case(kind, f"orientation {orientation}", pillow(image, exif=exif.tobytes(), **options),
                       turned(RGB, orientation))  # fmt: skip
        yield case("JPEG", f"orientation {orientation}",
                   pillow(Image.fromarray(SMOOTH), exif=exif.tobytes(), quality=99, subsampling=0),
                   turned(SMOOTH, orientation), 5)  # fmt: skip
    yield case("JPEG", "gray", lambda path: cv2.imwrite(str(path), SMOOTH[..., 0], [cv2.IMWRITE_JPEG_QUALITY, 99]),
               SMOOTH[..., 0], 4)  # fmt: skip
    cmyk = np.dstack([SMOOTH, SMOOTH[::-1, ..., 0] // 2])
    ink = unit(cmyk)
    yield case("JPEG", "CMYK", pillow(Image.frombytes("CMYK", (W, H), cmyk.tobytes()), quality=99, subsampling=0),
               np.rint((1 - ink[..., :3]) * (1 - ink[..., 3:]) * 255).astype(np.uint8), 5)  # fmt: skip
    yield case("WebP", "alpha", pillow(Image.fromarray(rgba), lossless=True, exact=True), shown)
    yield case("GIF", "palette", pillow(palette), COLORS[INDEX])
    yield case("GIF", "transparency", pillow(palette, transparency=2),
               np.where((INDEX == 2)[..., None], np.uint8(255), COLORS[INDEX]))  # fmt: skip
    yield case("BMP", "RGB", pillow(image), RGB)
    yield case("BMP", "palette", pillow(palette), COLORS[INDEX])
    yield case("TGA", "alpha", pillow(Image.fromarray(rgba)), shown)
    yield case("PPM", "RGB", pillow(image), RGB)
    yield case("PGM", "16 bits", lambda path: cv2.imwrite(str(path), GRAY16), unit(GRAY16), 0.01)
    yield case(
        "PFM", "floats", lambda path: cv2.imwrite(str(path), unit(GRAY16).astype(np.float32)), unit(GRAY16), 0.01
    )
    yield case("QOI", "RGB", lambda path: path.write_bytes(imagecodecs.qoi_encode(RGB)), RGB)
    for data in (RGB, GRAY, GRAY16):
        name = f"{data.ndim} {data.dtype}"
        write = lambda path, data=data: path.write_bytes(imagecodecs.jpeg2k_encode(data, level=0, reversible=True))  # noqa: E731
        expected = data if data.dtype == np.uint8 else unit(data)
        yield Case("JPEG 2000", name, write, expected, 0.01, huge=False, suffix=".jp2")
    if features.check("avif"):
        yield case("AVIF", "RGB", pillow(Image.fromarray(SMOOTH), quality=100, subsampling="4:4:4"), SMOOTH, 4)


def others() -> Iterator[Case]:
    for maker in (profiles, zarrs, pillow_files):
        yield from maker()
