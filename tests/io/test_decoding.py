"""Pillow's images in any mode and state, broken metadata, and HEIC."""

import io
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from densescore import DensescoreError, read_image
from tests.io.test_images import encoded

RGB = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
GRAY, ALPHA = RGB[..., 0], RGB[..., 1] | 128
IMAGE, LIGHT = Image.fromarray(RGB), Image.fromarray(GRAY)
WIDE = np.random.default_rng(1).integers(0, 65536, (9, 11), dtype=np.uint16)


def over_white(color: NDArray[Any]) -> NDArray[Any]:
    opaque = ALPHA[..., None] / 255
    return color.reshape(9, 11, -1) * opaque + 255 * (1 - opaque)


def with_alpha(image: Image.Image, mode: str = "") -> Image.Image:
    image = image.copy()
    image.putalpha(Image.fromarray(ALPHA))
    return image.convert(mode) if mode else image


def palette() -> Image.Image:
    image = Image.fromarray(GRAY // 64).convert("P")
    image.putpalette(RGB[0, :4].tobytes())
    return image


MODES: dict[str, tuple[Callable[[], Image.Image], NDArray[Any]]] = {
    "1": (lambda: LIGHT.point(lambda value: 255 * (value > 99)).convert("1"), (GRAY > 99) * 255),
    "L": (lambda: LIGHT, GRAY),
    "P": (palette, RGB[0, :4][GRAY // 64]),
    "RGB": (lambda: IMAGE, RGB),
    "RGBX": (lambda: IMAGE.convert("RGBX"), RGB),
    "HSV": (lambda: IMAGE.convert("HSV"), RGB),
    "YCbCr": (lambda: IMAGE.convert("YCbCr"), RGB),
    "CMYK": (lambda: IMAGE.convert("CMYK"), RGB),
    "LA": (lambda: with_alpha(LIGHT), over_white(GRAY)),
    "La": (lambda: with_alpha(LIGHT, "La"), over_white(GRAY)),
    "RGBA": (lambda: with_alpha(IMAGE), over_white(RGB)),
    "RGBa": (lambda: with_alpha(IMAGE, "RGBa"), over_white(RGB)),
    "PA": (lambda: with_alpha(palette()), over_white(RGB[0, :4][GRAY // 64])),
    "I": (lambda: Image.fromarray(WIDE.astype(np.int32)), WIDE / 257),
    "I;16": (lambda: Image.fromarray(WIDE), WIDE / 257),
    "I;16B": (lambda: Image.frombytes("I;16B", (11, 9), WIDE.astype(">u2").tobytes()), WIDE / 257),
    "F": (lambda: Image.fromarray((WIDE / 65535).astype(np.float32)), WIDE / 257),
}
TOLERANCE = {"HSV": 5, "YCbCr": 3, "La": 2, "RGBa": 2, "LA": 0.51, "RGBA": 0.51, "PA": 0.51}


@pytest.mark.parametrize("mode", MODES)
def test_pillow_modes(mode: str) -> None:
    make, expected = MODES[mode]
    pixels = read_image(make())
    values = pixels * np.float64(255 if pixels.dtype == np.float32 else 1)
    assert pixels.shape == (9, 11, 3)
    expected = np.broadcast_to(expected.reshape(9, 11, -1), (9, 11, 3))
    np.testing.assert_allclose(values, expected, atol=TOLERANCE.get(mode, 1e-4))


def test_cielab_of_pillow() -> None:
    lab = np.zeros((2, 3, 3), np.uint8)
    lab[0] = (137, 0, 0)  # L 53.6, neutral: 128 of 255 in sRGB
    lab[1] = (138, 81, 70)  # red under D50: L 54.3, a 80.8, b 69.9
    pixels = read_image(Image.frombytes("LAB", (3, 2), lab.tobytes()))
    np.testing.assert_allclose(pixels[0], 128, atol=2)
    np.testing.assert_allclose(pixels[1, 0], (255, 0, 0), atol=8)


def closed(image: Image.Image) -> Image.Image:
    image.close()
    return image


def opened(image: Image.Image, kind: str, cut: int | None = None, **options: Any) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, kind, **options)[:cut]))


BAD: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "truncated": (lambda: opened(IMAGE.resize((99, 99)), "JPEG", -400), "cannot be read: .*truncated"),
    "closed": (lambda: closed(IMAGE.copy()), "cannot be read: .*closed image"),
    "closed file": (lambda: closed(opened(IMAGE, "PNG")), "cannot be read: .*closed"),
    "empty": (lambda: Image.new("RGB", (0, 0)), r"size \(0, 0\): expected an image that is not empty"),
    "no width": (lambda: Image.new("L", (0, 4)), "not empty"),
    "no height": (lambda: Image.new("RGBA", (4, 0)), "not empty"),
    "32 bits": (lambda: Image.new("I", (4, 4), 70000), r"16-bit values, got 70000\.\.70000"),
    "negative": (lambda: Image.new("I", (4, 4), -1), "got -1"),
    "dim": (lambda: Image.new("I", (4, 4), 4095), "nearly black: 16 bits, of which the brightest is 4095"),
    "floats": (lambda: Image.new("F", (4, 4), 2), r"mode F and size \(4, 4\): floats must lie"),
    "NaN": (lambda: Image.new("F", (4, 4), float("nan")), "NaN"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pillow_images_are_refused(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(DensescoreError, match=message) as caught:
        read_image(make())
    assert str(caught.value).startswith("PIL image of mode")


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    body = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + b"\0\0\0\0"


@pytest.mark.parametrize(
    "entry", [(0x0100, 2, 3, b"ab"), (0x0103, 9, 1, b"\xff" * 4), (0x011A, 2, 3, b"ab"), (0x0132, 12, 1, b"\x10\0")]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
def test_orientation_needs_one_tag(entry: tuple[int, int, int, bytes], kind: str) -> None:
    """Pillow's own `exif_transpose` writes all tags back, and cannot write these."""
    tags = exif(*sorted([(0x0112, 3, 1, b"\6"), entry]))
    data = encoded(IMAGE, kind, exif=tags, **({"lossless": True} if kind == "WebP" else {}))
    with pytest.raises((TypeError, AttributeError, struct.error)):
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    upright = np.rot90(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), -1)
    np.testing.assert_array_equal(read_image(data), upright)
    np.testing.assert_array_equal(read_image(Image.open(io.BytesIO(data))), upright)


def test_broken_exif_is_ignored_with_a_warning() -> None:
    data = encoded(IMAGE, "WebP", exif=b"Exif\0\0" + b"no TIFF header", lossless=True)
    with pytest.warns(UserWarning, match="EXIF data are broken"):
        np.testing.assert_array_equal(read_image(data), RGB)


def test_a_tiff_that_pillow_opened_wrong_is_refused(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "negative.tif"
    tifffile.imwrite(path, WIDE, photometric="miniswhite")
    with pytest.raises(DensescoreError, match="does not decode this kind of TIFF right; pass its path"):
        read_image(Image.open(path))
    tifffile.imwrite(path, RGB, photometric="rgb")
    np.testing.assert_array_equal(read_image(Image.open(path)), RGB)


def test_a_bomb_is_refused_in_tiff_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, np.zeros((100, 100, 3), np.uint16), photometric="rgb", compression="zlib")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4999)
    with pytest.raises(DensescoreError, match="bomb.tif: .*MAX_IMAGE_PIXELS"):
        read_image(path)


def test_heic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    smooth = np.asarray(IMAGE.resize((110, 90), Image.Resampling.BICUBIC))
    path = tmp_path / "phone.HEIC"
    heif.from_pillow(Image.fromarray(smooth)).save(path, quality=100, chroma=444)
    for source in (path, path.read_bytes()):
        assert np.abs(read_image(source).astype(int) - smooth).max() <= 12
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DensescoreError, match=r"phone.HEIC: HEIC needs pillow-heif: pip install 'densescore\[heic\]'"):
        read_image(path)
