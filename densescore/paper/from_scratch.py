"""The paper's NO PRETRAIN: the same network, from random weights, trained on labeled patches of the target set alone.

Nothing is frozen, so features cannot be cached: each step runs the whole network on crops, forward and backward. The
paper trained for days on a GPU. Here AdamW with one cosine schedule trains on a number of crops that a CPU can take.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from densescore.data.boxed_set import BoxedImage, BoxedSet
from densescore.data.labeled_set import check_size
from densescore.geometry import Pyramid
from densescore.io.checkpoint import read_checkpoint, write_checkpoint
from densescore.io.images import level_pixels, read_image
from densescore.io.names import to_json
from densescore.models.head import AdaptationHead, HeadFile
from densescore.models.registry import load_classifier
from densescore.network.dense_network import DenseNetwork, to_channels_last
from densescore.network.surgery import to_dense
from densescore.transfer.pipeline import head_file
from densescore.transfer.recipe import Recipe
from densescore.transfer.train_head import PATCH_LOSS, Callback, Round, check_finite, patch_loss
from densescore.transfer.training_set import TrainingPatches, check_class_labels, check_every_class, label_and_draw

CROPS = 12_288
"""Default number of training crops."""

ROUND_IMAGES, IMAGE_CROPS = 256, 4
"""Images of a round, and crops of each: held in memory, 300 MB at 224×224."""

BATCH, RATE, WEIGHT_DECAY = 32, 1e-3, 0.05

Channels = tuple[float, float, float]


def train_from_scratch(
    boxed: BoxedSet,
    model: str,
    recipe: Recipe,
    seed: int = 0,
    *,
    crops: int = CROPS,
    device: torch.device | str = "cpu",
    checkpoint: str | os.PathLike[str] | None = None,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
    callback: Callback = lambda _: None,
) -> HeadFile:
    """Train a named network from random weights, with a head instead of its last layer; the file carries both.

    Half of the `crops` are mirrored. A killed training resumes from the folder `checkpoint` to the same weights.
    """
    # The network with its head, from random weights
    check_class_labels(boxed)
    recipe = replace(recipe, image_rounds=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = load_classifier(model, weights=None)
        network = to_dense(classifier.module, classifier.patch_size)
        outputs = len(boxed.classes) + (recipe.objective == "softmax")
        head = AdaptationHead(network.feature_width, outputs, recipe.width)
    head.dropout.p = recipe.dropout
    network = network.with_classifier(head, network.feature_width, outputs)
    to_channels_last(network.to(device))

    # Labeled patches, and the state of a killed training
    source = _Crops(boxed, network, recipe, seed, classifier.mean, classifier.std)
    check_every_class(source.patches, boxed.classes, recipe)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    path = None if checkpoint is None else Path(checkpoint) / "network.pt"
    owner = source.digest(recipe, seed, crops)
    state = None if path is None else read_checkpoint(path, owner)
    first = 0
    if state is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["rounds"]

    # Rounds of newly drawn crops
    rounds = math.ceil(crops / (min(ROUND_IMAGES, len(source.usable)) * IMAGE_CROPS))
    network.train()
    for number in range(first, rounds):
        chance = np.random.default_rng([seed, len(boxed.images), number])
        cut, targets = source.cut(chance)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(chance.integers(2**62)))  # of dropout
            loss = _run_round(network, optimizer, cut, targets, recipe, number / rounds, 1 / rounds, track)
        callback(Round(1, 1, number + 1, rounds, loss, PATCH_LOSS[recipe.objective]))
        check_finite(loss, RATE)
        if path is not None:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "rounds": number + 1}
            write_checkpoint(path, state, owner)
    network.cpu().eval()
    file = head_file(
        boxed, source.patches, head, recipe, seed, backbone=model, mean=classifier.mean, std=classifier.std,
        patch_size=network.patch, context="patch", from_scratch=True, crops=crops,
    )  # fmt: skip
    return replace(file, backbone_weights=dict(classifier.module.state_dict()))


class _Crops:
    """The labeled patches of a set: drawn once, cut out of their images round by round."""

    def __init__(
        self, boxed: BoxedSet, network: DenseNetwork, recipe: Recipe, seed: int, mean: Channels, std: Channels
    ) -> None:
        self._images, self._network, self._scales = boxed.images, network, recipe.scales
        self._mean, self._std = np.array(mean, np.float32), np.array(std, np.float32)
        self._draws = []
        for index, image in enumerate(boxed.images):
            windows, chance = self._pyramid(image).boxes(), np.random.default_rng([seed, index])
            self._draws.append(label_and_draw(windows, image, False, len(boxed.classes), recipe, chance))
        counts = [len(cells) for cells, _ in self._draws]
        self.usable = np.flatnonzero(counts)  # images with a labeled patch
        self.patches = TrainingPatches(  # without features
            np.zeros((sum(counts), 0), np.float16),
            np.concatenate([labels for _, labels in self._draws]),
            np.repeat(np.arange(len(counts)), counts),
        )

    def digest(self, recipe: Recipe, seed: int, crops: int) -> str:
        """SHA-256 of the settings, the labels and the images' files: tells one training from another."""
        digest = hashlib.sha256(to_json([asdict(recipe), seed, crops]).encode() + self.patches.labels.tobytes())
        for image in self._images:
            digest.update(hashlib.sha256(image.path.read_bytes()).digest())
        return digest.hexdigest()

    def cut(self, chance: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A round's crops, normalized, in random order: float16 ``[N, 3, P, P]``, and their labels."""
        crops, targets = [], []
        for index in chance.permutation(self.usable)[:ROUND_IMAGES]:
            cells, labels = self._draws[index]
            image = self._images[index]
            check_size(image)
            pixels, pyramid = read_image(image.path), self._pyramid(image)
            white = np.float32(255 if pixels.dtype == np.uint8 else 1)
            for choice in chance.permutation(len(cells))[:IMAGE_CROPS]:
                level, row, col = pyramid.locate(int(cells[choice]))
                x0, y0, x1, y1 = pyramid.window(level, row, col)
                crop = level_pixels(pixels, pyramid, level)[y0:y1, x0:x1]
                crop = crop[:, ::-1] if chance.random() < 0.5 else crop
                crops.append(((crop / white - self._mean) / self._std).astype(np.float16))
                targets.append(labels[choice])
        order = chance.permutation(len(crops))
        stacked = np.stack(crops)[order].transpose(0, 3, 1, 2)  # [N, 3, P, P], channels last in memory
        return torch.from_numpy(stacked), torch.from_numpy(np.stack(targets)[order])

    def _pyramid(self, image: BoxedImage) -> Pyramid:
        patch, stride = self._network.patch, self._network.stride
        return Pyramid.of(image.height, image.width, scales=self._scales, patch=patch, stride=stride)


def _run_round(
    network: DenseNetwork,
    optimizer: torch.optim.Optimizer,
    crops: Tensor,
    targets: Tensor,
    recipe: Recipe,
    start: float,
    share: float,
    track: Callable[[Iterable[int]], Iterable[int]],
) -> float:
    """One pass over a round's crops, a `share` of the training that begins at `start` of it; the mean loss."""
    total, device = 0.0, next(network.parameters()).device
    for first in track(range(0, len(crops), BATCH)):
        done = start + share * first / len(crops)  # in [0, 1)
        for group in optimizer.param_groups:  # a short warm-up, then half a cosine
            group["lr"] = RATE * min(1.0, (done + 0.001) / 0.05) * (1 + math.cos(math.pi * done)) / 2
        batch = slice(first, first + BATCH)
        loss = patch_loss(network(crops[batch].to(device).float()), targets[batch].to(device), recipe.objective)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(targets[batch])
    return total / len(crops)
