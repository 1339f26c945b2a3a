"""Train a network on one patch per person, and score persons with it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from densescore.errors import DensescoreError
from densescore.io.images import read_image
from densescore.models import BACKGROUND
from densescore.models.registry import Classifier
from densescore.paper.actions.network import PersonNetwork, Retrain
from densescore.paper.actions.patches import person_patch
from densescore.paper.actions.voc import ActionSet

Track = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class ActionRecipe:
    """Every choice of a training except its data and seed.

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

    retrain: Retrain = "none"
    margin: float = 1.0
    epochs: int = 30
    batch: int = 32
    learning_rate: float = 1e-3
    retrained_rate: float = 2e-4
    weight_decay: float = 0.01
    width: int = 2048

    def __post_init__(self) -> None:
        if self.retrain not in get_args(Retrain):
            raise DensescoreError(f"retrain must be one of {', '.join(get_args(Retrain))}, got {self.retrain!r}")
        for name in ("epochs", "batch", "width"):
            if getattr(self, name) < 1:
                raise DensescoreError(f"{name} must be at least 1, got {getattr(self, name)}")


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
    """The targets: a label per output, each person's label, int64 ``[N]``, and which persons are left out.

    Persons of several actions are left out.

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
    callback: Callable[[int, float], None] = lambda *_: None,
) -> tuple[PersonNetwork, tuple[str, ...]]:
    """Train FCa, FCb and what the recipe retrains.

    Args:
        actions: the training set; persons of several actions are left out, as in the paper.
        classifier: whose layers are transferred; its module is changed where it is retrained.
        recipe: see `ActionRecipe`.
        seed: of the first weights, the order, mirroring and dropout.
        device: to train on; a CPU by default.
        track: wraps the iteration over persons, for a progress bar.
        callback: called with each epoch's number and mean loss.

    Returns:
        The network, in evaluation mode, and the labels of its outputs.
    """
    device = device or torch.device("cpu")
    labels, targets, several = labels_of(actions)
    kept = (~several).nonzero()[0].tolist()
    network = new_network(classifier, len(labels), recipe, seed).to(device)
    persons = ActionSet(actions.name, actions.actions, tuple(actions.persons[index] for index in kept))
    patches = read_patches(persons, classifier.patch_size, recipe.margin, track)
    fit(network, run_frozen(network, patches, device), targets[kept], recipe, seed, device=device, callback=callback)
    return network, labels


def new_network(classifier: Classifier, outputs: int, recipe: ActionRecipe, seed: int) -> PersonNetwork:
    """A network whose head has the first weights that follow from the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PersonNetwork(classifier, outputs, recipe.retrain, recipe.width).eval()


def run_frozen(network: PersonNetwork, patches: Tensor, device: torch.device | None = None) -> Tensor:
    """What the frozen part gives for each patch and its mirror image, on the CPU: ``[N, 2, …]``.

    It gives the same each time, so it is run once and not in each epoch.
    """
    device = device or torch.device("cpu")
    with torch.no_grad():
        views = (torch.stack([part, part.flip(3)], 1) for part in patches.split(16))  # [n, 2, 3, P, P]
        return torch.cat([network.frozen(view.flatten(0, 1).to(device)).cpu().unflatten(0, (-1, 2)) for view in views])


def score_persons(network: PersonNetwork, frozen: Tensor, device: torch.device | None = None) -> NDArray[np.float64]:
    """Probability of each label for each person, averaged over the patch and its mirror image.

    Args:
        network: trained.
        frozen: ``[N, 2, …]`` of `run_frozen`.
        device: of the network.

    Returns:
        float64 ``[N, outputs]``.
    """
    device = device or torch.device("cpu")
    with torch.inference_mode():
        parts = [network.finish(part.flatten(0, 1).to(device)).softmax(1).double() for part in frozen.split(16)]
    return torch.cat(parts).unflatten(0, (-1, 2)).mean(1).cpu().numpy()


def fit(
    network: PersonNetwork,
    frozen: Tensor,
    targets: Tensor,
    recipe: ActionRecipe,
    seed: int,
    *,
    device: torch.device | None = None,
    callback: Callable[[int, float], None] = lambda *_: None,
) -> None:
    """Train a network in place; it is left in evaluation mode.

    Args:
        network: of `new_network`, on `device`.
        frozen: ``[N, 2, …]`` of `run_frozen`.
        targets: int64 ``[N]``, an output for each person.
        recipe: see `ActionRecipe`.
        seed: of the order, mirroring and dropout.
        device: to train on; a CPU by default.
        callback: called with each epoch's number and mean loss.
    """
    device = device or torch.device("cpu")
    rates = ((network.retrained, recipe.retrained_rate), (network.head, recipe.learning_rate))
    groups = [{"params": list(part.parameters()), "lr": rate} for part, rate in rates]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * -(-len(targets) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [group["lr"] for group in groups], total_steps=steps)  # type: ignore[misc]
    network.head.train()
    # A transferred stage keeps the statistics of its source; one that starts from nothing must gather its own.
    network.retrained.train(recipe.retrain == "all")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for epoch in range(recipe.epochs):
            total = 0.0
            for chosen in torch.randperm(len(targets)).split(recipe.batch):
                mirrored = torch.randint(2, (len(chosen),))
                loss = F.cross_entropy(network.finish(frozen[chosen, mirrored].to(device)), targets[chosen].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(chosen)
            if not np.isfinite(total):
                raise DensescoreError(
                    f"the training loss became {total} in epoch {epoch + 1}; use lower learning rates"
                )
            callback(epoch, total / len(targets))
    network.eval()
