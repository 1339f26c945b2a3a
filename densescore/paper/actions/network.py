"""A classifier with FCa and FCb in place of its last layer: its patches, its parts and its file."""

import json
import os
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms import v2

from densescore.errors import DensescoreError
from densescore.io.files import atomic_write
from densescore.io.images import Pixels
from densescore.io.names import to_json
from densescore.models.efficientnet_lite import EfficientNetLite
from densescore.models.head import AdaptationHead
from densescore.models.registry import Classifier, Weights, load_classifier
from densescore.models.weights import digest_of, load_strict, read_metadata, read_weights

Retrain = Literal["none", "last", "all"]
"""Layers trained with FCa and FCb: none; the trunk's last stage (lite0), or FC6 (the paper's PRE-1512U, networks with
fully connected layers); or all."""

_FORMAT = "densescore-actions-1"


@dataclass(frozen=True)
class ActionRecipe:
    """Every choice of a training except its data and seed."""

    retrain: Retrain = "none"
    margin: float = 1.0  # side of a person's patch over the longer side of the box
    epochs: int = 30
    batch: int = 32
    learning_rate: float = 1e-3  # of FCa and FCb, at its highest: it rises, then falls to 0 (torch's OneCycleLR)
    retrained_rate: float = 2e-4  # of the retrained layers
    weight_decay: float = 0.01
    width: int = 2048  # of FCa

    def __post_init__(self) -> None:
        if self.retrain not in get_args(Retrain):
            raise DensescoreError(f"retrain must be one of {', '.join(get_args(Retrain))}, got {self.retrain!r}")
        for name in ("epochs", "batch", "width"):
            if getattr(self, name) < 1:
                raise DensescoreError(f"{name} must be at least 1, got {getattr(self, name)}")


def person_patch(pixels: Pixels, box: NDArray[np.float32], side: int, margin: float = 1.0) -> Pixels:
    """The square around a box ``x0 y0 x1 y1``, `margin` times its longer side, as RGB ``[P, P, 3]``.

    Pixels past the image's border are mirrored.
    """
    x0, y0, x1, y1 = (float(end) for end in box)
    size = max(1, round(margin * max(x1 - x0, y1 - y0)))
    left, top = round((x0 + x1 - size) / 2), round((y0 + y1 - size) / 2)
    height, width = pixels.shape[:2]
    patch = pixels[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)]
    if patch.shape[:2] != (size, size):
        # OpenCV mirrors as often as needed, whatever the border's width; the border pixel itself is not repeated
        borders = (max(-top, 0), max(top + size - height, 0), max(-left, 0), max(left + size - width, 0))
        mirrored = cv2.copyMakeBorder(pixels, *borders, cv2.BORDER_REFLECT_101)
        patch = mirrored[max(top, 0) : max(top, 0) + size, max(left, 0) : max(left, 0) + size]
    method = cv2.INTER_AREA if size > side else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(patch), (side, side), interpolation=method)


class PersonNetwork(nn.Module):
    """uint8 patches ``[N, 3, P, P]`` → logits ``[N, outputs]``: frozen part, retrained part, frozen rest, head.

    Layers are shared with the classifier, not copied.
    """

    def __init__(self, classifier: Classifier, outputs: int, retrain: Retrain, width: int = 2048) -> None:
        super().__init__()
        normalize = _Normalize(classifier.mean, classifier.std)
        early, last, late = _stages(classifier.module)
        empty = nn.Sequential
        self.frozen, self.retrained, self.rest = {
            "none": (nn.Sequential(normalize, early, last, late), empty(), empty()),
            "last": (nn.Sequential(normalize, early), last, late),
            "all": (empty(), nn.Sequential(normalize, early, last, late), empty()),
        }[retrain]
        for parameter in (*self.frozen.parameters(), *self.rest.parameters()):
            parameter.requires_grad_(False)
        side = classifier.patch_size
        with torch.inference_mode():
            sample = torch.zeros(1, 3, side, side, dtype=torch.uint8)
            features = self.eval().rest(self.retrained(self.frozen(sample))).flatten(1).shape[1]
        self.head = AdaptationHead(features, outputs, width)

    def finish(self, frozen: Tensor) -> Tensor:
        """The frozen part's output → ``[N, outputs]``."""
        return self.head(self.rest(self.retrained(frozen)).flatten(1))

    @property
    def device(self) -> torch.device:
        """The head's device."""
        return self.head.fca.weight.device

    def trained_state(self) -> dict[str, Tensor]:
        """The tensors that training changes."""
        return {name: value for name, value in self.state_dict().items() if name.startswith(("retrained.", "head."))}


