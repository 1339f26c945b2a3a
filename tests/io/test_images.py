"""Everything that is a picture is decoded; everything that is not says so."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from densescore import DensescoreError, Pyramid, read_image
from densescore.io.images import level_pixels


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


def test_exif_orientation_is_applied(cat: NDArray[np.uint8]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90° clockwise to see it upright
    pixels = read_image(encoded(Image.fromarray(cat), exif=exif))
    np.testing.assert_array_equal(pixels, np.rot90(cat, k=-1))


def test_modes(cat: NDArray[np.uint8]) -> None:
    image = Image.fromarray(cat)
    gray = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(read_image(encoded(image.convert("L"))), np.stack([gray] * 3, axis=2))
    np.testing.assert_array_equal(read_image(gray), np.stack([gray] * 3, axis=2))
    np.testing.assert_array_equal(read_image(gray[..., None]), np.stack([gray] * 3, axis=2))
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_array_equal(read_image(encoded(palette)), np.asarray(palette.convert("RGB")))
    cmyk = read_image(encoded(image.convert("CMYK"), "TIFF"))
    assert np.abs(cmyk.astype(int) - cat).max() <= 2
    bilevel = read_image(encoded(image.convert("1")))
    assert set(np.unique(bilevel)) == {0, 255}


def test_sixteen_bit_grey_keeps_its_precision() -> None:
    ramp = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    pixels = read_image(encoded(Image.fromarray(ramp)))
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels[..., 1], ramp / 65535, rtol=1e-6)


def test_transparency_is_laid_over_white() -> None:
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[0] = (200, 0, 0, 255)
    rgba[1] = (200, 0, 0, 51)  # a fifth opaque
    expected = [[[200, 0, 0]] * 3, [[244, 204, 204]] * 3]
    for source in (Image.fromarray(rgba), encoded(Image.fromarray(rgba)), rgba):
        np.testing.assert_allclose(read_image(source), expected, atol=1)
    np.testing.assert_allclose(read_image(rgba / 255) * 255, expected, atol=1)
    palette = Image.new("P", (3, 2), 0)
    palette.putpalette([10, 20, 30])
    assert (read_image(encoded(palette, transparency=0)) == 255).all()


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (5, 4), color) for color in ("red", "blue")]
    pixels = read_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert (pixels == (255, 0, 0)).all()


def bad_inputs() -> list[tuple[str, Any, str]]:
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)), "JPEG")
    return [
        ("truncated", whole[: len(whole) // 2], r"image of \d+ bytes: cannot be read as an image: .*truncated"),
        ("empty", b"", "image of 0 bytes: not an image"),
        ("text", b"hello, world", "image of 12 bytes: not an image"),
        ("missing", "/nowhere/photo.jpg", "/nowhere/photo.jpg: cannot be read.*No such file"),
        ("folder", "/", "/: cannot be read.*directory"),
        ("nan", np.full((4, 4), np.nan, np.float32), r"shape \(4, 4\) and dtype float32: holds NaN"),
        ("range", np.full((4, 4), 7.0), r"floats must lie in \[0, 1\], got 7..7"),
        ("channels", np.zeros((4, 4, 5), np.uint8), r"array of shape \(4, 4, 5\).*C = 1, 3 or 4"),
        ("hwc tensor", torch.zeros(5, 4, 3), r"tensor of shape \(5, 4, 3\).*\[C, H, W\]"),
        ("batch", torch.zeros(2, 3, 4, 4), "image by image"),
        ("no pixels", np.zeros((0, 4, 3), np.uint8), "not empty"),
        ("dtype", np.zeros((4, 4, 3), np.int32), "int32: dtype must be uint8"),
        ("complex", torch.zeros(4, 4, dtype=torch.complex64), "dtype must be uint8"),
        ("object", object(), "a path, bytes, a binary file.* got object"),
        ("none", None, "got NoneType"),
    ]


@pytest.mark.parametrize(("source", "message"), [case[1:] for case in bad_inputs()], ids=[c[0] for c in bad_inputs()])
def test_bad_input_is_named(source: Any, message: str) -> None:
    with pytest.raises(DensescoreError, match=message):
        read_image(source)


def test_a_decompression_bomb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(encoded(Image.new("L", (100, 100))))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4999)
    with pytest.raises(DensescoreError, match=r"bomb.png: .*10000 pixels.*MAX_IMAGE_PIXELS"):
        read_image(path)


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
    np.testing.assert_array_equal(
        padded,
        np.pad(
            inside, [(0, now - before) for now, before in zip(padded.shape, inside.shape, strict=True)], mode="reflect"
        ),
    )


def test_resizing_keeps_a_ramp_in_place() -> None:
    """A coordinate ramp survives at both ends: no half-pixel shift, up or down."""
    width = 400
    ramp = np.broadcast_to(((np.arange(width) + 0.5) / width).astype(np.float32)[None, :, None], (300, width, 3))
    pyramid = Pyramid.of(300, width, scales=(0.5, 1, 3))
    for level in pyramid.levels:
        row = level_pixels(np.ascontiguousarray(ramp), pyramid, level)[0, : level.width, 0]
        expected = (np.arange(level.width) + 0.5) / level.width
        inner = slice(2, -2)  # bilinear weights are clamped at the border
        np.testing.assert_allclose(row[inner], expected[inner], atol=2e-3)


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((900, 900, 3), np.uint8)
    stripes[:, ::2] = 255
    pyramid = Pyramid.of(900, 900, scales=(1,))
    shrunk = level_pixels(stripes, pyramid, pyramid.levels[0])
    assert np.abs(shrunk.astype(float) - 127.5).max() < 40  # picking pixels would leave 0s and 255s
