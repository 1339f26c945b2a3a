"""Training of heads on given features: losses, single steps, stages, objectives, the basis, and the mean of heads."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from densescore import DensescoreError
from densescore.models.head import AdaptationHead
from densescore.transfer.recipe import Objective, Recipe
from densescore.transfer.train_head import (
    IMAGE_LOSS,
    PATCH_LOSS,
    STAGES,
    Round,
    image_confidence,
    image_loss,
    patch_loss,
    take_step,
    train_head,
    train_heads,
)
from densescore.transfer.training_set import TrainingPatches, feature_basis
from densescore_kernels import power_mean
from tests.transfer.conftest import QUICK

BAGS = replace(QUICK, image_bag=20, image_patches=20, max_rounds=1)
ONE = Recipe(
    objective="multilabel", width=8, batch=64, round=64, max_rounds=1, dropout=0.0, image_rounds=1, image_bag=6,
    image_patches=6, image_batch=16,
)  # fmt: skip


@pytest.mark.parametrize(
    ("image_rounds", "boxes", "lengths"),
    [(0, True, [3, 3, 3]), (1, True, [3, 3, 3, 1]), (5, True, [3, 3, 3, 4, 1]), (5, False, [4, 1])],
)
@pytest.mark.parametrize("heads", [1, 2])
def test_progress_counts_stages_and_rounds(image_rounds: int, boxes: bool, lengths: list[int], heads: int) -> None:
    patches = with_bags() if boxes else without_boxes(with_bags())
    recipe = replace(BAGS, image_rounds=image_rounds, label_rounds=5, image_patches=10, max_rounds=3, heads=heads)
    rounds: list[Round] = []
    train_heads(patches, 3, recipe, 2, callback=rounds.append)
    assert {done.stages for done in rounds} == {heads * len(lengths)}
    assert {(done.stage, done.rounds) for done in rounds} == set(enumerate(heads * lengths, 1))
    for stage, most in enumerate(heads * lengths, 1):
        image_stage = not boxes or (stage - 1) % len(lengths) >= STAGES
        numbers = [done.round for done in rounds if done.stage == stage]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) == most if image_stage else 1 <= len(numbers) <= most
        expected = IMAGE_LOSS if image_stage else PATCH_LOSS[recipe.objective]
        assert {done.loss_name for done in rounds if done.stage == stage} == {expected}


def clusters(count: int = 900, seed: int = 0) -> TrainingPatches:
    """Points around one center per class and background, far from the origin and of unlike spread."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 4, count)
    centers = np.random.default_rng(1).normal(0, 1, (4, 8))
    values = (centers[labels] + draw.normal(0, 0.3, (count, 8))) * np.geomspace(0.1, 10, 8) + 5
    return TrainingPatches(values.astype(np.float16), labels, np.zeros(count, np.int64))


def with_bags(objective: Objective = "softmax") -> TrainingPatches:
    """Bags of 20 points: an image shows a class if 4 of its points do; the rest is background."""
    points, draw = clusters(2000), np.random.default_rng(4)
    pools = [points.features[points.labels == label] for label in range(4)]
    truth = np.where(draw.random((60, 3)) < 0.4, 1, -1).astype(np.int8)
    bags = np.stack([draw.choice(pools[3], 20) for _ in truth])
    for bag, shown in zip(bags, truth, strict=True):
        for place, label in enumerate((shown == 1).nonzero()[0]):
            bag[4 * place : 4 * place + 4] = draw.choice(pools[label], 4)
    truth[::7, 0] = 0
    labels = points.labels if objective == "softmax" else per_class(points.labels)
    return replace(points, labels=labels, bags=bags, truth=truth)


def per_class(labels: NDArray[Any]) -> NDArray[np.int8]:
    """Labels of ``"multilabel"``: [N, 3]."""
    return np.where(labels[:, None] == np.arange(3), 1, -1).astype(np.int8)


def without_boxes(patches: TrainingPatches) -> TrainingPatches:
    """The bags alone."""
    return replace(patches, features=patches.features[:0], labels=patches.labels[:0], images=patches.images[:0],
                   only_labels=len(patches.bags))  # fmt: skip


