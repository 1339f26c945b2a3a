"""What Pillow does not do for PNG: 16-bit RGB, and pictures with longer texts than it allows."""

import struct
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from densescore.errors import DensescoreError
from densescore.io.color import usable_profile
from densescore.io.samples import Samples

_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_ORIENTATION = (b"XML:com.adobe.xmp", b"Raw profile type exif")
"""Keywords of the texts that may say how the picture is turned."""

_RGB, _RGBA = 2, 6


def without_text(data: bytes) -> bytes:
    """A PNG without its text chunks, except those that may say how it is turned."""
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunk = data[at : at + length + 12]  # length, type, content, checksum
        if chunk[4:8] not in _TEXTS or chunk[8:].startswith(_ORIENTATION):
            kept.append(chunk)
        at += len(chunk)
    return b"".join([*kept, data[at:]])


def is_rgb16(start: bytes) -> bool:
    """Whether a file that begins so is a PNG of 16-bit RGB, of which Pillow keeps 8 bits."""
    return start[:8] == b"\x89PNG\r\n\x1a\n" and start[24:25] == b"\x10" and start[25] in (_RGB, _RGBA)


def rgb16(data: bytes, image: Image.Image, name: str) -> tuple[NDArray[Any], Samples]:
    """The numbers ``[H, W, 3 or 4]`` of a PNG of 16-bit RGB, and what they mean.

    Args:
        data: the file.
        image: as Pillow decoded it.
        name: of the file.
    """
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16:
        raise DensescoreError(f"{name}: cannot be read as a PNG of 16-bit RGB")
    color, hidden = values[..., 2::-1], image.info.get("transparency")
    profile = usable_profile(image.info.get("icc_profile"), "RGB", name)
    alpha = image.mode == "RGBA" or hidden is not None
    samples = Samples("RGB", white=65535, alpha=3 if alpha else None, profile=profile)
    samples.check_brightness(int(color.max()), name)
    if hidden is not None:  # the color that is not shown
        shown = np.where((color == hidden).all(axis=2, keepdims=True), 0, 65535)
        return np.concatenate([color, shown], axis=2), samples
    return np.concatenate([color, values[..., 3:]], axis=2) if alpha else color, samples
