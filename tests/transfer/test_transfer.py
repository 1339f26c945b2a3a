"""Training and its resumption, and the commands from a folder of boxes to a head that works."""

import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from densescore import DensescoreError, DenseScorer, read_image
from densescore.cli.main import app
from densescore.data.boxed_set import BoxedSet
from densescore.data.labeled_set import LabeledImage, LabeledSet
from densescore.data.load import load_boxed
from densescore.evaluation.evaluate import evaluate_classes, located, mean_of, score_set
from densescore.models import load_head
from densescore.results.regions import Region
from densescore.results.scores import DenseScores
from densescore.transfer.feature_cache import FeatureCache
from densescore.transfer.patch_labels import LabelRule
from densescore.transfer.pipeline import cached_features, train_both, train_model
from densescore.transfer.recipe import RECIPES, Objective, Recipe
from densescore.transfer.rounds import IMAGE_LOSS, PATCH_LOSS, Round
from densescore.transfer.train_boxes import BOX_LOSS
from densescore.transfer.train_head import STAGES, patch_loss, train_head
from densescore.transfer.training_patches import TrainingPatches, check_image_labels, gather
from densescore.transfer.tune_on_images import image_confidence, image_loss, tune_on_images
from densescore_kernels import power_mean
from tests.data.voc_set import CLASSES
from tests.transfer.conftest import QUICK, SCALES

SLOW = replace(QUICK, max_rounds=20, patience=20)


