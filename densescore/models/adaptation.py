"""The adaptation layer of the paper, FCa and FCb, and the file that carries it to its network."""

import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from densescore.errors import DensescoreError
from densescore.io.files import atomic_write
from densescore.models.weights import load_strict, read_metadata, read_weights

BACKGROUND = "background"
"""Label of the class of patches that show none of the others."""

Activation = Literal["softmax", "sigmoid"]
"""Logits → probabilities: one distribution over classes and background, or independent classes (no background)."""

_FORMAT = "densescore-adaptation-1"
_BACKBONE = "backbone."  # before the names of the backbone's tensors in a file


class AdaptationHead(nn.Module):
    """FCa (ReLU, dropout) and FCb: ``[N, D]`` features → ``[N, classes]`` logits; Section 3.1 of the paper.

    Args:
        features: D, width of the transferred features.
        classes: outputs of FCb, background included.
        width: outputs of FCa; 2048 in the paper.
    """

    def __init__(self, features: int, classes: int, width: int = 2048) -> None:
        super().__init__()
        self.fca = nn.Linear(features, width)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(0.5)
        self.fcb = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        """``[N, D]`` → ``[N, classes]``; a pooled ``[N, D, 1, 1]`` is flattened first."""
        return self.fcb(self.dropout(self.relu(self.fca(features.flatten(1)))))


@dataclass(frozen=True)
class HeadFile:
    """What a head's file carries: the layer, its labels, and the network and preprocessing it was trained on.

    Attributes:
        head: FCa and FCb.
        labels: one per output of FCb; `BACKGROUND` among them where the head has that class.
        backbone: name of the network whose features it takes (see ``densescore models``).
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        patch_size: P of the backbone.
        activation: see `Activation`.
        scales: λ per level at which the head is best used; None for the paper's.
        k: exponent of the image score that is best with this head.
        training: how the head came about: recipe, seed, data, versions. Plain JSON values, for the record.
        backbone_weights: tensors of the network that were trained along with the head, by the network's names; they
            take the place of its own. Empty where the network stayed as it was.
    """

    head: AdaptationHead
    labels: tuple[str, ...]
    backbone: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch_size: int
    activation: Activation = "softmax"
    scales: tuple[float, ...] | None = None
    k: float = 5.0
    training: dict[str, Any] = field(default_factory=dict)
    backbone_weights: dict[str, Tensor] = field(default_factory=dict)


def save_head(path: str | os.PathLike[str], file: HeadFile, *, overwrite: bool = False) -> None:
    """Write a head to a safetensors file, whole or not at all.

    Raises:
        DensescoreError: the file exists and `overwrite` is off.
    """
    if len(file.labels) != file.head.fcb.out_features:
        raise DensescoreError(f"labels: got {len(file.labels)} for {file.head.fcb.out_features} outputs of FCb")
    tensors = file.head.state_dict() | {_BACKBONE + name: tensor for name, tensor in file.backbone_weights.items()}
    words = [entry.name for entry in fields(file) if entry.name not in ("head", "backbone_weights")]
    description = {name: getattr(file, name) for name in words}
    metadata = {"format": _FORMAT, "densescore": json.dumps(description)}
    with atomic_write(path, overwrite=overwrite) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def load_head(path: str | os.PathLike[str]) -> HeadFile:
    """Read what `save_head` wrote.

    Raises:
        DensescoreError: not such a file, or its parts contradict each other.
    """
    metadata = read_metadata(path) if Path(path).is_file() else {}
    weights = read_weights(path)
    if metadata.get("format") != _FORMAT:
        raise DensescoreError(f"{path}: not an adaptation head (format {metadata.get('format')!r}, not {_FORMAT!r})")
    try:
        description = json.loads(metadata["densescore"])
        labels = tuple(map(str, description["labels"]))
        backbone = {name: weights.pop(name) for name in list(weights) if name.startswith(_BACKBONE)}
        width, features = weights["fca.weight"].shape
        with torch.device("meta"):
            head = AdaptationHead(features, len(labels), width)
        head = head.to_empty(device="cpu")
        load_strict(head, weights, str(path))
        mean, std = (tuple(map(float, description[key])) for key in ("mean", "std"))
        activation = description.get("activation", "softmax")
        if activation not in get_args(Activation):
            raise DensescoreError(f"{path}: activation must be softmax or sigmoid, got {activation!r}")
        scales = description.get("scales")
        return HeadFile(
            head.eval(),
            labels,
            str(description["backbone"]),
            mean,  # type: ignore[arg-type]
            std,  # type: ignore[arg-type]
            int(description["patch_size"]),
            activation,
            None if scales is None else tuple(map(float, scales)),
            float(description.get("k", 5.0)),
            dict(description.get("training", {})),
            {name.removeprefix(_BACKBONE): tensor for name, tensor in backbone.items()},
        )
    except (KeyError, TypeError, ValueError, json.JSONDecodeError) as error:
        raise DensescoreError(f"{path}: adaptation head without a valid {error}") from error
