"""Image scores, response maps and what follows from them, on answers known on paper."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densescore import DensescoreError, DenseScores, Pyramid
from densescore.results.regions import find_regions
from densescore.results.smoothing import RADIUS, smooth


def make(height: int = 90, width: int = 130, classes: int = 3, seed: int = 0) -> DenseScores:
    pyramid = Pyramid.of(height, width, scales=(1, 1.6, 2.5), patch=20, stride=4)
    logits = torch.randn(len(pyramid), classes, generator=torch.Generator().manual_seed(seed))
    return DenseScores(logits.softmax(1), tuple("abcdefgh"[:classes]), pyramid, model="toy")


def naive_map(scores: DenseScores, column: int) -> np.ndarray:
    """Add each patch's score to the pixels whose center its box holds, and divide: the definition, in float64."""
    pyramid = scores.pyramid
    total, count = np.zeros((pyramid.height, pyramid.width)), np.zeros((pyramid.height, pyramid.width))
    ys, xs = np.arange(pyramid.height) + 0.5, np.arange(pyramid.width) + 0.5
    for index in range(len(pyramid)):
        level, row, col = pyramid.locate(index)
        x0, y0, x1, y1 = pyramid.window(level, row, col)
        in_x = (x0 * pyramid.width <= xs * level.width) & (xs * level.width < x1 * pyramid.width)
        in_y = (y0 * pyramid.height <= ys * level.height) & (ys * level.height < y1 * pyramid.height)
        inside = in_y[:, None] & in_x[None, :]
        total += inside * float(scores.patch_scores[index, column])
        count += inside
    return total / count


@given(st.integers(5, 80), st.integers(5, 80), st.integers(0, 5))
def test_response_maps_are_the_mean_of_the_patches_over_a_pixel(height: int, width: int, seed: int) -> None:
    scores = make(height, width, seed=seed)
    maps = scores.response_map(["c", "a"]).numpy()
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps[0], naive_map(scores, 2), rtol=1e-5)
    np.testing.assert_allclose(maps[1], naive_map(scores, 0), rtol=1e-5)


def test_maps_of_all_classes_sum_to_one() -> None:
    torch.testing.assert_close(make().response_map().sum(0), torch.ones(90, 130))


def test_maps_are_bit_identical_from_run_to_run() -> None:
    scores = make(333, 251, classes=8)
    assert torch.equal(scores.response_map(), scores.response_map())


def test_image_scores_are_the_papers_equation() -> None:
    scores = make()
    patches = scores.patch_scores.double().numpy()
    np.testing.assert_allclose(scores.image_scores(), (patches**5).mean(0), rtol=1e-5)
    np.testing.assert_allclose(scores.image_scores(k=1), patches.mean(0), rtol=1e-5)
    np.testing.assert_allclose(scores.image_scores(k=2.5), (patches**2.5).mean(0), rtol=1e-5)
    # Large k orders classes by their best patch.
    assert scores.image_scores(k=200).argmax() == patches.max(0).argmax()


@pytest.mark.parametrize("k", [1, 2.5, 5, 16, 17, 30, 100, 1000, 10_000])
def test_confidence_is_the_kth_root_and_ranks_at_any_exponent(k: float) -> None:
    generator = torch.Generator().manual_seed(0)
    patch_scores = torch.rand(len(make().pyramid), 40, generator=generator) * torch.logspace(-12, 0, 40)  # [M, C]
    order = torch.randperm(40, generator=generator)
    labels = tuple(f"{index:02}" for index in range(40))
    scores = DenseScores(patch_scores[:, order], labels, make().pyramid, k=k)
    logs = patch_scores[:, order].double().log() * k
    expected = ((logs.logsumexp(0) - np.log(len(logs))) / k).exp()
    torch.testing.assert_close(scores.confidence().double(), expected, rtol=2e-5, atol=0)
    assert [best.label for best in scores.top(40)] == [labels[c] for c in expected.argsort(descending=True)]
    torch.testing.assert_close(scores.confidence(3) ** 3, scores.image_scores(3), rtol=1e-5, atol=0)
    best = scores.top(1)[0]
    assert best.score == scores.image_scores()[labels.index(best.label)]
    assert 0 < best.confidence == scores.confidence().max()
    assert best.confidence <= best.best_patch == scores.patch_scores[:, labels.index(best.label)].max()


