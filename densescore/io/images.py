"""Decodes images to RGB, and cuts them into the levels of a pyramid. Loads torch only for tensors."""

import io
import os
import struct
import sys
import warnings
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Any, TypeAlias, Union

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from densescore.errors import DensescoreError, DensescoreWarning, MissingPackageError
from densescore.geometry import Level, Pyramid
from densescore.io.color import usable_profile
from densescore.io.names import refuse_url
from densescore.io.samples import Pixels, Samples
from densescore.io.tiff import is_tiff, one_page, pillow_is_right, read_tiff, upright
from densescore.io.video import is_video, read_frame, split_frame_name

if TYPE_CHECKING:
    import torch

__all__ = ["ImageLike", "Pixels", "file_of", "from_file", "level_pixels", "read_image"]

ImageLike: TypeAlias = Union[  # `|` does not take a name in quotes
    str, os.PathLike[str], bytes, IO[bytes], Image.Image, NDArray[np.generic], "torch.Tensor"
]
"""Every public function's images; see `read_image`."""

_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # brands in the file's header


def read_image(source: ImageLike) -> Pixels:
    """Decode an image to RGB.

    Args:
        source: a path; encoded bytes or a binary file object; a PIL image; an array ``[H, W]`` or ``[H, W, 1|3|4]``;
            or a tensor ``[H, W]`` or ``[1|3|4, H, W]``. Arrays and tensors are uint8, or floats in [0, 1].
            Files are turned upright by their EXIF orientation and converted to sRGB by their color profile. The first
            frame of an animation is read; ``clip.mp4#t=12.5`` names a video's frame at 12.5 s. Transparent pixels are
            laid over white. 16-bit gray becomes float32. TIFFs that Pillow decodes wrong need the extra ``huge``,
            HEIC needs ``heic``, videos need ``video``; docs/files.md has a table.

    Returns:
        RGB ``[H, W, 3]``, uint8 or float32 in [0, 1], C-contiguous.

    Raises:
        DensescoreError: not a picture, several, truncated, empty, nearly black in 16 bits without a stated bit depth,
            of a kind that needs an extra, larger than Pillow's decompression-bomb limit (twice
            ``PIL.Image.MAX_IMAGE_PIXELS``, which may be raised), or an array of another shape, dtype or range. The
            message names the input.

    Example:
        >>> read_image(np.zeros((4, 6), np.uint8)).shape
        (4, 6, 3)
    """
    torch = sys.modules.get("torch")  # loaded wherever there is a tensor
    if torch is not None and isinstance(source, torch.Tensor):
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
        return _from_pil(source)
    return from_file(source)  # type: ignore[arg-type]  # no tensor


def file_of(source: ImageLike) -> str | None:
    """Absolute path of an image that is a file; else None."""
    return os.path.abspath(os.fspath(source)) if isinstance(source, str | os.PathLike) else None


def read_sized(source: ImageLike, size: tuple[int, int]) -> Pixels:
    """An image of a height and width that are known; another size raises `DensescoreError`."""
    pixels = read_image(source)
    if pixels.shape[:2] != size:
        name = f"{os.fspath(source)}" if isinstance(source, str | os.PathLike) else "image"
        raise DensescoreError(f"{name}: expected the {size} pixels that were scored, got {pixels.shape[:2]}")
    return pixels


def level_pixels(image: Pixels, pyramid: Pyramid, level: Level) -> Pixels:
    """Pixels ``[P + rows'·S, P + cols'·S, 3]`` of a level: resized, and padded bottom and right by reflection.

    Shrinking averages areas (no aliasing); enlarging is bilinear.
    """
    resized = image
    if (level.height, level.width) != image.shape[:2]:
        shrinks = level.height < image.shape[0] or level.width < image.shape[1]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        resized = cv2.resize(image, (level.width, level.height), interpolation=method)
    height, width = pyramid.padded_size(level)
    # OpenCV's reflect-101 repeats as often as needed, and repeats the pixel itself if there is only one.
    return cv2.copyMakeBorder(resized, 0, height - level.height, 0, width - level.width, cv2.BORDER_REFLECT_101)


