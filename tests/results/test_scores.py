"""Image scores, response maps and what follows from them, on answers known on paper."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densescore import DensescoreError, DenseScores, Pyramid, response_maps
from densescore.models.labels import imagenet_labels
from densescore.results import batch as module
from densescore_kernels import response_map
from tests.results.conftest import make

ONE_PATCH = Pyramid.of(20, 20, scales=(1,), patch=20, stride=4)


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
def test_response_maps_average_the_patches_over_a_pixel(height: int, width: int, seed: int) -> None:
    scores = make("abc", height, width, seed, (1, 1.6, 2.5))
    maps = scores.response_map(["c", "a"]).numpy()
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps, [naive_map(scores, column) for column in (2, 0)], rtol=1e-5)


def test_maps_are_bit_identical_from_run_to_run() -> None:
    scores = make("abcdefgh", 333, 251)
    assert torch.equal(scores.response_map(), scores.response_map())


def test_image_scores_follow_equation_1() -> None:
    scores = make()
    patches = scores.patch_scores.double().numpy()
    np.testing.assert_allclose(scores.image_scores(), (patches**5).mean(0), rtol=1e-5)
    for k in (1, 2.5):
        np.testing.assert_allclose(scores.image_scores(k), (patches**k).mean(0), rtol=1e-5)
    assert scores.image_scores(k=200).argmax() == patches.max(0).argmax()  # large k ranks by the best patch


@pytest.mark.parametrize("k", [1, 2.5, 5, 16, 17, 30, 100, 1000, 10_000])
def test_confidence_is_the_kth_root_and_ranks_at_any_exponent(k: float) -> None:
    generator, pyramid = torch.Generator().manual_seed(0), make().pyramid
    spread = torch.logspace(-12, 0, 40)[torch.randperm(40, generator=generator)]  # [C]
    patch_scores = torch.rand(len(pyramid), 40, generator=generator) * spread  # [M, C]
    labels = tuple(f"{index:02}" for index in range(40))
    scores = DenseScores(patch_scores, labels, pyramid, k=k)
    logs = patch_scores.double().log() * k
    expected = ((logs.logsumexp(0) - np.log(len(logs))) / k).exp()
    torch.testing.assert_close(scores.confidence().double(), expected, rtol=2e-5, atol=0)
    assert [best.label for best in scores.top(40)] == [labels[c] for c in expected.argsort(descending=True)]
    torch.testing.assert_close(scores.confidence(3) ** 3, scores.image_scores(3), rtol=1e-5, atol=0)
    best = scores.top(1)[0]
    assert best.score == scores.image_scores()[labels.index(best.label)]
    assert 0 < best.confidence == scores.confidence().max()
    assert best.confidence <= best.best_patch == scores.patch_scores[:, labels.index(best.label)].max()


def test_a_class_without_score_has_no_confidence() -> None:
    scores = DenseScores(torch.tensor([[0.0, 1.0]]), ("cat", "dog"), ONE_PATCH)
    assert scores.confidence().tolist() == scores.confidence(1000).tolist() == [0, 1]
    for k in (0.5, float("nan"), float("inf"), 1e308):
        with pytest.raises(DensescoreError, match="expected a number from 1 to 10,000"):
            scores.confidence(k)


def test_the_background_is_ranked_only_alone() -> None:
    scores = DenseScores(torch.tensor([[0.7, 0.2, 0.1]]), ("background", "cat", "dog"), ONE_PATCH, k=1)
    assert [(best.label, round(best.score, 6)) for best in scores.top(5)] == [("cat", 0.2), ("dog", 0.1)]
    assert [best.label for best in scores.top(1)] == ["cat"]
    assert [best.label for best in scores.select("background").top()] == ["background"]


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
    path.write_bytes(b"not safetensors")
    with pytest.raises(DensescoreError, match=r"scores.safetensors: cannot be read"):
        DenseScores.load(path)


def test_unknown_classes_and_wrong_shapes() -> None:
    with pytest.raises(DensescoreError, match="no class 'dog': the network has 3 others"):
        make().response_map(["dog"])
    with pytest.raises(DensescoreError, match="did you mean tabby cat"):
        make(("tabby cat", "zebra", "sofa")).index("cat")
    with pytest.raises(DensescoreError, match=r"expected \[M, C\]"):
        DenseScores(torch.zeros(3, 2), ("a", "b"), ONE_PATCH)


def test_coverage_counts_patches_per_pixel() -> None:
    scores = make()
    boxes = scores.boxes.double()
    for x, y in ((0, 0), (64, 45), (129, 89), (3, 80)):
        held = (boxes[:, 0] <= x + 0.5) & (x + 0.5 < boxes[:, 2]) & (boxes[:, 1] <= y + 0.5) & (y + 0.5 < boxes[:, 3])
        assert scores.coverage[y, x] == held.sum()


def test_response_maps_equal_those_of_each_image_by_one_call_per_size(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("cat", "dog", "cow")
    images = [make(names, 50, 70, 0), make(names, 70, 50, 1), make(("cow", "cat"), 50, 70, 2), make(names, 50, 70, 3)]
    calls: list[tuple[int, ...]] = []

    def counted(patches: torch.Tensor, grid: Any) -> torch.Tensor:
        calls.append(tuple(patches.shape))
        return response_map(patches, grid)

    monkeypatch.setattr(module, "response_map", counted)
    groups = [make(imagenet_labels(), *size) for size in ((50, 70), (70, 50))]
    for scored, labels in ((images, names[::2]), (images, "cat"), (images, None), (groups, ["cat", "goldfish"])):
        calls.clear()
        found = response_maps(scored, labels)
        assert len(calls) == 2
        for maps, image in zip(found, scored, strict=True):
            expected = image.response_map(labels)
            assert expected.std() > 1e-4
            torch.testing.assert_close(maps, expected, rtol=1e-6, atol=1e-7)
    assert response_maps([], "cat") == []
    with pytest.raises(DensescoreError, match="dog"):
        response_maps(images, "dog")
