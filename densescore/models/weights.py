"""Read weights from files, without running anything that they hold."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from densescore.errors import DensescoreError, reason_of
from densescore.io.files import atomic_write


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Tensors by name from a ``.safetensors`` file, or from a PyTorch file read with ``weights_only=True``.

    Raises:
        DensescoreError: the file is missing, broken, or holds more than tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise DensescoreError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, pickle and zip each raise their own
        raise DensescoreError(f"{path}: cannot be read as weights: {reason_of(error)}") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise DensescoreError(f"{path}: expected tensors by name (a state_dict), got {type(weights).__name__}")
    return weights


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text that a ``.safetensors`` file carries beside its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:
        raise DensescoreError(f"{path}: cannot be read as safetensors: {reason_of(error)}") from error


def save_weights(
    path: str | os.PathLike[str],
    weights: dict[str, Tensor],
    labels: Sequence[str],
    training: dict[str, Any] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write a network's weights, its class names and how it came about to a safetensors file, whole or not at all.

    Args:
        path: the file.
        weights: by the network's names.
        labels: one per output; `load_classifier` takes them from the file.
        training: plain JSON values, for the record.
        overwrite: replace what is there.

    Raises:
        DensescoreError: the file exists and `overwrite` is off.
    """
    metadata = {"labels": json.dumps(list(labels)), "training": json.dumps(training or {})}
    with atomic_write(path, overwrite=overwrite) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary, metadata)


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...] | None:
    """The class names that `save_weights` wrote beside the weights; None if the file has none.

    Raises:
        DensescoreError: they are no names.
    """
    if Path(path).suffix != ".safetensors":
        return None
    text = read_metadata(path).get("labels")
    try:
        return None if text is None else tuple(map(str, json.loads(text)))
    except (TypeError, ValueError) as error:
        raise DensescoreError(f"{path}: labels are not a list of names: {reason_of(error)}") from error


def load_strict(module: nn.Module, weights: dict[str, Tensor], origin: str) -> None:
    """Load `weights` into `module`: every tensor of one has its place, and its shape, in the other.

    Raises:
        DensescoreError: names what is missing, left over, or of another shape.
    """
    own = module.state_dict()
    problems = [f"missing {name}" for name in own if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in own]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DensescoreError(f"{origin} does not fit {type(module).__name__}: {'; '.join(problems[:5])}{more}")
    module.load_state_dict(weights)


def digest_of(*modules: nn.Module) -> str:
    """A digest of all parameters and buffers of modules, by name, shape, dtype and value: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
