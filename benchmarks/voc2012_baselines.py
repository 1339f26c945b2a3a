"""What transfer is measured against on voc2012-mini: probes, fine-tuning, Grad-CAM, the image's center."""

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torchvision.transforms import v2

from densescore import DenseScorer, read_image
from densescore.data.boxed_set import BoxedImage, BoxedSet
from densescore.data.labeled_set import DIFFICULT, POSITIVE, LabeledSet
from densescore.evaluation.average_precision import average_precision, precision_recall
from densescore.evaluation.evaluate import TOLERANCE
from densescore.models import load_classifier

CLASSES = tuple("bottle car cat chair cow dog horse person pottedplant sheep sofa tvmonitor".split())  # noqa: SIM905
"""Those with at least 8 positive val images, as the set's own README has it."""

Row = dict[str, Any]


def mean_ap(boxed: BoxedSet, scores: NDArray[np.float64]) -> float:
    """mAP over `CLASSES` of scores ``[N, C]`` of a set's images."""
    truth = boxed.truth()
    values = []
    for label in CLASSES:
        column = boxed.classes.index(label)
        kept = truth[:, column] != DIFFICULT
        values.append(average_precision(precision_recall(scores[kept, column], truth[kept, column] == POSITIVE)))
    return float(np.mean(values))


def probe_features(scorer: DenseScorer, image: BoxedImage, whole: bool) -> torch.Tensor:
    """The pooled features of an image's center square, or of the whole image, at the size of one patch: ``[D]``.

    `scorer`: at the one scale 1, so that a patch is a plain forward pass.
    """
    pixels, side = read_image(image.path), 224
    if not whole:
        ratio = 256 / min(pixels.shape[:2])
        size = (round(pixels.shape[1] * ratio), round(pixels.shape[0] * ratio))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR)
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        pixels = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    else:
        pixels = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
    return scorer.features(pixels)[0]


def linear_probe(train: BoxedSet, val: BoxedSet, whole: bool) -> tuple[Row, NDArray[np.float64], NDArray[np.float64]]:
    """Logistic regression per class on one feature vector per image; the row, weights ``[C, D]`` and biases ``[C]``."""
    scorer = DenseScorer("lite0", scales=(1.0,))
    features = [
        torch.stack([probe_features(scorer, image, whole) for image in boxed.images]).double().numpy()
        for boxed in (train, val)
    ]
    scaler = StandardScaler().fit(features[0])
    truth = train.truth()
    weights, biases = np.zeros((truth.shape[1], features[0].shape[1])), np.zeros(truth.shape[1])
    for column in range(truth.shape[1]):
        kept = truth[:, column] != DIFFICULT
        fitted = LogisticRegression(C=0.01, max_iter=2000)
        fitted.fit(scaler.transform(features[0][kept]), truth[kept, column] == POSITIVE)
        weights[column] = fitted.coef_[0] / scaler.scale_
        biases[column] = fitted.intercept_[0] - weights[column] @ scaler.mean_
    row = {"map": mean_ap(val, features[1] @ weights.T + biases)}
    print("linear probe", "whole image" if whole else "center crop", row, flush=True)
    return row, weights, biases


@cache
def _whole_image(path: Path) -> NDArray[np.float64]:
    """Pooled features of a whole image: ``[D]``."""
    scorer = _probe_scorer()
    small = cv2.resize(read_image(path), (224, 224), interpolation=cv2.INTER_AREA)
    return scorer.features(small)[0].double().numpy()


@cache
def _probe_scorer() -> DenseScorer:
    return DenseScorer("lite0", scales=(1.0,))


def probe_on(train: LabeledSet, val: BoxedSet) -> Row:
    """`linear_probe` of whole images on few images; a class that none or all of them show ranks at random."""
    features = [np.stack([_whole_image(image.path) for image in images.images]) for images in (train, val)]
    scaler, truth = StandardScaler().fit(features[0]), train.truth()
    scores = np.zeros((len(val.images), truth.shape[1]))
    for column in range(truth.shape[1]):
        kept = truth[:, column] != DIFFICULT
        shown = truth[kept, column] == POSITIVE
        if shown.any() and not shown.all():
            fitted = LogisticRegression(C=0.01, max_iter=2000).fit(scaler.transform(features[0][kept]), shown)
            scores[:, column] = fitted.decision_function(scaler.transform(features[1]))
        else:
            scores[:, column] = np.random.default_rng(column).random(len(scores))
    return {"map": mean_ap(val, scores)}


