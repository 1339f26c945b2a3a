"""Baselines on voc2012-mini: linear probes, fine-tuning, Grad-CAM, the image's center."""

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
from densescore.models.registry import load_classifier

CLASSES = tuple("bottle car cat chair cow dog horse person pottedplant sheep sofa tvmonitor".split())  # noqa: SIM905
"""Classes with at least 8 positive val images."""

Row = dict[str, Any]


def mean_ap(boxed: BoxedSet, scores: NDArray[np.float64]) -> float:
    """mAP over `CLASSES` of scores ``[N, C]`` of a set's images."""
    truth = boxed.truth()
    values = []
    for label in CLASSES:
        column = boxed.classes.index(label)
        certain = truth[:, column] != DIFFICULT
        values.append(average_precision(precision_recall(scores[certain, column], truth[certain, column] == POSITIVE)))
    return float(np.mean(values))


@cache
def _probe_scorer() -> DenseScorer:
    return DenseScorer("lite0", scales=(1.0,))  # a patch is a plain forward pass


@cache
def _pooled_features(path: Path, whole: bool) -> NDArray[np.float64]:
    """Pooled features of a whole image, or of its center square, at the size of one patch: ``[D]``."""
    pixels, side = read_image(path), 224
    if whole:
        pixels = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
    else:
        ratio = 256 / min(pixels.shape[:2])
        size = (round(pixels.shape[1] * ratio), round(pixels.shape[0] * ratio))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR)
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        pixels = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    return _probe_scorer().features(pixels)[0].double().numpy()


def linear_probe(
    train: LabeledSet, val: BoxedSet, whole: bool = True
) -> tuple[Row, NDArray[np.float64], NDArray[np.float64]]:
    """Logistic regression per class on one feature vector per image; the row, weights ``[C, D]`` and biases ``[C]``.

    A class that none or all of the training images show ranks at random.
    """
    features = [np.stack([_pooled_features(image.path, whole) for image in part.images]) for part in (train, val)]
    scaler, truth = StandardScaler().fit(features[0]), train.truth()
    weights, biases = np.zeros((truth.shape[1], features[0].shape[1])), np.zeros(truth.shape[1])
    scores = np.zeros((len(val.images), truth.shape[1]))
    for column in range(truth.shape[1]):
        certain = truth[:, column] != DIFFICULT
        positive = truth[certain, column] == POSITIVE
        if positive.all() or not positive.any():
            scores[:, column] = np.random.default_rng(column).random(len(scores))
            continue
        fitted = LogisticRegression(C=0.01, max_iter=2000).fit(scaler.transform(features[0][certain]), positive)
        scores[:, column] = fitted.decision_function(scaler.transform(features[1]))
        weights[column] = fitted.coef_[0] / scaler.scale_
        biases[column] = fitted.intercept_[0] - weights[column] @ scaler.mean_
    row = {"map": mean_ap(val, scores)}
    print("linear probe", "whole image" if whole else "center crop", row, flush=True)
    return row, weights, biases


def grad_cam(train: BoxedSet, val: BoxedSet) -> Row:
    """Pointing accuracy of Grad-CAM on the linear probe of the whole image, by the package `grad-cam`."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    _, weights, biases = linear_probe(train, val)
    network = load_classifier("lite0").module
    assert isinstance(network, timm.models.EfficientNet)
    network.classifier = torch.nn.Linear(weights.shape[1], len(weights))
    with torch.no_grad():
        network.classifier.weight.copy_(torch.from_numpy(weights))
        network.classifier.bias.copy_(torch.from_numpy(biases))
    cam = GradCAM(model=network.eval(), target_layers=[network.conv_head])

    def maximum(image: BoxedImage, column: int) -> tuple[float, float]:
        pixels = cv2.resize(read_image(image.path), (224, 224), interpolation=cv2.INTER_AREA)
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
        values = cam(input_tensor=tensor, targets=[ClassifierOutputTarget(column)])[0]
        values = cv2.resize(values, (image.width, image.height), interpolation=cv2.INTER_LINEAR)
        y, x = np.unravel_index(values.argmax(), values.shape)
        return float(x) + 0.5, float(y) + 0.5

    return pointing("grad-cam", val, maximum)


def image_center(val: BoxedSet) -> Row:
    """Pointing accuracy of the image's center: the photographers' habits alone."""
    return pointing("image center", val, lambda image, _: (image.width / 2, image.height / 2))


def pointing(name: str, val: BoxedSet, point: Callable[[BoxedImage, int], tuple[float, float]]) -> Row:
    """Share of points that lie in a box of their class, or within `TOLERANCE` of it."""
    hits: dict[str, list[bool]] = {label: [] for label in CLASSES}
    for image in val.images:
        for column in (image.truth == POSITIVE).nonzero()[0].tolist():
            if (label := val.classes[column]) in CLASSES:
                x, y = point(image, column)
                x0, y0, x1, y1 = (image.boxes[image.classes == column] + TOLERANCE * np.array([-1, -1, 1, 1])).T
                hits[label].append(bool(((x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1)).any()))
    row = {
        "pointing": float(np.mean([np.mean(each) for each in hits.values()])),
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
