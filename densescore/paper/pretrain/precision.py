"""The floating-point type of a training's products."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from densescore.errors import DensescoreError
from densescore.network.devices import DTYPES


@dataclass(frozen=True)
class Precision:
    """Mixed precision: weights stay float32; products are made in `dtype`, where torch's autocast allows it."""

    dtype: torch.dtype

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """The context that forward passes run in."""
        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Scales losses so that float16's small gradients do not vanish; does nothing for other types."""
        return torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)


def find_precision(name: str, device: torch.device) -> Precision:
    """A precision by name.

    Args:
        name: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"``: on a GPU the second where it has it and
            else the third, on a CPU the first.
        device: that it is for.

    Example:
        >>> find_precision("auto", torch.device("cpu")).dtype
        torch.float32
    """
    if name == "auto":
        if device.type != "cuda":
            return Precision(torch.float32)
        return Precision(torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16)
    if name not in DTYPES:
        raise DensescoreError(f"precision must be auto, {', '.join(DTYPES)}, got {name!r}")
    return Precision(DTYPES[name])
