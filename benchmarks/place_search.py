"""How `locate` and the exponent k were chosen: cross-validation on the training images of voc2012-mini, not on val.

    python benchmarks/place_search.py --data ../shared/data/voc2012-mini

A head per fold, trained on two thirds of the training images, on boxes and on labels alone, evaluated on the others.
`locate` shrinks each pixel's mean by how few patches hold it, ``Σ y / (n + a max n)``, and takes the mean over a
neighborhood whose radius is a share of the longer side. Kept in ``results/place_search.json``; ``place_search.md`` is
the table made of it.
"""

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from recipe_search import train_fold
from voc2012_baselines import CLASSES
from voc2012_mini import KS, RESULTS

from densescore import DenseScorer, DenseScores
from densescore.data.boxed_set import BoxedImage, BoxedSet
from densescore.data.load import load_boxed
from densescore.evaluation.evaluate import TOLERANCE, k_curve, score_set
from densescore.io.files import atomic_write
from densescore.results.smoothing import smooth
from densescore.transfer.feature_cache import DEFAULT_CACHE, FeatureCache
from densescore.transfer.pipeline import cached_scores

SHRINKAGES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
RADII = (0.0, 0.03, 0.06, 0.1)
HEADS = {"boxes": "boxes: the maps of three stages", "labels": "labels: the maps of three stages"}
Hits = dict[tuple[float, float, str], list[bool]]


def point(scores: DenseScores, image: BoxedImage, classes: tuple[str, ...], hits: Hits) -> None:
    """Add whether each class that an image shows is pointed at, by every choice."""
    counts = scores.coverage
    for column in (image.truth == 1).nonzero()[0].tolist():
        label = classes[column]
        if label not in CLASSES:
            continue
        means = scores.response_map(label)[0]
        boxes = image.boxes[image.classes == column]
        for shrinkage, share in product(SHRINKAGES, RADII):
            votes = means * counts / (counts + shrinkage * counts.max())
            radius = round(share * max(image.height, image.width))
            best = int((smooth(votes, radius) if radius else votes).argmax())
            x, y = best % image.width + 0.5, best // image.width + 0.5
            inside = (boxes[:, :2] - TOLERANCE <= (x, y)) & ((x, y) <= boxes[:, 2:] + TOLERANCE)
            hits.setdefault((shrinkage, share, label), []).append(bool(inside.all(1).any()))


def fold_numbers(images: BoxedSet, fold: int, row: str, cache: Path, scratch: Path) -> dict[str, dict[str, float]]:
    """Mean average precision by k, and pointing, mean over the classes, by shrinkage and radius."""
    test, _ = train_fold(images, fold, row, cache, scratch)
    scorer = DenseScorer(scratch)
    score = cached_scores(scorer, FeatureCache(scorer, cache))
    hits: Hits = {}
    for image in test.images:
        point(score(image), image, test.classes, hits)
    precision = k_curve(score_set(test, score, KS, locate=None), classes=CLASSES)
    pointing = {
        f"{shrinkage:g}, {share:g}": float(
            np.mean([np.mean(found) for (a, r, _), found in hits.items() if (a, r) == (shrinkage, share)])
        )
        for shrinkage, share in product(SHRINKAGES, RADII)
    }
    return {"map_by_k": {f"{k:g}": value for k, value in precision}, "pointing": pointing}


def table(results: dict[str, Any]) -> str:
    """The results as Markdown, means over the folds."""
    lines = [
        "# How `locate` and k were chosen\n\nMade by `python benchmarks/place_search.py`: heads trained on two thirds "
        "of voc2012-mini's training images, evaluated on the others, mean over three folds and 12 classes."
    ]
    for taught, folds in results.items():
        by_k = {k: np.mean([fold["map_by_k"][k] for fold in folds.values()]) for k in folds["0"]["map_by_k"]}
        lines += [
            f"\n## Taught by {taught}\n",
            f"| k | {' | '.join(by_k)} |",
            "| --- " * (1 + len(by_k)) + "|",
            f"| mAP | {' | '.join(f'{value:.3f}' for value in by_k.values())} |",
            "\nPointing, by shrinkage (rows) and the radius of the mean, as a share of the longer side (columns):\n",
            f"| | {' | '.join(f'{share:g}' for share in RADII)} |",
            "| --- " * (1 + len(RADII)) + "|",
        ]
        for shrinkage in SHRINKAGES:
            cells = [
                np.mean([fold["pointing"][f"{shrinkage:g}, {share:g}"] for fold in folds.values()]) for share in RADII
            ]
            lines.append(f"| {shrinkage:g} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/voc2012-mini"))
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    images = load_boxed(options.data, "train", need_positives=True)
    path, scratch = options.results / "place_search.json", Path("build/place_search.safetensors")
    scratch.parent.mkdir(exist_ok=True)
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for fold, (taught, row) in product(range(3), HEADS.items()):
        if str(fold) in results.get(taught, {}):
            continue
        results.setdefault(taught, {})[str(fold)] = fold_numbers(images, fold, row, options.cache, scratch)
        for file, text in ((path, json.dumps(results, indent=1) + "\n"), (path.with_suffix(".md"), table(results))):
            with atomic_write(file, overwrite=True) as temporary:
                temporary.write_text(text)


if __name__ == "__main__":
    main()
