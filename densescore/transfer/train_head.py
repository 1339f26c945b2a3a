"""Train FCa and FCb on the features of drawn patches: SGD with momentum, three stages, resumable."""

import os
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densescore.errors import DensescoreError
from densescore.models.adaptation import AdaptationHead
from densescore.transfer.recipe import Objective, Recipe
from densescore.transfer.schedule import Schedule, fingerprint
from densescore.transfer.training_patches import TrainingPatches

STAGES = 3
"""The first learning rate, then a tenth of it, twice: "initially 0.01, divided by 10 each time" of Section 3.2."""

BELOW_RATE = 0.1
"""Learning rate of layers that were trained before, over that of the new ones."""

Callback = Callable[[int, int, float], None]
"""(stage, round, mean loss of the round) → nothing."""


def train_head(
    patches: TrainingPatches,
    classes: int,
    recipe: Recipe,
    seed: int,
    *,
    below: nn.Module | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callback = lambda *_: None,
) -> AdaptationHead:
    """Train a head, and the layers below it if they are given.

    Args:
        patches: drawn by the same recipe.
        classes: C, without background.
        recipe: see `Recipe`.
        seed: of the layer's first weights, the order of the patches and dropout.
        below: trained layers (FC6 and FC7) that stand between the patches' features and the head; changed in place, at
            a tenth of the head's learning rate.
        checkpoint: a file that is written after each round and read at the start if it is there, so that a training
            that was killed goes on from its last round to the very weights that it would have had. The caller removes
            it.
        callback: called after each round.

    Returns:
        The layer, in evaluation mode: ``[N, D]`` → ``[N, C + 1]`` logits, or ``[N, C]`` for ``"multilabel"``.

    Raises:
        DensescoreError: the loss is not finite, or `checkpoint` belongs to another training.
    """
    features = torch.from_numpy(patches.features)
    width = features.shape[1]
    if below is not None:
        with torch.no_grad():
            width = below.eval()(features[:1].float()).shape[1]
    labels = torch.from_numpy(patches.labels)
    weights = _weights(patches, classes, recipe)
    head = new_head(width, classes, recipe, seed)
    network = head if below is None else nn.Sequential(below, head)
    groups = [{"params": head.parameters(), "rate": recipe.learning_rate}]
    if below is not None:
        groups.append({"params": below.parameters(), "rate": recipe.learning_rate * BELOW_RATE})
    optimizer = torch.optim.SGD(groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    schedule = Schedule(checkpoint, fingerprint(recipe, seed, patches.labels, patches.features), network, optimizer)
    schedule.resume()
    network.train()
    while schedule.stage < STAGES:
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] / 10**schedule.stage
        loss = _run_round(network, optimizer, features, labels, weights, recipe, [seed, schedule.total])
        callback(schedule.stage, schedule.round, loss)
        check_finite(loss, recipe.learning_rate)
        schedule.advance(loss, recipe.tolerance, recipe.patience, recipe.max_rounds)
    network.eval()
    return head


def new_head(width: int, classes: int, recipe: Recipe, seed: int) -> AdaptationHead:
    """A head with random weights, for `classes` classes and, with ``"softmax"``, background."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = AdaptationHead(width, classes + (recipe.objective == "softmax"), recipe.width)
    head.dropout.p = recipe.dropout
    return head


def check_finite(loss: float, rate: float) -> None:
    """Stop a training that diverged, before its state is written.

    Raises:
        DensescoreError: it has.
    """
    if not np.isfinite(loss):
        raise DensescoreError(f"the training loss became {loss}: the learning rate {rate} is too high for these data")


def patch_loss(logits: Tensor, labels: Tensor, objective: Objective) -> Tensor:
    """Mean loss of a batch of patches.

    Args:
        logits: ``[N, C + 1]``, or ``[N, C]`` for ``"multilabel"``.
        labels: as `TrainingPatches.labels`.
        objective: cross-entropy over classes and background, or per class, without the pairs that are left out.
    """
    if objective == "softmax":
        return F.cross_entropy(logits, labels)
    known = labels != 0
    losses = F.binary_cross_entropy_with_logits(logits, (labels == 1).float(), reduction="none")
    return (losses * known).sum() / len(labels)


def _weights(patches: TrainingPatches, classes: int, recipe: Recipe) -> Tensor | None:
    """How often each patch is drawn, relative to the others: float64 ``[N]``; None where all are alike."""
    if recipe.balance == 0:
        return None
    counts = np.maximum(np.array(patches.counts(classes), np.float64), 1)
    rarity = counts**-recipe.balance  # [C + 1]
    labels = patches.labels
    if labels.ndim == 1:
        return torch.from_numpy(rarity[labels])
    rarest = np.where(labels == 1, rarity[:-1], 0).max(1)  # a patch of several classes counts as its rarest
    return torch.from_numpy(np.where(rarest > 0, rarest, rarity[-1]))


def _run_round(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    features: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    recipe: Recipe,
    seeds: list[int],
) -> float:
    """One round of steps; the mean loss. All randomness derives from `seeds`, so that a round is reproducible."""
    count = min(recipe.round, len(features))
    generator = torch.Generator().manual_seed(int(np.random.default_rng(seeds).integers(2**62)))
    if weights is None:
        order = torch.randperm(len(features), generator=generator)[:count]
    else:
        order = torch.multinomial(weights, count, replacement=True, generator=generator)
    total = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.default_rng([*seeds, 1]).integers(2**62)))  # of dropout
        for batch in order.split(recipe.batch):
            loss = patch_loss(network(features[batch].float()), labels[batch], recipe.objective)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
    return total / count
