"""Train a head on image labels: make the image score of eq. (1) say which classes an image shows.

A random sample of all patches of an image is scored, and the loss is on the power mean of the scores, as at test time.
This is differentiable, so that labels of images are enough: no box says where an object is (compare Oquab et al., "Is
object localization for free?", CVPR 2015, which takes the maximum). Where boxes taught the head first, the loss on
labeled patches goes on beside it, and keeps scores where the objects are.
"""

import os

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from densescore.errors import DensescoreError
from densescore.models.adaptation import AdaptationHead
from densescore.transfer.recipe import Recipe
from densescore.transfer.schedule import Schedule, fingerprint
from densescore.transfer.train_head import (
    STAGES,
    Callback,
    check_finite,
    new_head,
    patch_loss,
)
from densescore.transfer.training_patches import TrainingPatches
from densescore_kernels import power_mean

IMAGE_STAGES = 2
"""The recipe's learning rate, then a tenth of it for the last quarter of the passes."""


def tune_on_images(
    head: AdaptationHead,
    patches: TrainingPatches,
    recipe: Recipe,
    seed: int,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callback = lambda *_: None,
) -> AdaptationHead:
    """Train a head that `train_head` gave on the labels of images: `Recipe.image_rounds` passes over them.

    Args:
        head: takes features; it is changed.
        patches: with bags.
        recipe: see `Recipe`; the last quarter of the passes has a tenth of the learning rate.
        seed: of the order and of dropout.
        checkpoint: as in `train_head`; another file.
        callback: called after each pass; its stages follow those of `train_head`.

    Returns:
        The head, in evaluation mode.

    Raises:
        DensescoreError: the loss is not finite, or `checkpoint` belongs to another training.
    """
    optimizer = torch.optim.SGD(
        head.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    schedule = Schedule(
        checkpoint, fingerprint(recipe, seed, patches.labels, patches.truth, patches.bags), head, optimizer
    )
    schedule.resume()
    passes = recipe.label_rounds if patches.only_labels else recipe.image_rounds
    lengths = (passes - passes // 4, passes // 4)
    head.train()
    while schedule.stage < len(lengths) and lengths[schedule.stage] > 0:
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate / 10**schedule.stage
        draw = np.random.default_rng([seed, STAGES, schedule.total])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(draw.integers(2**62)))  # of dropout
            loss = _run_round(head, optimizer, patches, recipe, draw)
        callback(STAGES + schedule.stage, schedule.round, loss)
        check_finite(loss, recipe.learning_rate)
        schedule.advance(loss, 0.0, passes + 1, lengths[schedule.stage])
    return head.eval()


def train_on_images(
    patches: TrainingPatches,
    classes: int,
    recipe: Recipe,
    seed: int,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callback = lambda *_: None,
) -> AdaptationHead:
    """Train a head from random weights on the labels of images alone.

    Args:
        patches: with bags, and without labeled patches.
        classes: C.
        recipe: see `Recipe`; it must train on image labels.
        seed: of the first weights, the order and dropout.
        checkpoint: see `tune_on_images`.
        callback: see `tune_on_images`.

    Returns:
        The head, in evaluation mode.

    Raises:
        DensescoreError: the recipe does not train on image labels; or see `tune_on_images`.
    """
    if not recipe.image_rounds:
        raise DensescoreError("images have no boxes, and the recipe does not train on image labels: image_rounds is 0")
    width = patches.bags.shape[2]
    head = new_head(width, classes, recipe, seed)
    return tune_on_images(head, patches, recipe, seed, checkpoint=checkpoint, callback=callback)


def image_confidence(probabilities: Tensor, images: int, k: float) -> Tensor:
    """The k-th root of eq. (1), ``(mean_i y_i^k)^(1/k)``: in the range of probabilities, in the order of image scores.

    Args:
        probabilities: ``[B n, C]`` in [0, 1], n patches of each image in turn.
        images: B.
        k: at least 1.

    Returns:
        ``[B, C]``, differentiable at any k: the mean is homogeneous, ``f(y) = m f(y / m)``, so scores are divided by
        the image's highest, and y^k underflows only where it adds nothing.

    Example:
        >>> image_confidence(torch.tensor([[1e-6], [1e-6]]), 1, 20.0)
        tensor([[1.0000e-06]])
    """
    bags = probabilities.unflatten(0, (images, -1))  # [B, n, C]
    highest = bags.detach().amax(1, keepdim=True).clamp(min=torch.finfo(bags.dtype).tiny)  # [B, 1, C]
    offsets = torch.arange(0, len(probabilities) + 1, bags.shape[1])
    return power_mean((bags / highest).flatten(0, 1), offsets, k).pow(1 / k) * highest[:, 0]


def image_loss(scores: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy of image scores, summed over classes, without difficult ones; the mean over images.

    Args:
        scores: ``[B, C]`` in [0, 1].
        truth: ``[B, C]``: 1, -1, or 0 for difficult.
    """
    losses = F.binary_cross_entropy(scores.clamp(1e-5, 1 - 1e-5), (truth == 1).float(), reduction="none")
    return (losses * (truth != 0)).sum() / len(scores)


def _run_round(
    head: AdaptationHead,
    optimizer: torch.optim.Optimizer,
    patches: TrainingPatches,
    recipe: Recipe,
    draw: np.random.Generator,
) -> float:
    """One pass over the images; the mean image loss."""
    bags, truth = torch.from_numpy(patches.bags), torch.from_numpy(patches.truth)
    features, labels = torch.from_numpy(patches.features), torch.from_numpy(patches.labels)
    total, classes = 0.0, truth.shape[1]
    for chosen in torch.from_numpy(draw.permutation(len(bags))).split(recipe.image_batch):
        few = torch.from_numpy(draw.permutation(bags.shape[1])[: recipe.image_patches])
        sample = bags[chosen][:, few].flatten(0, 1)  # [B n, D]
        labeled = torch.from_numpy(draw.integers(0, len(features), recipe.batch if len(features) else 0))
        logits = head(torch.cat([sample, features[labeled]]).float())
        of_bags, of_patches = logits[: len(sample)], logits[len(sample) :]
        softmax = recipe.objective == "softmax"
        probabilities = of_bags.softmax(1)[:, :classes] if softmax else of_bags.sigmoid()
        loss = image_loss(image_confidence(probabilities, len(chosen), recipe.image_k), truth[chosen])
        beside = patch_loss(of_patches, labels[labeled], recipe.objective) if len(labeled) else 0.0
        optimizer.zero_grad()
        (loss + beside).backward()
        optimizer.step()
        total += loss.item() * len(chosen)
    return total / len(bags)
