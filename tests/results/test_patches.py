"""Patches one by one, with boxes, scores and features."""

import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from densescore import DensescoreError, DenseScorer, DenseScores, Pyramid, best_patches
from densescore.results.patches import PATCH_IOU, PATCH_SHARE, PatchFeatures


def test_iteration_gives_each_patch_with_its_box_and_scores(toy_scorer: DenseScorer, cat: NDArray[np.uint8]) -> None:
    scores = toy_scorer.score(cat)
    patches = list(scores)
    assert len(patches) == len(scores) == len(scores.pyramid)
    assert bool(scores)
    torch.testing.assert_close(torch.tensor([patch.box for patch in patches]), scores.boxes)
    assert torch.equal(torch.stack([patch.values for patch in patches]), scores.patch_scores)
    for level in scores.levels:
        assert {patch.scale for patch in patches[level.cells]} == {level.scale}


def test_features_come_with_their_boxes(toy_scorer: DenseScorer, cat: NDArray[np.uint8]) -> None:
    patches = toy_scorer.patches(cat)
    scores = toy_scorer.score(cat)
    assert torch.equal(patches.features, toy_scorer.features(cat))
    assert torch.equal(patches.boxes, scores.boxes)
    assert len(patches) == len(scores)
    assert [patch.box for patch in patches] == [patch.box for patch in scores]
    assert torch.equal(list(patches)[7].values, patches.features[7])
    again = toy_scorer.score_features(patches.features, *cat.shape[:2])
    torch.testing.assert_close(again.patch_scores, scores.patch_scores)
    grid = "a 300×451 image at scales 1, 1.5, 2.3"
    assert repr(patches) == f"PatchFeatures({len(patches)} patches of {grid}, 10 features each)"
    with pytest.raises(DensescoreError, match=r"features: expected \[M, D\] with M = "):
        PatchFeatures(patches.features[1:], patches.pyramid)


def test_a_table_of_patches(toy_scorer: DenseScorer, cat: NDArray[np.uint8]) -> None:
    pytest.importorskip("pandas")
    scores = toy_scorer.score(cat)
    best = scores.to_df()
    assert best["label"].unique().tolist() == [scores.top(1)[0].label]
    table = scores.to_df(["c", "a"])
    assert list(table.columns) == ["label", "patch", "score", "scale", "x0", "y0", "x1", "y1"]
    assert len(table) == 2 * len(scores)
    for label in "ca":
        rows = table[table["label"] == label]
        np.testing.assert_array_equal(rows["score"], scores.patch_scores[:, scores.index(label)])
        np.testing.assert_array_equal(rows[["x0", "y0", "x1", "y1"]], scores.boxes)
        assert rows["patch"].tolist() == list(range(len(scores)))
        assert rows["scale"].tolist() == [patch.scale for patch in scores]
    assert len(scores.to_df([])) == 0
    with pytest.raises(DensescoreError, match="no class 'd'"):
        scores.to_df("d")


def test_a_scorer_in_a_line_and_as_a_call(toy_scorer: DenseScorer, cat: NDArray[np.uint8]) -> None:
    assert repr(toy_scorer) == (
        "DenseScorer('Toy', 3 classes; scales 1, 1.5, 2.3; a patch of 20 pixels every 4; k = 5; float32 on cpu by "
        f"{toy_scorer.runtime})"
    )
    sized = toy_scorer.with_scales(patch_sizes=(40, 60.5))
    assert "; patches of 40, 60.5 pixels of the image; " in repr(sized)
    assert torch.equal(toy_scorer(cat).patch_scores, toy_scorer.score(cat).patch_scores)
    assert toy_scorer(cat, context="patch").context == "patch"


def test_the_best_patches_are_different_ones(toy_scorer: DenseScorer, cat: NDArray[np.uint8]) -> None:
    scores = toy_scorer.score(cat)
    for label in scores.labels:
        best = best_patches(scores, label, 20)
        boxes = torch.tensor([patch.box for patch in best])
        assert (box_iou(boxes, boxes).fill_diagonal_(0) <= PATCH_IOU).all()
        values = [patch.score for patch in best]
        assert values == sorted(values, reverse=True)
        assert values[0] == scores.columns(label).max() <= values[-1] / PATCH_SHARE
        assert len(best) > 3


@pytest.mark.parametrize("best", [0.0, 1e-45, 1e-40, 1e-30, 1.0])
@pytest.mark.parametrize("k", [1.0, 5.0, 80.0])
def test_shares_and_confidence_of_scores_that_underflow(best: float, k: float) -> None:
    pyramid = Pyramid.of(224, 256, scales=(1,))  # two patches
    scores = DenseScores(torch.tensor([[best], [0.0]]), ("cat",), pyramid, k=k)
    shares = [patch.share for patch in best_patches(scores, "cat")]
    assert shares == ([1.0] if best else [0.5])  # the other patch overlaps it
    torch.testing.assert_close(scores.confidence(), scores.patch_scores.amax(0) * 0.5 ** (1 / k), rtol=1e-3, atol=0)
    json.dumps(scores.to_row(), allow_nan=False)
