"""Read weights from files, without running anything that they hold."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from densescore.errors import DensescoreError, reason_of
from densescore.io.files import atomic_write

_NESTED = ("state_dict", "model", "model_state_dict")  # keys under which training scripts keep the weights
_WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before each name


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Tensors by name from a ``.safetensors`` file, or from a PyTorch file read with ``weights_only=True``.

    The weights of a training checkpoint are found under ``state_dict``, ``model`` or ``model_state_dict``, and the
    prefixes of `torch.nn.DataParallel` (``module.``) and `torch.compile` are taken off the names.

    Raises:
        DensescoreError: the file is missing, broken, or holds more than tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise DensescoreError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            return _unwrapped(load_file(path))
        weights: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, pickle and zip each raise their own
        raise DensescoreError(f"{path}: cannot be read as weights: {reason_of(error)}") from error
    if isinstance(weights, dict) and not _is_state(weights):
        weights = next((weights[key] for key in _NESTED if _is_state(weights.get(key))), weights)
    if not _is_state(weights):
        got = (
            f"a dict of {', '.join(map(repr, list(weights)[:5]))}"
            if isinstance(weights, dict)
            else type(weights).__name__
        )
        raise DensescoreError(
            f"{path}: expected tensors by name (a state_dict, also under {', '.join(_NESTED)}), got {got}"
        )
    return _unwrapped(weights)


def _is_state(found: Any) -> bool:
    return isinstance(found, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    )


def _unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without the prefixes that wrappers put before all names."""
    for prefix in _WRAPPERS * 2:  # either may be around the other
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
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
    if text is None:
        return None
    try:
        labels = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DensescoreError(f"{path}: labels are not a list of names: {reason_of(error)}") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise DensescoreError(f"{path}: labels are not a list of names: got {text[:60]}")
    return tuple(labels)


def load_strict(module: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Load `weights` into `module`, which must have the same tensors, of the same shapes.

    Raises:
        DensescoreError: see `check_fits`.
    """
    check_fits(module, weights, origin)
    module.load_state_dict(weights)


def check_fits(module: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Refuse weights that are not those of `module`.

    Args:
        module: may be on the meta device.
        weights: by the module's names.
        origin: where they come from, for the message.

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
    problems += [
        f"{name} is {tensor.layout} on {tensor.device}, expected a dense tensor"
        for name, tensor in weights.items()
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized
    ]
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DensescoreError(f"{origin} does not fit {type(module).__name__}: {'; '.join(problems[:5])}{more}")


def classes_in(weights: Mapping[str, Tensor] | None, name: str, default: int) -> int:
    """Number of outputs of a last layer, counted from its weight or bias; `default` where there is none."""
    tensor = (weights or {}).get(name)
    return default if tensor is None or tensor.ndim == 0 else max(1, len(tensor))


def check_weights_finite(module: nn.Module, origin: str) -> None:
    """Refuse weights that are infinite or not a number: scores would be, too, or worse, look as if they were not.

    Args:
        module: whose parameters and buffers are checked. Buffers that are not saved with the weights may hold
            infinities, as attention masks do, but no NaN.
        origin: what the module is, for the message.

    Raises:
        DensescoreError: names the first such tensor.
    """
    saved = module.state_dict()
    tensors = {**dict(module.named_buffers()), **saved}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        bad = ~tensor.isfinite() if name in saved else tensor.isnan()
        if bad.any():
            count = int(bad.sum())
            raise DensescoreError(f"{origin}: {count:,} of {tensor.numel():,} values of {name} are not finite")


def digest_of(*modules: nn.Module) -> str:
    """A digest of all parameters and buffers of modules, by name, shape, dtype and value: 64 hexadecimal digits."""
    return digest_of_state(*(module.state_dict() for module in modules))


def digest_of_state(*states: Mapping[str, Tensor]) -> str:
    """`digest_of` tensors by name."""
    digest = hashlib.sha256()
    for state in states:
        for name, tensor in sorted(state.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