def _from_array(array: NDArray[Any], name: str, expected: str) -> Pixels:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        hint = "; a batch is scored image by image" if array.ndim == 4 else ""
        raise DensescoreError(f"{name}: expected {expected}, not empty{hint}")
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise DensescoreError(f"{name}: dtype must be uint8 or floating point in [0, 1]")
    samples = Samples("gray" if channels == 1 else "RGB", alpha=3 if channels == 4 else None)
    return samples.to_rgb(array.reshape(*array.shape[:2], channels), name)


def from_file(source: str | os.PathLike[str] | bytes | IO[bytes]) -> Pixels:
    """RGB of an encoded image; see `read_image`."""
    with ExitStack() as stack:
        # Open it
        file: IO[bytes]
        if isinstance(source, str | os.PathLike):
            name = os.fspath(source)
            refuse_url(name)
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
        # Decode it
        try:
            values, samples = _decode(file, name)
        except Image.DecompressionBombError as error:
            message = f"{name}: {error}; raise PIL.Image.MAX_IMAGE_PIXELS if the file is trusted"
            raise DensescoreError(message) from error
        except DensescoreError:
            raise
        except Exception as error:  # decoders meet broken files with OSError, SyntaxError, struct.error, …
            raise DensescoreError(f"{name}: cannot be read as an image: {error}") from error
    return samples.to_rgb(values, name)


