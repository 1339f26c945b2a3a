"""Train FC6 and FC7 along with the head, on patches whose features are cached below FC6."""

import copy
import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from torch import nn

from densescore.convolutional import to_dense
from densescore.data.boxed import BoxedSet
from densescore.dense_network import DenseNetwork
from densescore.engine import DenseScorer
from densescore.models import load_classifier
from densescore.models.adaptation import HeadFile
from densescore.models.registry import Weights
from densescore.transfer.cache import FeatureCache
from densescore.transfer.patches import check_every_class, gather
from densescore.transfer.pipeline import cached_features, describe, head_file
from densescore.transfer.recipe import Recipe
from densescore.transfer.training import Report, train_head
from densescore.windows import FlattenedWindows, LinearWindows
from densescore_kernels.errors import DensescoreError


def below_fc6(scorer: DenseScorer) -> DenseScorer:
    """A scorer whose features are what FC6 takes: the flattened window of C5's map, ``[M, C·h·w]``.

    Raises:
        DensescoreError: the network has no FC6.
    """
    network = scorer.network
    if not isinstance(network.project, LinearWindows):
        raise DensescoreError(
            f"{scorer.name} has no FC6 to unfreeze: its classifier is one linear layer, which the head replaces; "
            "networks that end in flatten → several linear layers (krizhevsky, alexnet, vgg16) have one"
        )
    width = network.window_width
    windows, same = FlattenedWindows(network.window), nn.Identity()
    cut = copy.copy(scorer)
    cut.network = DenseNetwork(
        network.trunk, windows, same, same, patch=network.patch, stride=network.stride, window=network.window,
        window_width=width, feature_width=width, classes=width,
    ).eval()  # fmt: skip
    cut.network.fast_trunk = network.fast_trunk
    cut.weights_digest = hashlib.sha256(f"below FC6 of {scorer.weights_digest}".encode()).hexdigest()
    return cut


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
    report: Report = lambda *_: None,
) -> HeadFile:
    """As `train_model`, with FC6 and FC7 trained too; the file carries both. C1 to C5 stay as they are.

    Image labels play no part (`Recipe.image_rounds` becomes 0): features below FC6 are too wide to keep whole images.

    Args:
        boxed: the training set.
        scorer: a named model with an FC6, at the scales of training.
        cache: makes the cache of a scorer; a window below FC6 takes 18 KB with AlexNet.
        recipe: see `Recipe`.
        seed: of all draws.
        weights: with which the scorer was loaded.
        checkpoint: a folder; see `train_both`.
        track: wraps the iteration over images, for a progress bar.
        report: told of each round.

    Raises:
        DensescoreError: the network has no FC6; or see `train_model`.
    """
    recipe = replace(recipe, image_rounds=0)
    cut = below_fc6(scorer)
    features = cache(cut)
    patches = gather(boxed, cached_features(cut, features), recipe, seed, track)
    check_every_class(patches, boxed.classes, recipe)
    module = load_classifier(scorer.name, weights=weights).module
    dense = to_dense(module, scorer.network.patch)
    assert isinstance(dense.project, LinearWindows)
    below = nn.Sequential(dense.project.linear, dense.embed)
    path = None if checkpoint is None else Path(checkpoint) / "patches.pt"
    head = train_head(patches, len(boxed.classes), recipe, seed, below=below, checkpoint=path, report=report)
    trained = {id(parameter) for parameter in below.parameters()}
    own = {name: parameter.detach() for name, parameter in module.named_parameters() if id(parameter) in trained}
    file = head_file(boxed, patches, head, recipe, seed, **describe(scorer, features), unfrozen=sorted(own))
    return replace(file, backbone_weights=own)
