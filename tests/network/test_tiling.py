"""A level that is cut has the scores of one that is not."""

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray

from densescore import DenseScorer
from densescore.network import tiling
from tests.conftest import Toy


def test_a_level_too_large_for_memory_is_cut(monkeypatch: pytest.MonkeyPatch, cat: NDArray[np.uint8]) -> None:
    scorer = DenseScorer(Toy(), patch_size=20, scales=(3, 9), runtime="torch")
    whole = scorer.score(cat)
    sizes: list[int] = []
    network = scorer.dense
    network.fast_trunk.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[2:].numel()))
    monkeypatch.setattr(tiling, "TRUNK_BYTES", 60**2 * tiling.bytes_per_pixel(network))
    torch.testing.assert_close(scorer.score(cat).patch_scores, whole.patch_scores)
    assert len(sizes) > 20
    assert max(sizes) <= 70**2  # whole strides


def test_a_network_that_sees_the_whole_level_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = timm.create_model("mobilenetv3_small_050", num_classes=3).eval()  # squeeze-and-excitation
    scorer = DenseScorer(module, patch_size=64, scales=(1, 1.5), runtime="torch")
    image = np.random.default_rng(0).integers(0, 256, (90, 100, 3), dtype=np.uint8)
    whole = scorer.score(image)
    monkeypatch.setattr(tiling, "TRUNK_BYTES", 1)
    assert torch.equal(scorer.score(image).patch_scores, whole.patch_scores)
