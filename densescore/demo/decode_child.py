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
from densescore.io.images import Pixels, read_image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded, by Pillow's names. All else is refused unread."""

JOB = struct.Struct(">QQ")
"""Header of a job: bytes of the image, most pixels."""

_MEMORY = 500_000_000  # bytes beside those of the pixels
_PIXEL_BYTES = 24  # a float32 picture, and the copy from which it is made


def main() -> None:
    """Decode until there are no more jobs."""
    jobs = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get into an answer
    Image.init()
    Image.ID[:] = FORMATS  # no other decoder is tried
    _write(answers, {"ready": True})
    while header := jobs.read(JOB.size):
        length, max_pixels = JOB.unpack(header)
        data = jobs.read(length)
        _limit_memory(_MEMORY + _PIXEL_BYTES * max_pixels)
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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # reads the header only
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise _TooManyPixelsError(f"the image has far more than {max_pixels:,} pixels") from error
    except Exception as error:  # a broken header fails in many ways
        raise DensescoreError(
            f"image of {len(data)} bytes: not an image of a kind that is taken here ({', '.join(FORMATS)})"
        ) from error
    if width * height > max_pixels:
        raise _TooManyPixelsError(
            f"the image has {width}×{height} = {width * height:,} pixels; at most {max_pixels:,} are taken"
        )
    return read_image(data)


def _write(answers: BinaryIO, head: dict[str, object], pixels: Pixels | None = None) -> None:
    answers.write(json.dumps(head).encode() + b"\n")
    if pixels is not None:
        answers.write(pixels.data)
    answers.flush()


def _limit_memory(more: int) -> None:
    """Let this process grow by so many bytes, and write no files; where the system knows such limits."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return
    import resource

    size = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + more, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


if __name__ == "__main__":
    main()
