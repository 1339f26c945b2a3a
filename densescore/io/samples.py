"""Meaning of an image's numbers, and their conversion to the RGB that a viewer shows."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError
from densescore.io.color import CHANNELS, to_srgb

Pixels: TypeAlias = NDArray[Any]
"""RGB ``[H, W, 3]``: uint8, or float32 in [0, 1]."""

BRIGHT = 4096
"""A 16-bit image without a number this large probably uses 12 bits or fewer."""


@dataclass(frozen=True)
class Samples:
    """Meaning of an image's channels: the color first, then perhaps transparency."""

    space: str = "gray"  # a key of `CHANNELS`
    white: int | None = None  # integer of full intensity; None for the dtype's maximum, and for floats (1)
    white_is_stated: bool = False  # the file states how many bits are used, so a dim image is dim
    inverted: bool = False  # 0 is white
    alpha: int | None = None  # channel of transparency
    premultiplied: bool = False  # the color is multiplied by alpha
    palette: NDArray[np.uint8] | None = None  # RGB [N, 3], indexed by the one channel
    profile: bytes | None = None  # ICC profile of the color; None for sRGB

    @property
    def channels(self) -> int:
        """Number of color channels."""
        return 1 if self.palette is not None else CHANNELS[self.space]

    def to_rgb(self, values: NDArray[Any], name: str) -> Pixels:
        """C-contiguous RGB ``[h, w, 3]`` of an image's numbers ``[h, w, C]``, over white; `name` is for messages."""
        color, alpha = values[..., : self.channels], None
        if self.palette is not None:
            if color.max() >= len(self.palette):
                raise DensescoreError(f"{name}: has {color.max()}, but its palette has {len(self.palette)} colors")
            color = self.palette[color[..., 0]]
        else:
            color = self._scaled(color, name)
        # Undo inversion and premultiplication
        if self.inverted:
            color = _white(color) - color
        if self.alpha is not None:
            alpha = self._scaled(values[..., self.alpha : self.alpha + 1], name)
            if self.premultiplied:
                color = _undo_alpha(color, alpha)
        # Convert to sRGB, gray to three channels, and blend over white
        color = to_srgb(color, self.space, self.profile)
        if color.shape[2] == 1:
            color = np.repeat(color, 3, axis=2)
        return np.ascontiguousarray(color if alpha is None else _over_white(color, alpha))

    def check_brightness(self, brightest: float, name: str) -> None:
        """Refuse 16-bit numbers that probably use 12 bits or fewer, instead of scoring black."""
        if self.may_be_dim and 0 < brightest < BRIGHT:
            raise DensescoreError(
                f"{name}: nearly black: 16 bits, of which the brightest is {brightest:.0f} of 65535, and the file does "
                "not say how many are used; store BitsPerSample, or a MaxSampleValue of 2ⁿ-1, in a TIFF, or pass an "
                "array divided by white (4095 for 12 bits)"
            )

    @property
    def may_be_dim(self) -> bool:
        """Whether `check_brightness` applies."""
        return self.white == 65535 and not self.white_is_stated

    def _scaled(self, values: NDArray[Any], name: str) -> NDArray[Any]:
        """Numbers as uint8 if that is exact, else as float32 in [0, 1]."""
        if np.issubdtype(values.dtype, np.floating):
            floats = values.astype(np.float32)
            if not np.isfinite(floats).all():
                raise DensescoreError(f"{name}: holds NaN or infinity")
            if floats.min() < 0 or floats.max() > 1:
                raise DensescoreError(
                    f"{name}: floats must lie in [0, 1], got {floats.min()}..{floats.max()}; "
                    "divide by 255, or pass uint8 (normalization is the scorer's)"
                )
            return floats
        white = self.white or np.iinfo(values.dtype).max
        if white == 255 and values.dtype == np.uint8:
            return values
        if values.min() < 0 or values.max() > white:
            raise DensescoreError(f"{name}: numbers must lie in 0..{white}, got {values.min()}..{values.max()}")
        if 255 % white == 0:  # 1, 2 and 4 bits
            return values.astype(np.uint8) * np.uint8(255 // white)
        return (values / np.float32(white)).astype(np.float32)


def _white(values: NDArray[Any]) -> Any:
    return np.uint8(255) if values.dtype == np.uint8 else np.float32(1)


def _undo_alpha(color: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    """Color from premultiplied color."""
    white = _white(color)
    whole = np.minimum(color * (np.float32(white) / np.maximum(alpha, np.float32(1e-6))), white)
    return np.rint(whole).astype(np.uint8) if color.dtype == np.uint8 else whole.astype(np.float32)


def _over_white(color: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    if color.dtype != np.uint8:
        return (color * alpha + (1 - alpha)).astype(np.float32)
    alpha = (np.rint(alpha * 255) if alpha.dtype != np.uint8 else alpha).astype(np.uint16)
    return ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)  # at most 65152, within 16 bits