class _Normalize(nn.Module):
    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self._mean, self._std = list(mean), list(std)

    def forward(self, pixels: Tensor) -> Tensor:
        return v2.functional.normalize(pixels.float() / 255, self._mean, self._std)


def _stages(module: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    """A classifier without its last layer, in three parts: up to the last stage or FC6; that; and the rest."""
    if isinstance(module, EfficientNetLite):
        early = nn.Sequential(module.conv_stem, module.bn1, *module.blocks[:-1])
        last = nn.Sequential(module.blocks[-1], module.conv_head, module.bn2)
        return early, last, module.global_pool
    layers = getattr(module, "classifier", None)
    if isinstance(layers, nn.Sequential) and hasattr(module, "features") and isinstance(layers[-1], nn.Linear):
        end = next(index for index, layer in enumerate(layers) if isinstance(layer, nn.ReLU)) + 1
        parts = [part for name, part in module.named_children() if name in ("features", "avgpool")]
        return nn.Sequential(*parts, nn.Flatten()), layers[:end], layers[end:-1]
    raise DensescoreError(
        f"{type(module).__name__}: action recognition knows lite0 and networks of features and fully connected layers"
    )


def save_actions(
    path: str | os.PathLike[str],
    network: PersonNetwork,
    labels: tuple[str, ...],
    backbone: str,
    patch_size: int,
    recipe: ActionRecipe,
    training: dict[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Write the trained tensors to a safetensors file, with the name and digest of the backbone for the others."""
    description: dict[str, Any] = {"labels": labels, "backbone": backbone, "patch_size": patch_size}
    description |= {"recipe": asdict(recipe), "frozen": digest_of(network.frozen, network.rest), "training": training}
    metadata = {"format": _FORMAT, "densescore": to_json(description)}
    with atomic_write(path, overwrite=overwrite) as temporary:
        save_file({name: value.contiguous() for name, value in network.trained_state().items()}, temporary, metadata)


def is_actions_file(path: str | os.PathLike[str]) -> bool:
    """Whether `save_actions` wrote it."""
    return read_metadata(path).get("format") == _FORMAT


def load_actions(
    path: str | os.PathLike[str], weights: Weights = "default"
) -> tuple[PersonNetwork, tuple[str, ...], Classifier, ActionRecipe]:
    """Network in evaluation mode, labels, classifier with its preprocessing, and recipe, from `save_actions`' file.

    `weights` are the backbone's, which a network with all layers retrained does not need.
    """
    metadata = read_metadata(path)
    if metadata.get("format") != _FORMAT:
        raise DensescoreError(f"{path}: not trained on actions (format {metadata.get('format')!r}, not {_FORMAT!r})")
    try:
        description = json.loads(metadata["densescore"])
        recipe = ActionRecipe(**description["recipe"])
        labels = tuple(map(str, description["labels"]))
        backbone, side, frozen_digest = description["backbone"], int(description["patch_size"]), description["frozen"]
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:  # json's is a ValueError
        raise DensescoreError(f"{path}: trained on actions, but without a valid {error}") from error
    weights = None if recipe.retrain == "all" and weights == "default" else weights
    classifier = load_classifier(backbone, weights=weights, patch_size=side)
    network = PersonNetwork(classifier, len(labels), recipe.retrain, recipe.width)
    if digest_of(network.frozen, network.rest) != frozen_digest:
        raise DensescoreError(f"{path}: was trained with other weights of {backbone} than {weights}")
    trained = network.trained_state()
    frozen = {name: value for name, value in network.state_dict().items() if name not in trained}
    load_strict(network, {**frozen, **read_weights(path)}, str(path))
    return network.eval(), labels, classifier, recipe