def predict(head: AdaptationHead, features: NDArray[np.float16], objective: Objective) -> NDArray[np.float32]:
    """Probabilities of the classes: [N, 3]."""
    with torch.no_grad():
        logits = head(torch.from_numpy(features).float())
    return (logits.softmax(1)[:, :3] if objective == "softmax" else logits.sigmoid()).numpy()


def on_images(patches: TrainingPatches, recipe: Recipe) -> tuple[AdaptationHead, list[Round]]:
    """A trained head and its rounds on image labels."""
    rounds: list[Round] = []
    head = train_head(patches, patches.truth.shape[1], recipe, 0, callback=rounds.append)
    return head, [done for done in rounds if done.loss_name == IMAGE_LOSS]


def test_a_head_learns_on_raw_features() -> None:
    losses: list[float] = []
    head = train_heads(clusters(), 3, QUICK, 0, callback=lambda done: losses.append(done.loss))
    unseen = clusters(seed=9)
    predicted = head(torch.from_numpy(unseen.features).float()).argmax(1).numpy()
    assert (predicted == unseen.labels).mean() > 0.97
    assert losses[-1] < 0.2 * losses[0]


def test_the_multilabel_objective_learns_two_classes_in_one_patch() -> None:
    shown = clusters().labels
    patches = replace(clusters(), labels=per_class(shown))
    patches.labels[shown == 2, 0] = 1  # where class 2 is, class 0 is too
    patches.labels[::5, 1] = 0  # ambiguous
    head, unseen = train_heads(patches, 3, replace(QUICK, objective="multilabel"), 0), clusters(seed=9)
    predicted = predict(head, unseen.features, "multilabel") > 0.5
    assert predicted[unseen.labels == 2][:, [0, 2]].mean() > 0.9
    assert predicted[unseen.labels == 3].mean() < 0.05
    assert patches.counts(3)[0] == ((shown == 0) | (shown == 2)).sum()


@pytest.mark.parametrize("objective", ["softmax", "multilabel"])
def test_image_labels_lower_the_loss_of_the_image_score(objective: Objective) -> None:
    patches = with_bags(objective)
    head, rounds = on_images(patches, replace(BAGS, objective=objective, image_rounds=8))
    assert len(rounds) == 8
    assert rounds[-1].loss < 0.7 * rounds[0].loss
    probabilities = torch.from_numpy(predict(head, patches.bags.reshape(-1, 8), objective))
    scores = power_mean(probabilities, torch.arange(0, 1201, 20), k=5).numpy()
    for column, signs in enumerate(patches.truth.T):
        assert np.median(scores[signs == 1, column]) > np.quantile(scores[signs == -1, column], 0.95)


@pytest.mark.parametrize("k", [1.0, 5.0, 30.0])
@pytest.mark.parametrize("objective", ["softmax", "multilabel"])
def test_image_labels_alone_teach_which_patches_show_a_class(objective: Objective, k: float) -> None:
    recipe = replace(BAGS, objective=objective, image_rounds=1, label_rounds=40, image_k=k)
    head, points = train_heads(without_boxes(with_bags(objective)), 3, recipe, 0), clusters(400)
    for column, values in enumerate(predict(head, points.features, objective).T):
        shown = points.labels == column
        assert np.median(values[shown]) > np.quantile(values[~shown], 0.95)


def test_a_stage_ends_after_stale_rounds() -> None:
    """Each round's loss is above half of the best before: with `tolerance` 0.5, the second round is stale."""
    rounds: list[Round] = []
    slow = replace(QUICK, learning_rate=1e-5, tolerance=0.5, max_rounds=9)
    for patience in (1, 3):
        train_head(clusters(), 3, replace(slow, patience=patience), 0, callback=rounds.append)
        assert [done.round for done in rounds] == STAGES * list(range(1, patience + 2))
        rounds.clear()


