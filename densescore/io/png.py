"""PNG files without their text, which Pillow bounds in length, and refuses the picture for."""

import struct

_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_ORIENTATION = (b"XML:com.adobe.xmp", b"Raw profile type exif")
"""Keywords of the texts that may say how the picture is turned."""


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
