"""Read weights from files, without running code from them."""

import hashlib
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from densescore.errors import DensescoreError, reason_of
from densescore.io.files import atomic_write
from densescore.io.find import near_files
from densescore.io.names import to_json

_NESTED = ("state_dict", "model", "model_state_dict")  # keys under which training scripts keep the weights
_WRAPPERS = ("module.", "_orig_mod.")  # prefixes of DataParallel and torch.compile


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Tensors by name from a ``.safetensors`` file, or from a PyTorch file read with ``weights_only=True``.

    Training checkpoints keep them under `_NESTED` keys, and wrappers put `_WRAPPERS` before the names.
    """
    path = Path(path)
    if not path.is_file():
        raise DensescoreError(f"{path}: no such weights file{near_files(path)}")
    try:
        if path.suffix == ".safetensors":
            return _unwrapped(load_file(path))
        weights: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its text advises to run what the file holds
        objects = "Python objects, which are never run; save module.state_dict()"
        holds = objects if "GLOBAL" in str(error) else "no tensors"
        raise DensescoreError(
            f"{path}: cannot be read as weights (.safetensors, or a state_dict of torch.save): it holds {holds}"
        ) from error
    except Exception as error:  # safetensors and zip each raise their own
        raise DensescoreError(f"{path}: cannot be read as weights: {reason_of(error)}") from error
    if isinstance(weights, dict) and not _is_state(weights):
        weights = next((weights[key] for key in _NESTED if _is_state(weights.get(key))), weights)
    if not _is_state(weights):
        keys = ", ".join(map(repr, list(weights)[:5])) if isinstance(weights, dict) else ""
        got = f"a dict of {keys}" if isinstance(weights, dict) else type(weights).__name__
        raise DensescoreError(
            f"{path}: expected tensors by name (a state_dict, also under {', '.join(_NESTED)}), got {got}"
        )
    return _unwrapped(weights)


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, without wrappers' prefixes."""
    for prefix in _WRAPPERS * 2:  # either may be around the other
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Metadata of a ``.safetensors`` file."""
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
    """Write weights by the network's names, one label per output, and a record of the training (JSON values).

    The safetensors file is written whole or not at all; `load_classifier` takes the labels from it.
    """
    metadata = {"labels": to_json(list(labels)), "training": to_json(training or {})}
    with atomic_write(path, overwrite=overwrite) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary, metadata)


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...] | None:
    """Class names in the metadata of a file of `save_weights`, or None."""
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


def load_strict(module: nn.Module, weights: Mapping[str, Tensor], origin: str, *, assign: bool = False) -> None:
    """Load `weights` into `module`, which must have the same tensors, of the same shapes; `assign`: without a copy."""
    check_fits(module, weights, origin)
    module.load_state_dict(weights, assign=assign)


def check_fits(module: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Refuse weights whose names, shapes or layouts are not those of `module`; the error lists all differences."""
    expected = module.state_dict()
    problems = [f"missing {name}" for name in expected if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in expected]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
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
    """Number of outputs of a last layer, counted from its weight or bias; `default` without one."""
    tensor = (weights or {}).get(name)
    return default if tensor is None or tensor.ndim == 0 else max(1, len(tensor))


def check_weights_finite(module: nn.Module, origin: str) -> None:
    """Refuse infinite or NaN parameters and buffers; scores might hide them.

    Buffers that are not saved with the weights may hold infinities, as attention masks do, but no NaN.
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
    """SHA-256 of all parameters and buffers of modules, by name, shape, dtype and value."""
    return digest_of_state(*(module.state_dict() for module in modules))


def digest_of_state(*states: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors, by name, shape, dtype and value."""
    digest = hashlib.sha256()
    for state in states:
        for name, tensor in sorted(state.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