def test_a_class_without_score_has_no_confidence() -> None:
    pyramid = Pyramid.of(20, 20, scales=(1,), patch=20, stride=4)
    scores = DenseScores(torch.tensor([[0.0, 1.0]]), ("cat", "dog"), pyramid)
    assert scores.confidence().tolist() == [0, 1]
    assert scores.confidence(1000).tolist() == [0, 1]
    for k in (0.5, float("nan"), float("inf"), 1e308):
        with pytest.raises(DensescoreError, match="expected a number from 1 to 10,000"):
            scores.confidence(k)


def test_the_background_alone_is_ranked() -> None:
    scores = DenseScores(torch.tensor([[0.7, 0.2]]), ("background", "cat"), Pyramid.of(224, 224, scales=(1,)), k=1)
    assert [best.label for best in scores.select("background").top()] == ["background"]


def test_top_leaves_the_background_out() -> None:
    pyramid = Pyramid.of(20, 20, scales=(1,), patch=20, stride=4)
    scores = DenseScores(torch.tensor([[0.7, 0.2, 0.1]]), ("background", "cat", "dog"), pyramid, k=1)
    assert [(best.label, round(best.score, 6)) for best in scores.top(5)] == [("cat", 0.2), ("dog", 0.1)]
    assert [best.label for best in scores.top(1)] == ["cat"]


def test_boxes_from_map_finds_separate_regions() -> None:
    pyramid = Pyramid.of(40, 400, scales=(1,), patch=20, stride=4)
    patch_scores = torch.full((len(pyramid), 2), 0.01)
    cols = pyramid.levels[0].cols
    for col, score in ((5, 0.9), (35, 0.6)):  # rows: one; a patch is 40 pixels wide, a step 8
        patch_scores[col, 0] = score
    scores = DenseScores(patch_scores, ("cat", "dog"), pyramid)
    assert cols == len(pyramid)
    first, second = scores.boxes_from_map("cat", share=0.5)
    assert first.peak == pytest.approx(scores.shrunk_map("cat").max().item())
    assert second.score == pytest.approx(scores.confidence()[0].item() * second.peak)
    assert first.box == (40, 0, 80, 40)
    assert second.box == (280, 0, 320, 40)
    assert scores.boxes_from_map("cat", max_regions=1) == [first]
    assert first.peak > second.peak
    assert [region.box for region in scores.boxes_from_map("cat", share=1)] == [first.box]
    with pytest.raises(DensescoreError, match="share must lie in"):
        scores.boxes_from_map("cat", share=0)


def test_regions_that_are_small_are_left_out_unless_they_hold_the_peak() -> None:
    values = np.zeros((40, 60), np.float32)
    values[2:4, 2:4] = 1.0  # 4 pixels, and the peak
    values[10:30, 10:30] = 0.9  # 400
    values[10:20, 40:50] = 0.8  # 100
    values[35:38, 40:43] = 0.7  # 9
    peaks = {share: [round(r.peak, 2) for r in find_regions(values, min_share=share)] for share in (0, 0.02, 0.3)}
    assert peaks == {0: [1.0, 0.9, 0.8, 0.7], 0.02: [1.0, 0.9, 0.8, 0.7], 0.3: [1.0, 0.9]}
    assert [round(r.peak, 2) for r in find_regions(values, min_share=0, min_area=50)] == [1.0, 0.9, 0.8]
    assert [r.box for r in find_regions(values, max_regions=2)] == [(2, 2, 4, 4), (10, 10, 30, 30)]
    assert find_regions(values, confidence=0.5)[1].score == pytest.approx(0.45)
    for wrong in ({"min_share": 2}, {"min_area": -1}, {"min_area": float("nan")}, {"max_regions": 0}):
        with pytest.raises(DensescoreError, match=next(iter(wrong))):
            find_regions(values, **wrong)


