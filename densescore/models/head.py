"""The adaptation layer of the paper, FCa and FCb, and its file."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from densescore.errors import DensescoreError, reason_of
from densescore.io.files import atomic_write
from densescore.io.names import to_json
from densescore.models.box_layer import BoxLayer
from densescore.models.calibration import Calibration
from densescore.models.weights import check_fits, check_weights_finite, load_strict, read_metadata, read_weights

BACKGROUND = "background"
"""Label of the class of patches that show none of the others."""

Activation = Literal["softmax", "sigmoid"]
"""Logits → probabilities: one distribution over classes and background, or independent classes (no background)."""

MAX_PATCH = 4096
"""Largest side of a network's input in pixels; no classifier comes near it."""

_MAX_SCALES = 1000
_FORMAT = "densescore-adaptation-1"
_FORMAT_BOXES = "densescore-adaptation-2"  # with a box layer, unknown to readers of the first
_BACKBONE = "backbone."  # before the names of the backbone's tensors in a file
_BOXES = "boxes."  # before the names of the box layer's
_SIZES = ("reduce.weight", "look.weight")  # their rows are the sizes of a box layer
_Layer = TypeVar("_Layer", bound=nn.Module)


class AdaptationHead(nn.Module):
    """FCa (ReLU, dropout) and FCb: ``[N, D]`` features → ``[N, classes]`` logits; Section 3.1 of the paper.

    `classes` include background; `width`: outputs of FCa, 2048 in the paper.
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

    @classmethod
    def mean(cls, heads: Sequence["AdaptationHead"]) -> "AdaptationHead":
        """One head whose logits are the mean of the heads' logits; their FCa lie side by side."""
        weights = {
            "fca.weight": torch.cat([head.fca.weight for head in heads]),  # [n width, D]
            "fca.bias": torch.cat([head.fca.bias for head in heads]),
            "fcb.weight": torch.cat([head.fcb.weight for head in heads], 1) / len(heads),  # [classes, n width]
            "fcb.bias": torch.stack([head.fcb.bias for head in heads]).mean(0),
        }
        return cls._from_weights(weights, heads[0].dropout.p)

    def folded(self, shift: Tensor, axes: Tensor) -> "AdaptationHead":
        """The head on x that equals this head on ``(x - shift) @ axes``; shift ``[D]``, axes ``[D, d]``.

        ``W ((x - m) A) + b = (W Aᵀ) x + (b - W Aᵀ m)``.
        """
        weight = self.fca.weight @ axes.T  # [width, D]
        weights = {**self.state_dict(), "fca.weight": weight, "fca.bias": self.fca.bias - weight @ shift}
        return self._from_weights(weights, self.dropout.p)

    @classmethod
    def _from_weights(cls, weights: dict[str, Tensor], dropout: float) -> "AdaptationHead":
        width, features = weights["fca.weight"].shape
        head = cls(features, len(weights["fcb.bias"]), width)
        head.load_state_dict(weights)
        head.dropout.p = dropout
        return head.eval()


