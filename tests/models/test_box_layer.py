"""The box layer: its arithmetic on paper, its file, and what a scorer makes of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from densescore import DensescoreError, DenseScorer, DenseScores, Pyramid
from densescore.models.box_layer import (
    BESIDE,
    INSIDE,
    NEIGHBORS,
    BoxLayer,
    ObjectBoxes,
    decode,
    gather_neighbors,
    gather_scores,
    neighbors,
    score_logits,
)
from densescore.models.head import load_head, save_head
from densescore.models.weights import read_metadata
from tests.conftest import same_boxes
from tests.models.test_models import head_file


def test_neighbors_on_paper() -> None:
    """Two levels, 1 and 4×4 cells of 70 pixels at steps of 30: 3/7 of a patch is one cell."""
    pyramid = Pyramid.of(140, 140, scales=(1, 2.1), patch=70, stride=30)
    found = neighbors(pyramid)
    first, second = pyramid.levels
    assert (first.rows, first.cols, second.rows, second.cols) == (1, 1, 4, 4)
    outside = len(pyramid)
    assert found.shape == (outside, NEIGHBORS) == (17, 9 + 25)
    # The only patch of the first level has none beside it; inside it lie those of the second, from border to border.
    assert found[0, :9].tolist() == [outside] * 4 + [0] + [outside] * 4
    inside = found[0, 9:].reshape(5, 5) - second.start
    # Centers at 0, 1/4, … of 140 pixels, those of cells at 33, 62, 90 and 119. The first is too far from any.
    ends = outside - second.start
    rows = [[ends] * 5, [ends, 0, 1, 3, 3], [ends, 4, 5, 7, 7], [ends, 12, 13, 15, 15], [ends, 12, 13, 15, 15]]
    assert inside.tolist() == rows
    center = second.start + 1 * second.cols + 2
    beside = [center + 4 * down + across for down in (-1, 0, 1) for across in (-1, 0, 1)]
    assert found[center, :9].tolist() == beside
    assert (found[center, 9:] == outside).all()  # no level is finer
    finer = neighbors(Pyramid.of(140, 140, scales=(2.1,), patch=70, stride=15))
    assert finer[0, 5] == 2  # cells half as far apart, twice as many to the neighbor


@pytest.mark.parametrize(
    ("scales", "finer"),
    [
        ((1, 1.5, 2.2, 2.8), [2, 3, None, None]),  # closest to twice: 2.2 for 1; 2.8 for 1.5; nothing is 1.4 times 2.2
        ((2, 1, 1.41), [None, 0, 0]),  # in any order
        ((1, 3), [None, None]),
        ((1, 1.3), [None, None]),
    ],
)
def test_the_finer_level_is_the_one_of_patches_about_half_as_wide(
    scales: tuple[float, ...], finer: list[int | None]
) -> None:
    pyramid = Pyramid.of(300, 400, scales=scales, patch=64, stride=32)
    found = neighbors(pyramid)[:, 9 + 12]  # the one at a patch's own center
    for level, expected in zip(pyramid.levels, finer, strict=True):
        cells = slice(len(pyramid), len(pyramid) + 1) if expected is None else pyramid.levels[expected].cells
        inside = found[level.cells]
        assert ((inside >= cells.start) & (inside < cells.stop)).all()


@given(
    height=st.integers(40, 400), width=st.integers(40, 400), scales=st.lists(st.floats(0.6, 4), min_size=1, max_size=4)
)
def test_neighbors_lie_where_they_are_asked_for(height: int, width: int, scales: list[float]) -> None:
    pyramid = Pyramid.of(height, width, scales=scales, patch=64, stride=32)
    found, boxes = neighbors(pyramid), pyramid.boxes()
    centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    assert (found[:, 4] == np.arange(len(pyramid))).all()  # a patch is its own middle neighbor
    places = [(y, x) for y in BESIDE for x in BESIDE] + [(y, x) for y in INSIDE for x in INSIDE]
    for column, (down, across) in enumerate(places):
        there = found[:, column] < len(pyramid)
        near = found[there, column]
        asked = centers[there] + np.array([across, down]) * sides[there]
        # At most half a cell away, which is a quarter of a patch here, and an eighth of one past the grid's border.
        assert (np.abs(centers[near] - asked) <= (1 / 4 + 1 / 8) * sides[near] + 1e-3).all()
        if column >= 9:
            assert (sides[near] < sides[there]).all()


def test_boxes_on_paper() -> None:
    outputs = torch.tensor([[0, 0, 0, 0, 0], [0.5, -0.25, np.log(0.5), np.log(0.25), 0]], dtype=torch.float32)
    boxes = decode(outputs, torch.tensor([[10.0, 20, 50, 60]]).repeat(2, 1))
    torch.testing.assert_close(boxes, torch.tensor([[10.0, 20, 50, 60], [40, 25, 60, 35]]))


def test_neighbors_outside_the_grid() -> None:
    reduced, near = torch.arange(1.0, 4)[:, None], torch.tensor([[0, 3, 2]])
    assert gather_neighbors(reduced, near).tolist() == [[1, 0, 3]]
    scores = torch.tensor([[0.5, 0], [1, 0.5], [0.25, 0.9]])
    neighbor_scores = gather_scores(score_logits(scores), near.repeat(2, 1), torch.tensor([0, 1]))
    faint = 1 / (1 + np.exp(8))
    expected = [[0, -2, -np.log(3) / 4, 0.5, faint, 0.25], [-2, -2, np.log(9) / 4, faint, faint, 0.9]]
    torch.testing.assert_close(neighbor_scores, torch.tensor(expected, dtype=torch.float32))


def test_a_class_s_boxes_follow_from_its_own_scores() -> None:
    """The layer has no weights per class: classes that change places change their boxes, and nothing else."""
    torch.manual_seed(0)
    layer, pyramid = BoxLayer(6, 4, 8).eval(), Pyramid.of(300, 400, scales=(1, 2))
    reduced, scores = torch.randn(len(pyramid), 4), torch.rand(len(pyramid), 3)
    with torch.no_grad():
        found, turned = layer(reduced, scores, pyramid), layer(reduced, scores[:, [2, 0, 1]], pyramid)
        alone = layer(reduced, scores[:, 1:2], pyramid)
    assert found.boxes.shape == (3, len(pyramid), 4)
    for whole, other, own in zip(found, turned, alone, strict=True):
        torch.testing.assert_close(whole[[2, 0, 1]], other)
        torch.testing.assert_close(whole[1:2], own)
    assert not torch.allclose(found.qualities[0].sort().values, found.qualities[1].sort().values)
    order = scores[:, 0].argsort(descending=True)
    assert found.patches[0].tolist() == order.tolist()


def test_the_layer_s_boxes_by_their_definition() -> None:
    """One class of one patch, from the layers' weights by hand."""
    torch.manual_seed(0)
    layer, pyramid = BoxLayer(6, 4, 8).eval(), Pyramid.of(300, 400, scales=(1, 2))
    reduced, scores = torch.randn(len(pyramid), 4), torch.rand(len(pyramid), 2)
    near = neighbors(pyramid)
    with torch.no_grad():
        found = layer(reduced, scores, pyramid)
        patch = int(found.patches[1, 7])
        reduced, column = torch.cat([reduced, torch.zeros(1, 4)]), torch.cat([scores[:, 1], torch.zeros(1)])
        neighbor_features, logits = reduced[near[patch]].flatten(), torch.logit(column[near[patch]]).clamp(-8, 8)
        first = (layer.look.weight @ neighbor_features + layer.look.bias + layer.evidence.bias).add(
            layer.evidence.weight @ torch.cat([logits / 4, logits.sigmoid()])
        )
        second = torch.relu(layer.hidden.weight @ torch.relu(first) + layer.hidden.bias)
        out = layer.out.weight @ second + layer.out.bias
    box = decode(out[None], torch.from_numpy(pyramid.boxes())[patch : patch + 1])[0]
    torch.testing.assert_close(found.boxes[1, 7], torch.minimum(box.clamp(min=0), torch.tensor([400.0, 300, 400, 300])))
    torch.testing.assert_close(found.qualities[1, 7], out[4].sigmoid())


