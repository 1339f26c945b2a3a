"""Train FCa and FCb on cached features by SGD with momentum: on labeled patches first, then on the labels of images."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densescore.errors import DensescoreError
from densescore.models.head import AdaptationHead
from densescore.transfer.recipe import Objective, Recipe
from densescore.transfer.training_set import FeatureBasis, TrainingPatches, feature_basis
from densescore_kernels import power_mean

STAGES = 3
"""Stages on labeled patches: "initially 0.01, divided by 10 each time" of Section 3.2."""

BELOW_RATE = 0.1
"""Learning rate of pretrained layers below the head, relative to the head's."""

PATCH_LOSS: dict[Objective, str] = {
    "softmax": "cross-entropy of a patch over classes and background",
    "multilabel": "binary cross-entropy of a patch, summed over classes",
}
IMAGE_LOSS = "binary cross-entropy of an image's confidence, summed over classes"


class Round(NamedTuple):
    """Progress after each training round.

    Example:
        >>> print(Round(1, 5, 2, 4, 0.6931, "binary cross-entropy of a patch"))
        stage 1 of 5, round 2 of up to 4: loss 0.6931 (binary cross-entropy of a patch)
    """

    stage: int  # from 1
    stages: int  # of the whole training
    round: int  # from 1, in its stage
    rounds: int  # most rounds of the stage; stages on labeled patches end when the loss stops falling
    loss: float  # mean over the round
    loss_name: str
    part: str = "head"  # of the whole training
    held_out: float | None = None  # mean AP on the images held out so far, in cross-validation

    def __str__(self) -> str:
        return (
            f"stage {self.stage} of {self.stages}, round {self.round} of up to {self.rounds}: "
            f"loss {self.loss:.4g} ({self.loss_name})"
        )


Callback = Callable[[Round], None]
"""Called after each round."""


def within(callback: Callback, before: int, stages: int) -> Callback:
    """A callback for a part of a training of `stages` stages, `before` of which come earlier."""
    return lambda done: callback(done._replace(stage=before + done.stage, stages=stages))


def train_heads(
    patches: TrainingPatches,
    classes: int,
    recipe: Recipe,
    seed: int,
    *,
    basis: FeatureBasis | None = None,
    callback: Callback = lambda _: None,
) -> AdaptationHead:
    """Train `Recipe.heads` heads and return their mean, as one layer for raw features; seeds follow from `seed`.

    `basis`: the basis that the patches' features are in already.
    """
    # Standardize features; the change of basis is folded into the trained layer
    if basis is None and recipe.standardize:
        basis = feature_basis(patches, recipe.components)
        patches = patches.project(basis)

    # Train each head from its own first weights
    seeds = [seed, *np.random.SeedSequence(seed).generate_state(recipe.heads - 1).tolist()]
    stages = count_stages(patches, recipe)
    heads = [
        train_head(patches, classes, recipe, s, callback=within(callback, number * stages, recipe.heads * stages))
        for number, s in enumerate(seeds)
    ]
    head = AdaptationHead.mean(heads)
    return head if basis is None else head.folded(basis.shift, basis.axes)


class _Phase(NamedTuple):
    """Stages on one kind of labels, each at a tenth of the learning rate of the stage before."""

    rounds: list[int]  # most rounds of each stage
    learning_rate: float  # of the first stage
    patience: float  # consecutive stale rounds that end a stage
    loss_name: str
    run_round: Callable[[nn.Module, torch.optim.Optimizer, int], float]  # number of the round → mean loss