@dataclass(frozen=True)
class HeadFile:
    """Contents of a head's file: the layer, its labels, and the network and preprocessing it was trained on.

    Attributes:
        head: FCa and FCb.
        labels: one per output of FCb, with `BACKGROUND` if the head has that class.
        backbone: name of the network whose features the head takes (see ``densescore models``).
        mean: channel means that are subtracted, of pixels in [0, 1].
        std: channel deviations that are divided by, of pixels in [0, 1].
        patch_size: P of the backbone.
        activation: ``"softmax"`` or ``"sigmoid"``: logits → probabilities.
        scales: λ per level at which the head is used by default; None for the paper's.
        k: default exponent of the image score.
        training: recipe, seed, data and versions, as plain JSON values, for the record.
        backbone_weights: tensors of the network that were trained along with the head, by the network's names; they
            replace its own. Empty if the network stayed as it was.
        box_layer: predicts the boxes of objects, or None.
        calibration: confidences → probabilities, at these scales and k, or None.

    Example:
        >>> head = AdaptationHead(1280, 2)
        >>> file = HeadFile(head, ("cat", "background"), "lite0", (0.5,) * 3, (0.5,) * 3, 224)
        >>> file.k, file.activation
        (5.0, 'softmax')
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
    calibration: Calibration | None = None

    def push_to_hub(self, repo: str, *, private: bool = False) -> str:
        """Upload the head to the Hugging Face Hub with a model card; ``hf-hub:user/name`` then loads it.

        Args:
            repo: ``user/name``, made if needed. `huggingface_hub` knows the account (``hf auth login``, ``HF_TOKEN``).
            private: whether a new repository is private.

        Returns:
            Address of the repository's page.

        Raises:
            DensescoreError: no connection, or no right to write there.

        Example:
            >>> load_head("head.safetensors").push_to_hub("me/birds")  # doctest: +SKIP
            'https://huggingface.co/me/birds'
        """
        from densescore.models import hub

        return hub.upload(repo, partial(save_head, file=self), self.card(repo), private=private)

    def card(self, name: str) -> str:
        """A model card in Markdown, from the head's own record: classes, held-out AP, and how it is used."""
        known = self.training.get("held_out_ap", {})
        rows = [
            f"| {label} | {self.training.get('labels', {}).get(label, '–')} | {_digits(known.get(label))} |"
            for label in self.labels
            if label != BACKGROUND
        ]
        values = [value for value in known.values() if value is not None]
        mean = f" Mean AP in cross-validation: {sum(values) / len(values):.3f}." if values else ""
        return (
            f"---\nlibrary_name: densescore\npipeline_tag: image-classification\ntags: [densescore]\n---\n# {name}\n\n"
            f"{len(rows)} classes, and where they are in a photograph: an adaptation head for `{self.backbone}`, "
            f"trained on {self.training.get('images', '–')} images.{mean}\n\n"
            f"```python\nimport densescore\n\nscores = densescore.classify('photo.jpg', 'hf-hub:{name}')\n"
            "scores.top(5), scores.plot()\n```\n\n| class | images | AP, held out |\n| --- | --- | --- |\n"
            + "\n".join(rows)
            + "\n"
        )


def _digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def save_head(path: str | os.PathLike[str], file: HeadFile, *, overwrite: bool = False) -> None:
    """Write a head to a safetensors file, whole or not at all.

    Args:
        path: file to write (``.safetensors``).
        file: the head and its metadata.
        overwrite: replace an existing file.

    Raises:
        DensescoreError: the file exists and `overwrite` is off; or labels do not match the head's outputs.

    Example:
        >>> save_head("head.safetensors", train_model(images, scorer, cache, recipe))  # doctest: +SKIP
    """
    if len(file.labels) != file.head.fcb.out_features:
        raise DensescoreError(f"labels: got {len(file.labels)} for {file.head.fcb.out_features} outputs of FCb")
    tensors = file.head.state_dict() | {_BACKBONE + name: tensor for name, tensor in file.backbone_weights.items()}
    if file.box_layer is not None:
        tensors |= {_BOXES + name: tensor for name, tensor in file.box_layer.state_dict().items()}
    words = [e.name for e in fields(file) if e.name not in ("head", "backbone_weights", "box_layer", "calibration")]
    description = {name: getattr(file, name) for name in words}
    if file.calibration is not None:
        description["calibration"] = asdict(file.calibration)
    metadata = {"format": _FORMAT if file.box_layer is None else _FORMAT_BOXES, "densescore": to_json(description)}
    with atomic_write(path, overwrite=overwrite) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def load_head(path: str | os.PathLike[str]) -> HeadFile:
    """Read a file of `save_head`.

    Args:
        path: the file (``.safetensors``).

    Raises:
        DensescoreError: the file is not a head's; a field is missing or of the wrong kind; or tensors do not fit the
            labels, or are not finite.

    Example:
        >>> load_head("head.safetensors").labels  # doctest: +SKIP
        ('cat', 'dog', 'background')
    """
    metadata = read_metadata(path) if Path(path).is_file() else {}
    weights = read_weights(path)
    if metadata.get("format") not in (_FORMAT, _FORMAT_BOXES):
        raise DensescoreError(f"{path}: not an adaptation head (format {metadata.get('format')!r}, not {_FORMAT!r})")
    fields = _read_description(os.fspath(path), metadata.get("densescore", ""))
    trained = {name: weights.pop(name) for name in list(weights) if name.startswith(_BACKBONE)}
    boxes = {name.removeprefix(_BOXES): weights.pop(name) for name in list(weights) if name.startswith(_BOXES)}
    head = _head(weights, len(fields["labels"]), os.fspath(path))
    return HeadFile(
        head=head,
        backbone_weights={name.removeprefix(_BACKBONE): tensor for name, tensor in trained.items()},
        box_layer=_box_layer(boxes, head.fca.in_features, os.fspath(path)) if boxes else None,
        **fields,
    )


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


