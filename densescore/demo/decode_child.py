"""The process that decodes untrusted images: jobs on standard input, a header and an encoded image each.

Each is answered on standard output with a line of JSON, followed by the pixels if decoding succeeded.
"""

import io
import os
import re
import signal
import struct
import sys
import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from densescore.errors import DensescoreError
from densescore.io.images import from_file  # read_image's own module loads torch, which takes seconds
from densescore.io.names import to_json
from densescore.io.samples import Pixels

FORMATS = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "WEBP": (b"RIFF",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
"""Pillow's names of the supported formats, and their magic bytes. All others are refused unread."""

JOB = struct.Struct(">QQ")
"""Header of a job: bytes of the image, maximum pixels."""

_PR_SET_PDEATHSIG = 1  # of prctl
_MEMORY = 500_000_000  # bytes in addition to the pixels
_SCANS = 20  # of a JPEG of the most pixels; encoders make about 10
_PAGES = 1000  # of a TIFF
_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")  # of JPEG, apart from those within a scan
_PIXEL_BYTES = 64  # a float32 picture takes about 45 while it is made


def main() -> None:
    """Decode until standard input ends."""
    _end_with_parent()
    jobs = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of libraries must not get into an answer
    Image.init()
    Image.ID[:] = list(FORMATS)  # no other decoder is tried
    size = _memory()
    _write(answers, {"ready": True})
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # remarks on clients' files must not fill the log
    os.dup2(2, 1)
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
    name = f"image of {len(data)} bytes"
    if not any(data.startswith(start) for start in FORMATS.values()):
        raise DensescoreError(f"{name}: not an image of a kind that is taken here ({', '.join(FORMATS)})")
    Image.MAX_IMAGE_PIXELS = None  # for a message of our own
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:  # reads the header only
                width, height = image.size
    except Exception:  # `from_file` may read it, or raises the reason
        width, height = 1, 1
    if width * height > max_pixels:
        raise _TooManyPixelsError(
            f"the image has {width}×{height} = {width * height:,} pixels; at most {max_pixels:,} are taken"
        )
    # Bound the passes over the pixels
    scans = _scans(data) if data.startswith(FORMATS["JPEG"]) else 0
    if scans > 1 and scans * width * height > _SCANS * max_pixels:
        most = _SCANS * max_pixels // (width * height)
        raise DensescoreError(f"{name}: has {scans} scans, expected at most {most}")
    if data.startswith(FORMATS["TIFF"]) and _pages(data) > _PAGES:
        raise DensescoreError(f"{name}: has more than {_PAGES} pages, expected one")
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2  # readers refuse more than twice as many
    return from_file(data)


def _scans(data: bytes) -> int:
    """Number of scans of a JPEG; each is a pass of its decoder over all pixels."""
    at, scans = 2, 0
    while (match := _MARKER.search(data, at)) and match[0][-1:] != b"\xd9":
        scans += match[0][-1:] == b"\xda"
        at = match.end() + int.from_bytes(data[match.end() : match.end() + 2], "big")
    return scans


def _pages(data: bytes) -> int:
    """Pages in a TIFF's chain, at most `_PAGES` + 1: readers walk along it before they show one."""
    order, big = ("<" if data[:1] == b"I" else ">"), b"+" in data[2:4]
    number, offset, entry = ("Q", "Q", 20) if big else ("H", "L", 12)
    at, pages = struct.unpack_from(order + offset, data, 8 if big else 4)[0], 0
    try:
        while at and pages <= _PAGES:
            entries = struct.unpack_from(order + number, data, at)[0]
            at = struct.unpack_from(order + offset, data, at + struct.calcsize(order + number) + entries * entry)[0]
            pages += 1
    except struct.error:
        pass  # it is cut off, which its reader says
    return pages


def _end_with_parent() -> None:
    """Have Linux kill this process when the thread that started it ends; elsewhere it ends with the image at work."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # if it has ended already, standard input ends too


def _write(answers: BinaryIO, head: dict[str, object], pixels: Pixels | None = None) -> None:
    answers.write(to_json(head).encode() + b"\n")
    if pixels is not None:
        answers.write(pixels.data)
    answers.flush()


def _memory() -> int:
    """Bytes of this process's address space, or 0 on other systems than Linux."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def _limit_memory(max_bytes: int) -> None:
    """Limit this process's address space, and forbid it to write files."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


if __name__ == "__main__":
    main()
