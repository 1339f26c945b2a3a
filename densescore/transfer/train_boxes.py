"""Train the box layer on the patches that show a boxed object, and on some that do not."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import box_iou, generalized_box_iou_loss

from densescore.data.boxed_set import BoxedImage, BoxedSet
from densescore.errors import DensescoreError
from densescore.geometry import Pyramid
from densescore.models.box_layer import BoxLayer, around, decode, evidence_of, logits_of, neighbors
from densescore.transfer.patch_labels import LabelRule, shown_object
from densescore.transfer.recipe import Recipe
from densescore.transfer.rounds import Callback, Round
from densescore.transfer.training_patches import Features, mirrored

EPOCHS, BATCH, RATE, DECAY = 8, 256, 1e-3, 0.02
REDUCED = 64
"""Linear combinations of the features that the layer looks at."""

Score = Callable[[Tensor], Tensor]
"""Features ``[M, D]`` of patches → their scores ``[M, C]`` in [0, 1]."""

BOX_LOSS = "generalized IoU loss of a patch's box, and binary cross-entropy of its quality"
"""What the loss is of, as a `Round` says it."""

SHOWN = 48
"""Most patches of an image that show an object of a class; half as many, at least 8, that show none of it."""

ABSENT, HIGHEST = 16, 200
"""Patches of an image with classes that it does not show, drawn from so many of the highest scores."""

SAMPLE = 24
"""Patches of each image from which the principal components are taken."""


class BoxPatches(NamedTuple):
    """What the layer is trained on.

    Attributes:
        looks: float16 ``[N, NEIGHBORS·reduced]``, see `BoxLayer.raw`.
        evidence: float16 ``[N, 2·NEIGHBORS]``, for a class that is asked for.
        patches: float32 ``[N, 4]``.
        boxes: float32 ``[N, 4]``, the object of that class that each patch shows; not a number where it shows none.
    """

    looks: Tensor
    evidence: Tensor
    patches: Tensor
    boxes: Tensor


def principal(features: NDArray[np.float32], count: int) -> nn.Linear:
    """The first principal components of features ``[N, D]``, scaled to a mean variance of 1."""
    mean = features.mean(0)
    values, vectors = np.linalg.eigh(np.cov((features - mean).T))
    directions = vectors[:, ::-1][:, :count].T / np.sqrt(max(values[::-1][:count].mean(), 1e-12))  # [count, D]
    layer = nn.Linear(features.shape[1], count)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(directions.copy()))
        layer.bias.copy_(torch.from_numpy(-directions @ mean))
    return layer


def train_boxes(
    images: BoxedSet,
    features: Features,
    score: Score,
    pyramid: Callable[[int, int], Pyramid],
    recipe: Recipe,
    seed: int,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
    callback: Callback = lambda _: None,
) -> BoxLayer:
    """Train a box layer.

    Args:
        images: the training set.
        features: of an image's patches.
        score: the trained head. It has seen these images, which does no harm.
        pyramid: the geometry of an image of a size.
        recipe: which patches show an object, and whether mirror images are used.
        seed: of the draws, the first weights, the order and dropout.
        track: wraps the iteration over images, for a progress bar.
        callback: called after each pass.

    Raises:
        DensescoreError: no patch shows an object.
    """
    reduce, patches = gather_boxes(images, features, score, pyramid, recipe, seed, track)
    if not patches.boxes.isfinite().any():
        raise DensescoreError(
            f"set {images.name!r}: no patch shows a boxed object, so that no box layer can be trained"
        )
    return fit(reduce, patches, seed, lambda number, loss: callback(Round(1, 1, number + 1, EPOCHS, loss, BOX_LOSS)))


def gather_boxes(
    images: BoxedSet,
    features: Features,
    score: Score,
    pyramid: Callable[[int, int], Pyramid],
    recipe: Recipe,
    seed: int,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> tuple[nn.Linear, BoxPatches]:
    """Collect pairs of a patch and a class: of which the patch shows an object, and of which it does not.

    The arguments are those of `train_boxes`.
    """
    draw = np.random.default_rng(seed)
    sample = [features(image, False)[1] for image in images.images[:: max(1, len(images.images) // 300)]]
    drawn = [part[draw.choice(len(part), min(SAMPLE, len(part)), replace=False)] for part in sample]
    reduce = principal(np.concatenate(drawn).astype(np.float32), min(REDUCED, drawn[0].shape[1]))
    parts = []
    for index in track(range(len(images.images) * (1 + recipe.flips))):
        image, flip = images.images[index // (1 + recipe.flips)], bool(index % (1 + recipe.flips))
        patches, values = features(image, flip)
        boxes = mirrored(image.boxes, image.width) if flip else image.boxes
        raw = torch.from_numpy(values).float()
        with torch.no_grad():
            scores, reduced = score(raw), reduce(raw)  # [M, C], [M, reduced]
        pairs = draw_pairs(patches, boxes, image, scores.numpy(), recipe.rule, draw)
        near = torch.from_numpy(neighbors(pyramid(image.height, image.width)))
        rows, columns = torch.from_numpy(pairs.patches), torch.from_numpy(pairs.classes)
        evidence = evidence_of(logits_of(scores), near[rows], columns)
        looks = around(reduced, near[rows])
        parts.append((looks.half(), evidence.half(), torch.from_numpy(patches)[rows], torch.from_numpy(pairs.boxes)))
    return reduce, BoxPatches(*map(torch.cat, zip(*parts, strict=True)))


class Pairs(NamedTuple):
    """Patches of an image and classes to ask for.

    Attributes:
        patches: int64 ``[n]``.
        classes: int64 ``[n]``.
        boxes: float32 ``[n, 4]``: the object of the class that the patch shows; not a number where it shows none.
    """

    patches: NDArray[np.int64]
    classes: NDArray[np.int64]
    boxes: NDArray[np.float32]


def draw_pairs(
    patches: NDArray[np.float32],
    boxes: NDArray[np.float32],
    image: BoxedImage,
    scores: NDArray[np.float32],
    rule: LabelRule,
    draw: np.random.Generator,
) -> Pairs:
    """Patches that show an object of a class of the image, and patches that do not.

    The others are of the same classes, and of classes that the image lacks, where they score high all the same.

    Args:
        patches: ``[M, 4]``.
        boxes: of the image's objects, or of its mirror image's, ``[B, 4]``.
        image: its classes.
        scores: of the patches, ``[M, C']``; only the image's own C classes are looked at.
        rule: which patches show an object.
        draw: of the pairs.
    """
    drawn, classes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]  # an image without a known label has no pairs
    targets = [np.zeros((0, 4), np.float32)]

    def add(rows: NDArray[np.int64], own: NDArray[np.int64] | int, found: NDArray[np.float32] | float) -> None:
        drawn.append(rows)
        classes.append(np.broadcast_to(own, len(rows)))
        targets.append(np.broadcast_to(np.asarray(found, np.float32), (len(rows), 4)))

    for column in np.unique(image.classes).tolist():
        own = image.classes == column
        shown = shown_object(patches, boxes[own], rule, image.difficult[own])  # [M]
        showing, none = (shown >= 0).nonzero()[0], (shown < 0).nonzero()[0]
        showing = draw.choice(showing, min(len(showing), SHOWN), replace=False)
        none = draw.choice(none, min(len(none), max(8, len(showing) // 2)), replace=False)
        add(showing, column, boxes[own][shown[showing]])
        add(none, column, np.nan)
    absent = (image.truth == -1).nonzero()[0]
    if len(absent):
        highest = np.argsort(-scores[:, absent].ravel())[:HIGHEST]
        highest = draw.choice(highest, min(len(highest), ABSENT), replace=False)
        add(highest // len(absent), absent[highest % len(absent)], np.nan)
    return Pairs(np.concatenate(drawn), np.concatenate(classes), np.concatenate(targets))


def fit(reduce: nn.Linear, patches: BoxPatches, seed: int, callback: Callable[[int, float], None]) -> BoxLayer:
    """Train the layer: a box by generalized IoU, and its quality, which is its IoU with the object, or 0 without one.

    Args:
        reduce: as `gather_boxes` gives it, and so the patches; it stays as it is.
        patches: to learn from.
        seed: of the first weights, the order and dropout.
        callback: called after each pass with its number and mean loss.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = BoxLayer(reduce.in_features, reduce.out_features)
        layer.reduce = reduce.requires_grad_(False)
        trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, weight_decay=DECAY)
        steps = -(-len(patches.looks) // BATCH)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
        layer.train()
        for epoch in range(EPOCHS):
            total = 0.0
            for chosen in torch.randperm(len(patches.looks)).split(BATCH):
                loss = _loss(layer, *(part[chosen] for part in patches))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rates.step()
                total += loss.item() * len(chosen)
            callback(epoch, total / len(patches.looks))
    return layer.eval()


def _loss(layer: BoxLayer, looks: Tensor, evidence: Tensor, patches: Tensor, boxes: Tensor) -> Tensor:
    outputs = layer.raw(looks.float(), evidence.float())
    shows = boxes[:, 0].isfinite()
    found = decode(outputs[shows], patches[shows])
    quality = torch.zeros(len(looks))
    quality[shows] = box_iou(found.detach(), boxes[shows]).diagonal()
    fit = F.binary_cross_entropy_with_logits(outputs[:, 4], quality)
    return fit + generalized_box_iou_loss(found, boxes[shows], reduction="sum") / len(looks)
