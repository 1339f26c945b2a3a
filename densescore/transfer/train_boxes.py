"""Train the box layer on pairs of a patch and a class: the patch shows an object of the class, or none."""

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
from densescore.models.box_layer import BoxLayer, decode, gather_neighbors, gather_scores, neighbors, score_logits
from densescore.transfer.patch_labels import LabelRule, shown_object
from densescore.transfer.recipe import Recipe
from densescore.transfer.train_head import Callback, Round
from densescore.transfer.training_set import Features, mirrored, principal_components

EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 8, 256, 1e-3, 0.02
BOX_LOSS = "generalized IoU loss of a patch's box, and binary cross-entropy of its quality"

REDUCED = 64
"""Principal components of the features that the layer takes."""

SAMPLE_IMAGES, SAMPLE_PATCHES = 300, 24
"""Images, and patches of each, that the principal components are measured on."""

MAX_SHOWN, MIN_OTHERS = 48, 8
"""Most positive patches per image and class; half as many negatives, but at least this many."""

ABSENT, ABSENT_POOL = 16, 200
"""Pairs with classes that the image does not show, drawn from this many of the highest scores."""


class Pairs(NamedTuple):
    """Pairs of a patch and a class of one image."""

    patches: NDArray[np.int64]  # [n]
    classes: NDArray[np.int64]  # [n]
    boxes: NDArray[np.float32]  # [n, 4]: object of the class that the patch shows, or NaN


class BoxPatches(NamedTuple):
    """Pairs of all images, as the layer takes them."""

    neighbor_features: Tensor  # float16 [N, NEIGHBORS·reduced]
    neighbor_scores: Tensor  # float16 [N, 2·NEIGHBORS], for the pair's class
    patches: Tensor  # float32 [N, 4]
    boxes: Tensor  # float32 [N, 4]: object of the class that the patch shows, or NaN


def train_boxes(
    images: BoxedSet,
    features: Features,
    score: Callable[[Tensor], Tensor],
    pyramid: Callable[[int, int], Pyramid],
    recipe: Recipe,
    seed: int,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
    callback: Callback = lambda _: None,
) -> BoxLayer:
    """Train a box layer on top of a head: `score` maps features ``[M, D]`` to the head's scores ``[M, C]``.

    The head has seen these images in training, which does no harm.
    """
    draw = np.random.default_rng(seed)
    reduce = fit_reduction(images, features, draw)
    patches = gather_boxes(images, features, score, pyramid, recipe, reduce, draw, track)
    if not patches.boxes.isfinite().any():
        raise DensescoreError(f"set {images.name!r}: no patch shows a boxed object, so no box layer can be trained")
    return fit(reduce, patches, seed, callback)


