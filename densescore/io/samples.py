"""What the numbers of an image mean, and the RGB that a viewer makes of them."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError
from densescore.io.color import CHANNELS, to_srgb

Pixels: TypeAlias = NDArray[Any]
"""RGB ``[H, W, 3]``: uint8, or float32 in [0, 1]."""

_DIM = 16
"""A 16-bit image that stays below this part of its range is taken for one of fewer bits."""


@dataclass(frozen=True)
class Samples:
    """The meaning of an image's channels: its color first, then perhaps transparency.

    Attributes:
        space: of the color, a key of `densescore.io.color.CHANNELS`.
        white: the integer of full intensity; None for the largest of the dtype, and for floats, which end at 1.
        white_is_stated: the file says how many bits are used, so a dim image is a dim image.
        inverted: 0 is white.
        alpha: the channel of transparency, if any.
        premultiplied: the color has been multiplied by it.
        palette: uint8 RGB ``[N, 3]`` that the one channel is an index of.
        profile: ICC profile of the color; None for sRGB.
    """

    space: str = "gray"
    white: int | None = None
    white_is_stated: bool = False
    inverted: bool = False
    alpha: int | None = None
    premultiplied: bool = False
    palette: NDArray[np.uint8] | None = None
    profile: bytes | None = None

    @property
    def channels(self) -> int:
        """How many channels the color takes."""
        return 1 if self.palette is not None else CHANNELS[self.space]

    def to_rgb(self, values: NDArray[Any], name: str) -> Pixels:
        """RGB ``[h, w, 3]``, C-contiguous, of an image's numbers ``[h, w, C]``; transparent pixels lie over white.

        Raises:
            DensescoreError: numbers out of their range, NaN or infinity.
        """
        color, alpha = values[..., : self.channels], None
        if self.palette is not None:
            if color.max() >= len(self.palette):
                raise DensescoreError(f"{name}: has {color.max()}, but its palette has {len(self.palette)} colors")
            color = self.palette[color[..., 0]]
        else:
            color = self._scaled(color, name)
        if self.inverted:
            color = _white(color) - color
        if self.alpha is not None:
            alpha = self._scaled(values[..., self.alpha : self.alpha + 1], name)
            if self.premultiplied:
                color = _unmultiplied(color, alpha)
        color = to_srgb(color, self.space, self.profile)
        if color.shape[2] == 1:
            color = np.repeat(color, 3, axis=2)
        return np.ascontiguousarray(color if alpha is None else _over_white(color, alpha))

    def check_brightness(self, brightest: float, name: str) -> None:
        """Refuse 16-bit numbers that are likely of a camera of 12 bits or fewer, rather than score black.

        Args:
            brightest: number of the image's color.
            name: of the image.
        """
        if self.may_be_dim and 0 < brightest < 65536 // _DIM:
            raise DensescoreError(
                f"{name}: nearly black: 16 bits, of which the brightest is {brightest:.0f} of 65535, and the file does "
                "not say how many are used; store BitsPerSample, or a MaxSampleValue of 2ⁿ-1, in a TIFF, or pass an "
                f"array divided by white (4095 for 12 bits)"
            )

    @property
    def may_be_dim(self) -> bool:
        """Whether `check_brightness` has anything to ask."""
        return self.white == 65535 and not self.white_is_stated

    def _scaled(self, values: NDArray[Any], name: str) -> NDArray[Any]:
        """uint8, where that is exact, or float32 in [0, 1]."""
        if np.issubdtype(values.dtype, np.floating):
            floats = values.astype(np.float32)
            if not np.isfinite(floats).all():
                raise DensescoreError(f"{name}: holds NaN or infinity")
            if floats.min() < 0 or floats.max() > 1:
                raise DensescoreError(
                    f"{name}: floats must lie in [0, 1], got {floats.min():g}..{floats.max():g}; "
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


def _unmultiplied(color: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    """The color that was multiplied by `alpha`."""
    white = _white(color)
    whole = np.minimum(color * (np.float32(white) / np.maximum(alpha, np.float32(1e-6))), white)
    return np.rint(whole).astype(np.uint8) if color.dtype == np.uint8 else whole.astype(np.float32)


def _over_white(color: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    if color.dtype != np.uint8:
        return (color * alpha + (1 - alpha)).astype(np.float32)
    alpha = (np.rint(alpha * 255) if alpha.dtype != np.uint8 else alpha).astype(np.uint16)
    return ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)  # at most 65152: 16 bits hold it
