"""Profiles that cannot be applied, and what a profile costs."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from densescore import read_image
from densescore.io import color
from tests.io.test_images import encoded

RGB = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


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
def test_a_profile_that_cannot_be_applied_is_ignored_with_a_warning(
    mode: str, profile: bytes, reason: str, kind: str
) -> None:
    image = Image.fromarray(RGB).convert(mode)
    with pytest.warns(UserWarning, match=rf"image of \d+ bytes: its color profile is ignored, .*{reason}"):
        pixels = read_image(encoded(image, kind, icc_profile=profile))
    np.testing.assert_array_equal(pixels, read_image(encoded(image, kind)))


def test_srgb_is_not_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    """By whatever name; also as the profile of a gray picture."""
    read_image(encoded(Image.fromarray(RGB[:1]), icc_profile=SRGB))
    monkeypatch.setattr(color, "_apply", None)
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(RGB), icc_profile=SRGB)), RGB)
