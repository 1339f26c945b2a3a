"""Where a network runs, and in which precision."""

from typing import TypeVar

import torch
from torch import nn

from densescore.errors import DensescoreError, reason_of

Network = TypeVar("Network", bound=nn.Module)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_device(device: str | torch.device) -> torch.device:
    """A device that can be used. ``"auto"`` is a CUDA device if there is one, and the CPU otherwise.

    Raises:
        DensescoreError: the device cannot be used.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise DensescoreError(f"device {device!r} cannot be used: {reason_of(error)}") from error
    return found


def find_dtype(dtype: str | torch.dtype, network: nn.Module, device: torch.device) -> torch.dtype:
    """A dtype that the device can compute in. ``"auto"`` is the dtype of the network's parameters.

    Raises:
        DensescoreError: the dtype is unknown, or the device does not support it.
    """
    if dtype == "auto":
        return next(network.parameters()).dtype
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        raise DensescoreError(f"dtype must be 'auto', {', '.join(map(repr, DTYPES))}, got {dtype!r}")
    if found == torch.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise DensescoreError(f"dtype 'bfloat16' is not supported by {torch.cuda.get_device_name(device)}")
    return found


def to_channels_last(network: Network) -> Network:
    """Lay the weights of convolutions out with their channels last, in place.

    ``network.to(memory_format=torch.channels_last)`` refuses parameters of five dimensions.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return network
