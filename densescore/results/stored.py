"""Scores in a safetensors file: the tensors, and a description as JSON."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from densescore.errors import DensescoreError
from densescore.io.files import atomic_write
from densescore.io.names import to_json
from densescore.models.box_layer import ObjectBoxes
from densescore.models.weights import read_metadata, read_weights

_FORMAT = "densescore-scores-1"
_BOXES = "object_boxes."  # prefix of their tensors' names


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    boxes: ObjectBoxes | None,
    description: Mapping[str, Any],
    *,
    overwrite: bool,
) -> None:
    """Write scores, whole or not at all: `tensors` by the field's name."""
    metadata = {"format": _FORMAT, "densescore": to_json(description)}
    parts = {} if boxes is None else boxes._asdict()
    tensors = {**tensors, **{_BOXES + name: tensor for name, tensor in parts.items()}}
    with atomic_write(path, overwrite=overwrite) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], ObjectBoxes | None, dict[str, Any]]:
    """Read what `write` wrote; other files raise `DensescoreError`."""
    tensors = read_weights(path)
    metadata = read_metadata(path) if Path(path).suffix == ".safetensors" else {}
    if metadata.get("format") != _FORMAT:
        raise DensescoreError(f"{path}: not saved scores (format {metadata.get('format')!r}, not {_FORMAT!r})")
    with named_faults(path):
        boxed = any(name.startswith(_BOXES) for name in tensors)
        boxes = ObjectBoxes(*(tensors[_BOXES + name] for name in ObjectBoxes._fields)) if boxed else None
        fields = {name: tensor for name, tensor in tensors.items() if not name.startswith(_BOXES)}
        return fields, boxes, json.loads(metadata["densescore"])


@contextmanager
def named_faults(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of a damaged description name the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DensescoreError(f"{path}: saved scores without a valid {error}") from error
