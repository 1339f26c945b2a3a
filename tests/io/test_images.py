"""Every kind of picture is decoded; everything else, and everything broken, is refused by name."""

import io
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from densescore import DensescoreError, Pyramid, read_image
from densescore.io import color
from densescore.io.images import level_pixels

RGB = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
GRAY, ALPHA = RGB[..., 0], RGB[..., 1] | 128
IMAGE, LIGHT = Image.fromarray(RGB), Image.fromarray(GRAY)
WIDE = np.random.default_rng(1).integers(0, 65536, (9, 11), dtype=np.uint16)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_every_kind_of_source_gives_the_same_pixels(tmp_path: Path, cat: NDArray[np.uint8]) -> None:
    image = Image.fromarray(cat)
    path = tmp_path / "cat.png"
    path.write_bytes(encoded(image))
    tensor = torch.from_numpy(cat).permute(2, 0, 1)
    with path.open("rb") as file:
        for source in (path, str(path), path.read_bytes(), file, image, cat, tensor):
            pixels = read_image(source)
            assert pixels.dtype == np.uint8
            np.testing.assert_array_equal(pixels, cat)
    for floats in (cat / 255, tensor / 255, tensor.double() / 255):
        pixels = read_image(floats)
        assert pixels.dtype == np.float32
        np.testing.assert_allclose(pixels, cat / np.float32(255), rtol=1e-6)
    for gray in (GRAY, GRAY[..., None], torch.from_numpy(GRAY)[None]):
        np.testing.assert_array_equal(read_image(gray), np.stack([GRAY] * 3, axis=2))


def test_decoding_loads_no_torch() -> None:
    """The demo's decoder starts a process of it for strangers' images."""
    code = "import sys; import densescore.io.images; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_transparency_is_laid_over_white() -> None:
    rgba = np.array([[(200, 0, 0, 255)] * 3, [(200, 0, 0, 51)] * 3], np.uint8)  # opaque, a fifth opaque
    expected = [[[200, 0, 0]] * 3, [[244, 204, 204]] * 3]
    for source in (Image.fromarray(rgba), encoded(Image.fromarray(rgba)), rgba):
        np.testing.assert_allclose(read_image(source), expected, atol=1)
    np.testing.assert_allclose(read_image(rgba / 255) * 255, expected, atol=1)


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (5, 4), color) for color in ("red", "blue")]
    pixels = read_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert (pixels == (255, 0, 0)).all()


# --- Pillow's modes ---


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