def train_head(
    patches: TrainingPatches,
    classes: int,
    recipe: Recipe,
    seed: int,
    *,
    below: nn.Module | None = None,
    callback: Callback = lambda _: None,
) -> AdaptationHead:
    """Train one head: features ``[N, D]`` → ``[N, C + 1]`` logits with background, or ``[N, C]`` for ``"multilabel"``.

    `below`: pretrained layers (FC6, FC7) between features and head, trained in place at `BELOW_RATE`.
    """
    # First weights
    features = torch.from_numpy(patches.features)
    width = features.shape[1]
    if below is not None:
        with torch.no_grad():
            width = below.eval()(features[:1].float()).shape[1]
    head = new_head(width, classes, recipe, seed)
    network = head if below is None else nn.Sequential(below, head)
    network.train()

    # Labeled patches first, then the labels of images
    on_patches, on_images = _rounds(patches, recipe)
    image_rate = recipe.image_learning_rate if on_patches else recipe.learning_rate
    patch_round = partial(
        _patch_round, patches=patches, weights=_draw_weights(patches, classes, recipe), recipe=recipe, seed=seed
    )
    image_round = partial(_image_round, patches=patches, recipe=recipe, seed=seed)
    phases = (
        _Phase(on_patches, recipe.learning_rate, recipe.patience, PATCH_LOSS[recipe.objective], patch_round),
        _Phase(on_images, image_rate, float("inf"), IMAGE_LOSS, image_round),
    )
    stage, stages = 0, len(on_patches) + len(on_images)
    for phase in phases:
        optimizer = _optimizer(head, below, recipe)
        total = 0
        for tenths, rounds in enumerate(phase.rounds):
            stage += 1
            for group in optimizer.param_groups:
                group["lr"] = phase.learning_rate * group["factor"] / 10**tenths
            best, stale = float("inf"), 0
            for number in range(1, rounds + 1):
                loss = phase.run_round(network, optimizer, total)
                callback(Round(stage, stages, number, rounds, loss, phase.loss_name))
                check_finite(loss, phase.learning_rate)
                total += 1
                stale = stale + 1 if loss > best * (1 - recipe.tolerance) else 0
                best = min(best, loss)
                if stale >= phase.patience:
                    break
    network.eval()
    return head


