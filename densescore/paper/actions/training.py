"""Train a network on one patch per person, and score persons with it."""

import os
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from densescore.errors import DensescoreError
from densescore.io.images import read_image
from densescore.models.head import BACKGROUND
from densescore.models.registry import Classifier
from densescore.paper.actions.network import ActionRecipe, PersonNetwork, person_patch, save_actions
from densescore.paper.actions.voc import ActionSet

Track = Callable[[Iterable[int]], Iterable[int]]
Progress = Callable[[int, float], None]  # epoch, mean loss


def train_on_boxes(
    out: str | os.PathLike[str],
    actions: ActionSet,
    classifier: Classifier,
    recipe: ActionRecipe,
    seed: int = 0,
    *,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """`train_persons` with its options; writes the file."""
    network, labels = train_persons(actions, classifier, recipe, seed, **options)
    record: dict[str, Any] = {"seed": seed, "set": actions.name, "persons": len(actions.persons)}
    record["versions"] = {name: version(name) for name in ("densescore", "torch", "timm")}
    save_actions(out, network, labels, classifier.name, classifier.patch_size, recipe, record, overwrite=overwrite)


def train_persons(
    actions: ActionSet,
    classifier: Classifier,
    recipe: ActionRecipe,
    seed: int = 0,
    *,
    device: torch.device | str = "cpu",
    track: Track = iter,
    callback: Progress = lambda *_: None,
) -> tuple[PersonNetwork, tuple[str, ...]]:
    """Train FCa, FCb and the layers that the recipe retrains; the network in evaluation mode, and its labels.

    Persons of several actions are left out, as in the paper. The classifier's module is changed where it is retrained.
    """
    labels, targets, several = labels_of(actions)
    single = (~several).nonzero()[0].tolist()
    network = new_network(classifier, len(labels), recipe, seed).to(device)
    persons = ActionSet(actions.name, actions.actions, tuple(actions.persons[index] for index in single))
    patches = read_patches(persons, classifier.patch_size, recipe.margin, track)
    fit(network, run_frozen(network, patches), targets[single], recipe, seed, callback)
    return network, labels


def labels_of(actions: ActionSet) -> tuple[tuple[str, ...], Tensor, NDArray[np.bool_]]:
    """Labels of the outputs, each person's output, int64 ``[N]``, and who does several actions, bool ``[N]``.

    Persons of no action, if any, are the background class. Each action needs a person who does it alone.
    """
    truth = actions.truth()
    several = truth.sum(1) > 1
    nobody = [name for name, count in zip(actions.actions, truth[~several].sum(0), strict=True) if not count]
    if nobody:
        raise DensescoreError(f"set {actions.name!r}: nobody does {', '.join(nobody)} and nothing else")
    none = ~truth.any(1)
    labels = (*actions.actions, BACKGROUND) if none.any() else actions.actions
    return labels, torch.from_numpy(np.where(none, len(actions.actions), truth.argmax(1))), several


def new_network(classifier: Classifier, outputs: int, recipe: ActionRecipe, seed: int) -> PersonNetwork:
    """A network whose head has random weights that follow from the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PersonNetwork(classifier, outputs, recipe.retrain, recipe.width).eval()


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


def run_frozen(network: PersonNetwork, patches: Tensor) -> Tensor:
    """The frozen part's output for each patch and its mirror image, ``[N, 2, …]`` on the CPU; once for all epochs."""
    with torch.no_grad():
        views = (torch.stack([part, part.flip(3)], 1).to(network.device) for part in patches.split(16))
        return torch.cat([network.frozen(view.flatten(0, 1)).cpu().unflatten(0, (-1, 2)) for view in views])


def fit(
    network: PersonNetwork,
    frozen: Tensor,
    targets: Tensor,
    recipe: ActionRecipe,
    seed: int,
    callback: Progress = lambda *_: None,
) -> None:
    """Train a network in place on `run_frozen`'s ``[N, 2, …]`` and outputs int64 ``[N]``; ends in evaluation mode."""
    # Optimizer and schedule
    rates = ((network.retrained, recipe.retrained_rate), (network.head, recipe.learning_rate))
    groups = [{"params": list(part.parameters()), "lr": rate} for part, rate in rates]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * -(-len(targets) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [group["lr"] for group in groups], total_steps=steps)  # type: ignore[misc]

    # A transferred stage keeps the statistics of its source; a network from random weights gathers its own
    network.head.train()
    network.retrained.train(recipe.retrain == "all")

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for epoch in range(recipe.epochs):
            total = 0.0
            for batch in torch.randperm(len(targets)).split(recipe.batch):
                mirrored = torch.randint(2, (len(batch),))
                logits = network.finish(frozen[batch, mirrored].to(network.device))
                loss = F.cross_entropy(logits, targets[batch].to(network.device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(batch)
            if not np.isfinite(total):
                raise DensescoreError(
                    f"the training loss became {total} in epoch {epoch + 1}; use lower learning rates"
                )
            callback(epoch, total / len(targets))
    network.eval()


def score_persons(network: PersonNetwork, frozen: Tensor) -> NDArray[np.float64]:
    """Probabilities ``[N, outputs]``, averaged over each patch and its mirror image, from `run_frozen`'s output."""
    with torch.inference_mode():
        parts = [network.finish(part.flatten(0, 1).to(network.device)).softmax(1).double() for part in frozen.split(16)]
    return torch.cat(parts).unflatten(0, (-1, 2)).mean(1).cpu().numpy()
