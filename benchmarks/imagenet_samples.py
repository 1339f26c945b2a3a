"""Top-1 of the center crop, of dense scores and of cropped patches, on a folder of labeled ImageNet images.

    python benchmarks/imagenet_samples.py --data ../shared/data/imagenet-samples

DATA holds `images/` and `labels.csv` with the columns `file` and `class_index`. Crops are slow, so every n-th image
has them; agreement and rank correlation are over those images, and their times alternate with the dense ones.
"""

import csv
import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import torch
from common import RESULTS, write_record
from cyclopts import Parameter, run
from PIL import Image
from rich.progress import track
from scipy.stats import spearmanr
from torchvision.transforms import v2

from densescore import DenseScorer, DenseScores


def centre_crop(scorer: DenseScorer, path: Path) -> int:
    """The usual evaluation: short side to 256, the middle 224×224, one forward pass."""
    transform = v2.Compose([v2.Resize(256, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224), v2.PILToTensor()])
    pixels = transform(Image.open(path).convert("RGB"))
    return int(scorer.score(pixels).patch_scores[0].argmax())


def timed(scorer: DenseScorer, path: Path, context: Any) -> tuple[DenseScores, float]:
    start = time.perf_counter()
    scores = scorer.score(path, context=context)
    return scores, time.perf_counter() - start


def main(
    *,
    data: Annotated[Path, Parameter(help="Folder with images/ and labels.csv.")],
    model: str = "lite0",
    crop_every: Annotated[int, Parameter(help="Every n-th image is also scored by crops.")] = 10,
    scales: Annotated[str, Parameter(help="With commas between; the model's own by default.")] = "",
    out: Path = RESULTS / "imagenet_samples.json",
) -> None:
    scorer = DenseScorer(model, scales=[float(scale) for scale in scales.split(",")] if scales else None)
    single = DenseScorer(model, scales=(1,))
    rows: list[dict[str, Any]] = []
    with (data / "labels.csv").open() as file:
        labeled = [(data / "images" / entry["file"], int(entry["class_index"])) for entry in csv.DictReader(file)]
    for number, (path, truth) in enumerate(track(labeled, description=model)):
        dense, seconds = timed(scorer, path, "image")
        row: dict[str, Any] = {
            "file": path.name,
            "patches": len(dense.boxes),
            "centre_crop": centre_crop(single, path) == truth,
            "dense": int(dense.image_scores().argmax()) == truth,
            "dense_seconds": seconds,
        }
        if number % crop_every == 0:
            cropped, seconds = timed(scorer, path, "patch")
            row |= {
                "cropped": int(cropped.image_scores().argmax()) == truth,
                "cropped_seconds": seconds,
                "agree": bool(dense.image_scores().argmax() == cropped.image_scores().argmax()),
                "patch_agree": (dense.patch_scores.argmax(1) == cropped.patch_scores.argmax(1)).float().mean().item(),
                "patch_correlation": rank_correlation(dense.patch_scores[:, truth], cropped.patch_scores[:, truth]),
                "image_correlation": rank_correlation(dense.image_scores(), cropped.image_scores()),
            }
        rows.append(row)
    command = f"python benchmarks/imagenet_samples.py --data {data} --model {model} --crop-every {crop_every}"
    about = {"command": command, "scales": scorer.scales, "model": model, "runtime": scorer.runtime}
    write_record(out, **about, summary=summarize(rows), images=rows)
    print(json.dumps(summarize(rows), indent=2))


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(spearmanr(a.numpy(), b.numpy()).statistic)


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    cropped = [row for row in rows if "cropped" in row]

    def mean(rows: list[dict[str, Any]], key: str) -> float:
        return round(statistics.mean(row[key] for row in rows), 4)

    same_images = {
        "top1_centre_crop_same_images": "centre_crop",
        "top1_dense_same_images": "dense",
        "top1_cropped_same_images": "cropped",
        "top1_agreement_dense_cropped": "agree",
        "patch_top1_agreement": "patch_agree",
        "patch_rank_correlation_true_class": "patch_correlation",
        "image_rank_correlation_all_classes": "image_correlation",
    }
    return {
        "images": len(rows),
        "images_with_crops": len(cropped),
        "top1_centre_crop": mean(rows, "centre_crop"),
        "top1_dense": mean(rows, "dense"),
        **{name: mean(cropped, key) for name, key in same_images.items()},
        "seconds_dense_median": round(statistics.median(row["dense_seconds"] for row in cropped), 3),
        "seconds_cropped_median": round(statistics.median(row["cropped_seconds"] for row in cropped), 3),
        "ratio_median": round(statistics.median(r["cropped_seconds"] / r["dense_seconds"] for r in cropped), 1),
    }


if __name__ == "__main__":
    run(main)