def feature_patches(bags: bool = True) -> TrainingPatches:
    """Features far from the origin, of unlike spread, that vary along five directions: [400, 12]."""
    draw = np.random.default_rng(0)
    exact = draw.normal(0, 1, (400, 5)) @ draw.normal(0, 1, (5, 12)) * np.geomspace(0.1, 10, 12) + 7
    values = exact.astype(np.float16)
    labels = np.where(values[:, :2] > np.median(values[:, :2], 0), 1, -1).astype(np.int8)
    patches = TrainingPatches(values, labels, np.zeros(400, np.int64))
    return replace(patches, bags=values.reshape(-1, 20, 12), truth=np.ones((20, 2), np.int8)) if bags else patches


def test_several_heads_train_from_first_weights_of_their_own() -> None:
    patches = feature_patches(bags=False)
    recipe = Recipe(objective="multilabel", components=6, heads=3, width=16, round=400, batch=50, max_rounds=2)
    head = train_heads(patches, 2, recipe, 0)
    assert head.fca.weight.shape == (48, 12)
    assert not torch.allclose(head.fca.weight[:16], head.fca.weight[16:32])
    predicted = head(torch.from_numpy(patches.features).float()) > 0
    assert (predicted.numpy() == (patches.labels == 1)).mean() > 0.9
    again, other = train_heads(patches, 2, recipe, 0), train_heads(patches, 2, recipe, 1)
    assert torch.equal(again.fca.weight, head.fca.weight)
    assert not torch.allclose(other.fca.weight, head.fca.weight)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(DensescoreError, match="loss became"):
        train_head(clusters(), 3, replace(QUICK, learning_rate=1e9), 0)


def test_ambiguous_patches_and_difficult_images_bear_no_loss() -> None:
    logits = torch.tensor([[3.0, -2.0], [0.5, 1.0]])
    labels = torch.tensor([[1, 0], [-1, 0]], dtype=torch.int8)
    expected = (torch.log1p(torch.exp(torch.tensor(-3.0))) + torch.log1p(torch.exp(torch.tensor(0.5)))) / 2
    torch.testing.assert_close(patch_loss(logits, labels, "multilabel"), expected)
    scores, truth = torch.tensor([[0.8, 0.3], [0.5, 0.9]]), torch.tensor([[1, 0], [-1, 0]])
    expected = -(torch.tensor(0.8).log() + torch.tensor(0.5).log()) / 2
    torch.testing.assert_close(image_loss(scores, truth), expected)


@pytest.mark.parametrize("k", [1.0, 3.0, 5.0, 7.0, 8.0, 20.0, 64.0])
def test_image_confidence_is_the_root_of_the_image_score_with_its_gradient(k: float) -> None:
    logits = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) * 6 - 10  # sigmoids from 1e-12 to 1
    exact_logits = logits.double().requires_grad_()
    exact = (torch.logsumexp(k * torch.nn.functional.logsigmoid(exact_logits).view(4, 10, 3), 1) - np.log(10)) / k
    logits.requires_grad_()
    confidence = image_confidence(logits.sigmoid(), 4, k).log()
    torch.testing.assert_close(confidence.double(), exact, rtol=1e-5, atol=1e-5)
    gradient, exact_gradient = (
        torch.autograd.grad(values.sum(), inputs)[0].double()
        for values, inputs in ((confidence, logits), (exact, exact_logits))
    )
    torch.testing.assert_close(gradient, exact_gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("longest", "expected"), [(None, 1.0), (5.0, 1.0), (1.0, 1 / 5), (0.25, 0.25 / 5)])
def test_a_step_follows_the_gradient_up_to_its_longest_norm(longest: float | None, expected: float) -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    take_step(optimizer, (weight * torch.tensor([3.0, 4.0])).sum(), replace(ONE, max_gradient=longest))
    torch.testing.assert_close(weight.data, 1 - 0.5 * expected * torch.tensor([3.0, 4.0]), rtol=1e-4, atol=1e-6)


