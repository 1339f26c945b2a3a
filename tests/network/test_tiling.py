"""A level that is cut has the scores of one that is not."""

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import nn

from densescore import DenseScorer
from densescore.network import tiling
from densescore.network.surgery import to_dense
from tests.conftest import Toy
from tests.network.cpu.operations import Function


def test_a_level_too_large_for_memory_is_cut(monkeypatch: pytest.MonkeyPatch, cat: NDArray[np.uint8]) -> None:
    scorer = DenseScorer(Toy(), patch_size=20, scales=(3, 9), runtime="torch")
    whole = scorer.score(cat)
    sizes: list[int] = []
    network = scorer.dense
    network.fast_trunk.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[2:].numel()))
    monkeypatch.setattr(tiling, "TRUNK_BYTES", 60**2 * network.bytes_per_pixel)
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


@pytest.mark.parametrize(
    "swallows",
    [
        nn.ReLU(),
        Function(lambda x: torch.where(x > 0, x, 0)),
        Function(lambda x: (x > 0.5).float()),
        Function(torch.sign),
        Function(torch.nan_to_num),
        Function(lambda x: torch.maximum(x, torch.zeros(()))),
        Function(lambda x: x * (x.argmax(1, keepdim=True) == 0)),
        nn.Threshold(0.1, 0.0),
    ],
)
def test_operations_that_swallow_nan_hide_no_part_of_the_receptive_field(swallows: nn.Module) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1), swallows, nn.Conv2d(4, 4, 5, 1, 2), swallows,
        nn.Conv2d(4, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    assert to_dense(module, 32).reach == (3, 2)  # 1 + 2·1 + 2·2 + 2·1 pixels, and a stride is 4
