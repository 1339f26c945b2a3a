"""Trainings that change the network below the head: from random weights, and from FC6 on."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from densescore import DensescoreError, DenseScorer
from densescore.cli.main import app
from densescore.data.load import load_boxed
from densescore.evaluation.evaluate import evaluate_classes, mean_of, score_set
from densescore.models.head import load_head, save_head
from densescore.network.surgery import to_dense
from densescore.paper.from_scratch import train_from_scratch
from densescore.paper.train_fc6 import below_fc6, train_unfrozen
from densescore.transfer.feature_cache import FeatureCache
from densescore.transfer.recipe import RECIPES
from densescore.transfer.train_head import Round
from tests.cli.runner import CliRunner
from tests.conftest import Toy
from tests.data.voc_set import CLASSES
from tests.transfer.conftest import QUICK, SCALES

pytestmark = pytest.mark.usefixtures("toy")


def mean_ap(head: Path, voc: Path) -> float:
    scorer = DenseScorer(head)
    result = score_set(load_boxed(voc, "val"), lambda image: scorer.score(image.path), (5.0,))
    return mean_of(evaluate_classes(result, 5.0), "ap") or 0.0


def test_a_network_trained_from_random_weights_tells_the_classes_apart(voc: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    boxed = load_boxed(voc, "train")
    file = train_from_scratch(boxed, "toy", QUICK, 3, crops=18 * 4 * 30, callback=lambda done: losses.append(done.loss))
    assert len(losses) == 30  # four crops of each image in each
    assert losses[-1] < 0.7 * losses[0]
    assert file.backbone_weights.keys() == Toy().state_dict().keys()
    save_head(tmp_path / "scratch.safetensors", file)
    assert mean_ap(tmp_path / "scratch.safetensors", voc) > 0.8


def test_a_killed_training_from_random_weights_goes_on_to_the_same(voc: Path, tmp_path: Path) -> None:
    train = partial(train_from_scratch, load_boxed(voc, "train"), "toy", QUICK, 3, crops=18 * 4 * 4)

    def kill(done: Round) -> None:
        if (done.stage, done.stages, done.round, done.rounds) == (1, 1, 3, 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(checkpoint=tmp_path, callback=kill)
    expected, resumed = train(), train(checkpoint=tmp_path)
    assert all(torch.equal(resumed.backbone_weights[name], value) for name, value in expected.backbone_weights.items())
    assert torch.equal(resumed.head.fca.weight, expected.head.fca.weight)


def test_a_network_of_one_linear_layer_has_no_fc6() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(DensescoreError, match="Sequential has no FC6 to unfreeze"):
        below_fc6(DenseScorer(network, labels=("a", "b"), patch_size=20), to_dense(network, 20))


@pytest.mark.parametrize("context", ["image", "patch"])
def test_fc6_of_what_lies_below_it_is_the_feature(voc: Path, context: str) -> None:
    scorer, picture = DenseScorer("toy", scales=SCALES), sorted((voc / "JPEGImages").iterdir())[0]
    windows = below_fc6(scorer, to_dense(Toy(), 20)).features(picture, context=context)  # type: ignore[arg-type]
    assert windows.shape == (len(scorer.pyramid(60, 80)), 6 * 9)
    expected = scorer.features(picture, context=context)  # type: ignore[arg-type]
    torch.testing.assert_close(Toy().classifier[:2](windows).detach(), expected, rtol=1e-4, atol=1e-5)


def test_fc6_learns_with_the_head_and_comes_with_its_file(voc: Path, tmp_path: Path) -> None:
    scorer = DenseScorer("toy", scales=SCALES)
    cache = partial(FeatureCache, folder=tmp_path / "cache")
    recipe = replace(QUICK, image_rounds=3)
    file = train_unfrozen(load_boxed(voc, "train"), scorer, cache, recipe, 1)
    assert file.backbone_weights.keys() == {"classifier.0.weight", "classifier.0.bias"}
    assert not torch.allclose(file.backbone_weights["classifier.0.weight"], Toy().state_dict()["classifier.0.weight"])
    assert file.training["recipe"]["image_rounds"] == 0
    path = tmp_path / "unfrozen.safetensors"
    save_head(path, file)
    assert mean_ap(path, voc) > 0.8

    loaded, plain = DenseScorer(path), Toy()
    picture = sorted((voc / "JPEGImages").iterdir())[0]
    plain.load_state_dict(plain.state_dict() | file.backbone_weights)
    expected = DenseScorer(plain, patch_size=20, scales=SCALES).features(picture)
    torch.testing.assert_close(loaded.features(picture), expected, rtol=1e-4, atol=1e-5)

    again = train_unfrozen(load_boxed(voc, "train"), scorer, cache, recipe, 1)
    assert torch.equal(again.backbone_weights["classifier.0.weight"], file.backbone_weights["classifier.0.weight"])

    save_head(path, replace(file, backbone_weights={"classifier.9.weight": torch.zeros(1)}), overwrite=True)
    with pytest.raises(DensescoreError, match=r"unexpected classifier\.9\.weight"):
        DenseScorer(path)


@pytest.mark.parametrize(
    ("options", "trained", "progress"),
    [
        ("--from-scratch --crops 288", 8, ["stage 1 of 1, round 1 of up to ", r"batches .*: \d of 3, \S+ batches/s"]),
        ("--unfreeze fc6", 2, [r"features: 36 of \d+, ", r": \d+ of 60, "]),
    ],
)
def test_the_commands(
    voc: Path, tmp_path: Path, options: str, trained: int, progress: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "default", QUICK)
    monkeypatch.setattr("densescore.cli.console.INTERVAL", 0.0)
    head = tmp_path / "head.safetensors"
    files = ["--data", str(voc), "--out", str(head), "--cache", str(tmp_path / "cache")]
    words = ["train", "--model", "toy", *files, *options.split(), "--patch-share", "0.3", "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert all(re.search(line, result.stderr) for line in progress)
    file = load_head(head)
    assert len(file.backbone_weights) == trained
    assert file.training["recipe"]["rule"]["patch_share"] == 0.3
    picture = sorted((voc / "JPEGImages").glob("val_*"))[0]
    classified = json.loads(CliRunner().invoke(app, ["classify", "--model", str(head), str(picture), "--json"]).stdout)
    assert classified["top"][0]["label"] in CLASSES
