"""Train FC6 and FC7 along with the head, on patches whose features are cached below FC6."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import nn

from densescore.data.boxed_set import BoxedSet
from densescore.errors import DensescoreError
from densescore.models.head import HeadFile
from densescore.models.registry import Weights, load_classifier
from densescore.models.weights import digest_of_state
from densescore.network.crops import dense_only
from densescore.network.dense_network import DenseNetwork, FlattenedWindows, LinearWindows, replaced
from densescore.network.surgery import to_dense
from densescore.scoring.scorer import DenseScorer
from densescore.transfer.feature_cache import FeatureCache
from densescore.transfer.pipeline import cached_features, describe, head_file
from densescore.transfer.recipe import Recipe
from densescore.transfer.train_head import Callback, train_head
from densescore.transfer.training_set import check_class_labels, check_every_class, gather


def below_fc6(scorer: DenseScorer, plain: DenseNetwork) -> DenseScorer:
    """A scorer whose features are FC6's input: the flattened window of C5's map, ``[M, C·h·w]``.

    `plain` is the scorer's network as `to_dense` gives it.
    """
    if not isinstance(plain.project, LinearWindows):
        raise DensescoreError(
            f"{scorer.name} has no FC6 to unfreeze: its classifier is one linear layer, which the head replaces; "
            "networks that end in flatten → several linear layers (krizhevsky, alexnet, vgg16) have one"
        )
    width, same = plain.window_width, nn.Identity()
    whole = dense_only(scorer.network, "unfreezing FC6")
    network = replaced(
        whole, project=FlattenedWindows(plain.window), embed=same, classifier=same,
        window_width=width, feature_width=width, classes=width,
    )  # fmt: skip
    return scorer.with_network(network, "below FC6")


def train_unfrozen(
    boxed: BoxedSet,
    scorer: DenseScorer,
    cache: Callable[[DenseScorer], FeatureCache],
    recipe: Recipe,
    seed: int = 0,
    *,
    weights: Weights = "default",
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
    callback: Callback = lambda _: None,
) -> HeadFile:
    """As `train_model`, with FC6 and FC7 trained with the head; the file carries all three. C1 to C5 stay as they are.

    Images without boxes are not used: features below FC6 (18 KB a patch with AlexNet) are too wide to cache for them.
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
    head = train_head(patches, len(boxed.classes), recipe, seed, below=below, callback=callback)
    trained = {id(parameter) for parameter in below.parameters()}
    weights_of_fc = {name: value.detach() for name, value in module.named_parameters() if id(value) in trained}
    frozen = {name: value for name, value in module.state_dict().items() if name not in weights_of_fc}
    file = head_file(
        boxed, patches, head, recipe, seed, **describe(scorer, features), unfrozen=sorted(weights_of_fc),
        frozen_digest=digest_of_state(frozen),
    )  # fmt: skip
    return replace(file, backbone_weights=weights_of_fc)
