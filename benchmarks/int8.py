"""What eight bits gain and cost: AlexNet's time against bfloat16's, lite0's scores against float32's.

    python benchmarks/int8.py --data ../shared/data/imagenet-samples --calibration VOCdevkit/VOC2012/JPEGImages

DATA holds `images/` and `labels.csv` with the columns `file` and `class_index`. The ranges come from other images.
"""

import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track
from scipy.stats import spearmanr

from densescore import DenseScorer
from densescore.bench.growth import photograph
from densescore.bench.machine import describe_machine
from densescore.bench.run import adapted_classifier
from densescore.io.images import ImageLike


def speed(calibration: Sequence[ImageLike], rounds: int) -> dict[str, Any]:
    """AlexNet with a random FCa, FCb of 21 classes on 500×375 pixels, nine scales; the dtypes in turn."""
    classifier = adapted_classifier("alexnet", None, 21)
    options: dict[str, Any] = {"mean": classifier.mean, "std": classifier.std, "patch_size": classifier.patch_size}
    scorers = {
        dtype: DenseScorer(
            classifier.module, dtype=dtype, calibration=calibration if dtype == "int8" else (), **options
        )
        for dtype in ("float32", "bfloat16", "int8")
    }
    pixels = photograph(375, 500)
    seconds: dict[str, list[float]] = {dtype: [] for dtype in scorers}
    for _ in range(rounds + 1):
        for dtype, scorer in scorers.items():
            start = time.perf_counter()
            scorer.score(pixels)
            seconds[dtype].append(time.perf_counter() - start)
    exact = scorers["float32"].score(pixels)
    return {
        "patches": len(exact.boxes),
        "runtime": {dtype: scorer.runtime for dtype, scorer in scorers.items()},
        "seconds": {dtype: median(times[1:]) for dtype, times in seconds.items()},
        **{
            f"{dtype}_over_int8": spread([a / b for a, b in zip(times[1:], seconds["int8"][1:], strict=True)])
            for dtype, times in seconds.items()
            if dtype != "int8"
        },
        "largest_difference_from_float32": {
            dtype: float((scorer.score(pixels).patch_scores - exact.patch_scores).abs().max())
            for dtype, scorer in scorers.items()
        },
    }


def accuracy(data: Path, calibration: list[Path]) -> dict[str, Any]:
    """lite0: top-1 of the image score, and the rank correlation of the true class's patch scores with float32's."""
    scorers = {
        "float32": DenseScorer(),
        "bfloat16": DenseScorer(dtype="bfloat16"),
        "int8": DenseScorer(dtype="int8", calibration=calibration),
    }
    right: dict[str, list[bool]] = {dtype: [] for dtype in scorers}
    ranks: dict[str, list[float]] = {dtype: [] for dtype in scorers}
    seconds: dict[str, list[float]] = {dtype: [] for dtype in scorers}
    with (data / "labels.csv").open() as file:
        labeled = list(csv.DictReader(file))
    for entry in track(labeled, description="lite0"):
        truth = int(entry["class_index"])
        scores = {}
        for dtype, scorer in scorers.items():
            start = time.perf_counter()
            scores[dtype] = scorer.score(data / "images" / entry["file"])
            seconds[dtype].append(time.perf_counter() - start)
            right[dtype].append(int(scores[dtype].image_scores().argmax()) == truth)
            pair = (scores["float32"].patch_scores[:, truth], scores[dtype].patch_scores[:, truth])
            ranks[dtype].append(float(spearmanr(*pair).statistic))
    return {
        "images": len(labeled),
        "runtime": {dtype: scorer.runtime for dtype, scorer in scorers.items()},
        "top1": {dtype: float(np.mean(hits)) for dtype, hits in right.items()},
        "rank_correlation": {dtype: spread(values) for dtype, values in ranks.items() if dtype != "float32"},
        "seconds": {dtype: median(times) for dtype, times in seconds.items()},
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "mean": float(np.mean(values)), "lowest": min(values), "highest": max(values)}


def main(
    data: Annotated[Path, typer.Option(help="Folder with images/ and labels.csv.")],
    calibration: Annotated[Path, typer.Option(help="Folder of images that set the ranges.")],
    images: Annotated[int, typer.Option(help="So many of them.")] = 20,
    rounds: int = 9,
    out: Path = Path("benchmarks/results/int8.json"),
) -> None:
    chosen = sorted(calibration.glob("*.jpg"))[:images]
    results = {
        "calibration_images": len(chosen),
        "alexnet": speed(chosen[:1], rounds),
        "lite0": accuracy(data, chosen),
        "machine": describe_machine(DenseScorer(scales=(1,)).device),
    }
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    typer.run(main)
