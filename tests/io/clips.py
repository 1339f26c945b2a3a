"""Video clips for tests, written with PyAV."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray


def gray(levels: Sequence[int], height: int = 48, width: int = 64) -> list[NDArray[np.uint8]]:
    """Frames that are gray all over, one per level."""
    return [np.full((height, width, 3), level, np.uint8) for level in levels]


def numbered(count: int) -> list[NDArray[np.uint8]]:
    """Frames that show their number, up to 1,023, as ten black or white stripes, which survive every encoder."""
    bits = np.arange(count)[:, None] >> np.arange(10) & 1  # [count, 10]
    stripes = np.repeat(bits * 255, 16, axis=1).astype(np.uint8)  # [count, 160]
    return [np.broadcast_to(row[None, :, None], (48, 160, 3)).copy() for row in stripes]


def number(pixels: NDArray[np.uint8]) -> int:
    """Number of a frame of `numbered`."""
    return int((pixels[24, 8::16].mean(1) > 128) @ (1 << np.arange(10)))


def write_clip(
    path: Path,
    frames: Sequence[NDArray[np.uint8]],
    *,
    rate: int | Fraction = 25,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    milliseconds: Sequence[int] = (),
    offset: Fraction | float = 0,
    matrix: Sequence[int] = (),
    pixel_ratio: Fraction | None = None,
    space: int = 2,
    color_range: int = 0,
    transfer: int = 2,
    options: dict[str, str] | None = None,
) -> Path:
    """Write frames, RGB or RGBA ``[H, W, 3|4]``; codes are those of ITU-T H.273, where 2 and 0 are "not said".

    `milliseconds` are the frames' times; `offset` is the first frame's in seconds; `matrix` is
    a, b, c, d of the display matrix, which shows a pixel (x, y) at (ax + cy, bx + dy); `space` 1 is BT.709,
    5 BT.601; `color_range` 1 is 16 to 235, 2 full; `transfer` 18 is HLG.
    """
    with av.open(str(path), "w", format="h264" if path.suffix == ".h264" else None) as file:
        stream: Any = file.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_trc = space, color_range, transfer
        if pixel_ratio is not None:
            context.sample_aspect_ratio = pixel_ratio
        if matrix:
            a, b, c, d = (sign << 16 for sign in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba" if pixels.shape[2] == 4 else "rgb24")
            if space != 2 or color_range:
                frame = frame.reformat(format=pix_fmt, dst_colorspace=space, dst_color_range=color_range or 1)
            if offset:
                frame.pts, frame.time_base = index + round(offset * rate), 1 / Fraction(rate)
            if milliseconds:
                frame.pts, frame.time_base = milliseconds[index], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def write_sound(path: Path, *, cover: NDArray[np.uint8] | None = None) -> Path:
    """A second of silence, with or without a cover picture."""
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("aac", rate=44100)
        picture: Any = None
        if cover is not None:
            picture = file.add_stream("mjpeg")
            picture.height, picture.width, picture.pix_fmt = *cover.shape[:2], "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.int16), format="s16", layout="mono")
        silence.sample_rate = 44100
        if cover is not None:
            file.mux(picture.encode(av.VideoFrame.from_ndarray(cover, format="rgb24")))
            file.mux(picture.encode())
        file.mux(stream.encode(silence))
        file.mux(stream.encode())
    return path
