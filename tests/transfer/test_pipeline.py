"""From a set of images to a head that works: `train_model`, resumption, and the commands."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from densescore import DensescoreError, DenseScorer, read_image
from densescore.cli.main import app
from densescore.data.boxed_set import BoxedSet
from densescore.data.labeled_set import LabeledSet
from densescore.data.load import load_boxed
from densescore.evaluation.evaluate import evaluate_classes, located, mean_of, score_set
from densescore.models.head import load_head
from densescore.results.regions import Region
from densescore.results.scores import DenseScores
from densescore.transfer.cross_validation import FOLDS
from densescore.transfer.feature_cache import FeatureCache
from densescore.transfer.patch_labels import LabelRule
from densescore.transfer.pipeline import cached_features, train_model
from densescore.transfer.recipe import RECIPES, Recipe
from densescore.transfer.train_boxes import BOX_LOSS
from densescore.transfer.train_head import IMAGE_LOSS, STAGES, Round
from densescore.transfer.training_set import check_image_labels, gather
from tests.cli.runner import CliRunner, Result
from tests.data.voc_set import CLASSES
from tests.transfer.conftest import QUICK, without_boxes


@pytest.mark.parametrize(
    ("field", "value"), [("objective", "hinge"), ("background", 0), ("batch", 0), ("heads", 0), ("components", -1)]
)
def test_recipes_are_checked(field: str, value: object) -> None:
    with pytest.raises(DensescoreError, match=field):
        Recipe(**{field: value})  # type: ignore[arg-type]
    assert RECIPES["paper"].rule == LabelRule(overlap="touch")


def test_damaged_pictures_are_all_named_before_features_are_computed(
    toy: DenseScorer, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = Path(shutil.copytree(voc, tmp_path / "set"))
    first, second, *_ = pictures = [image.path for image in load_boxed(damaged, "train").images]
    cache = FeatureCache(toy, tmp_path / "cache")
    cache.features(pictures[2])
    for path in (first, second):
        path.write_bytes(path.read_bytes()[:-200])
    compute = MagicMock()
    monkeypatch.setattr(FeatureCache, "_compute", compute)
    with pytest.raises(DensescoreError, match="^2 pictures cannot be read:\n") as raised:
        train_model(load_boxed(damaged, "train"), toy, cache, QUICK)
    assert all(f"\n  {path}: " in str(raised.value) for path in (first, second))
    assert not compute.called


@pytest.mark.parametrize("stop_at", ["features", "image labels", "boxes"])
def test_a_stopped_training_resumes_from_cached_features_to_the_same_head(
    stop_at: str, toy: DenseScorer, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(QUICK, image_rounds=2, image_bag=20, image_patches=10, heads=2, max_rounds=2)
    images = load_boxed(voc, "train")
    expected = train_model(images, toy, FeatureCache(toy, tmp_path / "whole"), recipe, 5)

    compute = MagicMock(side_effect=FeatureCache._compute)
    monkeypatch.setattr(FeatureCache, "_compute", lambda *arguments: compute(*arguments))
    losses = {"image labels": IMAGE_LOSS, "boxes": BOX_LOSS}

    def stop_in_round(done: Round) -> None:
        if done.loss_name == losses.get(stop_at) and done.round == 1:
            raise KeyboardInterrupt

    def stop_in_features(items: Iterable[int]) -> Iterator[int]:
        for item in items:
            if stop_at == "features" and item == 20:
                raise KeyboardInterrupt
            yield item

    cache = FeatureCache(toy, tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        train_model(images, toy, cache, recipe, 5, track=stop_in_features, callback=stop_in_round)
    assert compute.call_count == (20 if stop_at == "features" else 36)
    resumed = train_model(images, toy, FeatureCache(toy, tmp_path / "cache"), recipe, 5)
    assert compute.call_count == 36  # each view once
    assert resumed.training == expected.training
    for part in ("head", "box_layer"):
        one, other = getattr(resumed, part).state_dict(), getattr(expected, part).state_dict()
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_trained_head_tells_the_classes_apart_and_finds_them(toy: DenseScorer, voc: Path, tmp_path: Path) -> None:
    cache = FeatureCache(toy, tmp_path)
    done: list[Round] = []
    file = train_model(load_boxed(voc, "train"), toy, cache, QUICK, seed=1, callback=done.append)
    stages = (FOLDS + 1) * STAGES + 2
    assert sorted({(each.stage, each.stages) for each in done}) == [(n, stages) for n in range(1, stages + 1)]
    assert {each.stage for each in done if each.loss_name == BOX_LOSS} == {stages - 1, stages}
    assert {each.held_out is not None for each in done if STAGES < each.stage <= FOLDS * STAGES} == {True}
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
    rows = evaluate_classes(replace(result, boxes=perfect), 5.0)
    assert {(row.box_ap_30, row.box_ap_50, row.box_ap) for row in rows} == {(1, 1, 1)}
    assert mean_of(evaluate_classes(replace(result, boxes=None), 5.0), "box_ap_30") is None
    with pytest.raises(DensescoreError, match="knows no blue"):
        score_set(val, lambda image: toy.score(image.path), (5.0,))


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_commands_from_boxes_to_a_head_that_works(
    toy: DenseScorer, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "default", QUICK)
    monkeypatch.setattr("densescore.cli.console.INTERVAL", 0.0)
    head, cache, out = tmp_path / "head.safetensors", tmp_path / "cache", tmp_path / "results"
    scales = ["--scales", "1,1.5,2.3"]
    arguments: list[str | Path] = ["train", "--data", voc, "--model", "toy", "--out", head, "--cache", cache, *scales]
    trained = run(*arguments, "--json")
    assert trained.exit_code == 0, trained.output
    assert json.loads(trained.stdout)["patches"].keys() == {*CLASSES, "background"}
    assert {path.name for path in tmp_path.iterdir()} == {"head.safetensors", "cache"}
    assert "features: 36 of 36, " in trained.stderr
    assert re.search(r"cross-validation, mAP [01]\.\d\d: \d+ of \d+, ", trained.stderr)
    assert "stage" not in trained.stderr
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
    for k in (5, 3):  # probabilities hold for the k that they were fitted at
        said = run("tune-k", *common, "--ks", str(k), "--out", tmp_path / f"{k}.safetensors").stderr
        assert (load_head(tmp_path / f"{k}.safetensors").calibration is None) == (k == 3)
        assert ("has no probabilities" in said) == (k == 3)
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
        ("--out head.pt", "ends in .safetensors"),
        ("--recipe fast", 'Invalid value "fast" for --recipe'),
        ("--objective hinge", 'Invalid value "hinge" for --objective'),
        ("--unfreeze fc7", 'Invalid value "fc7" for --unfreeze'),
        ("--from-scratch --flips", "leave out --flips"),
        ("--patch-share 2", "patch_share must lie in"),
        ("--overlap near", 'Invalid value "near" for --overlap'),
    ],
)
def test_usage_errors(voc: Path, arguments: str, message: str) -> None:
    out = [] if "--out" in arguments else ["--out", "h.safetensors"]
    result = run("train", "--data", voc, *out, *arguments.split())
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_image_labels_without_a_positive_are_refused_and_without_a_negative_said() -> None:
    truth = np.array([[1, -1, 1], [0, -1, 1]], np.int8)
    with pytest.raises(DensescoreError, match="no image shows dog:"):
        check_image_labels(truth, ("cat", "dog", "cow"))
    truth[0, 1] = 1
    with pytest.warns(UserWarning, match="every image shows cat, cow"):
        check_image_labels(truth, ("cat", "dog", "cow"))


def test_images_without_boxes_train_beside_boxed_ones(toy: DenseScorer, voc: Path, tmp_path: Path) -> None:
    boxed = load_boxed(voc, "train")
    plain = without_boxes(boxed)
    recipe = replace(QUICK, image_rounds=2, label_rounds=4, objective="multilabel")
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
