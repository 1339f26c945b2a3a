"""Checkpoints of a training: one that was killed resumes to the same numbers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from densescore.errors import DensescoreError, WriteError
from densescore.io.files import atomic_write, claim, clear_scratch, exclusive, remove_folder

_KIND, _HOLDS = "checkpoints", (r"((patches|images)(-\d+)?|network)\.pt",)


@contextmanager
def checkpoint_folder(out: Path) -> Iterator[Path]:
    """The folder ``NAME.checkpoint`` beside `out`, locked against a second training; deleted after success."""
    path = out.with_suffix(".checkpoint")
    with exclusive(out):
        clear_scratch(out.parent)
        claim(path, _KIND, _HOLDS)
        yield path
        remove_folder(path, _KIND)


def write_checkpoint(path: str | os.PathLike[str], state: dict[str, Any], owner: str) -> None:
    """Write a state of tensors and plain values in one piece; `owner` is a digest of the training's settings."""
    with atomic_write(path, overwrite=True) as temporary:
        try:
            torch.save({**state, "fingerprint": owner}, temporary)
        except RuntimeError as error:  # a full disk; torch's message has lines of its own code
            raise WriteError(f"{path}: cannot be written: {str(error).splitlines()[0]}") from error


def read_checkpoint(path: str | os.PathLike[str], owner: str) -> dict[str, Any] | None:
    """The state of a checkpoint, None if there is no file; one of another training than `owner` is an error."""
    if not Path(path).is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        fingerprint = state.pop("fingerprint")
    except Exception as error:  # a foreign or damaged file fails in many ways
        raise DensescoreError(f"{path}: cannot be read as a checkpoint; delete it to start again") from error
    if fingerprint != owner:
        raise DensescoreError(
            f"{path}: belongs to a training with other data or settings; finish that one with its own settings, "
            "or delete the file to start again"
        )
    return state
