"""The paper's NO PRETRAIN: the same network, from random weights, trained on labeled patches of the target set alone.

Nothing is frozen, so features cannot be cached: each step runs the whole network on crops, forward and backward. The
paper trained for days on a GPU. Here AdamW with one cosine schedule trains on as many crops as a CPU can take.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densescore.data.boxed_set import BoxedImage, BoxedSet
from densescore.data.pictures import check_size
from densescore.geometry import Pyramid
from densescore.io.images import level_pixels, read_image
from densescore.models import load_classifier
from densescore.models.adaptation import AdaptationHead, HeadFile
from densescore.network.dense_network import DenseNetwork
from densescore.network.devices import to_channels_last
from densescore.network.surgery import to_dense
from densescore.transfer.pipeline import head_file
from densescore.transfer.recipe import Recipe
from densescore.transfer.rounds import PATCH_LOSS, Callback, Round
from densescore.transfer.schedule import Schedule, fingerprint
from densescore.transfer.train_head import check_finite, patch_loss
from densescore.transfer.training_patches import TrainingPatches, check_class_labels, check_every_class, label_and_draw

CROPS = 12_288
"""Crops that a network is trained on in all, by default."""

ROUND_IMAGES, IMAGE_CROPS = 256, 4
"""Images of a round, and crops of each: what is held in memory at a time, 300 MB at 224×224."""

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

    Args:
        boxed: the training set.
        model: name of the network.
        recipe: its objective, rule, scales, background, width and dropout; the rest plays no part. Half of the crops
            are mirrored.
        seed: of all draws.
        crops: as many are trained on, an image's drawn again in each round.
        device: to train on.
        checkpoint: a folder; see `train_both`.
        track: wraps the iteration over the batches of a round, for a progress bar.
        callback: called after each round.

    Raises:
        DensescoreError: an unknown model, a class without patches, or the loss is not finite.
    """
    check_class_labels(boxed)
    recipe = replace(recipe, image_rounds=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = load_classifier(model, weights=None)
        network = to_dense(classifier.module, classifier.patch_size)
        outputs = len(boxed.classes) + (recipe.objective == "softmax")
        head = AdaptationHead(network.feature_width, outputs, recipe.width)
    head.dropout.p = recipe.dropout
    network.replace_classifier(head, network.feature_width, outputs)
    to_channels_last(network.to(device))
    source = _Crops(boxed, network, recipe, seed, classifier.mean, classifier.std)
    check_every_class(source.patches, boxed.classes, recipe)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    path = None if checkpoint is None else Path(checkpoint) / "network.pt"
    data = source.patches.labels, source.pictures(), np.array([crops])
    schedule = Schedule(path, fingerprint(recipe, seed, *data), network, optimizer)
    schedule.resume()
    rounds = math.ceil(crops / (min(ROUND_IMAGES, len(source.usable)) * IMAGE_CROPS))
    network.train()
    while schedule.stage == 0:
        chance = np.random.default_rng([seed, len(boxed.images), schedule.total])
        cut, targets = source.cut(chance)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(chance.integers(2**62)))  # of dropout
            loss = _run_round(network, optimizer, cut, targets, recipe, schedule.total / rounds, 1 / rounds, track)
        callback(Round(1, 1, schedule.round + 1, rounds, loss, PATCH_LOSS[recipe.objective]))
        check_finite(loss, RATE)
        schedule.advance(loss, 0.0, rounds + 1, rounds)
    network.cpu().eval()
    file = head_file(
        boxed, source.patches, head, recipe, seed, backbone=model, mean=classifier.mean, std=classifier.std,
        patch_size=network.patch, context="patch", from_scratch=True, crops=crops,
    )  # fmt: skip
    return replace(file, backbone_weights=dict(classifier.module.state_dict()))


class _Crops:
    """The labeled patches of a set, drawn once, and cut out of their images when they are asked for."""

    def __init__(
        self, boxed: BoxedSet, network: DenseNetwork, recipe: Recipe, seed: int, mean: Channels, std: Channels
    ) -> None:
        self._images, self._network, self._scales = boxed.images, network, recipe.scales
        self._mean, self._std = np.array(mean, np.float32), np.array(std, np.float32)
        self._draws = []
        for index, image in enumerate(boxed.images):
            windows, chance = self._pyramid(image).boxes(), np.random.default_rng([seed, index])
            self._draws.append(label_and_draw(windows, image, False, len(boxed.classes), recipe, chance))
        counts = [len(kept) for kept, _ in self._draws]
        self.usable = np.flatnonzero(counts)
        """Images with a labeled patch."""
        self.patches = TrainingPatches(
            np.zeros((sum(counts), 0), np.float16),
            np.concatenate([labels for _, labels in self._draws]),
            np.repeat(np.arange(len(counts)), counts),
        )
        """All patches, without features."""

    def pictures(self) -> NDArray[np.uint8]:
        """A digest of each image's file: uint8 ``[N, 32]``."""
        digests = [hashlib.sha256(image.path.read_bytes()).digest() for image in self._images]
        return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)

    def cut(self, chance: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A round's crops, normalized, in random order: float16 ``[N, 3, P, P]``, and their labels."""
        crops, targets = [], []
        for index in chance.permutation(self.usable)[:ROUND_IMAGES]:
            kept, labels = self._draws[index]
            image = self._images[index]
            check_size(image)
            pixels, pyramid = read_image(image.path), self._pyramid(image)
            most = np.float32(255 if pixels.dtype == np.uint8 else 1)
            for choice in chance.permutation(len(kept))[:IMAGE_CROPS]:
                level, row, col = pyramid.locate(int(kept[choice]))
                x0, y0, x1, y1 = pyramid.window(level, row, col)
                crop = level_pixels(pixels, pyramid, level)[y0:y1, x0:x1]
                crop = crop[:, ::-1] if chance.random() < 0.5 else crop
                crops.append(((crop / most - self._mean) / self._std).astype(np.float16))
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
    """One pass over a round's crops, from `start` of the whole training on; the mean loss."""
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
