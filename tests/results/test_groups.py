"""Groups of classes: scores, maps, places and other forms follow from the sums of their probabilities."""

from pathlib import Path

import numpy as np
import pytest
import torch

from densescore import DensescoreError, DenseScores, Pyramid, best_patches, export_heatmaps
from densescore.models.labels import imagenet_labels

PYRAMID = Pyramid.of(90, 130, scales=(1, 1.6), patch=20, stride=4)
DOGS, CATS = range(151, 269), range(281, 288)


@pytest.fixture(scope="module")
def scores() -> DenseScores:
    """Scores over ImageNet's labels, a third of all probability each on dogs, on cats and on the rest."""
    logits = torch.randn(len(PYRAMID), 1000, generator=torch.Generator().manual_seed(0)) * 2
    logits[:, DOGS] += 2
    logits[:, CATS] += 5
    return DenseScores(logits.softmax(1), imagenet_labels(), PYRAMID)


def test_a_groups_score_map_and_place_are_those_of_the_sum(scores: DenseScores) -> None:
    sums = scores.patch_scores[:, DOGS].double().sum(1).float()  # [M]
    assert 0.05 < sums.min() < sums.max() < 0.95
    alone = DenseScores(sums[:, None], ("dog",), PYRAMID)
    chosen = scores.select("dog")
    assert chosen.labels == ("dog",)
    for got, expected in (
        (chosen.patch_scores, alone.patch_scores),
        (chosen.image_scores(), alone.image_scores()),
        (chosen.confidence(), alone.confidence()),
        (scores.response_map("dog"), alone.response_map()),
        (scores.heatmap("Dog"), alone.heatmap()),
    ):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)
    assert scores.locate("dog")[0][:2] == alone.locate()[0][:2]
    for boxes in (lambda one: one.boxes_from_map("dog"), lambda one: best_patches(one, "dog")):
        assert [found.box for found in boxes(scores)] == [found.box for found in boxes(alone)]


def test_overlapping_groups_are_each_scored_in_full(scores: DenseScores) -> None:
    chosen = scores.select(["carnivore", "dog", "Pug", "dog", "DOG", "entity", "tabby cat"])
    assert chosen.labels == ("carnivore", "dog", "pug", "entity", "tabby")
    carnivores, dogs, pugs, entity, tabby = chosen.patch_scores.T
    assert (carnivores > dogs).all()
    assert (dogs > pugs).all()
    torch.testing.assert_close(entity, torch.ones(len(PYRAMID)), rtol=1e-5, atol=0)
    assert entity.max() <= 1  # though sums may round above it
    assert torch.equal(pugs, scores.patch_scores[:, 254])
    assert torch.equal(tabby, scores.patch_scores[:, 281])
    ranked = [best.label for best in chosen.top(10)]
    assert ranked[:2] == ["entity", "carnivore"]
    assert {*ranked} == {*chosen.labels}


def test_sums_above_one_are_clipped() -> None:
    """As from a network with a sigmoid per class, whose probabilities do not add up to 1."""
    scores = DenseScores(torch.full((len(PYRAMID), 1000), 0.25), imagenet_labels(), PYRAMID)
    assert scores.select(["dog", "Welsh corgi"]).image_scores(1).tolist() == [1, 0.5]


def test_single_classes_keep_their_columns(scores: DenseScores) -> None:
    assert torch.equal(scores.response_map(["tabby", "pug"]), scores.response_map()[[281, 254]])
    assert scores.response_map(["pug", "pug"]).shape == (2, 90, 130)
    assert scores.select([]).patch_scores.shape == (len(PYRAMID), 0)
    again = scores.select(["tabby", "cat"])
    assert torch.equal(again.select("cat").patch_scores, scores.select("cat").patch_scores)
    with pytest.raises(DensescoreError, match="no class 'dog'"):
        again.select("dog")
    assert scores.index("Pug") == 254
    with pytest.raises(DensescoreError, match="'dog' is a group of 118 classes"):
        scores.index("dog")


def test_groups_in_other_forms(scores: DenseScores) -> None:
    pytest.importorskip("pandas"), pytest.importorskip("supervision")
    detections = scores.to_supervision(["Cat", "pug", "dog"])
    ids = dict(zip(detections.data["class_name"].tolist(), detections.class_id.tolist(), strict=True))
    assert ids == {"cat": 1000, "pug": 254, "dog": 1001}
    assert {record["category_id"] for record in scores.to_coco(1, ["pug", "dog"])} == {254, 1000}  # as --coco
    assert {record["category_id"] for record in scores.to_coco(1, "dog", category_ids={"dog": 18})} == {18}
    table = scores.to_df(["Cat", "pug"])
    for label in ("cat", "pug"):
        values = table.loc[table["label"] == label, "score"].to_numpy()
        np.testing.assert_array_equal(values, scores.select(label).patch_scores[:, 0])


def test_groups_in_pictures(scores: DenseScores, tmp_path: Path) -> None:
    pixels = np.zeros((90, 130, 3), np.uint8)
    figure = scores.plot_sheet(["Cat", "pug", "cat"], image=pixels)
    expected = scores.select(["cat", "pug"]).confidence()
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles[1:] == [f"cat, confidence {expected[0]:.2g}", f"pug, confidence {expected[1]:.2g}"]
    manifest = export_heatmaps(scores, pixels, ["dog", "DOG", "domestic dog", "tabby cat"], tmp_path / "maps")
    assert [entry["overlay"] for entry in manifest["classes"]] == ["dog.png", "domestic_dog.png", "tabby.png"]
    score = manifest["classes"][0]["image_score"]
    assert score == pytest.approx(scores.select("dog").image_scores().item(), rel=1e-6)
    assert score > 1e-3
    with np.load(tmp_path / "maps" / "dog.npz") as saved:
        np.testing.assert_array_equal(saved["heatmap"], scores.heatmap("dog")[0])
