"""What the recipe's numbers do to a single step: dropout of features, shortened gradients, weights and rates."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from densescore.models.adaptation import AdaptationHead
from densescore.transfer.recipe import Recipe
from densescore.transfer.rounds import Round
from densescore.transfer.train_head import take_step, train_head
from densescore.transfer.training_patches import TrainingPatches
from densescore.transfer.tune_on_images import tune_on_images

ONE = Recipe(
    objective="multilabel", width=8, batch=64, round=64, max_rounds=1, dropout=0.0, image_rounds=1, image_bag=6,
    image_patches=6, image_batch=16,
)  # fmt: skip


def patches() -> TrainingPatches:
    draw = np.random.default_rng(0)
    values = draw.normal(0, 1, (64, 5)).astype(np.float16)
    labels = np.where(values[:, :2] > 0, 1, -1).astype(np.int8)
    bags, truth = draw.normal(0, 1, (16, 6, 5)).astype(np.float16), np.where(draw.random((16, 2)) < 0.5, 1, -1)
    return TrainingPatches(values, labels, np.zeros(64, np.int64), bags, truth.astype(np.int8))


@pytest.mark.parametrize(("longest", "expected"), [(float("inf"), 1.0), (5.0, 1.0), (1.0, 1 / 5), (0.25, 0.25 / 5)])
def test_a_step_is_along_the_gradient_and_no_longer_than_allowed(longest: float, expected: float) -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    take_step(optimizer, (weight * torch.tensor([3.0, 4.0])).sum(), replace(ONE, max_gradient=longest))
    torch.testing.assert_close(weight.data, 1 - 0.5 * expected * torch.tensor([3.0, 4.0]), rtol=1e-4, atol=1e-6)


def first_weights(recipe: Recipe, inputs: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what goes into the heads of a training."""
    plain = AdaptationHead.forward

    def kept(head: AdaptationHead, features: torch.Tensor) -> torch.Tensor:
        inputs.append(features.detach().clone())
        return plain(head, features)

    monkeypatch.setattr(AdaptationHead, "forward", kept)
    head = train_head(patches(), 2, recipe, 0)
    tune_on_images(head, patches(), recipe, 0)


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8])
def test_a_share_of_the_features_is_dropped_in_both_parts(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs: list[torch.Tensor] = []
    first_weights(replace(ONE, feature_dropout=share), inputs, monkeypatch)
    assert [len(each) for each in inputs] == [64, 64, 64, 16 * 6 + 64]  # three stages, then bags and labeled patches
    for each in inputs:
        assert (each == 0).float().mean().item() == pytest.approx(share, abs=0.1)
        assert each.std() > 0.5


def tuned(recipe: Recipe) -> torch.Tensor:
    """How far one round on image labels moves the weights: ``[8, 5]``."""
    torch.manual_seed(0)
    head = AdaptationHead(5, 2, 8)
    before = head.fca.weight.detach().clone()
    losses: list[Round] = []
    tune_on_images(head, patches(), recipe, 0, callback=losses.append)
    assert losses[0].loss > 0.1
    return head.fca.weight.detach() - before


def test_the_rate_and_the_patches_weight_scale_the_step() -> None:
    still = replace(ONE, weight_decay=0.0, patch_weight=0.0)
    alone = tuned(still)
    torch.testing.assert_close(tuned(replace(still, image_learning_rate=0.001)), alone / 10, rtol=1e-3, atol=1e-7)
    once, twice = tuned(replace(still, patch_weight=1.0)), tuned(replace(still, patch_weight=2.0))
    assert (once - alone).abs().max() > 1e-4
    torch.testing.assert_close(twice - alone, 2 * (once - alone), rtol=1e-3, atol=1e-7)
