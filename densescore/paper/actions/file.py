"""The file of a network that was trained on persons: the trained tensors, and the network that the rest comes from."""

import json
import os
from dataclasses import asdict
from typing import Any

from safetensors.torch import save_file

from densescore.errors import DensescoreError
from densescore.io.files import atomic_write
from densescore.models.registry import Classifier, Weights, load_classifier
from densescore.models.weights import digest_of, load_strict, read_metadata, read_weights
from densescore.paper.actions.network import PersonNetwork
from densescore.paper.actions.training import ActionRecipe

_FORMAT = "densescore-actions-1"


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
    """Write what was trained to a safetensors file, whole or not at all.

    Args:
        path: the file.
        network: of `train_persons`.
        labels: of its outputs.
        backbone: name of the model whose layers were transferred.
        patch_size: P.
        recipe: it was trained by.
        training: plain JSON values, for the record.
        overwrite: replace what is there.
    """
    description: dict[str, Any] = {
        "labels": labels,
        "backbone": backbone,
        "patch_size": patch_size,
        "recipe": asdict(recipe),
    }
    description["frozen"] = digest_of(network.frozen, network.rest)
    metadata = {"format": _FORMAT, "densescore": json.dumps({**description, "training": training})}
    with atomic_write(path, overwrite=overwrite) as temporary:
        save_file({name: value.contiguous() for name, value in network.trained_state().items()}, temporary, metadata)


def is_actions_file(path: str | os.PathLike[str]) -> bool:
    """Whether `save_actions` wrote it."""
    return read_metadata(path).get("format") == _FORMAT


def load_actions(
    path: str | os.PathLike[str], weights: Weights = "default"
) -> tuple[PersonNetwork, tuple[str, ...], Classifier, ActionRecipe]:
    """Read what `save_actions` wrote.

    Args:
        path: the file.
        weights: of the backbone's frozen layers; not needed where all were retrained.

    Returns:
        The network, in evaluation mode; its labels; the classifier with its preprocessing; and the recipe.

    Raises:
        DensescoreError: not such a file, or weights that do not fit it.
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
    state = network.state_dict()
    trained = read_weights(path)
    frozen = {name: value for name, value in state.items() if not name.startswith(("retrained.", "head."))}
    load_strict(network, {**frozen, **trained}, str(path))
    return network.eval(), labels, classifier, recipe
