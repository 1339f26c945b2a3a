"""What boxes are worth: average precision of each step on voc2012-mini, mean over its 12 well-filled classes.

    python benchmarks/boxes.py --data ../shared/data/voc2012-mini --head head.safetensors
    python benchmarks/boxes.py --data ../shared/data/voc2012-mini --choose

The head is trained first if its file is not there: ``densescore train --data … --out head.safetensors``. Steps are
measured on the validation images, which chose nothing, and written to ``results/boxes.json``.

``--choose`` prints what the thresholds of regions can be chosen by, without the validation images: two heads,
each trained on half of the training images (those with other classes, which are few, are in both halves) and measured
on the other.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from voc2012_baselines import CLASSES

from densescore import DenseScorer, DenseScores
from densescore.data.boxed_set import BoxedImage, BoxedSet
from densescore.data.load import load_boxed
from densescore.evaluation.detection import COCO_OVERLAPS, ImageBoxes, detection_ap
from densescore.io.files import atomic_write
from densescore.models.adaptation import HeadFile, load_head, save_head
from densescore.results.regions import Region, find_regions
from densescore.transfer.feature_cache import FeatureCache
from densescore.transfer.pipeline import cached_scores, train_model
from densescore.transfer.recipe import RECIPES
from densescore.transfer.rounds import Round

RESULTS = Path(__file__).parent / "results" / "boxes.json"
Find = Callable[[DenseScores, str], list[Region]]


def of_mean(scores: DenseScores, label: str) -> list[Region]:
    """The regions of the plain response map, each of them."""
    values = scores.response_map(label)[0].numpy()
    return find_regions(values, 0.5, min_share=0, confidence=scores.confidence()[scores.index(label)].item())


STEPS: dict[str, Find] = {
    "regions of the response map at half its peak": of_mean,
    "of the shrunk map": lambda scores, label: scores.boxes_from_map(label, 0.5, min_share=0),
    "without small regions (`boxes_from_map`)": lambda scores, label: scores.boxes_from_map(label),
    "box layer, trained with the head (`find_boxes`)": lambda scores, label: scores.find_boxes(label),
}


def precision(scored: Sequence[tuple[BoxedImage, DenseScores]], classes: Sequence[str], find: Find) -> list[float]:
    """Average precision at 0.3, at 0.5, and COCO's, mean over `CLASSES`."""
    values = []
    for label in CLASSES:
        images = []
        for image, scores in scored:
            found, own = find(scores, label), image.classes == classes.index(label)
            boxes = np.array([region.box for region in found], np.float32).reshape(-1, 4)
            certain = np.array([region.score for region in found], np.float32)
            images.append(ImageBoxes(boxes, certain, image.boxes[own], image.difficult[own]))
        coco = detection_ap(images, COCO_OVERLAPS, "coco")
        values.append([detection_ap(images, [0.3]), detection_ap(images, [0.5]), coco])
    return [round(float(value), 4) for value in np.mean(np.array(values, float), 0)]


def train(images: BoxedSet) -> HeadFile:
    """A head with a box layer, by the default recipe."""
    scorer = DenseScorer("lite0-stages", scales=RECIPES["default"].scales)
    start = time.perf_counter()
    file = train_model(images, scorer, FeatureCache(scorer), RECIPES["default"], callback=print_round)
    file.training["seconds"] = round(time.perf_counter() - start, 1)
    return file


def print_round(done: Round) -> None:
    """Print a round's loss."""
    print(done, flush=True)


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


def halves(train_set: BoxedSet) -> Iterator[tuple[BoxedSet, list[BoxedImage]]]:
    """Twice: images to train on, and others to choose by."""
    columns = [column for column, label in enumerate(train_set.classes) if label not in CLASSES]
    rare = [bool((image.truth[columns] == 1).any()) for image in train_set.images]
    for half in (0, 1):
        kept = [image for n, image in enumerate(train_set.images) if n % 2 != half or rare[n]]
        others = [image for n, image in enumerate(train_set.images) if n % 2 == half and not rare[n]]
        yield BoxedSet(train_set.name, train_set.classes, tuple(kept)), others


def choose(train_set: BoxedSet, work: Path) -> None:
    """Print the average precision of regions by their thresholds."""
    scored = []
    for half, (kept, others) in enumerate(halves(train_set)):
        head = work / f"half-{half}.safetensors"
        if not head.is_file():
            save_head(head, train(kept))
        scored += score(head, others)
    for share, least in itertools.product((0.3, 0.4, 0.5, 0.6), (0.0, 0.3, 0.5)):
        found = precision(
            scored,
            train_set.classes,
            lambda scores, label, s=share, m=least: scores.boxes_from_map(label, s, min_share=m),  # type: ignore[misc]
        )
        print(f"share {share}, min_share {least}:", found, flush=True)
    print("box layer:", precision(scored, train_set.classes, lambda scores, label: scores.find_boxes(label)))


def main() -> None:
    """Measure each step, or choose."""
    parser = argparse.ArgumentParser()
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
    some = val.images[:20]
    times = {"without the box layer": seconds(plain, some), "with it": seconds(arguments.head, some)}
    record = {"steps": rows, "processor_seconds_per_image": times, "threads": torch.get_num_threads()}
    with atomic_write(RESULTS, overwrite=True) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