def grad_cam(train: BoxedSet, val: BoxedSet) -> Row:
    """Pointing accuracy of Grad-CAM on the linear probe of the whole image, by the package `grad-cam`."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    _, weights, biases = linear_probe(train, val, whole=True)
    network = load_classifier("lite0").module
    assert isinstance(network, timm.models.EfficientNet)
    network.classifier = torch.nn.Linear(weights.shape[1], len(weights))
    with torch.no_grad():
        network.classifier.weight.copy_(torch.from_numpy(weights))
        network.classifier.bias.copy_(torch.from_numpy(biases))
    cam = GradCAM(model=network.eval(), target_layers=[network.conv_head])
    hits: dict[str, list[bool]] = {label: [] for label in CLASSES}
    for image in val.images:
        pixels = cv2.resize(read_image(image.path), (224, 224), interpolation=cv2.INTER_AREA)
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
        for column in (image.truth == POSITIVE).nonzero()[0]:
            label = val.classes[column]
            if label in CLASSES:
                values = cam(input_tensor=tensor, targets=[ClassifierOutputTarget(int(column))])[0]
                values = cv2.resize(values, (image.width, image.height), interpolation=cv2.INTER_LINEAR)
                y, x = np.unravel_index(values.argmax(), values.shape)
                hits[label].append(points_at(image, int(column), x + 0.5, y + 0.5))
    return pointing_row("grad-cam", hits)


def image_center(val: BoxedSet) -> Row:
    """Pointing accuracy of always naming the image's center: what the photographers' habits alone are worth."""
    hits: dict[str, list[bool]] = {label: [] for label in CLASSES}
    for image in val.images:
        for column in (image.truth == POSITIVE).nonzero()[0]:
            if (label := val.classes[column]) in CLASSES:
                hits[label].append(points_at(image, int(column), image.width / 2, image.height / 2))
    return pointing_row("image center", hits)


def points_at(image: BoxedImage, column: int, x: float, y: float) -> bool:
    """Whether a point lies in a box of a class, or within `TOLERANCE` of it."""
    x0, y0, x1, y1 = (image.boxes[image.classes == column] + TOLERANCE * np.array([-1, -1, 1, 1])).T
    return bool(((x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1)).any())


def pointing_row(name: str, hits: dict[str, list[bool]]) -> Row:
    """The row of what each class's images came to."""
    row = {
        "pointing": float(np.mean([np.mean(found) for found in hits.values()])),
        "pointing_pooled": float(np.mean(np.concatenate(list(hits.values())))),
    }
    print(name, row, flush=True)
    return row


def fine_tuning(train: BoxedSet, val: BoxedSet, epochs: int = 8, seed: int = 0) -> Row:
    """One image, one forward, a sigmoid per class: all layers, random crops and flips, AdamW with a cosine schedule."""
    torch.manual_seed(seed)
    network = load_classifier("lite0").module
    assert isinstance(network, timm.models.EfficientNet)
    network.reset_classifier(len(train.classes))
    augment = v2.Compose([v2.RandomResizedCrop(224, scale=(0.4, 1.0)), v2.RandomHorizontalFlip()])
    plain = v2.Compose([v2.Resize((224, 224))])
    truth = torch.from_numpy(train.truth())

    def load(boxed: BoxedSet, index: int, transform: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return transform(torch.from_numpy(read_image(boxed.images[index].path)).permute(2, 0, 1)).float() / 127.5 - 1

    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4, weight_decay=0.01)
    steps = epochs * -(-len(truth) // 16)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], total_steps=steps)
    start = time.perf_counter()
    for epoch in range(epochs):
        network.train()
        for batch in torch.randperm(len(truth)).split(16):
            logits = network(torch.stack([load(train, i, augment) for i in batch.tolist()]))
            target = truth[batch]
            losses = torch.nn.functional.binary_cross_entropy_with_logits(
                logits, (target == POSITIVE).float(), reduction="none"
            )
            loss = (losses * (target != DIFFICULT)).sum() / len(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}", flush=True)
    network.eval()
    with torch.inference_mode():
        images = range(len(val.images))
        scores = torch.cat([network(load(val, i, plain)[None]) for i in images]).double().numpy()
    row = {"map": mean_ap(val, scores), "training_s": round(time.perf_counter() - start, 1)}
    print("full fine-tuning", row, flush=True)
    return row
