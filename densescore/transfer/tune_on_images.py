"""Fine-tune a head on whole images: make eq. (1)'s image score say which classes an image shows.

The paper's patch labels never see two things that an image score depends on: patches that the labelling leaves out (in
crowded pictures, most of them), and how many patches of an image without the class score a little. Here a random
sample of *all* patches of an image is scored, and the loss is on their power mean, as at test time; the loss on
labelled patches goes on beside it, and keeps scores where the objects are.
"""

import os

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from densescore.models.adaptation import AdaptationHead
from densescore.transfer.recipe import Recipe
from densescore.transfer.schedule import Schedule, fingerprint
from densescore.transfer.train_head import STAGES, Callback, check_finite, patch_loss
from densescore.transfer.training_patches import TrainingPatches


def tune_on_images(
    head: AdaptationHead,
    patches: TrainingPatches,
    recipe: Recipe,
    seed: int,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callback = lambda *_: None,
) -> AdaptationHead:
    """Train on, with images' labels: `Recipe.image_rounds` passes over the images, the last quarter at a tenth.

    Args:
        head: what `train_head` gave, for raw features; it is changed.
        patches: with bags.
        recipe: see `Recipe`.
        seed: of the order and of dropout.
        checkpoint: as in `train_head`; another file.
        callback: told of each pass; its stages follow those of `train_head`.

    Returns:
        The head, in evaluation mode.

    Raises:
        DensescoreError: the loss is not finite, or `checkpoint` belongs to another training.
    """
    bags, truth = torch.from_numpy(patches.bags), torch.from_numpy(patches.truth)
    optimizer = torch.optim.SGD(
        head.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    schedule = Schedule(
        checkpoint, fingerprint(recipe, seed, patches.labels, patches.truth, patches.bags), head, optimizer
    )
    schedule.resume()
    lengths = (recipe.image_rounds - recipe.image_rounds // 4, recipe.image_rounds // 4)
    head.train()
    while schedule.stage < len(lengths) and lengths[schedule.stage] > 0:
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate / 10**schedule.stage
        draw = np.random.default_rng([seed, STAGES, schedule.total])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(draw.integers(2**62)))  # of dropout
            loss = _run_round(head, optimizer, bags, truth, patches, recipe, draw)
        callback(STAGES + schedule.stage, schedule.round, loss)
        check_finite(loss, recipe.learning_rate)
        schedule.advance(loss, 0.0, recipe.image_rounds + 1, lengths[schedule.stage])
    return head.eval()


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
    bags: Tensor,
    truth: Tensor,
    patches: TrainingPatches,
    recipe: Recipe,
    draw: np.random.Generator,
) -> float:
    """One pass over the images; the mean image loss."""
    features, labels = torch.from_numpy(patches.features), torch.from_numpy(patches.labels)
    total, k = 0.0, recipe.image_k
    classes = truth.shape[1]
    for chosen in torch.from_numpy(draw.permutation(len(bags))).split(recipe.image_batch):
        few = torch.from_numpy(draw.permutation(bags.shape[1])[: recipe.image_patches])
        sample = bags[chosen][:, few]  # [B, n, D]
        labelled = torch.from_numpy(draw.integers(0, len(features), recipe.batch))
        logits = head(torch.cat([sample.flatten(0, 1), features[labelled]]).float())
        of_bags, of_patches = logits[: -recipe.batch], logits[-recipe.batch :]
        softmax = recipe.objective == "softmax"
        scores = of_bags.softmax(1)[:, :classes] if softmax else of_bags.sigmoid()
        # The root keeps scores in the range of probabilities; without it, all would be near 0. It changes no ranking.
        powers = scores.clamp(min=1e-6).pow(k).view(len(chosen), len(few), classes).mean(1)
        loss = image_loss(powers.pow(1 / k), truth[chosen])
        optimizer.zero_grad()
        (loss + patch_loss(of_patches, labels[labelled], recipe.objective)).backward()
        optimizer.step()
        total += loss.item() * len(chosen)
    return total / len(bags)
