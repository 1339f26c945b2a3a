"""Train the box layer on the patches that show a boxed object."""

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
from densescore.models.box_layer import BoxLayer, around, decode, neighbors
from densescore.transfer.patch_labels import LabelRule, shown_object
from densescore.transfer.recipe import Recipe
from densescore.transfer.rounds import Callback, Round
from densescore.transfer.training_patches import Features, mirrored

EPOCHS, BATCH, RATE, DECAY = 8, 256, 1e-3, 0.02
REDUCED = 128
"""Linear combinations of the features that the layer looks at."""

BOX_LOSS = "generalized IoU loss of a patch's box, and binary cross-entropy of its quality"
"""What the loss is of, as a `Round` says it."""

SHOWN = 48
"""Most patches of an image that show an object, and as many that show none."""

SAMPLE = 24
"""Patches of each image from which the principal components are taken."""


class BoxPatches(NamedTuple):
    """What the layer is trained on.

    Attributes:
        inputs: float16 ``[N, 9·reduced]``.
        patches: float32 ``[N, 4]``.
        boxes: float32 ``[N, 4]``, each patch's object; not a number for patches that show none.
    """

    inputs: Tensor
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
        pyramid: the geometry of an image of a size.
        recipe: which patches show an object, and whether mirror images are used.
        seed: of the draws, the first weights, the order and dropout.
        track: wraps the iteration over images, for a progress bar.
        callback: called after each pass.

    Raises:
        DensescoreError: no patch shows an object.
    """
    reduce, patches = gather_boxes(images, features, pyramid, recipe, seed, track)
    if not patches.boxes.isfinite().any():
        raise DensescoreError(
            f"set {images.name!r}: no patch shows a boxed object, so that no box layer can be trained"
        )
    return fit(reduce, patches, seed, lambda number, loss: callback(Round(1, 1, number + 1, EPOCHS, loss, BOX_LOSS)))


def gather_boxes(
    images: BoxedSet,
    features: Features,
    pyramid: Callable[[int, int], Pyramid],
    recipe: Recipe,
    seed: int,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> tuple[nn.Linear, BoxPatches]:
    """Collect the patches that show an object, and as many of each image that show none; see `train_boxes`."""
    draw = np.random.default_rng(seed)
    sample = [features(image, False)[1] for image in images.images[:: max(1, len(images.images) // 300)]]
    drawn = [part[draw.choice(len(part), min(SAMPLE, len(part)), replace=False)] for part in sample]
    reduce = principal(np.concatenate(drawn).astype(np.float32), min(REDUCED, drawn[0].shape[1]))
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for index in track(range(len(images.images) * (1 + recipe.flips))):
        image, flip = images.images[index // (1 + recipe.flips)], bool(index % (1 + recipe.flips))
        parts.append(_of_image(image, flip, features, pyramid, reduce, recipe.rule, draw))
    return reduce, BoxPatches(*map(torch.cat, zip(*parts, strict=True)))


def _of_image(
    image: BoxedImage,
    flip: bool,
    features: Features,
    pyramid: Callable[[int, int], Pyramid],
    reduce: nn.Linear,
    rule: LabelRule,
    draw: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    patches, values = features(image, flip)
    boxes = mirrored(image.boxes, image.width) if flip else image.boxes
    shown = shown_object(patches, boxes, rule, image.difficult)  # [M]
    showing, none = (shown >= 0).nonzero()[0], (shown < 0).nonzero()[0]
    showing = draw.choice(showing, min(len(showing), SHOWN), replace=False)
    none = draw.choice(none, min(len(none), max(8, len(showing))), replace=False)
    kept = np.concatenate([showing, none])
    targets = np.full((len(kept), 4), np.nan, np.float32)
    targets[: len(showing)] = boxes[shown[showing]]
    with torch.no_grad():
        looked = reduce(torch.from_numpy(values).float())  # [M, reduced]
        inputs = around(looked, neighbors(pyramid(image.height, image.width))[kept])
    return inputs.half(), torch.from_numpy(patches[kept]), torch.from_numpy(targets)


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
        steps = -(-len(patches.inputs) // BATCH)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
        layer.train()
        for epoch in range(EPOCHS):
            total = 0.0
            for chosen in torch.randperm(len(patches.inputs)).split(BATCH):
                loss = _loss(layer, *(part[chosen] for part in patches))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rates.step()
                total += loss.item() * len(chosen)
            callback(epoch, total / len(patches.inputs))
    return layer.eval()


def _loss(layer: BoxLayer, inputs: Tensor, patches: Tensor, boxes: Tensor) -> Tensor:
    outputs = layer.raw(inputs.float())
    shows = boxes[:, 0].isfinite()
    found = decode(outputs[shows], patches[shows])
    quality = torch.zeros(len(inputs))
    quality[shows] = box_iou(found.detach(), boxes[shows]).diagonal()
    fit = F.binary_cross_entropy_with_logits(outputs[:, 4], quality)
    return fit + generalized_box_iou_loss(found, boxes[shows], reduction="sum") / len(inputs)