def _rounds(patches: TrainingPatches, recipe: Recipe) -> tuple[list[int], list[int]]:
    """Most rounds of each stage on labeled patches, and of each on image labels: three quarters, then the rest."""
    on_patches = [recipe.max_rounds] * STAGES if len(patches.features) else []
    if not recipe.image_rounds:
        return on_patches, []
    passes = recipe.label_rounds if patches.only_labels else recipe.image_rounds
    return on_patches, [rounds for rounds in (passes - passes // 4, passes // 4) if rounds]


def count_stages(patches: TrainingPatches, recipe: Recipe) -> int:
    """Stages of the training of one head."""
    return sum(map(len, _rounds(patches, recipe)))


def new_head(width: int, classes: int, recipe: Recipe, seed: int) -> AdaptationHead:
    """A head with random weights, for C classes and, with ``"softmax"``, background."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = AdaptationHead(width, classes + (recipe.objective == "softmax"), recipe.width)
    head.dropout.p = recipe.dropout
    return head


def _optimizer(head: nn.Module, below: nn.Module | None, recipe: Recipe) -> torch.optim.Optimizer:
    groups = [{"params": head.parameters(), "factor": 1.0}]
    if below is not None:
        groups.append({"params": below.parameters(), "factor": BELOW_RATE})
    return torch.optim.SGD(groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def take_step(optimizer: torch.optim.Optimizer, loss: Tensor, recipe: Recipe) -> None:
    """One step down the gradient of `loss`, whose norm is clipped to `Recipe.max_gradient`."""
    optimizer.zero_grad()
    loss.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if recipe.max_gradient is not None:
        nn.utils.clip_grad_norm_(parameters, recipe.max_gradient)
    optimizer.step()


def check_finite(loss: float, rate: float) -> None:
    """Stop a training that diverged."""
    if not np.isfinite(loss):
        raise DensescoreError(f"the training loss became {loss}: the learning rate {rate} is too high for these data")


def patch_loss(logits: Tensor, labels: Tensor, objective: Objective) -> Tensor:
    """Mean loss of a batch: logits ``[N, C + 1]``, or ``[N, C]`` for ``"multilabel"``; `TrainingPatches.labels`.

    Cross-entropy over classes and background, or per class, without ambiguous pairs of patch and class.
    """
    if objective == "softmax":
        return F.cross_entropy(logits, labels)
    known = labels != 0
    losses = F.binary_cross_entropy_with_logits(logits, (labels == 1).float(), reduction="none")
    return (losses * known).sum() / len(labels)


def _draw_weights(patches: TrainingPatches, classes: int, recipe: Recipe) -> Tensor | None:
    """Relative frequency at which each patch is drawn: float64 ``[N]``, or None if uniform."""
    if recipe.balance == 0:
        return None
    counts = np.maximum(np.array(patches.counts(classes), np.float64), 1)
    rarity = counts**-recipe.balance  # [C + 1]
    labels = patches.labels
    if labels.ndim == 1:
        return torch.from_numpy(rarity[labels])
    rarest = np.where(labels == 1, rarity[:-1], 0).max(1)  # a patch of several classes counts as its rarest
    return torch.from_numpy(np.where(rarest > 0, rarest, rarity[-1]))


def _patch_round(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    number: int,
    *,
    patches: TrainingPatches,
    weights: Tensor | None,
    recipe: Recipe,
    seed: int,
) -> float:
    """Steps on `Recipe.round` labeled patches; the mean loss. All randomness follows from the seed and the number."""
    features, labels = torch.from_numpy(patches.features), torch.from_numpy(patches.labels)

    # Draw patches
    count = min(recipe.round, len(features))
    generator = torch.Generator().manual_seed(int(np.random.default_rng([seed, number]).integers(2**62)))
    if weights is None:
        order = torch.randperm(len(features), generator=generator)[:count]
    else:
        order = torch.multinomial(weights, count, replacement=True, generator=generator)

    # Take a step for each batch
    total = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.default_rng([seed, number, 1]).integers(2**62)))  # for dropout
        for batch in order.split(recipe.batch):
            inputs = F.dropout(features[batch].float(), recipe.feature_dropout)  # [N, D]
            loss = patch_loss(network(inputs), labels[batch], recipe.objective)
            take_step(optimizer, loss, recipe)
            total += loss.item() * len(batch)
    return total / count


def _image_round(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    number: int,
    *,
    patches: TrainingPatches,
    recipe: Recipe,
    seed: int,
) -> float:
    """One pass over the images, with labeled patches in each batch; the mean image loss."""
    bags, truth = torch.from_numpy(patches.bags), torch.from_numpy(patches.truth)
    features, labels = torch.from_numpy(patches.features), torch.from_numpy(patches.labels)
    draw = np.random.default_rng([seed, STAGES, number])
    total, classes = 0.0, truth.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(draw.integers(2**62)))  # for dropout
        for images in torch.from_numpy(draw.permutation(len(bags))).split(recipe.image_batch):
            # Draw some patches of each image's bag, and labeled patches
            columns = torch.from_numpy(draw.permutation(bags.shape[1])[: recipe.image_patches])
            bag_features = bags[images][:, columns].flatten(0, 1)  # [B n, D]
            labeled = torch.from_numpy(draw.integers(0, len(features), recipe.batch if len(features) else 0))

            # Score both in one pass
            inputs = torch.cat([bag_features, features[labeled]]).float()
            logits = network(F.dropout(inputs, recipe.feature_dropout))
            bag_logits, patch_logits = logits[: len(bag_features)], logits[len(bag_features) :]
            softmax = recipe.objective == "softmax"
            probabilities = bag_logits.softmax(1)[:, :classes] if softmax else bag_logits.sigmoid()

            # Take a step down both losses
            loss = image_loss(image_confidence(probabilities, len(images), recipe.image_k), truth[images])
            labeled_loss = patch_loss(patch_logits, labels[labeled], recipe.objective) if len(labeled) else 0.0
            take_step(optimizer, loss + recipe.patch_weight * labeled_loss, recipe)
            total += loss.item() * len(images)
    return total / len(bags)


def image_confidence(probabilities: Tensor, images: int, k: float) -> Tensor:
    """The k-th root of eq. (1), ``(mean_i y_i^k)^(1/k)``: ``[B n, C]``, n patches of each of B images → ``[B, C]``.

    Differentiable at any k: scores are divided by the image's highest, so y^k underflows only where it adds nothing.
    """
    bags = probabilities.unflatten(0, (images, -1))  # [B, n, C]
    highest = bags.detach().amax(1, keepdim=True).clamp(min=torch.finfo(bags.dtype).tiny)  # [B, 1, C]
    offsets = torch.arange(0, len(probabilities) + 1, bags.shape[1])
    return power_mean((bags / highest).flatten(0, 1), offsets, k).pow(1 / k) * highest[:, 0]


def image_loss(scores: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy of image scores ``[B, C]``, summed over classes; the mean over images.

    `truth` ``[B, C]``: 1, -1, or 0 for difficult or unknown, which bears no loss.
    """
    losses = F.binary_cross_entropy(scores.clamp(1e-5, 1 - 1e-5), (truth == 1).float(), reduction="none")
    return (losses * (truth != 0)).sum() / len(scores)
