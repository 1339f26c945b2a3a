"""A training's whole state on disk, so that one that was killed resumes to the same numbers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from densescore.errors import DensescoreError
from densescore.io.files import atomic_write, clear_scratch, remove_folder
from densescore.io.locks import exclusive
from densescore.io.marks import claim

_KIND, _HOLDS = "checkpoints", (r"((patches|images)(-\d+)?|network)\.pt",)


@contextmanager
def checkpoint_folder(out: Path) -> Iterator[Path]:
    """The folder ``NAME.checkpoint`` beside a training's result, held against a second training with the same result.

    When the block ends without error, densescore's files in it go; otherwise they stay for the next run.

    Raises:
        DensescoreError: another training writes to `out`, or densescore did not make the folder.
    """
    path = out.with_suffix(".checkpoint")
    with exclusive(out):
        clear_scratch(out.parent)
        claim(path, _KIND, _HOLDS)
        clear_scratch(path)
        yield path
        remove_folder(path, _KIND)


def write_checkpoint(path: str | os.PathLike[str], state: dict[str, Any], owner: str) -> None:
    """Write a state in one piece: a kill leaves the file before, or this one.

    Args:
        path: of the file; replaced if it is there.
        state: tensors and plain values, in dicts and lists.
        owner: a digest that tells this training from others.
    """
    with atomic_write(path, overwrite=True) as temporary:
        torch.save({**state, "fingerprint": owner}, temporary)


def read_checkpoint(path: str | os.PathLike[str], owner: str) -> dict[str, Any] | None:
    """The state that was written; None if there is no file.

    Raises:
        DensescoreError: the file is damaged, or belongs to another training than `owner`.
    """
    if not Path(path).is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = state.pop("fingerprint")
    except Exception as error:  # a foreign or damaged file fails in many ways
        raise DensescoreError(f"{path}: cannot be read as a checkpoint; delete it to start again") from error
    if found != owner:
        raise DensescoreError(
            f"{path}: belongs to a training with other data or settings; finish that one with its own settings, "
            "or delete the file to start again"
        )
    return state
