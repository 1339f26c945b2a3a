"""How the default recipe was chosen: cross-validation on the training images of voc2012-mini; val plays no part.

    python benchmarks/recipe_search.py --data ../shared/data/voc2012-mini --folds 3

Each row trains one head on two thirds of the training images and evaluates it on the rest, at the scales of testing.
The numbers are kept in ``results/recipe_search.json`` as they come; ``recipe_search.md`` is the table made of them.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from voc2012_baselines import CLASSES
from voc2012_mini import RESULTS, STAGES, without_boxes

from densescore import DenseScorer
from densescore.data.boxed_set import BoxedSet
from densescore.data.labeled_set import LabeledSet
from densescore.data.load import load_boxed
from densescore.evaluation.evaluate import evaluate_classes, mean_of, score_set
from densescore.io.files import atomic_write
from densescore.models.adaptation import save_head
from densescore.transfer.feature_cache import DEFAULT_CACHE, FeatureCache
from densescore.transfer.pipeline import cached_features, cached_scores, describe, head_file, train_both
from densescore.transfer.recipe import RECIPES, Recipe
from densescore.transfer.training_patches import gather

ONE = replace(RECIPES["default"], heads=1)  # of one head: a fourth of the time
Pooling = Callable[[Tensor, int, float], Tensor]


def top_k(probabilities: Tensor, images: int, k: float) -> Tensor:
    """The mean logit of the k best patches, as a probability."""
    return torch.logit(bags(probabilities, images)).topk(int(k), 1).values.mean(1).sigmoid()


def log_sum_exp(probabilities: Tensor, images: int, k: float) -> Tensor:
    """Pinheiro and Collobert's smooth maximum of the logits, as a probability."""
    logits = torch.logit(bags(probabilities, images))
    return ((torch.logsumexp(k * logits, 1) - math.log(logits.shape[1])) / k).sigmoid()


def wildcat(probabilities: Tensor, images: int, k: float) -> Tensor:
    """WILDCAT (Durand et al., CVPR 2017): the k best patches, and 0.6 times the k worst ones."""
    logits = torch.logit(bags(probabilities, images))
    worst = logits.topk(int(k), 1, largest=False).values.mean(1)
    return (logits.topk(int(k), 1).values.mean(1) + 0.6 * worst).sigmoid()


def bags(probabilities: Tensor, images: int) -> Tensor:
    """``[B n, C]`` → ``[B, n, C]``, away from 0 and 1."""
    return probabilities.clamp(1e-6, 1 - 1e-6).unflatten(0, (images, -1))


ROWS: dict[str, tuple[str, Recipe, Pooling | None]] = {
    "labels: power mean, k = 5": ("labels", ONE, None),
    "labels: power mean, k = 3": ("labels", replace(ONE, image_k=3.0), None),
    "labels: power mean, k = 8": ("labels", replace(ONE, image_k=8.0), None),
    "labels: the best patch": ("labels", replace(ONE, image_k=1.0), top_k),
    "labels: the 8 best patches": ("labels", replace(ONE, image_k=8.0), top_k),
    "labels: log-sum-exp, r = 1": ("labels", replace(ONE, image_k=1.0), log_sum_exp),
    "labels: WILDCAT, k = 8": ("labels", replace(ONE, image_k=8.0), wildcat),
    "labels: no dropout of features": ("labels", replace(ONE, feature_dropout=0.0), None),
    "labels: 96 patches a step": ("labels", replace(ONE, image_patches=96), None),
    "labels: 32 passes instead of 16": ("labels", replace(ONE, label_rounds=32), None),
    "labels: all features, FCa of 2048": ("labels", replace(ONE, components=0, width=2048), None),
    "boxes": ("boxes", ONE, None),
    "boxes: no dropout of features": ("boxes", replace(ONE, feature_dropout=0.0), None),
    "boxes: no image labels": ("boxes", replace(ONE, image_rounds=0), None),
    "boxes: all features, FCa of 2048": ("boxes", replace(ONE, components=0, width=2048), None),
}
"""What teaches, the recipe, and another pooling than the power mean; on lite0's last stage alone."""

