"""Checks of a scorer's arguments, weights, outputs and process."""

import os
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, get_args, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from densescore.errors import DensescoreError, reason_of
from densescore.network.cpu.accelerate import Runtime
from densescore.network.crops import PatchNetwork
from densescore.network.graph import random_pixels

Numbers = Sequence[float] | NDArray[Any] | Tensor


@overload
def as_tuple(name: str, values: None) -> None: ...


@overload
def as_tuple(name: str, values: Iterable[Any]) -> tuple[Any, ...]: ...


def as_tuple(name: str, values: Iterable[Any] | None) -> tuple[Any, ...] | None:
    """A list, tuple, array or tensor as a tuple of Python's own numbers or strings; None stays None."""
    if values is None:
        return None
    kind = str if name == "labels" else Real
    try:
        items = values.tolist() if hasattr(values, "tolist") else values
        numbers = tuple(value.item() if isinstance(value, np.generic) else value for value in items)
    except TypeError as error:
        raise DensescoreError(f"{name} must be a sequence, got {values!r}") from error
    if isinstance(values, str) or not all(isinstance(value, kind) for value in numbers):
        raise DensescoreError(f"{name} must be a sequence of {'names' if kind is str else 'numbers'}, got {values!r}")
    return numbers


def fit_labels(labels: tuple[str, ...], classes: int, strict: bool) -> tuple[str, ...]:
    """The class names of a network; ``class 0``, … if their number is wrong, which is an error if `strict`."""
    if len(labels) == classes:
        return labels
    if strict:
        raise DensescoreError(f"labels: got {len(labels)} names for a network of {classes} classes")
    return tuple(f"class {index}" for index in range(classes))


def check_context(context: str | None, known: tuple[str | None, ...]) -> None:
    """Raise an error for a context that is not one of `known`."""
    if context in known:
        return
    if context == "image":
        raise DensescoreError(
            "context 'image' needs a convolutional network; this one is scored by crops: use context='patch'"
        )
    raise DensescoreError(f"context must be 'image' or 'patch', got {context!r}")


def check_runtime(runtime: str) -> None:
    """Raise an error for a runtime that is none."""
    if runtime not in get_args(Runtime):
        raise DensescoreError(f"runtime must be one of {', '.join(get_args(Runtime))}, got {runtime!r}")


def check_weights(network: nn.Module, name: str) -> None:
    """Raise an error that names the first weight or statistic that is NaN, infinite or a negative variance.

    `network` is in the dtype in which it runs, whose range may be smaller than that of its file's.
    """
    statistics = {
        f"{path}.{kind}": getattr(layer, kind)
        for path, layer in network.named_modules()
        for kind in ("running_mean", "running_var")
        if isinstance(getattr(layer, kind, None), Tensor)
    }
    for path, tensor in [*network.named_parameters(), *statistics.items()]:
        if not _is_finite(tensor.detach()):
            raise DensescoreError(f"{name}: the weights {path} hold values that are not finite in {tensor.dtype}")
        if path.endswith("running_var") and tensor.numel() and tensor.min() < 0:
            raise DensescoreError(f"{name}: the weights {path} hold a negative variance")


class OutputsCheck:
    """Whether outputs are finite, as found by their device, for which only `read` waits."""

    def __init__(self, outputs: Tensor, subject: str) -> None:
        self._message = f"{subject} in {outputs.dtype} are not finite; try another dtype"
        cuda = outputs.device.type == "cuda"
        self._finite = _is_finite(outputs).to("cpu", non_blocking=cuda)
        self._copied = torch.cuda.current_stream(outputs.device).record_event() if cuda else None

    def read(self) -> None:
        """Raise an error if any output is NaN or infinite; all work before the check is then done."""
        if self._copied is not None:
            self._copied.synchronize()
        if not self._finite:
            raise DensescoreError(self._message)


@torch.inference_mode()
def check_operations(network: PatchNetwork, name: str) -> None:
    """Raise an error where an operation of the network does not run in its dtype on its device."""
    pixels = random_pixels(network, network.patch, network.patch)
    try:
        network(pixels.contiguous(memory_format=torch.channels_last))
    except Exception as error:  # it may be the user's own forward that runs
        raise DensescoreError(
            f"{name} does not run in {pixels.dtype} on {pixels.device}: {reason_of(error)}; try another dtype"
        ) from error


def check_outputs(outputs: Tensor, subject: str) -> Tensor:
    """The outputs, or an error with the words of `subject` if any is NaN or infinite."""
    OutputsCheck(outputs, subject).read()
    return outputs


def _is_finite(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() or not tensor.numel():
        return torch.tensor(True)
    return torch.isfinite(torch.stack(tensor.aminmax())).all()  # NaN is both


_home: int | None = None


def check_process() -> None:
    """Remember the process that scores first, and raise an error in one that was forked from it.

    Torch, OpenMP and OpenVINO would wait there forever for threads that do not exist.
    """
    global _home
    if _home is None:
        _home = os.getpid()
    elif _home != os.getpid():
        raise DensescoreError(
            "this process was forked from one that had made a scorer, and torch's threads do not survive a fork: start "
            "workers by 'spawn' (multiprocessing.get_context('spawn')), or before the first scorer is made"
        )
