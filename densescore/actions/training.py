"""Train a network on one patch per person, and score persons with it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from densescore.actions.network import PersonNetwork, Retrain
from densescore.actions.patches import person_patch
from densescore.data.voc_actions import ActionSet
from densescore.image import read_image
from densescore.models import BACKGROUND
from densescore.models.registry import Classifier
from densescore_kernels.errors import DensescoreError

Track = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class ActionRecipe:
    """All choices of a training but its data and its seed.

    Attributes:
        retrain: see `Retrain`.
        margin: side of a person's patch over the longer side of the box.
        epochs: passes over the persons, each time mirrored or not.
        batch: persons per step.
        learning_rate: of FCa and FCb, at its highest: it rises, then falls to 0 (torch's OneCycleLR).
        retrained_rate: of the retrained layers.
        weight_decay: of AdamW.
        width: of FCa.
    """

    retrain: Retrain = "last"
    margin: float = 1.0
    epochs: int = 30
    batch: int = 32
    learning_rate: float = 1e-3
    retrained_rate: float = 2e-4
    weight_decay: float = 0.01
    width: int = 2048


def read_patches(actions: ActionSet, side: int, margin: float, track: Track = iter) -> Tensor:
    """The patch of each person: uint8 ``[N, 3, P, P]``."""
    patches = []
    for index in track(range(len(actions.persons))):
        person = actions.persons[index]
        pixels = read_image(person.path)
        if pixels.shape[:2] != (person.height, person.width):
            raise DensescoreError(
                f"{person.path}: {pixels.shape[1]}×{pixels.shape[0]} pixels (width × height), but its annotation says "
                f"{person.width}×{person.height}"
            )
        patches.append(torch.from_numpy(person_patch(pixels, person.box, side, margin)).permute(2, 0, 1))
    return torch.stack(patches)


def labels_of(actions: ActionSet) -> tuple[tuple[str, ...], Tensor, NDArray[np.bool_]]:
    """What to learn: a label per output; each person's, int64 ``[N]``; and who is left out, doing several things.

    Persons of no action are a class of their own, where there are any.

    Raises:
        DensescoreError: nobody does an action, or does that alone.
    """
    truth = actions.truth()
    several = truth.sum(1) > 1
    nobody = [name for name, count in zip(actions.actions, truth[~several].sum(0), strict=True) if not count]
    if nobody:
        raise DensescoreError(f"set {actions.name!r}: nobody does {', '.join(nobody)} and nothing else")
    none = ~truth.any(1)
    labels = (*actions.actions, BACKGROUND) if none.any() else actions.actions
    return labels, torch.from_numpy(np.where(none, len(actions.actions), truth.argmax(1))), several


def train_persons(
    actions: ActionSet,
    classifier: Classifier,
    recipe: ActionRecipe,
    seed: int = 0,
    *,
    device: torch.device | None = None,
    track: Track = iter,
    report: Callable[[int, float], None] = lambda *_: None,
) -> tuple[PersonNetwork, tuple[str, ...]]:
    """Train FCa, FCb and what the recipe retrains.

    Args:
        actions: the training set; persons of several actions are left out, as in the paper.
        classifier: whose layers are transferred; its module is changed where it is retrained.
        recipe: see `ActionRecipe`.
        seed: of the first weights, the order, mirroring and dropout.
        device: to train on; a CPU by default.
        track: wraps the iteration over persons, for a progress bar.
        report: told of each epoch's number and mean loss.

    Returns:
        The network, in evaluation mode, and the labels of its outputs.
    """
    device = device or torch.device("cpu")
    labels, targets, several = labels_of(actions)
    kept = torch.from_numpy(~several).nonzero()[:, 0]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = PersonNetwork(classifier, len(labels), recipe.retrain, recipe.width).to(device).eval()
        persons = ActionSet(actions.name, actions.actions, tuple(actions.persons[index] for index in kept.tolist()))
        patches = read_patches(persons, classifier.patch_size, recipe.margin, track)
        # What is frozen gives the same each time: once for each patch, and for its mirror image.
        frozen = [run_frozen(network, part, device) for part in (patches, patches.flip(3))]  # 2 × [N, …]
        _fit(network, frozen, targets[kept], recipe, device, report)
    return network.eval(), labels


def run_frozen(network: PersonNetwork, patches: Tensor, device: torch.device) -> Tensor:
    """The frozen part's output for each patch, on the CPU."""
    with torch.no_grad():
        return torch.cat([network.frozen(part.to(device)).cpu() for part in patches.split(32)])


def score_persons(network: PersonNetwork, patches: Tensor, device: torch.device | None = None) -> NDArray[np.float64]:
    """Probability of each label for each patch and its mirror image, averaged: float64 ``[N, outputs]``."""
    device = device or torch.device("cpu")
    with torch.inference_mode():
        views = ((part, part.flip(3)) for part in patches.split(32))
        parts = [sum(network(view.to(device)).softmax(1).double() for view in pair) / 2 for pair in views]
    return torch.cat([torch.as_tensor(part) for part in parts]).cpu().numpy()


def _fit(
    network: PersonNetwork,
    frozen: list[Tensor],
    targets: Tensor,
    recipe: ActionRecipe,
    device: torch.device,
    report: Callable[[int, float], None],
) -> None:
    rates = [recipe.retrained_rate, recipe.learning_rate]
    groups = [
        {"params": list(part.parameters()), "lr": rate}
        for part, rate in zip((network.retrained, network.head), rates, strict=True)
    ]
    groups = [group for group in groups if group["params"]]
    optimiser = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * -(-len(targets) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [group["lr"] for group in groups], total_steps=steps)  # type: ignore[misc]
    network.head.train()
    # A transferred stage keeps the statistics of its source; one that starts from nothing must gather its own.
    network.retrained.train(recipe.retrain == "all")
    for epoch in range(recipe.epochs):
        total = 0.0
        for chosen in torch.randperm(len(targets)).split(recipe.batch):
            mirrored = torch.rand(len(chosen)) < 0.5
            inputs = torch.stack([frozen[int(flip)][index] for index, flip in zip(chosen, mirrored, strict=True)])
            loss = F.cross_entropy(network.finish(inputs.to(device)), targets[chosen].to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(chosen)
        if not np.isfinite(total):
            raise DensescoreError(f"the training loss became {total} in epoch {epoch + 1}; use lower learning rates")
        report(epoch, total / len(targets))