# mode → image, pixels, tolerance
MODES: dict[str, tuple[Callable[[], Image.Image], NDArray[Any], float]] = {
    "1": (lambda: LIGHT.point(lambda value: 255 * (value > 99)).convert("1"), (GRAY > 99) * 255, 0),
    "L": (lambda: LIGHT, GRAY, 0),
    "P": (palette, RGB[0, :4][GRAY // 64], 0),
    "RGB": (lambda: IMAGE, RGB, 0),
    "RGBX": (lambda: IMAGE.convert("RGBX"), RGB, 0),
    "HSV": (lambda: IMAGE.convert("HSV"), RGB, 5),
    "YCbCr": (lambda: IMAGE.convert("YCbCr"), RGB, 3),
    "CMYK": (lambda: IMAGE.convert("CMYK"), RGB, 0),
    "LA": (lambda: with_alpha(LIGHT), over_white(GRAY), 0.51),
    "La": (lambda: with_alpha(LIGHT, "La"), over_white(GRAY), 2),
    "RGBA": (lambda: with_alpha(IMAGE), over_white(RGB), 0.51),
    "RGBa": (lambda: with_alpha(IMAGE, "RGBa"), over_white(RGB), 2),
    "PA": (lambda: with_alpha(palette()), over_white(RGB[0, :4][GRAY // 64]), 0.51),
    "I": (lambda: Image.fromarray(WIDE.astype(np.int32)), WIDE / 257, 1e-4),
    "I;16": (lambda: Image.fromarray(WIDE), WIDE / 257, 1e-4),
    "I;16B": (lambda: Image.frombytes("I;16B", (11, 9), WIDE.astype(">u2").tobytes()), WIDE / 257, 1e-4),
    "F": (lambda: Image.fromarray((WIDE / 65535).astype(np.float32)), WIDE / 257, 1e-4),
}


@pytest.mark.parametrize("mode", MODES)
def test_pillow_modes(mode: str) -> None:
    make, expected, tolerance = MODES[mode]
    pixels = read_image(make())
    values = pixels * np.float64(255 if pixels.dtype == np.float32 else 1)
    assert pixels.shape == (9, 11, 3)
    expected = np.broadcast_to(expected.reshape(9, 11, -1), (9, 11, 3))
    np.testing.assert_allclose(values, expected, rtol=1e-7, atol=tolerance)


def test_cielab_of_pillow() -> None:
    lab = np.zeros((2, 3, 3), np.uint8)
    lab[0] = (137, 0, 0)  # L 53.6, neutral: 128 of 255 in sRGB
    lab[1] = (138, 81, 70)  # red under D50: L 54.3, a 80.8, b 69.9
    pixels = read_image(Image.frombytes("LAB", (3, 2), lab.tobytes()))
    np.testing.assert_allclose(pixels[0], 128, atol=2)
    np.testing.assert_allclose(pixels[1, 0], (255, 0, 0), atol=8)


# --- Colors stored multiplied by their alpha: exact, however they are read ---


def stored() -> NDArray[np.uint8]:
    """Each alpha with each color up to it, and some beyond: ``[256, 256, 4]``."""
    color, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    return np.stack([np.minimum(color, alpha), np.minimum(color[:, ::-1], alpha), color, alpha], 2)


def expected(values: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Over white, by the definition: straight colors rounded to 8 bits, then blended."""
    color, alpha = values[..., :3].astype(float), values[..., 3:].astype(float)
    straight = np.rint(np.minimum(255 * color / np.maximum(alpha, 1e-9), 255))
    return np.floor((straight * alpha + 255 * (255 - alpha) + 127) / 255)


def by_tiff(values: NDArray[np.uint8], folder: Path) -> object:
    tifffile = pytest.importorskip("tifffile", reason="needs the extra: pip install 'densescore[huge]'")
    tifffile.imwrite(folder / "a.tif", values, photometric="rgb", extrasamples=["assocalpha"])
    return folder / "a.tif"


def by_opened_tiff(values: NDArray[np.uint8], folder: Path) -> object:
    return Image.open(by_tiff(values, folder))  # type: ignore[arg-type]


def by_pillow(values: NDArray[np.uint8], folder: Path) -> object:
    return Image.frombytes("RGBa", values.shape[1::-1], values.tobytes())


@pytest.mark.parametrize("make", [by_tiff, by_opened_tiff, by_pillow])
def test_associated_alpha(make: Callable[[NDArray[np.uint8], Path], object], tmp_path: Path) -> None:
    values = stored()
    pixels = read_image(make(values, tmp_path))  # type: ignore[arg-type]
    np.testing.assert_array_equal(pixels, expected(values))


def test_associated_alpha_of_gray() -> None:
    values = stored()[..., [0, 0, 0, 3]]
    gray = Image.frombytes("La", values.shape[1::-1], values[..., 2:].tobytes())
    np.testing.assert_array_equal(read_image(gray), expected(values))


# --- Refusals ---


def closed(image: Image.Image) -> Image.Image:
    image.close()
    return image


def opened(image: Image.Image, kind: str, cut: int | None = None, **options: Any) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, kind, **options)[:cut]))


PIL = "^PIL image of mode .*"
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "truncated": (lambda: encoded(IMAGE.resize((99, 99)), "JPEG")[:-400], r"image of \d+ bytes: cannot.*truncated"),
    "empty": (lambda: b"", "image of 0 bytes: not an image"),
    "text": (lambda: b"hello, world", "image of 12 bytes: not an image"),
    "missing": (lambda: "/nowhere/photo.jpg", "/nowhere/photo.jpg: cannot be read.*No such file"),
    "folder": (lambda: "/", "/: cannot be read.*directory"),
    "NaN": (lambda: np.full((4, 4), np.nan, np.float32), r"shape \(4, 4\) and dtype float32: holds NaN"),
    "range": (lambda: np.full((4, 4), 7.0), r"floats must lie in \[0, 1\], got 7.0..7.0"),
    "channels": (lambda: np.zeros((4, 4, 5), np.uint8), r"array of shape \(4, 4, 5\).*C = 1, 3 or 4"),
    "HWC tensor": (lambda: torch.zeros(5, 4, 3), r"tensor of shape \(5, 4, 3\).*\[C, H, W\]"),
    "batch": (lambda: torch.zeros(2, 3, 4, 4), "image by image"),
    "no pixels": (lambda: np.zeros((0, 4, 3), np.uint8), "not empty"),
    "dtype": (lambda: np.zeros((4, 4, 3), np.int32), "int32: dtype must be uint8"),
    "complex": (lambda: torch.zeros(4, 4, dtype=torch.complex64), "dtype must be uint8"),
    "object": (object, "a path, bytes, a binary file.* got object"),
    "none": (lambda: None, "got NoneType"),
    "PIL truncated": (lambda: opened(IMAGE.resize((99, 99)), "JPEG", -400), PIL + "cannot be read: .*truncated"),
    "PIL closed": (lambda: closed(IMAGE.copy()), PIL + "cannot be read: .*closed image"),
    "PIL closed file": (lambda: closed(opened(IMAGE, "PNG")), PIL + "cannot be read: .*closed"),
    "PIL empty": (lambda: Image.new("RGB", (0, 0)), PIL + r"size \(0, 0\): expected an image that is not empty"),
    "PIL no width": (lambda: Image.new("L", (0, 4)), PIL + "not empty"),
    "PIL 32 bits": (lambda: Image.new("I", (4, 4), 70000), PIL + r"16-bit values, got 70000\.\.70000"),
    "PIL negative": (lambda: Image.new("I", (4, 4), -1), PIL + "got -1"),
    "PIL dim": (lambda: Image.new("I", (4, 4), 4095), PIL + "nearly black: 16 bits, of which the brightest is 4095"),
    "PIL floats": (lambda: Image.new("F", (4, 4), 2), PIL + r"size \(4, 4\): floats must lie"),
    "PIL NaN": (lambda: Image.new("F", (4, 4), float("nan")), PIL + "NaN"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(DensescoreError, match=message):
        read_image(make())


def test_a_decompression_bomb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    Image.new("L", (100, 100)).save(tmp_path / "bomb.png")
    tifffile.imwrite(tmp_path / "bomb.tif", np.zeros((100, 100, 3), np.uint16), photometric="rgb", compression="zlib")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4999)
    for name in ("bomb.png", "bomb.tif"):  # the second is decoded by tifffile
        with pytest.raises(DensescoreError, match=rf"{name}: .*MAX_IMAGE_PIXELS"):
            read_image(tmp_path / name)


def test_a_tiff_that_pillow_opened_wrong_is_refused(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "negative.tif"
    tifffile.imwrite(path, WIDE, photometric="miniswhite")
    with pytest.raises(DensescoreError, match="does not decode this kind of TIFF right; pass its path"):
        read_image(Image.open(path))
    tifffile.imwrite(path, RGB, photometric="rgb")
    np.testing.assert_array_equal(read_image(Image.open(path)), RGB)


# --- Metadata ---


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


@pytest.mark.parametrize(
    ("mode", "profile", "reason"),
    [
        ("RGB", b"no profile at all", "cannot open profile"),
        ("RGB", SRGB[:300], "cannot"),
        ("RGB", LAB, "it is for Lab, the image is RGB"),
        ("CMYK", SRGB, "it is for RGB, the image is CMYK"),
        ("L", LAB, "it is for Lab, the image is gray"),
    ],
)
@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_an_unusable_profile_is_ignored_with_a_warning(mode: str, profile: bytes, reason: str, kind: str) -> None:
    image = IMAGE.convert(mode)
    with pytest.warns(UserWarning, match=rf"image of \d+ bytes: its color profile is ignored, .*{reason}"):
        pixels = read_image(encoded(image, kind, icc_profile=profile))
    np.testing.assert_array_equal(pixels, read_image(encoded(image, kind)))


def test_srgb_is_not_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    read_image(encoded(Image.fromarray(RGB[:1]), icc_profile=SRGB))  # fills the cache of profiles
    monkeypatch.setattr(color, "_apply", None)
    np.testing.assert_array_equal(read_image(encoded(IMAGE, icc_profile=SRGB)), RGB)


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


# --- Levels ---


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.2, 4), st.booleans())
def test_levels_are_padded_by_reflection(height: int, width: int, scale: float, floats: bool) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels = (image / np.float32(255)).astype(np.float32) if floats else image
    pyramid = Pyramid.of(height, width, scales=(scale,), patch=20, stride=4)
    (level,) = pyramid.levels
    padded = level_pixels(pixels, pyramid, level)
    assert padded.shape == (*pyramid.padded_size(level), 3)
    assert padded.dtype == pixels.dtype
    inside = padded[: level.height, : level.width]
    margins = [(0, now - before) for now, before in zip(padded.shape, inside.shape, strict=True)]
    np.testing.assert_array_equal(padded, np.pad(inside, margins, mode="reflect"))


def test_resizing_neither_shifts_nor_aliases() -> None:
    """A coordinate ramp survives at both ends: no half-pixel shift, up or down."""
    width = 400
    ramp = np.broadcast_to(((np.arange(width) + 0.5) / width).astype(np.float32)[None, :, None], (300, width, 3))
    pyramid = Pyramid.of(300, width, scales=(0.5, 1, 3))
    for level in pyramid.levels:
        row = level_pixels(np.ascontiguousarray(ramp), pyramid, level)[0, : level.width, 0]
        expected = (np.arange(level.width) + 0.5) / level.width
        np.testing.assert_allclose(row[2:-2], expected[2:-2], atol=2e-3)  # bilinear weights are clamped at the border
    stripes = np.zeros((900, 900, 3), np.uint8)
    stripes[:, ::2] = 255
    pyramid = Pyramid.of(900, 900, scales=(1,))
    shrunk = level_pixels(stripes, pyramid, pyramid.levels[0])
    assert np.abs(shrunk.astype(float) - 127.5).max() < 40  # picking pixels would leave 0s and 255s
