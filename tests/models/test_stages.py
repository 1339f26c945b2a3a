"""A network with the maps of three stages: ImageNet's scores as before, and more features beside them."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from densescore import DenseScorer
from densescore.models.efficientnet_lite import build, shipped_weights
from densescore.models.labels import IMAGENET_MODELS
from densescore.models.registry import MODELS
from densescore.scoring.scorer import Context


def test_scores_are_the_network_s_own_and_features_hold_its_stages(cat: NDArray[np.uint8]) -> None:
    plain, staged = (DenseScorer(name, scales=(1, 1.4)) for name in ("lite0", "lite0-stages"))
    torch.testing.assert_close(staged.score(cat).patch_scores, plain.score(cat).patch_scores, rtol=1e-4, atol=1e-6)
    features = staged.features(cat)
    assert features.shape[1] == 1280 + 192 + 112
    torch.testing.assert_close(features[:, :1280], plain.features(cat), rtol=1e-4, atol=1e-5)
    assert staged.labels == plain.labels


def test_features_are_means_of_the_stages_over_a_patch() -> None:
    weights = shipped_weights()
    network, staged = build(weights).eval(), DenseScorer(build(weights, stages=True), mean=(0.5,) * 3, std=(0.5,) * 3)
    maps: dict[int, torch.Tensor] = {}
    for number in (4, 5):
        network.get_submodule(f"blocks.{number}").register_forward_hook(
            lambda _, __, output, at=number: maps.update({at: output})
        )
    pixels = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network((pixels[None] - 0.5) / 0.5)
    expected = torch.cat([maps[5].mean((2, 3)), maps[4].mean((2, 3))], 1)
    found = staged.with_scales((1,)).features(pixels)
    torch.testing.assert_close(found[:, 1280:], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("context", ["image", "patch"])
def test_batches_and_finer_cells_as_for_any_network(cat: NDArray[np.uint8], context: Context) -> None:
    scorer = DenseScorer("lite0-stages", scales=(1, 1.3), runtime="torch")
    small = cat[:150, :200]
    for found, image in zip(scorer.score_batch([cat, small], context=context), (cat, small), strict=True):
        alone = scorer.score(image, context=context)
        torch.testing.assert_close(found.patch_scores, alone.patch_scores, rtol=1e-3, atol=1e-6)
    finer = DenseScorer("lite0-stages", scales=(1, 1.3), stride=16, runtime="torch")
    whole, dense = finer.score(small), scorer.score(small)
    for level, coarse in zip(whole.levels, dense.levels, strict=True):
        shared = whole.patch_scores[level.cells].unflatten(0, (level.rows, level.cols))[::2, ::2]
        own = dense.patch_scores[coarse.cells].unflatten(0, (coarse.rows, coarse.cols))
        torch.testing.assert_close(shared[: coarse.rows, : coarse.cols], own, rtol=1e-3, atol=1e-6)


def test_each_lite_network_has_such_a_form() -> None:
    for name in ("lite0", "lite1", "lite2"):
        entry = MODELS[f"{name}-stages"]
        assert entry.patch_size == MODELS[name].patch_size
        assert f"{name}-stages" in IMAGENET_MODELS
        network = entry.build(None).eval()
        assert network(torch.zeros(1, 3, entry.patch_size, entry.patch_size)).shape == (1, 1000)
