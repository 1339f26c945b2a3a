"""Scores in other libraries' forms, read back by those libraries."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from densescore import DensescoreError
from densescore.geometry import Pyramid
from densescore.results.scores import DenseScores


@pytest.fixture
def scores() -> DenseScores:
    """A cat on the left and another on the right of a 20×60 image, more certain on the right."""
    pyramid = Pyramid.of(20, 60, scales=(1,), patch=20, stride=20)
    return DenseScores(torch.tensor([[0.6, 0.4], [0.1, 0.9], [0.8, 0.2]]), ("cat", "dog"), pyramid)


def test_supervision_filters_and_names_them(scores: DenseScores) -> None:
    pytest.importorskip("supervision")
    detections: Any = scores.to_supervision(["cat", "dog"])
    assert detections.xyxy.tolist() == [[40, 0, 60, 20], [0, 0, 20, 20], [17, 0, 41, 20]]
    cat, dog = scores.confidence().tolist()
    np.testing.assert_allclose(detections.confidence, [cat * 0.8, cat * 0.6, dog * 0.9], rtol=1e-6)
    assert detections.data["class_name"].tolist() == ["cat", "cat", "dog"]
    assert len(detections[detections.class_id == 0]) == 2
    best: Any = scores.to_supervision()
    assert best.data["class_name"].tolist() == ["dog"]
    assert len(scores.to_supervision([])) == 0


def test_coco_reads_the_results(scores: DenseScores, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    cat = scores.confidence()[0].item()
    records = scores.to_coco(7, "cat", category_ids={"cat": 17})
    assert records[1] == {"image_id": 7, "category_id": 17, "bbox": [0, 0, 20, 20], "score": pytest.approx(cat * 0.6)}
    truth = coco.COCO()
    truth.dataset = {"images": [{"id": 7}], "categories": [{"id": 17, "name": "cat"}], "annotations": []}
    truth.createIndex()
    (tmp_path / "results.json").write_text(json.dumps(records))
    loaded = truth.loadRes(str(tmp_path / "results.json"))
    assert [loaded.anns[key]["area"] for key in loaded.getAnnIds(imgIds=[7])] == [400, 400]
    assert [record["category_id"] for record in scores.to_coco(7, ["cat", "dog"])] == [0, 0, 1]
    with pytest.raises(DensescoreError, match="category_ids has no id for 'dog'"):
        scores.to_coco(7, "dog", category_ids={"cat": 17})


def test_rows_make_a_data_frame(scores: DenseScores) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([scores.to_row(top=2), scores.to_row(top=1, labels=["cat"])])
    assert frame["label"].tolist() == ["dog", "dog"]
    assert frame["labels"].tolist() == [["dog", "cat"], ["dog"]]
    assert frame["score"][0] == pytest.approx((0.4**5 + 0.9**5 + 0.2**5) / 3)
    np.testing.assert_allclose(frame["confidence"], frame["score"] ** 0.2)
    assert frame["best_patch"][0] == {"x0": 20, "y0": 0, "x1": 40, "y1": 20, "score": pytest.approx(0.9)}
    assert frame["best_patch_scores"][0] == pytest.approx([0.9, 0.8])
    assert frame["confidences"][0][1] == pytest.approx(scores.confidence()[0])
    regions = frame.explode("regions")["regions"].apply(pandas.Series)
    assert regions[["label", "x0", "x1"]].values.tolist() == [["dog", 17, 41], ["cat", 40, 60], ["cat", 0, 20]]
    with pytest.raises(DensescoreError, match="top must be at least 1"):
        scores.to_row(top=0)
