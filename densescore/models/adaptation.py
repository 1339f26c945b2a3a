"""The adaptation layer of the paper, FCa and FCb, and its file."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from densescore.errors import DensescoreError, reason_of
from densescore.io.files import atomic_write
from densescore.models.box_layer import BoxLayer
from densescore.models.weights import check_fits, check_weights_finite, load_strict, read_metadata, read_weights

BACKGROUND = "background"
"""Label of the class of patches that show none of the others."""

Activation = Literal["softmax", "sigmoid"]
"""Logits → probabilities: one distribution over classes and background, or independent classes (no background)."""

MAX_PATCH = 4096
"""Largest side of a network's input in pixels; no classifier comes near it."""

_MAX_SCALES = 1000
_FORMAT = "densescore-adaptation-1"
_FORMAT_BOXES = "densescore-adaptation-2"  # with a box layer, which readers of the first do not know
_BACKBONE = "backbone."  # before the names of the backbone's tensors in a file
_BOXES = "boxes."  # before the names of the box layer's


_SIZES = ("reduce.weight", "look.weight")  # their rows say how large a box layer is
_Layer = TypeVar("_Layer", bound=nn.Module)


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
            replace its own. Empty where the network stayed as it was.
        box_layer: finds the boxes of objects; None where the training had no boxes.
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
    box_layer: BoxLayer | None = None


def save_head(path: str | os.PathLike[str], file: HeadFile, *, overwrite: bool = False) -> None:
    """Write a head to a safetensors file, whole or not at all.

    Raises:
        DensescoreError: the file exists and `overwrite` is off.
    """
    if len(file.labels) != file.head.fcb.out_features:
        raise DensescoreError(f"labels: got {len(file.labels)} for {file.head.fcb.out_features} outputs of FCb")
    tensors = file.head.state_dict() | {_BACKBONE + name: tensor for name, tensor in file.backbone_weights.items()}
    if file.box_layer is not None:
        tensors |= {_BOXES + name: tensor for name, tensor in file.box_layer.state_dict().items()}
    words = [entry.name for entry in fields(file) if entry.name not in ("head", "backbone_weights", "box_layer")]
    description = {name: getattr(file, name) for name in words}
    metadata = {"format": _FORMAT if file.box_layer is None else _FORMAT_BOXES, "densescore": json.dumps(description)}
    with atomic_write(path, overwrite=overwrite) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def load_head(path: str | os.PathLike[str]) -> HeadFile:
    """Read what `save_head` wrote.

    Raises:
        DensescoreError: not such a file; a field that is missing or of the wrong kind; or tensors that do not fit the
            labels, or are not finite.
    """
    metadata = read_metadata(path) if Path(path).is_file() else {}
    weights = read_weights(path)
    if metadata.get("format") not in (_FORMAT, _FORMAT_BOXES):
        raise DensescoreError(f"{path}: not an adaptation head (format {metadata.get('format')!r}, not {_FORMAT!r})")
    described = _Described(os.fspath(path), metadata.get("densescore", ""))
    labels = described.labels()
    trained = {name: weights.pop(name) for name in list(weights) if name.startswith(_BACKBONE)}
    boxes = {name.removeprefix(_BOXES): weights.pop(name) for name in list(weights) if name.startswith(_BOXES)}
    head = _head(weights, len(labels), os.fspath(path))
    file = HeadFile(
        head=head,
        labels=labels,
        backbone=described.text("backbone"),
        mean=described.channels("mean"),
        std=described.channels("std", positive=True),
        patch_size=described.patch_size(),
        activation=described.activation(),
        scales=described.scales(),
        k=described.number("k", default=5.0, least=1),
        training=described.training(),
        backbone_weights={name.removeprefix(_BACKBONE): tensor for name, tensor in trained.items()},
        box_layer=_box_layer(boxes, head.fca.in_features, os.fspath(path)) if boxes else None,
    )
    return file


def _box_layer(weights: dict[str, Tensor], features: int, path: str) -> BoxLayer:
    """The layer with these tensors, for features of the head's width."""
    sizes = [weights[name].shape[0] if name in weights and weights[name].ndim else 0 for name in _SIZES]
    if 0 in sizes:
        raise DensescoreError(f"{path}: the box layer lacks {' or '.join(_BOXES + name for name in _SIZES)}")
    return _filled(lambda: BoxLayer(features, *sizes), weights, f"{path}: the box layer")