@pytest.fixture
def layer() -> BoxLayer:
    torch.manual_seed(0)
    return BoxLayer(1280, 8, 12).eval()


@pytest.fixture
def files(tmp_path: Path, layer: BoxLayer) -> tuple[Path, Path]:
    """A head's file with the box layer, and one without it."""
    path, plain = tmp_path / "boxes.safetensors", tmp_path / "plain.safetensors"
    save_head(path, replace(head_file(), box_layer=layer))
    save_head(plain, head_file())
    return path, plain


def test_a_head_with_a_box_layer_is_written_and_read(files: tuple[Path, Path], layer: BoxLayer) -> None:
    path, plain = files
    assert read_metadata(plain)["format"] == "densescore-adaptation-1"  # which older versions read
    assert read_metadata(path)["format"] == "densescore-adaptation-2"
    assert load_head(plain).box_layer is None
    read = load_head(path).box_layer
    assert read
    torch.testing.assert_close(read.state_dict(), layer.state_dict(), rtol=0, atol=0)

    tensors, metadata = load_file(path), read_metadata(path)
    for name, wrong, message in (
        ("look.weight", torch.tensor(0.0), "lacks .*boxes.look.weight"),
        ("out.weight", torch.zeros(6, 6), "out.weight"),
        ("out.bias", torch.full((5,), torch.nan), "not finite|NaN"),
    ):
        save_file({**tensors, f"boxes.{name}": wrong}, path, metadata)
        with pytest.raises(DensescoreError, match=message):
            load_head(path)


