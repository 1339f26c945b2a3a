"""Write videos: H.264 in MP4, which browsers and players show."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError, MissingPackageError, WriteError

_BT709 = 1  # the number of the color space, the primaries and the transfer function in ITU-T H.273
_LIMITED = 1  # brightness from 16 to 235


AddFrame: TypeAlias = Callable[[NDArray[np.uint8]], None]
"""Takes the next frame, RGB ``[H, W, 3]``."""


@contextmanager
def write_video(path: str | os.PathLike[str], fps: float) -> Iterator[AddFrame]:
    """Write an MP4 frame by frame; each is encoded as it comes, so memory does not grow with the video.

    Where a side has an odd number of pixels, which H.264 lacks, the last ones are written twice.

    Args:
        path: of the file, which is replaced; see `densescore.io.files.atomic_write`.
        fps: frames per second.

    Yields:
        What takes the frames; all must be of one size.

    Raises:
        DensescoreError: PyAV is not installed or lacks H.264, a frame of another size, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, write_video(f"{folder}/gray.mp4", fps=25) as add:
        ...     for brightness in range(0, 250, 10):
        ...         add(np.full((120, 160, 3), brightness, np.uint8))
    """
    try:
        import av
        from av.video.reformatter import Colorspace
    except ImportError as error:
        raise MissingPackageError(f"{path}: a video needs PyAV: pip install 'densescore[video]'") from error
    if "libx264" not in av.codecs_available:
        raise MissingPackageError(f"{path}: this build of PyAV cannot write H.264; the one of PyPI can")
    rate = Fraction(fps).limit_denominator(1001)
    size: tuple[int, ...] = ()
    stream: Any = None
    try:
        with av.open(os.fspath(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:

            def add(pixels: NDArray[np.uint8]) -> None:
                nonlocal size, stream
                height, width = pixels.shape[:2]
                if stream is None:
                    size = pixels.shape
                    stream = container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
                    stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
                    context = stream.codec_context
                    context.colorspace = context.color_primaries = context.color_trc = _BT709
                    context.color_range = _LIMITED
                if pixels.shape != size:
                    raise DensescoreError(f"{path}: expected frames of shape {size}, got {pixels.shape}")
                even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
                container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))

            yield add
            if stream is not None:
                container.mux(stream.encode())
    except av.FFmpegError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror or error}") from error