def _read_description(path: str, text: str) -> dict[str, Any]:
    """Checked fields of the description in a head's file; errors name the file, the field and its value."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DensescoreError(f"{path}: the head's description is not JSON: {reason_of(error)}") from error
    if not isinstance(values, dict):
        raise DensescoreError(f"{path}: the head's description must be an object, got {_short(values)}")
    for name, (expected, valid) in _FIELDS.items():
        if not valid(values[name] if name in values else _DEFAULTS.get(name)):
            got = _short(values[name]) if name in values else "nothing"
            raise DensescoreError(f"{path}: adaptation head without a valid {name!r}: expected {expected}, got {got}")
    fields: dict[str, Any] = {name: values.get(name, _DEFAULTS.get(name)) for name in _FIELDS}
    try:
        fields["calibration"] = Calibration.from_json(values["calibration"]) if values.get("calibration") else None
    except DensescoreError as error:
        raise DensescoreError(f"{path}: {error}") from error
    for name in ("labels", "mean", "std", "scales"):
        if fields[name] is not None:
            fields[name] = tuple(fields[name] if name == "labels" else map(float, fields[name]))
    return fields | {"k": float(fields["k"])}


def _are_labels(value: Any) -> bool:
    named = isinstance(value, list) and all(isinstance(label, str) and label for label in value)
    return named and 0 < len(value) == len(set(value))


def _are_channels(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))


def _are_scales(value: Any) -> bool:
    listed = isinstance(value, list) and 1 <= len(value) <= _MAX_SCALES
    return value is None or (listed and all(_is_number(scale) and scale > 0 for scale in value))


def _is_record(value: Any) -> bool:
    digests = ("backbone_digest", "frozen_digest")
    return isinstance(value, dict) and all(isinstance(value.get(name, ""), str) for name in digests)


def _is_number(value: Any) -> bool:
    """A finite number of JSON; a whole number may be too large for a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _short(value: Any) -> str:
    """A value in an error message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or of brackets
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}…"


_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "labels": ("a list of one or more different names", _are_labels),
    "backbone": ("a name", lambda value: isinstance(value, str) and value != ""),
    "mean": ("three finite numbers", _are_channels),
    "std": ("three finite numbers above 0", lambda value: _are_channels(value) and min(value) > 0),
    "patch_size": (
        f"a whole number from 1 to {MAX_PATCH}", lambda value: type(value) is int and 1 <= value <= MAX_PATCH
    ),
    "activation": ("softmax or sigmoid", lambda value: value in get_args(Activation)),
    "scales": (f"null, or one to {_MAX_SCALES} positive finite numbers", _are_scales),
    "k": ("a finite number of at least 1", lambda value: _is_number(value) and value >= 1),
    "training": ("an object whose digests are text", _is_record),
}  # fmt: skip
"""Expected values of the description's fields, in words and as a check."""

_DEFAULTS: dict[str, Any] = {"activation": "softmax", "k": 5.0, "training": {}}