THREE_STAGES = "three stages"
ROWS |= {
    "labels: the maps of three stages": ("labels", ONE, None),
    "boxes: the maps of three stages": ("boxes", ONE, None),
}


def train_fold(images: BoxedSet, fold: int, name: str, cache: Path, scratch: Path) -> tuple[BoxedSet, float]:
    """Train a row's head on two thirds of the images and write it; the other third, and the seconds."""
    teach, recipe, pooling = ROWS[name]
    model = STAGES if name.endswith(THREE_STAGES) else "lite0"
    held_out = np.random.default_rng(0).permutation(len(images.images)) % 3 == fold
    kept = [image for image, out in zip(images.images, held_out, strict=True) if not out]
    train = LabeledSet(images.name, images.classes, tuple(map(without_boxes, kept) if teach == "labels" else kept))
    test = BoxedSet(
        images.name, images.classes, tuple(im for im, out in zip(images.images, held_out, strict=True) if out)
    )
    scorer = DenseScorer(model, scales=recipe.scales)
    features = cached_features(scorer, FeatureCache(scorer, cache))
    start = time.perf_counter()
    patches = gather(train, features, recipe, 0)
    pooled: AbstractContextManager[Any] = (
        patch("densescore.transfer.tune_on_images.image_confidence", pooling) if pooling else nullcontext()
    )
    with pooled:
        head = train_both(patches, len(train.classes), recipe, 0)
    seconds = time.perf_counter() - start
    file = head_file(train, patches, head, recipe, 0, **describe(scorer, FeatureCache(scorer, cache)))
    save_head(scratch, file, overwrite=True)
    return test, seconds


def run(images: BoxedSet, fold: int, name: str, cache: Path, scratch: Path) -> dict[str, Any]:
    """Train a row's head on two thirds of the images, evaluate it on the rest."""
    test, seconds = train_fold(images, fold, name, cache, scratch)
    trained = DenseScorer(scratch)
    found = score_set(test, cached_scores(trained, FeatureCache(trained, cache)), (5.0,))
    results = evaluate_classes(found, 5.0)
    fields = {"map": "ap", "pointing": "pointing", "located_map": "located_ap"}
    return {key: mean_of(results, field, CLASSES) for key, field in fields.items()} | {"seconds": round(seconds, 1)}


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["| row | folds | mAP | pointing | AP with location | seconds |", "| --- " * 6 + "|"]
    for name, folds in results.items():
        means = {key: np.mean([fold[key] for fold in folds.values()]) for key in next(iter(folds.values()))}
        numbers = " | ".join(f"{means[key]:.3f}" for key in ("map", "pointing", "located_map"))
        lines.append(f"| {name} | {len(folds)} | {numbers} | {means['seconds']:.0f} |")
    return (
        "# How the recipe was chosen\n\nMade by `python benchmarks/recipe_search.py`: one head per row, trained on two "
        "thirds of voc2012-mini's training images, evaluated on the others, mean over the folds and 12 classes. val "
        "plays no part. On the maps of lite0's last stage, but for the rows of three. Seconds of training with cached "
        "features, on a busy core.\n\n" + "\n".join(lines) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/voc2012-mini"))
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--rows", default="", help="only those whose names have this in them")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    images = load_boxed(options.data, "train", need_positives=True)
    path = options.results / "recipe_search.json"
    scratch = Path("build/recipe_search.safetensors")
    scratch.parent.mkdir(exist_ok=True)
    for fold in range(options.folds):
        for name in ROWS:
            results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
            if options.rows not in name or str(fold) in results.get(name, {}):
                continue
            found = run(images, fold, name, options.cache, scratch)
            print(name, fold, found, flush=True)
            results.setdefault(name, {})[str(fold)] = found
            for file, text in ((path, json.dumps(results, indent=1) + "\n"), (path.with_suffix(".md"), table(results))):
                with atomic_write(file, overwrite=True) as temporary:
                    temporary.write_text(text)


if __name__ == "__main__":
    main()
