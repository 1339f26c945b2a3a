"""Maps of several images are those of each, by one operation per size."""

from typing import Any

import pytest
import torch

from densescore import DensescoreError, DenseScores, Pyramid, response_maps
from densescore.models.labels import imagenet_labels
from densescore.results import response_maps as module
from densescore_kernels import response_map


def scores(height: int, width: int, labels: tuple[str, ...], seed: int) -> DenseScores:
    pyramid = Pyramid.of(height, width, scales=(1, 1.7), patch=32, stride=8)
    generator = torch.Generator().manual_seed(seed)
    return DenseScores(torch.rand(len(pyramid), len(labels), generator=generator), labels, pyramid)


def test_groups_of_classes_have_maps_too() -> None:
    many = [scores(50, 70, imagenet_labels(), seed) for seed in (0, 1)]
    for maps, one in zip(response_maps(many, ["cat", "goldfish"]), many, strict=True):
        expected = one.response_map(["cat", "goldfish"])
        assert expected[0].mean() > 1.5 * expected[1].mean()  # seven classes
        torch.testing.assert_close(maps, expected)


def test_maps_are_those_of_each_image_by_one_call_per_size(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [
        scores(50, 70, ("cat", "dog", "cow"), 0), scores(70, 50, ("cat", "dog", "cow"), 1),
        scores(50, 70, ("cow", "cat"), 2), scores(50, 70, ("cat", "dog", "cow"), 3),
    ]  # fmt: skip
    calls: list[tuple[int, ...]] = []

    def counted(patches: torch.Tensor, grid: Any) -> torch.Tensor:
        calls.append(tuple(patches.shape))
        return response_map(patches, grid)

    monkeypatch.setattr(module, "response_map", counted)
    for labels in (["cow", "cat"], "cat", None):
        calls.clear()
        found = response_maps(images, labels)
        assert len(calls) == 2
        for maps, image in zip(found, images, strict=True):
            expected = image.response_map(labels)
            assert expected.std() > 1e-3
            torch.testing.assert_close(maps, expected, rtol=1e-6, atol=1e-7)
    assert response_maps([], "cat") == []
    with pytest.raises(DensescoreError, match="dog"):
        response_maps(images, "dog")
