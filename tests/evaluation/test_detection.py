"""Average precision of boxes: answers on paper, published values, and COCO's own code."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densescore.evaluation.average_precision import COCO_IOUS, ImageBoxes, detection_ap, match
from tests.conftest import DATA


def of(boxes: Any, scores: Any, truth: Any, difficult: Any = None) -> ImageBoxes:
    truth = np.array(truth, np.float32).reshape(-1, 4)
    return ImageBoxes(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        truth,
        np.zeros(len(truth), bool) if difficult is None else np.array(difficult),
    )


def test_the_most_certain_detection_takes_the_object() -> None:
    image = of([[0, 0, 9, 10], [0, 0, 10, 10], [50, 50, 60, 60]], [0.5, 0.9, 0.7], [[0, 0, 10, 10]])
    hit, counts = match(image, 0.5)
    assert hit.tolist() == [False, True, False]
    assert counts.all()
    assert detection_ap([image], [0.5]) == 1.0


def test_a_second_object_is_left_for_the_second_detection() -> None:
    image = of([[0, 0, 10, 10], [1, 0, 11, 10]], [0.9, 0.8], [[0, 0, 10, 10], [3, 0, 13, 10]])
    assert match(image, 0.5)[0].tolist() == [True, True]


def test_difficult_objects_are_neither_hits_nor_misses() -> None:
    image = of([[0, 0, 10, 10], [0, 0, 10, 10], [30, 0, 40, 10]], [3, 2, 1], [[0, 0, 10, 10], [30, 0, 40, 10]], [1, 0])
    image = ImageBoxes(image.boxes, image.scores, image.truth, image.difficult.astype(bool))
    hit, counts = match(image, 0.5)
    assert hit.tolist() == [False, False, True]
    assert counts.tolist() == [False, False, True]
    assert detection_ap([image], [0.5]) == 1.0
    assert detection_ap([of([[0, 0, 1, 1]], [1], [])], [0.5]) is None
    assert detection_ap([of([], [], [[0, 0, 1, 1]])], [0.5]) == 0.0


def read(path: Path, scored: bool) -> tuple[np.ndarray, np.ndarray]:
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [[float(word) for word in line.split()[1:]] for line in lines]
    table = np.array(rows, np.float32).reshape(-1, 5 if scored else 4)
    corners = table[:, -4:].copy()
    corners[:, 2:] += corners[:, :2] + 1  # the published values count the last pixel in
    return corners, table[:, 0]


def test_published_values_of_a_detector() -> None:
    folder = DATA / "ap-vectors" / "odm_sample2"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, which the repository does not ship")
    paths = sorted((folder / "groundtruths").glob("*.txt"))
    found = [read(folder / "detections" / path.name, scored=True) for path in paths]
    order = np.argsort(-np.concatenate([scores for _, scores in found]), kind="stable")
    ranks = np.empty(len(order), np.float32)
    ranks[order] = -np.arange(len(order), dtype=np.float32)  # the detector's own order, ties included
    parts = np.split(ranks, np.cumsum([len(scores) for _, scores in found])[:-1])
    images = [
        of(boxes, scores, read(path, scored=False)[0])
        for path, (boxes, _), scores in zip(paths, found, parts, strict=True)
    ]
    assert detection_ap(images, [0.3], "voc2007") == pytest.approx(0.2684, abs=5e-5)
    assert detection_ap(images, [0.3]) == pytest.approx(0.2456, abs=1e-4)  # published as 24.56 %, cut off


def test_a_crowd_is_hit_by_the_area_of_the_detection() -> None:
    image = of([[0, 0, 10, 10]], [1], [[0, 0, 20, 15]], [True])  # a third of the object
    assert [match(image, iou)[1].tolist() for iou in (0.3, 0.4)] == [[False], [True]]
    crowd = replace(image, crowd=image.difficult)
    assert [match(crowd, iou)[1].tolist() for iou in (0.4, 0.95)] == [[False], [False]]


@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize("levels", [None, 4, 1], ids=["distinct", "ties", "all tied"])
@pytest.mark.parametrize("seed", range(3))
def test_coco_agrees(seed: int, levels: int | None, crowded: bool) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    draw = np.random.default_rng(seed)
    images: list[ImageBoxes] = []
    truths: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number in range(12):
        corner = draw.uniform(0, 100, (draw.integers(1, 5), 2))
        truth = np.concatenate([corner, corner + draw.uniform(10, 60, corner.shape)], 1).astype(np.float32)
        boxes = np.repeat(truth, 2, 0) + draw.normal(0, 4, (2 * len(truth), 4)).astype(np.float32)
        scores = draw.random(len(boxes)).astype(np.float32)
        if levels is not None:
            scores = (np.ceil(scores * levels) / levels).astype(np.float32)
        crowd = draw.random(len(truth)) < 0.3 if crowded else np.zeros(len(truth), bool)
        truth[crowd, 2:] += 40  # around several objects
        images.append(replace(of(boxes, scores, truth, crowd), crowd=crowd))
        for box, many in zip(truth.astype(float), crowd.tolist(), strict=True):
            sides = [*box[:2], *(box[2:] - box[:2])]
            truths.append({"id": len(truths) + 1, "image_id": number, "category_id": 1, "bbox": sides,
                           "area": sides[2] * sides[3], "iscrowd": int(many)})  # fmt: skip
        for box, score in zip(boxes.astype(float), scores.astype(float), strict=True):
            sides = [*box[:2], *(box[2:] - box[:2])]
            found.append({"image_id": number, "category_id": 1, "bbox": sides, "score": score})
    truth_set = coco.COCO()
    truth_set.dataset = {"images": [{"id": n} for n in range(12)], "categories": [{"id": 1}], "annotations": truths}
    truth_set.createIndex()
    evaluation = COCOeval(truth_set, truth_set.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    mean, at_half = evaluation.stats[:2]
    assert 0.1 < mean < 0.9
    assert detection_ap(images, COCO_IOUS, "coco") == pytest.approx(mean, abs=1e-9)
    assert detection_ap(images, [0.5], "coco") == pytest.approx(at_half, abs=1e-9)
