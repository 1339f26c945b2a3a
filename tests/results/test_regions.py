"""Places and boxes: smoothing, thresholds and locations, on answers known on paper."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from densescore import DensescoreError, DenseScores, Pyramid
from densescore.results.regions import RADIUS, find_regions, smooth
from tests.results.conftest import make


@pytest.mark.parametrize(("height", "width", "radius"), [(13, 9, 1), (9, 13, 4), (1, 7, 2), (5, 5, 20), (6, 4, 0)])
def test_smoothing_averages_the_pixels_around_twice(height: int, width: int, radius: int) -> None:
    values = np.random.default_rng(0).random((height, width))

    def near(center: int) -> slice:
        return slice(max(center - radius, 0), center + radius + 1)

    def average(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([[values[near(y), near(x)].mean() for x in range(width)] for y in range(height)])

    np.testing.assert_allclose(smooth(torch.from_numpy(values), radius), average(average(values)), rtol=1e-12)


def test_boxes_from_map_finds_separate_regions() -> None:
    pyramid = Pyramid.of(40, 400, scales=(1,), patch=20, stride=4)
    patch_scores = torch.full((len(pyramid), 2), 0.01)
    patch_scores[5, 0], patch_scores[35, 0] = 0.9, 0.6  # one row; a patch is 40 pixels wide, a step 8
    scores = DenseScores(patch_scores, ("cat", "dog"), pyramid)
    first, second = scores.boxes_from_map("cat", share=0.5)
    assert first.peak == pytest.approx(scores.heatmap("cat").max().item())
    assert second.score == pytest.approx(scores.confidence()[0].item() * second.peak)
    assert first.box == (40, 0, 80, 40)
    assert second.box == (282, 0, 318, 40)
    assert scores.boxes_from_map("cat", max_regions=1) == [first]
    assert first.peak > second.peak
    assert [region.box for region in scores.boxes_from_map("cat", share=1)] == [(46, 0, 74, 40)]
    with pytest.raises(DensescoreError, match="share must lie in"):
        scores.boxes_from_map("cat", share=0)


def test_small_regions_are_left_out_unless_they_hold_the_peak() -> None:
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


def test_a_few_patches_at_the_border_are_no_peak() -> None:
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


def test_the_heatmap_is_the_smoothed_response_map_lowered_where_few_patches_vote() -> None:
    """Its peak is the place, and the peak of the best box."""
    scores = make()
    votes = 2 * scores.response_map().double() * scores.coverage / (scores.coverage + scores.coverage.max())
    for expected, heatmap, place, label in zip(votes, scores.heatmap(), scores.locate(), scores.labels, strict=True):
        torch.testing.assert_close(heatmap, smooth(expected, round(RADIUS * 90)).float(), rtol=1e-5, atol=1e-7)
        assert heatmap[int(place.y), int(place.x)] == heatmap.max() == place.peak
        assert scores.boxes_from_map(label)[0].peak == scores.class_map(label, 1000).place.peak == place.peak
    means = scores.response_map("a")[0]
    place = scores.locate("a", by="response_map")[0]
    assert means[int(place.y), int(place.x)] == means.max() == place.peak