def step_patches() -> TrainingPatches:
    """One batch: 64 labeled patches, and bags of 6 from 16 images."""
    draw = np.random.default_rng(0)
    values = draw.normal(0, 1, (64, 5)).astype(np.float16)
    labels = np.where(values[:, :2] > 0, 1, -1).astype(np.int8)
    bags, truth = draw.normal(0, 1, (16, 6, 5)).astype(np.float16), np.where(draw.random((16, 2)) < 0.5, 1, -1)
    return TrainingPatches(values, labels, np.zeros(64, np.int64), bags, truth.astype(np.int8))


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8])
def test_feature_dropout_drops_its_share_in_all_stages(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs: list[torch.Tensor] = []
    forward = AdaptationHead.forward

    def record(head: AdaptationHead, features: torch.Tensor) -> torch.Tensor:
        inputs.append(features.detach().clone())
        return forward(head, features)

    monkeypatch.setattr(AdaptationHead, "forward", record)
    train_head(step_patches(), 2, replace(ONE, feature_dropout=share), 0)
    assert [len(each) for each in inputs] == [64, 64, 64, 16 * 6 + 64]  # three stages, then bags and labeled patches
    for each in inputs:
        assert (each == 0).float().mean().item() == pytest.approx(share, abs=0.1)
        assert each.std() > 0.5


def image_step(recipe: Recipe) -> torch.Tensor:
    """The change of FCa's weights in one round on image labels: ``[8, 5]``."""
    without = train_head(step_patches(), 2, replace(recipe, image_rounds=0), 0)
    head, rounds = on_images(step_patches(), recipe)
    assert len(rounds) == 1
    assert rounds[0].loss > 0.1
    return (head.fca.weight - without.fca.weight).detach()


def test_learning_rate_and_patch_weight_scale_the_image_step() -> None:
    still = replace(ONE, weight_decay=0.0, patch_weight=0.0)
    alone = image_step(still)
    torch.testing.assert_close(image_step(replace(still, image_learning_rate=0.001)), alone / 10, rtol=1e-3, atol=1e-7)
    once, twice = image_step(replace(still, patch_weight=1.0)), image_step(replace(still, patch_weight=2.0))
    assert (once - alone).abs().max() > 1e-4
    torch.testing.assert_close(twice - alone, 2 * (once - alone), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("components", [0, 3, 12, 99])
@pytest.mark.parametrize("bags", [True, False])
def test_a_folded_head_takes_raw_features(components: int, bags: bool) -> None:
    patches = feature_patches(bags=bags)
    basis = feature_basis(patches, components)
    width = components if components in (3, 12) else 12
    projected = patches.project(basis)
    assert projected.features.shape == (400, width)
    assert projected.bags.shape == ((20, 20, width) if bags else (0, 0, 0))
    torch.manual_seed(0)
    head = AdaptationHead(width, 4, 16).eval()
    expected = head(torch.from_numpy(projected.features).float())
    folded = head.folded(basis.shift, basis.axes)
    assert folded.fca.weight.shape == (16, 12)
    torch.testing.assert_close(folded(torch.from_numpy(patches.features).float()), expected, rtol=2e-2, atol=2e-3)


def test_the_basis_standardizes_features_and_finds_where_they_vary_most() -> None:
    patches = feature_patches()
    standard = patches.project(feature_basis(patches, 0)).features.astype(np.float64)
    np.testing.assert_allclose(standard.mean(0), 0, atol=1e-2)
    np.testing.assert_allclose(standard.std(0), 1, atol=1e-2)
    projected = patches.project(feature_basis(patches, 5)).features.astype(np.float64)
    variances = (projected**2).mean(0)
    np.testing.assert_allclose(variances, np.linalg.eigvalsh(standard.T @ standard / 400)[-5:], rtol=2e-2)
    assert variances.sum() > 0.99 * 12  # five directions hold all of the variance


@pytest.mark.parametrize("components", [0, 4, 11])
def test_constant_features_do_no_harm(components: int) -> None:
    patches = feature_patches()
    patches.features[:, 3], patches.bags[..., 3] = 2, 2
    projected = patches.project(feature_basis(patches, components)).features
    assert np.isfinite(projected).all()
    assert 1 < np.abs(projected).max() < 50


def test_the_mean_head_has_the_mean_logits() -> None:
    torch.manual_seed(0)
    heads = [AdaptationHead(8, 3, width).eval() for width in (4, 4, 6)]
    features = torch.randn(20, 8)
    expected = torch.stack([head(features) for head in heads]).mean(0)
    mean = AdaptationHead.mean(heads)
    assert mean.fca.out_features == 14
    torch.testing.assert_close(mean(features), expected)
