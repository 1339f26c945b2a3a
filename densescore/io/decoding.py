"""Decode picture files and Pillow's images to numbers, and say what the numbers mean."""

import io
import os
import warnings
from contextlib import ExitStack
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from densescore.errors import DensescoreError, DensescoreWarning, MissingPackageError
from densescore.io.color import usable_profile
from densescore.io.png import is_rgb16, rgb16, without_text
from densescore.io.samples import Pixels, Samples
from densescore.io.tiff import is_tiff, one_page, pillow_is_right, read_tiff
from densescore.io.video import is_video, read_frame, split_frame_name
from densescore.io.windows import upright

_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Brands of HEIC files."""


def from_file(source: str | os.PathLike[str] | bytes | IO[bytes]) -> Pixels:
    """RGB of an encoded image; see `densescore.read_image`."""
    with ExitStack() as stack:
        file: IO[bytes]
        if isinstance(source, str | os.PathLike):
            name = os.fspath(source)
            path, seconds = split_frame_name(name)
            if seconds is not None or is_video(path):
                return read_frame(path, seconds)
            try:
                file = stack.enter_context(open(source, "rb"))
            except (OSError, ValueError) as error:
                raise DensescoreError(f"{name}: cannot be read as an image: {error}") from error
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
            values, samples = _decode(file, name)
        except Image.DecompressionBombError as error:
            message = f"{name}: {error}; raise PIL.Image.MAX_IMAGE_PIXELS if the file is trusted"
            raise DensescoreError(message) from error
        except DensescoreError:
            raise
        except Exception as error:  # a decoder meets a broken file in many ways: OSError, SyntaxError, struct.error, …
            raise DensescoreError(f"{name}: cannot be read as an image: {error}") from error
    return samples.to_rgb(values, name)


def from_pil(image: Image.Image) -> Pixels:
    """RGB of a Pillow image; see `densescore.read_image`."""
    name = f"PIL image of mode {image.mode} and size {image.size}"
    try:
        hidden = image.info.get("transparency")
        misread = isinstance(hidden, tuple) and max(hidden) > 255  # of a PNG of 16-bit RGB, read as 8 bits
        if misread or (image.format == "TIFF" and hasattr(image, "tag_v2") and not pillow_is_right(image)):
            raise DensescoreError(f"{name}: Pillow does not decode this kind of {image.format} right; pass its path")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
        values, samples = _numbers(image, name)
        values = upright(values, _orientation(image, name))
    except DensescoreError:
        raise
    except Exception as error:  # a file opened lazily is broken, or closed by now
        raise DensescoreError(f"{name}: cannot be read: {error}") from error
    return samples.to_rgb(values, name)


def _decode(file: IO[bytes], name: str) -> tuple[NDArray[Any], Samples]:
    if not (hasattr(file, "seekable") and file.seekable()):
        file = io.BytesIO(file.read())
    file.seek(0)
    start = file.read(64)
    file.seek(0)
    is_avif = start[4:8] == b"ftyp" and (b"avif" in start or b"avis" in start)  # among the brands that follow, too
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC and not is_avif:
        _register_heif(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large or odd files that it still decodes
            image = _load(file)
    except UnidentifiedImageError as error:
        hint = "; AVIF needs Pillow 11.3 or later" if is_avif else ""
        raise DensescoreError(f"{name}: not an image that Pillow can read, or an empty file{hint}") from error
    file.seek(0)
    if image is None:
        return read_tiff(file, name)
    values, samples = rgb16(file.read(), image, name) if is_rgb16(start) else _numbers(image, name)
    return upright(values, _orientation(image, name)), samples


def _load(file: IO[bytes]) -> Image.Image | None:
    """The image, decoded; None for a TIFF that is not Pillow's to read."""
    try:
        image = Image.open(file)
        if image.format == "TIFF" and not (pillow_is_right(image) and one_page(image)):
            return None
        image.load()
    except UnidentifiedImageError:
        file.seek(0)
        if is_tiff(file.read(4)):
            return None
        raise
    except ValueError as error:
        if "MAX_TEXT" not in str(error):
            raise
        file.seek(0)  # Pillow refuses a PNG for the length of its text
        image = Image.open(io.BytesIO(without_text(file.read())))
        image.load()
    return image


def _register_heif(name: str) -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise MissingPackageError(f"{name}: HEIC needs pillow-heif: pip install 'densescore[heic]'") from error
    pillow_heif.register_heif_opener()


def _numbers(image: Image.Image, name: str) -> tuple[NDArray[Any], Samples]:
    """The numbers ``[H, W, C]`` of a loaded Pillow image, and what they mean."""
    if 0 in image.size:
        raise DensescoreError(f"{name}: expected an image that is not empty")
    profile, transparent = image.info.get("icc_profile") or None, image.info.get("transparency")
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)[..., None]
        samples = Samples(profile=usable_profile(profile, "gray", name))
        if image.mode != "F":
            if values.min() < 0 or values.max() > 65535:
                raise DensescoreError(
                    f"{name}: 32-bit gray must hold 16-bit values, got {values.min()}..{values.max()}"
                )
            samples = Samples(white=65535, profile=samples.profile, alpha=None if transparent is None else 1)
            samples.check_brightness(int(values.max()), name)
            if transparent is not None:  # of a PNG: the number that is not shown
                values = np.concatenate([values, np.where(values == transparent, 0, 65535)], axis=2)
        return values, samples
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA")
    elif image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    space = {"L": "gray", "LA": "gray", "CMYK": "CMYK", "LAB": "Lab"}.get(image.mode, "RGB")
    values = np.asarray(image).reshape(image.height, image.width, -1)
    alpha = values.shape[2] - 1 if image.mode in ("LA", "RGBA") else None
    return np.array(values), Samples(space, alpha=alpha, profile=usable_profile(profile, space, name))


def _orientation(image: Image.Image, name: str) -> int:
    """The EXIF orientation, 1 to 8. Only this tag is read: the others may be broken. Pillow turns TIFFs itself."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception as error:  # whatever a broken block of metadata leads to
        warnings.warn(
            f"{name}: its EXIF data are broken, so it is read as it is stored: {error}", DensescoreWarning, stacklevel=2
        )
        return 1
    return int(orientation) if orientation in range(1, 9) else 1
