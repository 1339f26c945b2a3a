"""Patches one by one, with boxes, scores and features."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from densescore import DensescoreError, DenseScorer
from densescore.results.patches import PatchFeatures


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
    found = toy_scorer.patches(cat)
    scores = toy_scorer.score(cat)
    assert torch.equal(found.features, toy_scorer.features(cat))
    assert torch.equal(found.boxes, scores.boxes)
    assert len(found) == len(scores)
    assert [patch.box for patch in found] == [patch.box for patch in scores]
    assert torch.equal(list(found)[7].values, found.features[7])
    again = toy_scorer.score_features(found.features, *cat.shape[:2])
    torch.testing.assert_close(again.patch_scores, scores.patch_scores)
    assert (
        repr(found) == f"PatchFeatures({len(found)} patches of a 300×451 image at scales 1, 1.5, 2.3, 10 features each)"
    )
    with pytest.raises(DensescoreError, match=r"features: expected \[M, D\] with M = "):
        PatchFeatures(found.features[1:], found.pyramid)


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
