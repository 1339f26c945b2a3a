"""The coordinates that heads are trained in, and several heads as one layer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from densescore.models.adaptation import AdaptationHead
from densescore.transfer.feature_basis import feature_basis, in_basis
from densescore.transfer.head_ensemble import mean_head
from densescore.transfer.pipeline import train_both
from densescore.transfer.recipe import Recipe
from densescore.transfer.training_patches import TrainingPatches


def patches(count: int = 400, width: int = 12, bags: bool = True) -> TrainingPatches:
    """Features far from the origin, of unlike spread, that vary along few directions."""
    draw = np.random.default_rng(0)
    values = draw.normal(0, 1, (count, 5)) @ draw.normal(0, 1, (5, width)) * np.geomspace(0.1, 10, width) + 7
    values = values.astype(np.float16)
    labels = np.where(values[:, :2] > np.median(values[:, :2], 0), 1, -1).astype(np.int8)
    made = TrainingPatches(values, labels, np.zeros(count, np.int64))
    return replace(made, bags=values.reshape(-1, 20, width), truth=np.ones((count // 20, 2), np.int8)) if bags else made


@pytest.mark.parametrize("components", [0, 3, 12, 99])
@pytest.mark.parametrize("bags", [True, False])
def test_a_folded_head_takes_raw_features(components: int, bags: bool) -> None:
    given = patches(bags=bags)
    basis = feature_basis(given, components)
    width = components if components in (3, 12) else 12
    turned = in_basis(given, basis)
    assert turned.features.shape == (400, width)
    torch.manual_seed(0)
    head = AdaptationHead(width, 4, 16).eval()
    expected = head(torch.from_numpy(turned.features).float())
    folded = basis.fold(head)
    assert folded.fca.weight.shape == (16, 12)
    torch.testing.assert_close(folded(torch.from_numpy(given.features).float()), expected, rtol=2e-2, atol=2e-3)


def test_features_are_standardized_and_turned_to_where_they_vary_most() -> None:
    given = patches()
    standard = in_basis(given, feature_basis(given, 0)).features.astype(np.float64)
    np.testing.assert_allclose(standard.mean(0), 0, atol=1e-2)
    np.testing.assert_allclose(standard.std(0), 1, atol=1e-2)
    turned = in_basis(given, feature_basis(given, 5)).features.astype(np.float64)
    spread = (turned**2).mean(0)
    np.testing.assert_allclose(spread, np.linalg.eigvalsh(standard.T @ standard / 400)[-5:], rtol=2e-2)
    assert spread.sum() > 0.99 * 12  # five directions hold all of the variance


def test_features_that_never_vary_do_no_harm() -> None:
    given = patches()
    given.features[:, 3], given.bags[..., 3] = 2, 2
    for components in (0, 4, 11):
        turned = in_basis(given, feature_basis(given, components))
        assert np.isfinite(turned.features).all()
        assert np.abs(turned.features).max() < 50


def test_the_mean_head_has_the_mean_of_the_logits() -> None:
    torch.manual_seed(0)
    heads = [AdaptationHead(8, 3, width).eval() for width in (4, 4, 6)]
    features = torch.randn(20, 8)
    expected = torch.stack([head(features) for head in heads]).mean(0)
    assert mean_head(heads).fca.out_features == 14
    torch.testing.assert_close(mean_head(heads)(features), expected)


def test_several_heads_train_from_weights_of_their_own(tmp_path: Path) -> None:
    given = patches(bags=False)
    recipe = Recipe(objective="multilabel", components=6, heads=3, width=16, round=400, batch=50, max_rounds=2)
    stages: list[int] = []
    head = train_both(given, 2, recipe, 0, callback=lambda stage, number, loss: stages.append(stage))
    assert head.fca.weight.shape == (48, 12)
    first, second = head.fca.weight[:16], head.fca.weight[16:32]
    assert not torch.allclose(first, second)
    assert sorted(set(stages)) == [0, 1, 2, 5, 6, 7, 10, 11, 12]
    said = head(torch.from_numpy(given.features).float()) > 0
    assert (said.numpy() == (given.labels == 1)).mean() > 0.9

    def kill_in_the_second(stage: int, number: int, loss: float) -> None:
        if stage == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_both(given, 2, recipe, 0, checkpoint=tmp_path, callback=kill_in_the_second)
    again: list[int] = []
    resumed = train_both(given, 2, recipe, 0, checkpoint=tmp_path, callback=lambda stage, *_: again.append(stage))
    assert min(again) >= 5  # the first head was done
    assert torch.equal(resumed.fca.weight, head.fca.weight)
