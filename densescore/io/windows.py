"""An image that is read by windows: the channels and the orientation of an array, and what its numbers mean."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError
from densescore.io.color import usable_profile
from densescore.io.samples import Pixels, Samples

_BLOCK = 2**24
"""Pixels that are looked at together in search of a bright one."""

_UPSIDE_DOWN, _MIRRORED = (3, 4, 7, 8), (2, 3, 6, 7)
"""EXIF orientations that are flipped to be upright; those from 5 on are transposed before."""


def upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """A view of ``[h, w, C]``, or ``[w, h, C]``, turned from its EXIF orientation."""
    values = values.transpose(1, 0, 2) if orientation > 4 else values
    return values[:: -1 if orientation in _UPSIDE_DOWN else 1, :: -1 if orientation in _MIRRORED else 1]


@dataclass(frozen=True)
class Windows:
    """An image whose numbers are read when they are asked for.

    Attributes:
        name: of its file.
        array: of numbers, NumPy's or zarr's.
        axes: a letter for each axis of `array`: y, x, and c and s for channels; the others have one place.
        samples: what the numbers mean.
        orientation: as EXIF counts it, 1 to 8.
        bands: the channels to take; None for all.
    """

    name: str
    array: Any
    axes: str
    samples: Samples
    orientation: int = 1
    bands: tuple[int, ...] | None = None

    @property
    def height(self) -> int:
        """Pixels down, upright."""
        return int(self.array.shape[self.axes.index("x" if self.orientation > 4 else "y")])

    @property
    def width(self) -> int:
        """Pixels across, upright."""
        return int(self.array.shape[self.axes.index("y" if self.orientation > 4 else "x")])

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Pixels:
        """The window ``[y0, y1) × [x0, x1)`` as `densescore.read_image` would have it: RGB ``[h, w, 3]``.

        Raises:
            DensescoreError: the file is broken there, or holds what is not a picture.
        """
        return self.samples.to_rgb(self.values(y0, y1, x0, x1), f"{self.name} at {y0}:{y1}, {x0}:{x1}")

    def values(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[Any]:
        """The numbers of an upright window: ``[h, w, C]``."""
        if self.orientation in _UPSIDE_DOWN:
            y0, y1 = self.height - y1, self.height - y0
        if self.orientation in _MIRRORED:
            x0, x1 = self.width - x1, self.width - x0
        if self.orientation > 4:
            y0, y1, x0, x1 = x0, x1, y0, y1
        return upright(self._stored(slice(y0, y1), slice(x0, x1)), self.orientation)

    def check_brightness(self) -> None:
        """Refuse 16-bit numbers of which none is bright; read until there is one.

        Raises:
            DensescoreError: see `Samples.check_brightness`.
        """
        if not self.samples.may_be_dim:
            return
        brightest = 0
        height, width = (self.array.shape[self.axes.index(axis)] for axis in "yx")
        chunks = dict(zip(self.axes, getattr(self.array, "chunks", self.array.shape), strict=True))
        rows = max(1, _BLOCK // width // chunks["y"]) * chunks["y"]
        for y in range(0, height, rows):
            values = self._stored(slice(y, min(y + rows, height)), slice(0, width))
            brightest = max(brightest, int(values[..., : self.samples.channels].max()))
            if brightest >= 65536 // 16:
                return
        self.samples.check_brightness(brightest, self.name)

    def _stored(self, rows: slice, cols: slice) -> NDArray[Any]:
        """The numbers of a window of `array`: ``[h, w, C]``."""
        index = {"y": rows, "x": cols, "c": slice(None), "s": slice(None)}
        kept = [axis for axis in self.axes if axis in index]
        try:
            values = np.asarray(self.array[tuple(index.get(axis, 0) for axis in self.axes)])
        except Exception as error:  # a codec meets broken data in many ways
            place = f"{rows.start}:{rows.stop}, {cols.start}:{cols.stop}"
            raise DensescoreError(f"{self.name}: cannot be read at {place}: {error}") from error
        values = values.transpose([kept.index(axis) for axis in "yxcs" if axis in kept])
        values = values.reshape(*values.shape[:2], -1).astype(values.dtype.newbyteorder("="), copy=False)
        return values if self.bands is None else values[..., list(self.bands)]


def choose_channels(image: Windows, extra: Sequence[int] = (), bands: Sequence[int] | None = None) -> Windows:
    """The image with the channels that are its color and transparency.

    Args:
        image: with `samples` of its color, and all channels of its file.
        extra: what each channel after the color is, as TIFF's ExtraSamples: 1 premultiplied transparency, 2
            transparency, 0 anything else.
        bands: numbers of the channels to take as gray, or as red, green and blue, instead.

    Raises:
        DensescoreError: more than one image, channels that need `bands`, or bands that are not there.
    """
    name, samples = image.name, image.samples
    shape = dict(zip(image.axes, image.array.shape, strict=True))
    if (
        len(shape) < len(image.axes)
        or not {"y", "x"} <= set(shape)
        or any(size > 1 for axis, size in shape.items() if axis not in "yxcs")
        or 0 in shape.values()
    ):
        raise DensescoreError(
            f"{name}: expected one image, got axes {image.axes!r} of {tuple(image.array.shape)}; extract one plane"
        )
    channels = shape.get("c", 1) * shape.get("s", 1)
    if bands is not None:
        if len(bands) not in (1, 3) or not all(0 <= band < channels for band in bands):
            raise DensescoreError(f"{name}: bands must be one or three of 0..{channels - 1}, got {tuple(bands)}")
        if samples.space not in ("gray", "RGB") or samples.palette is not None:
            raise DensescoreError(f"{name}: bands are for gray and RGB; the colors are {samples.space} or a palette")
        space = "gray" if len(bands) == 1 else "RGB"
        return replace(image, bands=tuple(bands), samples=replace(samples, space=space, profile=None))
    alphas = [samples.channels + at for at, kind in enumerate(extra) if kind in (1, 2)]
    only_alpha = samples.channels > 1 or len(alphas) == len(extra)  # what follows RGB may be anything: it is not color
    if channels == samples.channels + len(extra) and only_alpha:
        if alphas:
            premultiplied = extra[alphas[0] - samples.channels] == 1
            samples = replace(samples, alpha=alphas[0], premultiplied=premultiplied)
    elif channels == 3 and samples.space == "gray" and samples.palette is None:
        samples = replace(samples, space="RGB")
    else:
        raise DensescoreError(
            f"{name}: {channels} channels: say with bands which to take as gray or RGB, e.g. 0,1,2 "
            "(densescore huge --bands; elsewhere pass an array of them)"
        )
    return replace(image, samples=replace(samples, profile=usable_profile(samples.profile, samples.space, name)))