def _head(weights: dict[str, Tensor], classes: int, path: str) -> AdaptationHead:
    """The layer with these tensors; `classes` are the file's labels."""
    first = weights.get("fca.weight")
    if first is None or first.ndim != 2 or 0 in first.shape:
        shape = "none" if first is None else tuple(first.shape)
        raise DensescoreError(f"{path}: fca.weight must have shape (width, features), both at least 1, got {shape}")
    width, features = first.shape
    return _filled(lambda: AdaptationHead(features, classes, width), weights, path)


def _filled(make: Callable[[], _Layer], weights: dict[str, Tensor], path: str) -> _Layer:
    """A layer with these tensors; its memory is taken only when they fit."""
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise DensescoreError(f"{path}: {name} must hold floating-point numbers, got {tensor.dtype}")
    with torch.device("meta"):
        layer = make()
    check_fits(layer, weights, path)
    layer = layer.to_empty(device="cpu")
    load_strict(layer, weights, path)
    check_weights_finite(layer, path)
    return layer.eval()


class _Described:
    """The description in a head's file, field by field; each error names the file, the field and what it holds."""

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DensescoreError(f"{path}: the head's description is not JSON: {reason_of(error)}") from error
        if not isinstance(found, dict):
            raise DensescoreError(f"{path}: the head's description must be an object, got {_short(found)}")
        self._fields: dict[str, Any] = found

    def _refuse(self, name: str, expected: str) -> NoReturn:
        got = _short(self._fields[name]) if name in self._fields else "nothing"
        raise DensescoreError(f"{self._path}: adaptation head without a valid {name!r}: expected {expected}, got {got}")

    def text(self, name: str) -> str:
        value = self._fields.get(name)
        if not isinstance(value, str) or not value:
            self._refuse(name, "a name")
        return value

    def labels(self) -> tuple[str, ...]:
        labels = self._fields.get("labels")
        if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
            self._refuse("labels", "a list of names")
        if not labels or len(set(labels)) < len(labels):
            self._refuse("labels", "one or more different names")
        return tuple(labels)

    def number(self, name: str, *, default: float, least: float) -> float:
        value = self._fields.get(name, default)
        if not _is_number(value) or value < least:
            self._refuse(name, f"a finite number of at least {least:g}")
        return float(value)

    def channels(self, name: str, *, positive: bool = False) -> tuple[float, float, float]:
        values = self._fields.get(name)
        if not isinstance(values, list) or len(values) != 3 or not all(map(_is_number, values)):
            self._refuse(name, "three finite numbers")
        if positive and min(values) <= 0:
            self._refuse(name, "three finite numbers above 0")
        red, green, blue = map(float, values)
        return red, green, blue

    def patch_size(self) -> int:
        value = self._fields.get("patch_size")
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_PATCH:
            self._refuse("patch_size", f"a whole number from 1 to {MAX_PATCH}")
        return value

    def activation(self) -> Activation:
        value: Any = self._fields.get("activation", "softmax")
        if value not in get_args(Activation):
            self._refuse("activation", "softmax or sigmoid")
        return value

    def scales(self) -> tuple[float, ...] | None:
        values = self._fields.get("scales")
        if values is None:
            return None
        valid = isinstance(values, list) and values and all(_is_number(value) and value > 0 for value in values)
        if not valid or len(values) > _MAX_SCALES:
            self._refuse("scales", f"null, or one to {_MAX_SCALES} positive finite numbers")
        return tuple(map(float, values))

    def training(self) -> dict[str, Any]:
        record = self._fields.get("training", {})
        if not isinstance(record, dict):
            self._refuse("training", "an object")
        for name in ("backbone_digest", "frozen_digest"):
            if not isinstance(record.get(name, ""), str):
                self._refuse("training", f"an object whose {name} is text")
        return record


def _is_number(value: Any) -> bool:
    """A finite number of JSON; a whole number may be too large for a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _short(value: Any) -> str:
    """A value as an error shows it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or of brackets
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}…"