def test_regions_at_the_border_where_few_patches_vote_are_no_peak() -> None:
    """One patch in the corner outvotes no object that many patches agree on."""
    pyramid = Pyramid.of(200, 200, scales=(1, 4), patch=20, stride=4)
    patch_scores = torch.full((len(pyramid), 1), 0.01)
    centers = torch.from_numpy(pyramid.boxes()).unflatten(1, (2, 2)).mean(1)  # [M, 2]
    patch_scores[(centers - 100).abs().amax(1) < 30] = 0.8
    patch_scores[pyramid.levels[1].start] = 1.0  # the corner's only patch at the fine scale
    scores = DenseScores(patch_scores, ("cat",), pyramid)
    x0, y0, x1, y1 = scores.boxes_from_map("cat")[0].box
    assert 10 < x0 < 90 < 110 < x1
    assert 10 < y0 < 90 < 110 < y1


def test_save_and_load(tmp_path: Path) -> None:
    scores = make()
    path = tmp_path / "deep" / "scores.safetensors"
    scores.save(path)
    loaded = DenseScores.load(path)
    assert torch.equal(loaded.patch_scores, scores.patch_scores)
    assert torch.equal(loaded.boxes, scores.boxes)
    for name in ("labels", "pyramid", "k", "model", "context", "runtime", "timings"):
        assert getattr(loaded, name) == getattr(scores, name)
    with pytest.raises(DensescoreError, match="exists already"):
        scores.save(path)
    make(seed=1).save(path, overwrite=True)
    assert not torch.equal(DenseScores.load(path).patch_scores, scores.patch_scores)
    assert [file.name for file in path.parent.iterdir()] == ["scores.safetensors"]


def test_loading_what_is_not_scores(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(DensescoreError, match="no such weights file"):
        DenseScores.load(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(DensescoreError, match=r"x.safetensors: cannot be read"):
        DenseScores.load(path)


def test_unknown_classes_are_answered_with_near_ones() -> None:
    scores = make()
    with pytest.raises(DensescoreError, match="no class 'dog': the network has 3 others"):
        scores.response_map(["dog"])
    named = DenseScores(scores.patch_scores, ("tabby cat", "zebra", "sofa"), scores.pyramid)
    with pytest.raises(DensescoreError, match="did you mean tabby cat"):
        named.index("cat")


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(DensescoreError, match=r"expected \[M, C\]"):
        DenseScores(torch.zeros(3, 2), ("a", "b"), Pyramid.of(20, 20, scales=(1,), patch=20, stride=4))


def test_coverage_counts_the_patches_over_each_pixel() -> None:
    scores = make()
    boxes = scores.boxes.double()
    for x, y in ((0, 0), (64, 45), (129, 89), (3, 80)):
        held = (boxes[:, 0] <= x + 0.5) & (x + 0.5 < boxes[:, 2]) & (boxes[:, 1] <= y + 0.5) & (y + 0.5 < boxes[:, 3])
        assert scores.coverage[y, x] == held.sum()


def test_a_class_is_where_the_shrunk_mean_is_highest() -> None:
    scores = make()
    sums = scores.response_map().double() * scores.coverage / (scores.coverage + scores.coverage.max())
    for votes, place, label in zip(sums, scores.locate(), scores.labels, strict=True):
        x, y = int(place.x), int(place.y)
        smoothed = smooth(votes, round(RADIUS * max(votes.shape)))
        assert smoothed[y, x] >= smoothed.max() * (1 - 1e-6)
        assert place.response == scores.response_map(label)[0, y, x]
    means = scores.response_map("a")[0]
    place = scores.locate("a", by="mean")[0]
    assert means[int(place.y), int(place.x)] == means.max() == place.response
