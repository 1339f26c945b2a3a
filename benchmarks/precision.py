"""What fewer bits gain and cost: lite0's scores and time in bfloat16, and in eight bits by NNCF, against float32's.

    python benchmarks/precision.py --data ../shared/data/imagenet-samples --calibration VOCdevkit/VOC2012/JPEGImages

DATA holds `images/` and `labels.csv` with the columns `file` and `class_index`. Eight bits need `pip install nncf`;
their ranges come from other images. Times are of the processor, in one thread, so that they bear other work beside.
"""

import csv
import json
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import openvino
import torch
import typer
from rich.progress import track
from scipy.stats import spearmanr
from torch import Tensor

from densescore import DenseScorer, read_image
from densescore.bench.machine import describe_machine
from densescore.models import load_classifier
from densescore.network.conv_graph import convolutional_form
from densescore.network.surgery import to_dense

RESULTS = Path(__file__).parent / "results" / "precision.json"
Score = Callable[[Path], Tensor]
"""From an image to its patch scores ``[M, C]``."""


def levels_of(scorer: DenseScorer, path: Path) -> list[Tensor]:
    """The normalized levels of an image."""
    pixels = read_image(path)
    pyramid = scorer.pyramid(*pixels.shape[:2])
    return [scorer.level(pixels, pyramid, level) for level in pyramid.levels]


def eight_bits(scorer: DenseScorer, calibration: Sequence[Path]) -> Score | None:
    """lite0 as NNCF quantizes it for OpenVINO; None without NNCF."""
    try:
        import nncf
    except ImportError:
        return None
    network = convolutional_form(to_dense(load_classifier("lite0").module, scorer.network.patch)).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(network, example_input=torch.zeros(1, 3, 224, 224))
    model.reshape([1, 3, -1, -1])
    samples = [level.contiguous().numpy() for path in calibration for level in levels_of(scorer, path)]
    quantized = nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples))
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.compile_model(quantized, "CPU", settings).create_infer_request()

    def score(path: Path) -> Tensor:
        maps = [request.infer({0: level.contiguous().numpy()})[0].copy() for level in levels_of(scorer, path)]
        return torch.cat([torch.from_numpy(one).flatten(2)[0].T for one in maps]).softmax(1)

    return score


def main(
    data: Annotated[Path, typer.Option(help="Folder with images/ and labels.csv.")],
    calibration: Annotated[Path, typer.Option(help="Folder of images that set the ranges.")],
    every: Annotated[int, typer.Option(help="Every n-th image.")] = 1,
    out: Annotated[Path, typer.Option(help="The JSON to write.")] = RESULTS,
) -> None:
    """Score all images in all precisions, in turn."""
    torch.set_num_threads(1)
    scorers = {dtype: DenseScorer(dtype=dtype) for dtype in ("float32", "bfloat16")}
    ways: dict[str, Score] = {
        dtype: lambda path, scorer=scorer: scorer.score(path).patch_scores  # type: ignore[misc]
        for dtype, scorer in scorers.items()
    }
    quantized = eight_bits(scorers["float32"], sorted(calibration.glob("*.jpg"))[:10])
    if quantized is not None:
        ways["int8 by NNCF"] = quantized
    with (data / "labels.csv").open() as file:
        labeled = list(csv.DictReader(file))[::every]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    tops: dict[str, list[int]] = {way: [] for way in ways}
    ranks: dict[str, list[float]] = {way: [] for way in ways}
    truths = [int(entry["class_index"]) for entry in labeled]
    for entry, truth in zip(track(labeled, description="lite0"), truths, strict=True):
        found: dict[str, Tensor] = {}
        for way, score in ways.items():
            start = time.process_time()
            found[way] = score(data / "images" / entry["file"])
            seconds[way].append(time.process_time() - start)
            tops[way].append(int(found[way].pow(5).mean(0).argmax()))
            pair = (found["float32"][:, truth], found[way][:, truth])
            ranks[way].append(float(spearmanr(*pair).statistic))
    rows = [
        {
            "precision": way,
            "runtime": scorers[way].runtime if way in scorers else "openvino",
            "processor_seconds": statistics.median(seconds[way]),
            "float32_over_it": statistics.median(np.divide(seconds["float32"], seconds[way]).tolist()),
            "top1": float(np.mean(np.equal(tops[way], truths))),
            "same_top1_as_float32": float(np.mean(np.equal(tops[way], tops["float32"]))),
            "rank_correlation": float(np.mean(ranks[way])),
            "lowest_rank_correlation": min(ranks[way]),
        }
        for way in ways
    ]
    record: dict[str, Any] = {"command": "python benchmarks/precision.py", "images": len(labeled), "rows": rows}
    out.write_text(json.dumps({**record, "machine": describe_machine()}, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    typer.run(main)