def test_a_scorer_gives_the_layers_boxes_beside_the_heads_scores(
    files: tuple[Path, Path], layer: BoxLayer, cat: NDArray[np.uint8]
) -> None:
    cat = cat[60:180, 100:300]
    scorer, without = (DenseScorer(file, scales=(1.0, 1.4), runtime="torch") for file in files)
    scores, expected = scorer.score(cat), without.score(cat)
    torch.testing.assert_close(scores.patch_scores, expected.patch_scores)
    assert expected.object_boxes is None
    assert scorer.fingerprint() != without.fingerprint()

    features = scorer.features(cat)
    with torch.no_grad():
        expected_boxes = layer(layer.reduce(features), scores.patch_scores, scores.pyramid)
    assert scores.object_boxes
    same_boxes(scores.object_boxes, expected_boxes)
    boxes, limit = scores.object_boxes.boxes, torch.tensor([200, 120, 200, 120])
    assert (boxes[..., 2:] > boxes[..., :2]).any()
    assert (scores.boxes > limit).any()  # the patches themselves go past the image
    assert ((boxes >= 0) & (boxes <= limit)).all()
    same_boxes(scorer.score_features(features, *cat.shape[:2]).object_boxes, scores.object_boxes)
    scorer.batching = "head"
    for one in scorer.score_batch([cat, cat]):
        same_boxes(one.object_boxes, scores.object_boxes)
        torch.testing.assert_close(one.patch_scores, scores.patch_scores, rtol=1e-3, atol=1e-5)

    best = scores.find_boxes("cat")[0]
    assert best.box != scores.boxes_from_map("cat")[0].box
    assert scores.to_coco(1, "cat")[0]["score"] == best.score
    assert scores.to_row(labels=["cat"])["regions"][0]["x0"] == best.box[0]
    saved = files[0].with_name("scores.safetensors")
    scores.save(saved)
    for other in (scores.select(["dog", "cat"]), DenseScores.load(saved)):
        for label in ("cat", "dog"):
            assert other.find_boxes(label) == scores.find_boxes(label)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.zeros(1, 2, 5)}, "expected shapes"),
        ({"qualities": torch.zeros(2, 2)}, "expected shapes"),
        ({"patches": torch.zeros((), dtype=torch.int64)}, "expected shapes"),
        ({"patches": torch.tensor([[0, 99]])}, "a patch lies outside"),
        ({"patches": torch.tensor([[-1, 0]])}, "a patch lies outside"),
    ],
)
def test_boxes_of_another_image_are_refused(change: dict[str, torch.Tensor], message: str) -> None:
    pyramid = Pyramid.of(224, 256, scales=(1,))  # two patches
    boxes = ObjectBoxes(torch.tensor([[0, 1]]), torch.ones(1, 2, 4), torch.ones(1, 2))
    scores = DenseScores(torch.ones(2, 1), ("cat",), pyramid, object_boxes=boxes)
    assert scores.select([]).object_boxes is None
    with pytest.raises(DensescoreError, match=f"object_boxes: {message}"):
        replace(scores, object_boxes=boxes._replace(**change))


def test_a_group_has_the_best_boxes_of_its_classes() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.8, 0.1]])
    boxes = torch.arange(24.0).reshape(3, 2, 4)
    objects = ObjectBoxes(torch.tensor([[0, 1], [1, 0], [0, 1]]), boxes, torch.rand(3, 2))
    group, alone = objects.select([(0, 1), (2,)], scores).boxes
    assert torch.equal(group, torch.stack([boxes[0, 0], boxes[1, 0]]))
    assert torch.equal(alone, boxes[2])


def test_boxes_of_one_object_are_merged_and_those_of_two_are_not() -> None:
    pyramid = Pyramid.of(100, 400, scales=(1,), patch=20, stride=20)
    count = len(pyramid)
    patch_scores = torch.full((count, 1), 0.01)
    patch_scores[:3, 0] = torch.tensor([0.8, 0.8, 0.6])
    boxes = torch.zeros(1, count, 4)
    boxes[:, :, 2:] = 1
    boxes[0, :3] = torch.tensor([[10.0, 10, 50, 50], [20, 10, 60, 50], [200, 20, 300, 90]])
    layered = ObjectBoxes(torch.arange(count)[None], boxes, torch.full((1, count), 0.5))
    scores = DenseScores(patch_scores, ("cat",), pyramid, object_boxes=layered)
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
