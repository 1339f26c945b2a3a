"""Train FC6 and FC7 along with the head, on patches whose features are cached below FC6."""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from torch import nn

from densescore.data.boxed_set import BoxedSet
from densescore.errors import DensescoreError
from densescore.models import load_classifier
from densescore.models.adaptation import HeadFile
from densescore.models.registry import Weights
from densescore.models.weights import digest_of_state
from densescore.network.dense_network import DenseNetwork
from densescore.network.surgery import to_dense
from densescore.network.windows import FlattenedWindows, LinearWindows
from densescore.scoring.crop_network import dense_only
from densescore.scoring.scorer import DenseScorer
from densescore.transfer.feature_cache import FeatureCache
from densescore.transfer.pipeline import cached_features, describe, head_file
from densescore.transfer.recipe import Recipe
from densescore.transfer.rounds import Callback
from densescore.transfer.train_head import train_head
from densescore.transfer.training_patches import check_class_labels, check_every_class, gather


def below_fc6(scorer: DenseScorer, plain: DenseNetwork) -> DenseScorer:
    """A scorer whose features are what FC6 takes: the flattened window of C5's map, ``[M, C·h·w]``.

    Args:
        scorer: whose trunk runs.
        plain: its network, as `to_dense` gives it.

    Raises:
        DensescoreError: the network has no FC6.
    """
    if not isinstance(plain.project, LinearWindows):
        raise DensescoreError(
            f"{scorer.name} has no FC6 to unfreeze: its classifier is one linear layer, which the head replaces; "
            "networks that end in flatten → several linear layers (krizhevsky, alexnet, vgg16) have one"
        )
    width, same = plain.window_width, nn.Identity()
    whole = dense_only(scorer.network, "unfreezing FC6")
    network = DenseNetwork(
        whole.trunk, FlattenedWindows(plain.window), same, same, patch=plain.patch, stride=plain.stride,
        window=plain.window, window_width=width, feature_width=width, classes=width,
    ).eval()  # fmt: skip
    network.fast_trunk = whole.fast_trunk
    return scorer.with_network(network, "below FC6")


def train_unfrozen(
    boxed: BoxedSet,
    scorer: DenseScorer,
    cache: Callable[[DenseScorer], FeatureCache],
    recipe: Recipe,
    seed: int = 0,
    *,
    weights: Weights = "default",
    checkpoint: str | os.PathLike[str] | None = None,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
    callback: Callback = lambda _: None,
) -> HeadFile:
    """As `train_model`, with FC6 and FC7 trained too; the file carries both. C1 to C5 stay as they are.

    Image labels are not used (`Recipe.image_rounds` becomes 0): features below FC6 are too wide
    to cache for whole images.

    Args:
        boxed: the training set.
        scorer: a named model with an FC6, at the scales of training.
        cache: makes the cache of a scorer; a window below FC6 takes 18 KB with AlexNet.
        recipe: see `Recipe`.
        seed: of all draws.
        weights: with which the scorer was loaded.
        checkpoint: a folder; see `train_both`.
        track: wraps the iteration over images, for a progress bar.
        callback: called after each round.

    Raises:
        DensescoreError: the network has no FC6; or see `train_model`.
    """
    check_class_labels(boxed)
    recipe = replace(recipe, image_rounds=0)
    module = load_classifier(scorer.name, weights=weights).module
    plain = to_dense(module, scorer.network.patch)
    cut = below_fc6(scorer, plain)
    features = cache(cut)
    patches = gather(boxed, cached_features(cut, features), recipe, seed, track)
    check_every_class(patches, boxed.classes, recipe)
    assert isinstance(plain.project, LinearWindows)
    below = nn.Sequential(plain.project.linear, plain.embed)
    path = None if checkpoint is None else Path(checkpoint) / "patches.pt"
    head = train_head(patches, len(boxed.classes), recipe, seed, below=below, checkpoint=path, callback=callback)
    trained = {id(parameter) for parameter in below.parameters()}
    own = {name: parameter.detach() for name, parameter in module.named_parameters() if id(parameter) in trained}
    frozen = digest_of_state({name: value for name, value in module.state_dict().items() if name not in own})
    file = head_file(
        boxed, patches, head, recipe, seed, **describe(scorer, features), unfrozen=sorted(own), frozen_digest=frozen
    )
    return replace(file, backbone_weights=own)
