"""Wrong labels that ``densescore check`` finds among voc2012-mini's training images.

    python benchmarks/voc2012/label_noise.py --data ../shared/data/voc2012-mini --seeds 3

Turns round 5 % of the known labels of images and classes, and prints the share of them among the 10 % most suspect;
then deletes 5 % of the boxes, and prints the share whose image and class are among the 10 % most suspect.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from densescore import DenseScorer
from densescore.data.boxed_set import BoxedSet
from densescore.data.labeled_set import LabeledImage, LabeledSet
from densescore.data.load import load_boxed
from densescore.transfer.feature_cache import FeatureCache
from densescore.transfer.label_check import rate_labels
from densescore.transfer.recipe import RECIPES

NOISE, CHECKED = 0.05, 0.1


def turn_labels(images: BoxedSet, draw: np.random.Generator) -> tuple[LabeledSet, NDArray[np.bool_]]:
    """The set with labels alone, some of them turned round, and which: ``[I, C]``."""
    truth = images.truth()
    turned = (draw.random(truth.shape) < NOISE) & (truth != 0)
    labels = np.where(turned, -truth, truth).astype(np.int8)
    plain = [
        LabeledImage(name=i.name, path=i.path, height=i.height, width=i.width, truth=row)
        for i, row in zip(images.images, labels, strict=True)
    ]
    return LabeledSet(images.name, images.classes, plain), turned


def delete_boxes(images: BoxedSet, draw: np.random.Generator) -> tuple[BoxedSet, NDArray[np.bool_]]:
    """The set without some boxes, and the classes that lost one: ``[I, C]``. A last box takes the label with it."""
    lost, changed = np.zeros(images.truth().shape, bool), []
    for index, image in enumerate(images.images):
        gone = (draw.random(len(image.boxes)) < NOISE) & ~image.difficult
        lost[index, image.classes[gone]] = True
        left = np.isin(np.arange(len(images.classes)), image.classes[~gone])
        parts = {name: getattr(image, name)[~gone] for name in ("boxes", "classes", "difficult", "crowd")}
        truth = np.where(lost[index] & ~left, -1, image.truth).astype(np.int8)
        changed.append(replace(image, truth=truth, **parts))
    return replace(images, images=changed), lost


def main() -> None:
    """Print both shares for every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/voc2012-mini"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    images, recipe = load_boxed(arguments.data, "train", need_positives=True), RECIPES["default"]
    scorer = DenseScorer("lite0-stages", scales=recipe.scales)
    for seed in range(arguments.seeds):
        for change in (turn_labels, delete_boxes):
            noisy, wrong = change(images, np.random.default_rng(seed))
            rated = rate_labels(noisy, scorer, FeatureCache(scorer), recipe, seed)
            columns = [images.classes.index(label) for label in rated.images.classes]
            order = np.argsort(-rated.suspicion, axis=None)[: round(CHECKED * rated.suspicion.size)]
            print(
                f"seed {seed}, {change.__name__}: {wrong[:, columns].ravel()[order].sum() / wrong.sum():.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