def clusters(classes: int, count: int = 900, seed: int = 0) -> TrainingPatches:
    """Points around one center per class and background, far from the origin and of unlike spread."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes + 1, count)
    centers = np.random.default_rng(1).normal(0, 1, (classes + 1, 8))
    values = (centers[labels] + draw.normal(0, 0.3, (count, 8))) * np.geomspace(0.1, 10, 8) + 5
    return TrainingPatches(values.astype(np.float16), labels, np.zeros(count, np.int64))


def test_a_head_learns_and_takes_raw_features() -> None:
    losses: list[float] = []
    head = train_both(clusters(3), 3, QUICK, 0, callback=lambda done: losses.append(done.loss))
    unseen = clusters(3, seed=9)
    predicted = head(torch.from_numpy(unseen.features).float()).argmax(1).numpy()
    assert (predicted == unseen.labels).mean() > 0.97
    assert losses[-1] < 0.2 * losses[0]


def test_the_multilabel_objective_learns_two_classes_in_one_patch() -> None:
    single = clusters(3)
    table = np.where(single.labels[:, None] == np.arange(3), 1, -1).astype(np.int8)
    table[single.labels == 2, 0] = 1  # where class 2 is, class 0 is too
    table[::5, 1] = 0  # left out
    patches = replace(single, labels=table)
    head = train_both(patches, 3, replace(QUICK, objective="multilabel"), 0)
    unseen = clusters(3, seed=9)
    said = head(torch.from_numpy(unseen.features).float()).sigmoid().detach().numpy() > 0.5
    assert said.shape == (900, 3)
    assert said[unseen.labels == 2][:, [0, 2]].mean() > 0.9
    assert said[unseen.labels == 3].mean() < 0.05
    assert patches.counts(3)[0] == ((single.labels == 0) | (single.labels == 2)).sum()


def test_left_out_pairs_bear_no_loss() -> None:
    logits = torch.tensor([[3.0, -2.0], [0.5, 1.0]])
    labels = torch.tensor([[1, 0], [-1, 0]], dtype=torch.int8)
    expected = (torch.log1p(torch.exp(torch.tensor(-3.0))) + torch.log1p(torch.exp(torch.tensor(0.5)))) / 2
    torch.testing.assert_close(patch_loss(logits, labels, "multilabel"), expected)


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    patches, path = clusters(3), tmp_path / "head.checkpoint"
    expected = train_head(patches, 3, QUICK, 5).state_dict()
    rounds: list[int] = []

    def kill_at(number: int) -> None:
        def callback(done: Round) -> None:
            rounds.append(done.round)
            if len(rounds) == number:
                raise KeyboardInterrupt

        train_head(patches, 3, QUICK, 5, checkpoint=path, callback=callback)

    for number in (3, 8):
        with pytest.raises(KeyboardInterrupt):
            kill_at(number)
    kill_at(-1)
    resumed = train_head(
        patches, 3, QUICK, 5, checkpoint=path, callback=lambda *_: pytest.fail("nothing is left to do")
    )
    for name, tensor in resumed.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    with pytest.raises(DensescoreError, match=r"head\.checkpoint: belongs to a training with other data or settings"):
        train_head(patches, 3, QUICK, 6, checkpoint=path)
    path.write_bytes(b"half")
    with pytest.raises(DensescoreError, match=r"head\.checkpoint: cannot be read"):
        train_head(patches, 3, QUICK, 5, checkpoint=path)


def slow_training(path: Path) -> None:
    """In another process: a training of 60 rounds that sleeps between them, so that it can be killed in its middle."""
    train_head(clusters(3), 3, SLOW, 5, checkpoint=path, callback=lambda *_: time.sleep(0.05))


def test_a_training_killed_by_the_system_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    path = tmp_path / "head.checkpoint"
    process = multiprocessing.get_context("spawn").Process(target=slow_training, args=(path,))
    process.start()
    while not path.exists() and process.is_alive():
        time.sleep(0.005)
    time.sleep(0.3)
    process.kill()
    process.join()
    assert process.exitcode not in (0, 1)  # it neither ended nor failed by itself
    rounds: list[int] = []
    resumed = train_head(clusters(3), 3, SLOW, 5, checkpoint=path, callback=lambda *_: rounds.append(1)).state_dict()
    assert 0 < len(rounds) < 60
    expected = train_head(clusters(3), 3, SLOW, 5).state_dict()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def with_bags(classes: int) -> TrainingPatches:
    """Bags of 20 points: an image shows a class if 4 of its points do; the rest is background."""
    points, draw = clusters(classes, 2000), np.random.default_rng(4)
    pools = [points.features[points.labels == label] for label in range(classes + 1)]
    truth = np.where(draw.random((60, classes)) < 0.4, 1, -1).astype(np.int8)
    bags = np.stack([draw.choice(pools[classes], 20) for _ in truth])
    for bag, shown in zip(bags, truth, strict=True):
        for place, label in enumerate((shown == 1).nonzero()[0]):
            bag[4 * place : 4 * place + 4] = draw.choice(pools[label], 4)
    truth[::7, 0] = 0
    return replace(points, bags=bags, truth=truth)


@pytest.mark.parametrize("objective", ["softmax", "multilabel"])
def test_image_labels_lower_the_loss_of_the_image_score(objective: Objective) -> None:
    patches = with_bags(3)
    if objective == "multilabel":
        table = np.where(patches.labels[:, None] == np.arange(3), 1, -1).astype(np.int8)
        patches = replace(patches, labels=table)
    recipe = replace(QUICK, objective=objective, image_rounds=8, image_bag=20, image_patches=20, max_rounds=1)
    head = train_head(patches, 3, recipe, 0)
    losses: list[float] = []
    tune_on_images(head, patches, recipe, 0, callback=lambda done: losses.append(done.loss))
    assert len(losses) == recipe.image_rounds
    assert losses[-1] < 0.7 * losses[0]
    with torch.no_grad():
        logits = head(torch.from_numpy(patches.bags).float().flatten(0, 1)).view(60, 20, -1)
    probabilities = logits.softmax(2)[..., :3] if objective == "softmax" else logits.sigmoid()
    scores = power_mean(probabilities.flatten(0, 1), torch.arange(0, 1201, 20), k=5).numpy()
    for column in range(3):
        positive, negative = (scores[patches.truth[:, column] == sign, column] for sign in (1, -1))
        assert np.median(positive) > np.quantile(negative, 0.95)


def test_difficult_images_bear_no_loss() -> None:
    scores, truth = torch.tensor([[0.8, 0.3], [0.5, 0.9]]), torch.tensor([[1, 0], [-1, 0]])
    expected = -(torch.tensor(0.8).log() + torch.tensor(0.5).log()) / 2
    torch.testing.assert_close(image_loss(scores, truth), expected)


def test_a_killed_tuning_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    patches = with_bags(3)
    recipe = replace(QUICK, image_rounds=5, image_bag=20, image_patches=10, max_rounds=1)
    expected = train_both(patches, 3, recipe, 2).state_dict()

    def kill_in_the_images(done: Round) -> None:
        if done.stage > STAGES and done.round == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_both(patches, 3, recipe, 2, checkpoint=tmp_path / "c", callback=kill_in_the_images)
    resumed = train_both(patches, 3, recipe, 2, checkpoint=tmp_path / "c").state_dict()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("image_rounds", "boxes", "lengths"),
    [(0, True, [3, 3, 3]), (1, True, [3, 3, 3, 1]), (5, True, [3, 3, 3, 4, 1]), (5, False, [4, 1])],
)
def test_a_training_says_how_many_stages_and_rounds_there_are(
    image_rounds: int, boxes: bool, lengths: list[int]
) -> None:
    patches = with_bags(3)
    if not boxes:
        patches = replace(patches, features=patches.features[:0], labels=patches.labels[:0])
    recipe = replace(QUICK, image_rounds=image_rounds, image_bag=20, image_patches=10, max_rounds=3)
    said: list[Round] = []
    train_both(patches, 3, recipe, 2, callback=said.append)
    assert {done.stages for done in said} == {len(lengths)}
    assert {(done.stage, done.rounds) for done in said} == set(enumerate(lengths, 1))
    for stage, rounds in enumerate(lengths, 1):
        of_images = not boxes or stage > STAGES
        numbers = [done.round for done in said if done.stage == stage]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) == rounds if of_images else 1 <= len(numbers) <= rounds
        expected = IMAGE_LOSS if of_images else PATCH_LOSS[recipe.objective]
        assert {done.of for done in said if done.stage == stage} == {expected}
    last = said[-1]
    assert str(last).startswith(f"stage {len(lengths)} of {len(lengths)}, round {lengths[-1] if image_rounds else ''}")
    assert f"loss {last.loss:.4g} ({last.of})" in str(last)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(DensescoreError, match="loss became"):
        train_head(clusters(3), 3, replace(QUICK, learning_rate=1e9, standardize=False), 0)


@pytest.mark.parametrize(
    ("field", "value"), [("objective", "hinge"), ("background", 0), ("batch", 0), ("heads", 0), ("components", -1)]
)
def test_recipes_are_checked(field: str, value: object) -> None:
    with pytest.raises(DensescoreError, match=field):
        Recipe(**{field: value})  # type: ignore[arg-type]
    assert RECIPES["paper"].rule == LabelRule(overlap="touch")


def test_a_trained_head_tells_the_classes_apart_and_finds_them(toy: DenseScorer, voc: Path, tmp_path: Path) -> None:
    cache = FeatureCache(toy, tmp_path)
    done: list[Round] = []
    file = train_model(load_boxed(voc, "train"), toy, cache, QUICK, seed=1, callback=done.append)
    assert sorted({(each.stage, each.stages) for each in done}) == [(stage, 4) for stage in (1, 2, 3, 4)]
    assert {each.of for each in done if each.stage == 4} == {BOX_LOSS}
    assert file.labels == (*CLASSES, "background")
    assert file.training["seed"] == 1
    val = load_boxed(voc, "val")

    def score(image: object) -> DenseScores:
        features = torch.from_numpy(cache.features(image.path))  # type: ignore[attr-defined]
        with torch.no_grad():
            probabilities = file.head(features.float()).softmax(1)
        return DenseScores(probabilities, file.labels, toy.pyramid(60, 80))

    result = score_set(val, score, (1.0, 5.0), boxes=True)
    rows = evaluate_classes(result, 5.0)
    assert (mean_of(rows, "ap") or 0) > 0.9
    assert (mean_of(rows, "pointing") or 0) > 0.7
    inside = located(result, tolerance=0)[val.truth() == 1]
    assert inside.mean() > 0.35  # a square covers a tenth of its image
    assert located(result, tolerance=-30).sum() == 0  # no box is 60 pixels wide
    for row in rows:
        assert (row.located_ap or 0) <= (row.ap or 0)
        assert row.box_ap_30 is not None
    perfect = [
        [[Region(tuple(map(int, box)), 1, 1) for box in image.boxes[image.classes == c]] for c in range(len(CLASSES))]  # type: ignore[arg-type]
        for image in val.images
    ]
    rows = evaluate_classes(replace(result, found=perfect), 5.0)
    assert {(row.box_ap_30, row.box_ap_50, row.box_ap) for row in rows} == {(1, 1, 1)}
    assert mean_of(evaluate_classes(replace(result, found=None), 5.0), "box_ap_30") is None
    with pytest.raises(DensescoreError, match="knows no blue"):
        score_set(val, lambda image: toy.score(image.path), (5.0,))


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_commands_from_boxes_to_a_head_that_works(
    toy: DenseScorer, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "default", QUICK)
    monkeypatch.setattr("densescore.cli.progress.INTERVAL", 0.0)
    head, cache, out = tmp_path / "head.safetensors", tmp_path / "cache", tmp_path / "results"
    scales = ["--scales", "1,1.5,2.3"]
    arguments: list[str | Path] = ["train", "--data", voc, "--model", "toy", "--out", head, "--cache", cache, *scales]
    trained = run(*arguments, "--json")
    assert trained.exit_code == 0, trained.output
    assert json.loads(trained.stdout)["patches"].keys() == {*CLASSES, "background"}
    assert {path.name for path in tmp_path.iterdir()} == {"head.safetensors", "cache"}  # no checkpoint left
    assert f"stage 1 of 4, round 1 of up to {QUICK.max_rounds}: loss " in trained.stderr
    assert f"({PATCH_LOSS[QUICK.objective]})" in trained.stderr
    assert "features: 36 of 36, " in trained.stderr
    refused = run(*arguments)
    assert (refused.exit_code, "exists already" in refused.stderr) == (2, True)

    common: list[str | Path] = ["--data", voc, "--model", head, "--cache", cache, *scales]
    evaluated = run("evaluate", *common, "--out", out, "--json")
    assert evaluated.exit_code == 0, evaluated.output
    record = json.loads(evaluated.stdout)
    assert record["means"]["ap"] > 0.8
    assert record["means"]["box_ap_30"] is not None
    assert {row["label"] for row in record["classes"]} == set(CLASSES)
    assert "images: 12 of 12, " in evaluated.stderr
    assert f"curves and pictures: {len(CLASSES)} of {len(CLASSES)}, " in evaluated.stderr
    lines = (out / "comp1_cls_val_red.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == (voc / "ImageSets/Main/val.txt").read_text().split()
    for name in ("pr_red.png", "top_red.png"):
        assert read_image(out / name).std() > 10
    table = run("evaluate", *common, "--no-maps", "--classes", "red")
    assert f"{record['classes'][2]['ap']:.3f}" in table.stdout

    tuned_file = tmp_path / "tuned.safetensors"
    tuned = json.loads(run("tune-k", *common, "--ks", "1,3,5", "--out", tuned_file, "--json").stdout)
    assert [point["k"] for point in tuned["curve"]] == [1, 3, 5]
    assert load_head(tuned_file).k == tuned["k"] == max(tuned["curve"], key=lambda point: point["map"])["k"]
    picture = sorted((voc / "JPEGImages").glob("val_*"))[0]
    classified = json.loads(run("classify", "--model", tuned_file, picture, "--json").stdout)
    assert classified["top"][0]["label"] == "blue"
    assert classified["k"] == tuned["k"]

    drawn = tmp_path / "labels.png"
    counted = run("labels", "train_000", "--data", voc, "--out", drawn, "--scales", "1,2", "--json")
    assert json.loads(counted.stdout)["patches"]["background"] > 0
    assert read_image(drawn).std() > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "head.pt"], "ends in .safetensors"),
        (["--out", "h.safetensors", "--recipe", "fast"], "expected default or paper, got 'fast'"),
        (["--out", "h.safetensors", "--objective", "hinge"], "objective must be one of softmax"),
        (["--out", "h.safetensors", "--unfreeze", "fc7"], "expected fc6, got 'fc7'"),
        (["--out", "h.safetensors", "--from-scratch", "--flips"], "leave out --flips"),
        (["--out", "h.safetensors", "--patch-share", "2"], "patch_share must lie in"),
        (["--out", "h.safetensors", "--overlap", "near"], "overlap must be one of"),
    ],
)
def test_usage_errors(voc: Path, arguments: list[str], message: str) -> None:
    result = run("train", "--data", voc, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def without_boxes(classes: int) -> TrainingPatches:
    """Bags of 20 points, of which 3 show each class of the image; no patch is labeled."""
    points = with_bags(classes)
    return replace(points, features=points.features[:0], labels=points.labels[:0], images=points.images[:0],
                   only_labels=len(points.bags))  # fmt: skip


@pytest.mark.parametrize("k", [1.0, 5.0, 8.0, 30.0])
@pytest.mark.parametrize("objective", ["softmax", "multilabel"])
def test_labels_alone_teach_which_patches_show_a_class(objective: Objective, k: float) -> None:
    patches = without_boxes(3)
    if objective == "multilabel":
        patches = replace(patches, labels=np.zeros((0, 3), np.int8))
    recipe = replace(QUICK, objective=objective, image_rounds=1, label_rounds=40, image_bag=20, image_patches=20,
                     image_k=k)  # fmt: skip
    head = train_both(patches, 3, recipe, 0)
    points = clusters(3, 400)  # each with the label of its own that no training saw
    with torch.no_grad():
        logits = head(torch.from_numpy(points.features).float())
    probabilities = (logits.softmax(1) if objective == "softmax" else logits.sigmoid()).numpy()
    for column in range(3):
        inside, outside = probabilities[points.labels == column, column], probabilities[points.labels != column, column]
        assert np.median(inside) > np.quantile(outside, 0.95)


@pytest.mark.parametrize("k", [1.0, 3.0, 5.0, 7.0, 8.0, 20.0, 64.0])
def test_an_image_s_confidence_is_the_root_of_its_score_with_its_gradient(k: float) -> None:
    logits = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) * 6 - 10  # sigmoids from 1e-12 to 1
    fine = logits.double().requires_grad_()
    wanted = (torch.logsumexp(k * torch.nn.functional.logsigmoid(fine).view(4, 10, 3), 1) - np.log(10)) / k
    logits.requires_grad_()
    found = image_confidence(logits.sigmoid(), 4, k).log()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(values.sum(), of)[0].double() for values, of in ((found, logits), (wanted, fine))]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_image_labels_without_a_positive_are_refused_and_without_a_negative_said() -> None:
    truth = np.array([[1, -1, 1], [0, -1, 1]], np.int8)
    with pytest.raises(DensescoreError, match="no image shows dog:"):
        check_image_labels(truth, ("cat", "dog", "cow"))
    truth[0, 1] = 1
    with pytest.warns(UserWarning, match="every image shows cat, cow"):
        check_image_labels(truth, ("cat", "dog", "cow"))


def test_images_without_boxes_train_beside_boxed_ones(toy: DenseScorer, voc: Path, tmp_path: Path) -> None:
    boxed = load_boxed(voc, "train")
    plain = [
        LabeledImage(name=i.name, path=i.path, height=i.height, width=i.width, truth=i.truth) for i in boxed.images
    ]
    recipe = replace(QUICK, scales=SCALES, image_rounds=2, label_rounds=4, objective="multilabel")
    cache = FeatureCache(toy, tmp_path / "cache")
    features = cached_features(toy, cache)
    some = BoxedSet("train", boxed.classes, boxed.images[:9])
    for images, count in ([*boxed.images[:9], *plain[9:]], len(gather(some, features, recipe, 0).features)), (plain, 0):
        labeled = LabeledSet("train", boxed.classes, images)
        patches = gather(labeled, features, recipe, 0)
        assert (len(patches.features), len(patches.bags)) == (count, 36)
        assert patches.only_labels == (9 if count else 18)
        file = train_model(labeled, toy, cache, recipe, 0)
        assert file.labels == boxed.classes
        assert file.training["labels"] == dict(zip(boxed.classes, (boxed.truth() == 1).sum(0).tolist(), strict=True))