def _decode(file: IO[bytes], name: str) -> tuple[NDArray[Any], Samples]:
    """Upright numbers ``[H, W, C]`` of an encoded image, and their meaning."""
    if not (hasattr(file, "seekable") and file.seekable()):
        file = io.BytesIO(file.read())
    file.seek(0)
    start = file.read(64)
    file.seek(0)
    is_avif = start[4:8] == b"ftyp" and (b"avif" in start or b"avis" in start)  # a HEIC brand may stand first
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC and not is_avif:
        register_heif(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large or odd files that it decodes
            image = _load(file)
    except UnidentifiedImageError as error:
        hint = "; AVIF needs Pillow 11.3 or later" if is_avif else ""
        raise DensescoreError(f"{name}: not an image that Pillow can read, or an empty file{hint}") from error
    file.seek(0)
    if image is None:
        return read_tiff(file, name)
    is_rgb16 = start[:8] == b"\x89PNG\r\n\x1a\n" and start[24] == 16 and start[25] in (2, 6)  # bits; RGB or RGBA
    values, samples = _numbers_of_rgb16(file.read(), image, name) if is_rgb16 else _numbers(image, name)
    return upright(values, _orientation(image, name)), samples


def _load(file: IO[bytes]) -> Image.Image | None:
    """The decoded image; None for a TIFF that Pillow decodes wrong."""
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
        image = Image.open(io.BytesIO(_without_text(file.read())))
        image.load()
    return image


def _without_text(data: bytes) -> bytes:
    """A PNG without its text chunks, except those that may hold the orientation."""
    pieces, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunk = data[at : at + length + 12]  # length, type, content, checksum
        is_text = chunk[4:8] in (b"tEXt", b"zTXt", b"iTXt")
        if not is_text or chunk[8:].startswith((b"XML:com.adobe.xmp", b"Raw profile type exif")):
            pieces.append(chunk)
        at += len(chunk)
    return b"".join([*pieces, data[at:]])


def register_heif(name: str) -> None:
    """Let Pillow open HEIC; an error that names the extra if pillow-heif is not installed."""
    try:
        import pillow_heif
    except ImportError as error:
        raise MissingPackageError(f"{name}: HEIC needs pillow-heif: pip install 'densescore[heic]'") from error
    pillow_heif.register_heif_opener()


def _from_pil(image: Image.Image) -> Pixels:
    name = f"PIL image of mode {image.mode} and size {image.size}"
    try:
        hidden = image.info.get("transparency")
        misread = isinstance(hidden, tuple) and max(hidden) > 255  # a PNG of 16-bit RGB, read as 8 bits
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


def _numbers(image: Image.Image, name: str) -> tuple[NDArray[Any], Samples]:
    """Numbers ``[H, W, C]`` of a loaded Pillow image, and their meaning."""
    if 0 in image.size:
        raise DensescoreError(f"{name}: expected an image that is not empty")
    profile, hidden = image.info.get("icc_profile") or None, image.info.get("transparency")
    # Gray of floats, or of 16 bits, in which a PNG may hide one number
    if image.mode == "F" or image.mode.startswith("I"):
        values, profile = np.asarray(image)[..., None], usable_profile(profile, "gray", name)
        if image.mode == "F":
            return values, Samples(profile=profile)
        if values.min() < 0 or values.max() > 65535:
            raise DensescoreError(f"{name}: 32-bit gray must hold 16-bit values, got {values.min()}..{values.max()}")
        samples = Samples(white=65535, profile=profile, alpha=None if hidden is None else 1)
        samples.check_brightness(int(values.max()), name)
        if hidden is not None:
            values = np.concatenate([values, np.where(values == hidden, 0, 65535)], axis=2)
        return values, samples
    # Everything else as 8 bits of gray, RGB, CMYK or CIELab, with alpha
    divided = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(338) == (1,) and image.mode == "RGBA"
    premultiplied = divided or image.mode in ("La", "RGBa")
    if image.has_transparency_data and not premultiplied:  # Pillow's conversion of those rounds down
        image = image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA")
    elif image.mode not in ("L", "RGB", "CMYK", "LAB") and not premultiplied:
        image = image.convert("L" if image.mode == "1" else "RGB")
    space = {"L": "gray", "LA": "gray", "La": "gray", "CMYK": "CMYK", "LAB": "Lab"}.get(image.mode, "RGB")
    values = np.array(image).reshape(image.height, image.width, -1)
    alpha = values.shape[2] - 1 if image.mode in ("LA", "La", "RGBA", "RGBa") else None
    if divided:  # q = ⌊255 c / a⌋ by Pillow, so c = ⌈a q / 255⌉
        values[..., :3] = -(-values[..., :3].astype(np.int32) * values[..., 3:] // 255)
    profile = usable_profile(profile, space, name)
    return values, Samples(space, alpha=alpha, premultiplied=premultiplied, profile=profile)


def _numbers_of_rgb16(data: bytes, image: Image.Image, name: str) -> tuple[NDArray[Any], Samples]:
    """Numbers ``[H, W, 3 or 4]`` of a PNG of 16-bit RGB, of which Pillow keeps 8 bits, and their meaning."""
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16:
        raise DensescoreError(f"{name}: cannot be read as a PNG of 16-bit RGB")
    color, hidden = values[..., 2::-1], image.info.get("transparency")
    profile = usable_profile(image.info.get("icc_profile"), "RGB", name)
    alpha = image.mode == "RGBA" or hidden is not None
    samples = Samples("RGB", white=65535, alpha=3 if alpha else None, profile=profile)
    samples.check_brightness(int(color.max()), name)
    if hidden is not None:  # the transparent color
        shown = np.where((color == hidden).all(axis=2, keepdims=True), 0, 65535)
        return np.concatenate([color, shown], axis=2), samples
    return np.concatenate([color, values[..., 3:]], axis=2) if alpha else color, samples


def _orientation(image: Image.Image, name: str) -> int:
    """EXIF orientation, 1 to 8. Only this tag is read, as others may be broken; Pillow turns TIFFs itself."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception as error:  # any error of a broken metadata block
        warnings.warn(
            f"{name}: its EXIF data are broken, so it is read as it is stored: {error}", DensescoreWarning, stacklevel=2
        )
        return 1
    return int(orientation) if orientation in range(1, 9) else 1
