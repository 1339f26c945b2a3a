"""The box layer: its arithmetic on paper, its file, and what a scorer makes of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from densescore import DensescoreError, DenseScorer, DenseScores, Pyramid
from densescore.models import AdaptationHead, load_head, save_head
from densescore.models.adaptation import HeadFile
from densescore.models.box_layer import BoxLayer, around, decode, neighbors
from densescore.models.weights import read_metadata
from densescore.scoring.batch import score_batch


def test_neighbors_on_paper() -> None:
    pyramid = Pyramid.of(140, 140, scales=(1, 2.1), patch=70, stride=30)  # 3/7 of a patch is one cell
    found = neighbors(pyramid)
    first, second = pyramid.levels
    assert (first.rows, first.cols, second.cols) == (1, 1, 4)
    assert found[0].tolist() == [17, 17, 17, 17, 0, 17, 17, 17, 17]
    row, col = 1, 2
    center = second.start + row * second.cols + col
    expected = [center + 4 * down + across for down in (-1, 0, 1) for across in (-1, 0, 1)]
    assert found[center].tolist() == expected
    assert (
        (neighbors(Pyramid.of(140, 140, scales=(2.1,), patch=70, stride=15))[0][5]) == 2
    )  # finer cells, twice as many
    reduced = torch.arange(17.0)[:, None]
    assert around(reduced, found[:1]).tolist() == [[0, 0, 0, 0, 0, 0, 0, 0, 0]]
    assert around(reduced + 1, found[:1]).tolist() == [[0, 0, 0, 0, 1, 0, 0, 0, 0]]


def test_boxes_on_paper() -> None:
    outputs = torch.tensor([[0, 0, 0, 0, 0], [0.5, -0.25, np.log(0.5), np.log(0.25), 0]], dtype=torch.float32)
    boxes = decode(outputs, torch.tensor([[10.0, 20, 50, 60]]).repeat(2, 1))
    torch.testing.assert_close(boxes, torch.tensor([[10.0, 20, 50, 60], [40, 25, 60, 35]]))


def head_with_boxes(features: int, backbone: str = "lite0") -> HeadFile:
    torch.manual_seed(0)
    head, layer = AdaptationHead(features, 3, 16).eval(), BoxLayer(features, 8, 12).eval()
    half = (0.5, 0.5, 0.5)
    return HeadFile(head, ("cat", "dog", "background"), backbone, half, half, 224, scales=(1.0, 1.6), box_layer=layer)


def test_a_head_with_a_box_layer_is_written_and_read(tmp_path: Path) -> None:
    file, path, plain = head_with_boxes(10), tmp_path / "boxes.safetensors", tmp_path / "plain.safetensors"
    save_head(path, file)
    save_head(plain, replace(file, box_layer=None))
    assert read_metadata(plain)["format"] == "densescore-adaptation-1"  # which older versions read
    assert read_metadata(path)["format"] == "densescore-adaptation-2"
    assert load_head(plain).box_layer is None
    read = load_head(path).box_layer
    assert read is not None and file.box_layer is not None  # noqa: PT018
    for name, tensor in file.box_layer.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor)

    tensors, metadata = load_file(path), read_metadata(path)
    without = {name: tensor for name, tensor in tensors.items() if name != "boxes.hidden.weight"}
    wide = {**tensors, "boxes.out.weight": torch.zeros(6, 12)}
    bad = {**tensors, "boxes.out.bias": torch.full((5,), float("nan"))}
    for wrong, message in ((without, "lacks .*boxes.hidden.weight"), (wide, "out.weight"), (bad, "not finite|NaN")):
        save_file(wrong, path, metadata)
        with pytest.raises(DensescoreError, match=message):
            load_head(path)


def test_a_scorer_gives_the_layers_boxes_beside_the_heads_scores(
    tmp_path: Path, cat: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]"
) -> None:
    made, path, plain = head_with_boxes(1280), tmp_path / "boxes.safetensors", tmp_path / "plain.safetensors"
    save_head(path, made)
    save_head(plain, replace(made, box_layer=None))
    cat = cat[60:180, 100:300]
    scorer, without = (DenseScorer(file, scales=(1.0, 1.4), runtime="torch") for file in (path, plain))
    scores, expected = scorer.score(cat), without.score(cat)
    torch.testing.assert_close(scores.patch_scores, expected.patch_scores)
    assert expected.object_boxes is None
    assert scorer.fingerprint() != without.fingerprint()

    features = scorer.features(cat)
    assert made.box_layer is not None
    with torch.no_grad():
        boxes, qualities = made.box_layer(made.box_layer.reduce(features), scores.pyramid)
    assert scores.object_boxes is not None and scores.box_qualities is not None  # noqa: PT018
    torch.testing.assert_close(scores.object_boxes, boxes, rtol=1e-3, atol=0.05)
    torch.testing.assert_close(scores.box_qualities, qualities, rtol=1e-3, atol=1e-4)
    assert (scores.object_boxes[:, 2:] > scores.object_boxes[:, :2]).any()
    height, width = cat.shape[:2]
    assert (scores.boxes > torch.tensor([width, height, width, height])).any()  # the patches themselves go past it
    assert (scores.object_boxes >= 0).all()
    assert (scores.object_boxes <= torch.tensor([width, height, width, height])).all()
    again = scorer.score_features(features, *cat.shape[:2])
    torch.testing.assert_close(again.object_boxes, scores.object_boxes, rtol=1e-3, atol=0.05)
    for one in score_batch(scorer, [cat, cat]):
        torch.testing.assert_close(one.object_boxes, scores.object_boxes, rtol=1e-3, atol=0.05)
        torch.testing.assert_close(one.patch_scores, scores.patch_scores, rtol=1e-3, atol=1e-5)

    best = scores.find_boxes("cat")[0]
    assert best.box != scores.boxes_from_map("cat")[0].box
    assert scores.to_coco(1, "cat")[0]["score"] == best.score
    assert scores.to_row(labels=["cat"])["regions"][0]["x0"] == best.box[0]
    scores.save(tmp_path / "scores.safetensors")
    assert DenseScores.load(tmp_path / "scores.safetensors").find_boxes("cat") == scores.find_boxes("cat")


def test_boxes_of_one_object_are_merged_and_those_of_two_are_not() -> None:
    pyramid = Pyramid.of(100, 400, scales=(1,), patch=20, stride=20)
    count = len(pyramid)
    patch_scores = torch.full((count, 1), 0.01)
    patch_scores[:3, 0] = torch.tensor([0.8, 0.8, 0.6])
    boxes = torch.zeros(count, 4)
    boxes[:, 2:] = 1
    boxes[:3] = torch.tensor([[10.0, 10, 50, 50], [20, 10, 60, 50], [200, 20, 300, 90]])
    qualities = torch.full((count,), 0.5)
    scores = DenseScores(patch_scores, ("cat",), pyramid, object_boxes=boxes, box_qualities=qualities)
    first, second = scores.find_boxes("cat")
    assert first.box == (15, 10, 55, 50)  # the mean of two of equal weight
    assert second.box == (200, 20, 300, 90)
    certainty = scores.confidence()[0].sqrt().item() * 0.5**3
    assert [first.score, second.score] == pytest.approx([certainty * 0.8, certainty * 0.6], rel=1e-5)
    assert [first.peak, second.peak] == pytest.approx([0.8, 0.6])
    assert scores.find_boxes("cat", share=0.9) == [first]
    assert scores.find_boxes("cat", max_regions=1) == [first]
    assert scores.find_boxes("cat", min_area=5000) == [second]
    with pytest.raises(DensescoreError, match="share"):
        scores.find_boxes("cat", share=0)
