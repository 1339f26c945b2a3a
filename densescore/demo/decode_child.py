"""The process that decodes strangers' images: ``python -m densescore.demo.decode_child``.

It reads jobs from its standard input until that ends: a header, then the encoded image. It answers each on its
standard output with a line of JSON, and the pixels where there are some.
"""

import io
import json
import os
import struct
import sys
import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from densescore.errors import DensescoreError
from densescore.io.decoding import from_file  # read_image's own module loads torch, which takes seconds
from densescore.io.samples import Pixels

FORMATS = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "WEBP": (b"RIFF",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
"""What is decoded, by Pillow's names, and how such files begin. All else is refused unread."""

JOB = struct.Struct(">QQ")
"""Header of a job: bytes of the image, most pixels."""

_MEMORY = 500_000_000  # bytes beside those of the pixels
_PIXEL_BYTES = 64  # a float32 picture takes about 45 while it is made


def main() -> None:
    """Decode until there are no more jobs."""
    jobs = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get into an answer
    Image.init()
    Image.ID[:] = list(FORMATS)  # no other decoder is tried
    size = _memory()
    _write(answers, {"ready": True})
    while header := jobs.read(JOB.size):
        length, max_pixels = JOB.unpack(header)
        data = jobs.read(length)
        if size:
            _limit_memory(size + _MEMORY + _PIXEL_BYTES * max_pixels)
        try:
            pixels = _decode(data, max_pixels)
        except _TooManyPixelsError as error:
            _write(answers, {"too_large": str(error)})
        except MemoryError:
            _write(answers, {"error": f"image of {length} bytes: takes too much memory to decode"})
        except Exception as error:
            _write(answers, {"error": str(error)})
        else:
            _write(answers, {"shape": pixels.shape, "dtype": str(pixels.dtype)}, pixels)


class _TooManyPixelsError(Exception):
    pass


def _decode(data: bytes, max_pixels: int) -> Pixels:
    if not any(data.startswith(start) for start in FORMATS.values()):
        raise DensescoreError(
            f"image of {len(data)} bytes: not an image of a kind that is taken here ({', '.join(FORMATS)})"
        )
    Image.MAX_IMAGE_PIXELS = None  # for a message of our own
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:  # reads the header only
                width, height = image.size
    except Exception:  # what Pillow cannot open, `read_image` may, or it says why not
        width, height = 1, 1
    if width * height > max_pixels:
        raise _TooManyPixelsError(
            f"the image has {width}×{height} = {width * height:,} pixels; at most {max_pixels:,} are taken"
        )
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2  # readers refuse more than twice as many
    return from_file(data)


def _write(answers: BinaryIO, head: dict[str, object], pixels: Pixels | None = None) -> None:
    answers.write(json.dumps(head).encode() + b"\n")
    if pixels is not None:
        answers.write(pixels.data)
    answers.flush()


def _memory() -> int:
    """Bytes of this process's address space, or 0 on other systems than Linux."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def _limit_memory(most: int) -> None:
    """Let this process have so much memory, and write no files."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


if __name__ == "__main__":
    main()