def fit_reduction(images: BoxedSet, features: Features, draw: np.random.Generator) -> nn.Linear:
    """Features ``[N, D]`` → their first `REDUCED` principal components, scaled to a mean variance of 1."""
    # Sample patches
    sample = [features(image, False)[1] for image in images.images[:: max(1, len(images.images) // SAMPLE_IMAGES)]]
    drawn = [values[draw.choice(len(values), min(SAMPLE_PATCHES, len(values)), replace=False)] for values in sample]
    rows = np.concatenate(drawn).astype(np.float32)  # [N, D]

    # Components, strongest first, as the weights of a linear layer
    mean = torch.from_numpy(rows.mean(0))
    variances, axes = principal_components(rows, min(REDUCED, rows.shape[1]), mean)
    directions = axes.flip(1).T / variances.mean().clamp(min=1e-12).sqrt().float()  # [reduced, D]
    reduce = nn.Linear(*directions.T.shape)
    reduce.load_state_dict({"weight": directions, "bias": -directions @ mean})
    return reduce.requires_grad_(False)


def gather_boxes(
    images: BoxedSet,
    features: Features,
    score: Callable[[Tensor], Tensor],
    pyramid: Callable[[int, int], Pyramid],
    recipe: Recipe,
    reduce: nn.Linear,
    draw: np.random.Generator,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> BoxPatches:
    """Draw pairs from each image, and from its mirror image if the recipe flips, with their neighbors' features."""
    parts = []
    for index in track(range(len(images.images) * (1 + recipe.flips))):
        image, flip = images.images[index // (1 + recipe.flips)], bool(index % (1 + recipe.flips))

        # Score all patches, and reduce their features
        patches, values = features(image, flip)
        boxes = mirrored(image.boxes, image.width) if flip else image.boxes
        inputs = torch.from_numpy(values).float()
        with torch.no_grad():
            scores, reduced = score(inputs), reduce(inputs)  # [M, C], [M, reduced]

        # Draw pairs, and gather their neighbors
        pairs = draw_pairs(patches, boxes, image, scores.numpy(), recipe.rule, draw)
        rows, columns = torch.from_numpy(pairs.patches), torch.from_numpy(pairs.classes)
        near = torch.from_numpy(neighbors(pyramid(image.height, image.width)))[rows]  # [n, NEIGHBORS]
        neighbor_features = gather_neighbors(reduced, near).half()
        neighbor_scores = gather_scores(score_logits(scores), near, columns).half()
        parts.append(
            (neighbor_features, neighbor_scores, torch.from_numpy(patches)[rows], torch.from_numpy(pairs.boxes))
        )
    return BoxPatches(*map(torch.cat, zip(*parts, strict=True)))


def draw_pairs(
    patches: NDArray[np.float32],
    boxes: NDArray[np.float32],
    image: BoxedImage,
    scores: NDArray[np.float32],
    rule: LabelRule,
    draw: np.random.Generator,
) -> Pairs:
    """Pairs of an image's patches ``[M, 4]`` and classes: patches that show an object of a class, and that show none.

    `boxes` ``[B, 4]``: the image's objects, or its mirror image's; `scores` ``[M, C]``.
    """
    # An image without a known label has no pairs
    rows, classes, targets = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros((0, 4), np.float32)]

    def add(patch: NDArray[np.int64], column: NDArray[np.int64] | int, box: NDArray[np.float32] | float) -> None:
        rows.append(patch)
        classes.append(np.broadcast_to(column, len(patch)))
        targets.append(np.broadcast_to(np.asarray(box, np.float32), (len(patch), 4)))

    # Classes of the image: patches with an object, and without
    for column in np.unique(image.classes).tolist():
        members = image.classes == column
        shown = shown_object(patches, boxes[members], rule, image.difficult[members])  # [M]
        positives, negatives = (shown >= 0).nonzero()[0], (shown < 0).nonzero()[0]
        positives = draw.choice(positives, min(len(positives), MAX_SHOWN), replace=False)
        count = min(len(negatives), max(MIN_OTHERS, len(positives) // 2))
        negatives = draw.choice(negatives, count, replace=False)
        add(positives, column, boxes[members][shown[positives]])
        add(negatives, column, np.nan)

    # Classes that the image lacks: patches of high scores all the same
    absent = (image.truth == -1).nonzero()[0]
    if len(absent):
        highest = np.argsort(-scores[:, absent].ravel())[:ABSENT_POOL]
        highest = draw.choice(highest, min(len(highest), ABSENT), replace=False)
        add(highest // len(absent), absent[highest % len(absent)], np.nan)
    return Pairs(np.concatenate(rows), np.concatenate(classes), np.concatenate(targets))


def fit(reduce: nn.Linear, patches: BoxPatches, seed: int, callback: Callback) -> BoxLayer:
    """Train the layer on gathered pairs; `reduce` stays as it is."""
    count = len(patches.patches)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = BoxLayer(reduce.in_features, reduce.out_features)
        layer.reduce = reduce
        trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, weight_decay=WEIGHT_DECAY)
        steps = EPOCHS * -(-count // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
        layer.train()
        for epoch in range(EPOCHS):
            total = 0.0
            for batch in torch.randperm(count).split(BATCH):
                loss = _loss(layer, *(part[batch] for part in patches))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(batch)
            callback(Round(1, 1, epoch + 1, EPOCHS, total / count, BOX_LOSS, "boxes"))
    return layer.eval()


def _loss(
    layer: BoxLayer, neighbor_features: Tensor, neighbor_scores: Tensor, patches: Tensor, boxes: Tensor
) -> Tensor:
    """Generalized IoU of a shown object's box; cross-entropy of the quality: the box's IoU, or 0 without an object."""
    logits = layer.logits(neighbor_features.float(), neighbor_scores.float())
    shows = boxes[:, 0].isfinite()
    predicted = decode(logits[shows], patches[shows])
    quality = torch.zeros(len(patches))
    quality[shows] = box_iou(predicted.detach(), boxes[shows]).diagonal()
    quality_loss = F.binary_cross_entropy_with_logits(logits[:, 4], quality)
    return quality_loss + generalized_box_iou_loss(predicted, boxes[shows], reduction="sum") / len(patches)
