"""Average precision of boxes on voc2012-mini, step by step, mean over its 12 well-filled classes.

    python benchmarks/voc2012/boxes.py --data ../shared/data/voc2012-mini --head head.safetensors
    python benchmarks/voc2012/boxes.py --data ../shared/data/voc2012-mini --choose

The head is trained first if its file is missing, as by ``densescore train --data … --out head.safetensors``. Steps are
measured on the validation images and written to ``results/boxes.json``. ``--choose`` prints the same for thresholds of
regions, without the validation images: by two heads, each trained on half of the training images and measured on the
other half (the few images of other classes are in both halves).
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from baselines import CLASSES

from densescore import DenseScorer, DenseScores
from densescore.data.boxed_set import BoxedImage, BoxedSet
from densescore.data.load import load_boxed
from densescore.evaluation.average_precision import COCO_IOUS, ImageBoxes, detection_ap
from densescore.io.files import atomic_write
from densescore.models.head import HeadFile, load_head, save_head
from densescore.results.regions import Region, find_regions
from densescore.transfer.feature_cache import FeatureCache
from densescore.transfer.pipeline import cached_scores, train_model
from densescore.transfer.recipe import RECIPES

RESULTS = Path(__file__).parents[1] / "results" / "boxes.json"
Find = Callable[[DenseScores, str], list[Region]]


def of_mean(scores: DenseScores, label: str) -> list[Region]:
    """The regions of the plain response map, each of them."""
    values = scores.response_map(label)[0].numpy()
    return find_regions(values, 0.5, min_share=0, confidence=scores.confidence()[scores.index(label)].item())


STEPS: dict[str, Find] = {
    "regions of the response map at half its peak": of_mean,
    "of the heatmap": lambda scores, label: scores.boxes_from_map(label, 0.5, min_share=0),
    "without small regions (`boxes_from_map`)": lambda scores, label: scores.boxes_from_map(label),
    "box layer, trained with the head (`find_boxes`)": lambda scores, label: scores.find_boxes(label),
}


def precision(scored: Sequence[tuple[BoxedImage, DenseScores]], classes: Sequence[str], find: Find) -> list[float]:
    """Average precision at 0.3, at 0.5, and COCO's, mean over `CLASSES`."""
    values = []
    for label in CLASSES:
        images = []
        for image, scores in scored:
            regions, of_class = find(scores, label), image.classes == classes.index(label)
            boxes = np.array([region.box for region in regions], np.float32).reshape(-1, 4)
            confidences = np.array([region.score for region in regions], np.float32)
            images.append(ImageBoxes(boxes, confidences, image.boxes[of_class], image.difficult[of_class]))
        coco = detection_ap(images, COCO_IOUS, "coco")
        values.append([detection_ap(images, [0.3]), detection_ap(images, [0.5]), coco])
    return [round(float(value), 4) for value in np.mean(np.array(values, float), 0)]


def train(images: BoxedSet) -> HeadFile:
    """A head with a box layer, by the default recipe."""
    scorer = DenseScorer("lite0-stages", scales=RECIPES["default"].scales)
    start = time.perf_counter()
    file = train_model(
        images, scorer, FeatureCache(scorer), RECIPES["default"], callback=lambda done: print(done, flush=True)
    )
    file.training["seconds"] = round(time.perf_counter() - start, 1)
    return file


def score(head: Path, images: Sequence[BoxedImage]) -> list[tuple[BoxedImage, DenseScores]]:
    """The images with their scores, from cached features."""
    scorer = DenseScorer(head)
    of = cached_scores(scorer, FeatureCache(scorer))
    return [(image, of(image)) for image in images]


def seconds(head: Path, images: Sequence[BoxedImage]) -> float:
    """Median processor seconds of scoring an image, features included."""
    scorer, times = DenseScorer(head), []
    for image in images:
        start = time.process_time()
        scorer.score(image.path)
        times.append(time.process_time() - start)
    return float(np.median(times))


def choose(train_set: BoxedSet, work: Path) -> None:
    """Print the average precision of regions by their thresholds."""
    columns = [column for column, label in enumerate(train_set.classes) if label not in CLASSES]
    rare = [bool((image.truth[columns] == 1).any()) for image in train_set.images]
    scored = []
    for half in (0, 1):
        head = work / f"half-{half}.safetensors"
        if not head.is_file():
            taught = tuple(image for n, image in enumerate(train_set.images) if n % 2 != half or rare[n])
            save_head(head, train(BoxedSet(train_set.name, train_set.classes, taught)))
        scored += score(head, [image for n, image in enumerate(train_set.images) if n % 2 == half and not rare[n]])
    for threshold, min_share in itertools.product((0.3, 0.4, 0.5, 0.6), (0.0, 0.3, 0.5)):

        def find(scores: DenseScores, label: str, t: float = threshold, m: float = min_share) -> list[Region]:
            return scores.boxes_from_map(label, t, min_share=m)

        values = precision(scored, train_set.classes, find)
        print(f"share {threshold}, min_share {min_share}:", values, flush=True)
    print("box layer:", precision(scored, train_set.classes, lambda scores, label: scores.find_boxes(label)))


def main() -> None:
    """Measure each step, or choose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--head", type=Path, default=Path("head.safetensors"))
    parser.add_argument("--choose", action="store_true")
    arguments = parser.parse_args()
    if arguments.choose:
        choose(load_boxed(arguments.data, "train", need_positives=True), arguments.head.parent)
        return
    if not arguments.head.is_file():
        save_head(arguments.head, train(load_boxed(arguments.data, "train", need_positives=True)))
    val = load_boxed(arguments.data, "val")
    file = load_head(arguments.head)
    scored = score(arguments.head, val.images)
    rows = {}
    for name, find in STEPS.items():
        if "box layer" in name and file.box_layer is None:
            continue
        rows[name] = dict(zip(("0.3", "0.5", "coco"), precision(scored, val.classes, find), strict=True))
        print(name, rows[name], flush=True)
    plain = arguments.head.with_suffix(".plain.safetensors")
    save_head(plain, replace(file, box_layer=None), overwrite=True)
    timed = val.images[:20]
    times = {"without the box layer": seconds(plain, timed), "with it": seconds(arguments.head, timed)}
    record = {"steps": rows, "processor_seconds_per_image": times, "threads": torch.get_num_threads()}
    with atomic_write(RESULTS, overwrite=True) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
