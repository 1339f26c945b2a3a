"""A pre-training's whole state on disk, so that one that was killed goes on to the same numbers."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from densescore.files import written_whole
from densescore.pretrain.images import SourceImages
from densescore.pretrain.recipe import SourceRecipe
from densescore_kernels.errors import DensescoreError


def fingerprint(network: nn.Module, images: SourceImages, recipe: SourceRecipe, seed: int) -> str:
    """A digest that tells one pre-training from another; of the network, by the names and shapes of its tensors."""
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return hashlib.sha256(json.dumps([shapes, images.digest(), asdict(recipe), seed]).encode()).hexdigest()


def write_checkpoint(path: str | os.PathLike[str], state: dict[str, Any], owner: str) -> None:
    """Write a state in one piece: a kill leaves the file before, or this one."""
    with written_whole(path, overwrite=True) as temporary:
        torch.save({**state, "fingerprint": owner}, temporary)


def read_checkpoint(path: str | os.PathLike[str], owner: str) -> dict[str, Any] | None:
    """The state that was written; None if there is no file.

    Raises:
        DensescoreError: the file is damaged, or belongs to another pre-training than `owner`.
    """
    if not Path(path).is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = state.pop("fingerprint")
    except Exception as error:  # a foreign or damaged file fails in many ways
        raise DensescoreError(f"{path}: cannot be read as a checkpoint; delete it to start anew") from error
    if found != owner:
        raise DensescoreError(
            f"{path}: belongs to a pre-training with other images or settings; finish that one with its own settings, "
            "or delete the file to start anew"
        )
    return state
