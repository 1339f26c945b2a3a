"""Checks of training data: sizes, classes, changed pictures; and exports of annotation tools."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from densescore import DensescoreError, DenseScorer
from densescore.cli.main import app
from densescore.data.boxed_set import BoxedSet
from densescore.data.labeled_set import LabeledSet
from densescore.data.load import load_boxed
from densescore.evaluation.evaluate import evaluate_classes, score_set
from densescore.evaluation.voc_results import write_results
from densescore.models.head import load_head
from densescore.paper.from_scratch import train_from_scratch
from densescore.paper.train_fc6 import train_unfrozen
from densescore.transfer.feature_cache import FeatureCache
from densescore.transfer.pipeline import cached_features, cached_scores, train_model
from densescore.transfer.recipe import RECIPES, Recipe
from densescore.transfer.train_head import Round
from tests.cli.runner import CliRunner
from tests.conftest import Toy
from tests.data.exports import COLORS, cvat_coco, labelimg, roboflow_coco
from tests.data.voc_set import write_voc
from tests.transfer.conftest import SCALES, without_boxes

QUICK = Recipe(scales=SCALES, width=16, round=64, batch=32, max_rounds=2, tolerance=0.02)


@pytest.fixture
def boxed(tmp_path: Path) -> BoxedSet:
    return load_boxed(write_voc(tmp_path / "voc", {"train": 6}), "train")


def test_a_network_is_not_resumed_on_changed_pictures(toy: DenseScorer, boxed: BoxedSet, tmp_path: Path) -> None:
    resume = partial(train_from_scratch, boxed, "toy", QUICK, crops=6 * 4 * 4, checkpoint=tmp_path / "c")

    def stop_in_the_second(done: Round) -> None:
        if done.round == 2:  # the first has left a checkpoint
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resume(callback=stop_in_the_second)
    Image.new("RGB", (80, 60), "gray").save(boxed.images[4].path)
    with pytest.raises(DensescoreError, match="belongs to a training with other data"):
        resume()


@pytest.mark.parametrize("boxed_images", [0, 3])
def test_images_without_boxes_need_a_recipe_with_image_labels(
    boxed_images: int, toy: DenseScorer, boxed: BoxedSet, tmp_path: Path
) -> None:
    mixed = (*boxed.images[:boxed_images], *without_boxes(boxed)[boxed_images:])
    images = LabeledSet("train", boxed.classes, mixed)
    with pytest.raises(DensescoreError, match="images have no boxes, and the recipe does not train on image labels"):
        train_model(images, toy, FeatureCache(toy, tmp_path / "cache"), QUICK)
    assert not list((tmp_path / "cache").iterdir())  # refused before the work


def test_boxes_never_meet_the_pixels_of_another_size(toy: DenseScorer, boxed: BoxedSet, tmp_path: Path) -> None:
    image, cache = boxed.images[0], FeatureCache(toy, tmp_path / "cache")
    cached_features(toy, cache)(image, False)
    with Image.open(image.path) as picture:
        picture.transpose(Image.Transpose.ROTATE_90).save(image.path)  # as many patches as before
    for use in (
        lambda: cached_features(toy, cache)(image, False),
        lambda: cached_scores(toy, cache)(image),
        lambda: train_from_scratch(boxed, "toy", QUICK, crops=48),
    ):
        with pytest.raises(DensescoreError, match=r"has 60×80 pixels \(width × height, upright\), not 80×60"):
            use()


@pytest.mark.parametrize("classes", [("background", "green", "red"), ("red", "green", "red")])
def test_classes_that_a_head_could_not_tell_apart_are_refused_before_the_work(
    classes: tuple[str, ...], toy: DenseScorer, boxed: BoxedSet, tmp_path: Path
) -> None:
    named, cache = BoxedSet("train", classes, boxed.images), FeatureCache(toy, tmp_path / "cache")
    for train in (
        lambda: train_model(named, toy, cache, QUICK),
        lambda: train_unfrozen(named, toy, lambda scorer: cache, QUICK),
        lambda: train_from_scratch(named, "toy", QUICK),
    ):
        with pytest.raises(DensescoreError, match="no class may be called 'background'|'red' is given more than once"):
            train()
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/nothing", "/dev/null"])
def test_a_cache_that_cannot_be_written_is_refused(folder: str, toy: DenseScorer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DensescoreError, match=f"{folder}: the cache cannot be written"):
        FeatureCache(toy, tmp_path / folder)


@pytest.mark.parametrize("k", [0.5, 0, -1, float("nan"), float("inf")])
def test_exponents_are_checked_before_anything_is_scored(k: float, boxed: BoxedSet) -> None:
    with pytest.raises(DensescoreError, match=r"k: got .*, expected a number from 1"):
        score_set(boxed, lambda image: pytest.fail("scored"), (1.0, k))


def test_results_of_classes_with_any_name_stay_in_their_folder(boxed: BoxedSet, tmp_path: Path) -> None:
    labels = ("cat/dog", "../up", "cat dog")
    scorer = DenseScorer(Toy(), labels=labels, patch_size=20, scales=QUICK.scales)
    named = BoxedSet("val", labels, boxed.images)
    result = score_set(named, lambda image: scorer.score(image.path), (5.0,))
    write_results(result, evaluate_classes(result, 5.0), 5.0, tmp_path / "out", about={})
    assert {path.name for path in tmp_path.iterdir()} == {"voc", "out"}
    files = [path for path in (tmp_path / "out").iterdir() if path.name.startswith("comp1_cls_val_")]
    written = [[float(line.split()[1]) for line in path.read_text().splitlines()] for path in files]
    assert sorted(written) == sorted(result.scores[0].T.tolist())  # a file for each class


@pytest.mark.parametrize("export", [roboflow_coco, cvat_coco, labelimg])
def test_an_export_trains_with_one_command(
    export: Callable[[Path], Path], toy: DenseScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "default", QUICK)
    root, head = export(tmp_path / "set"), tmp_path / "head.safetensors"
    arguments = ["train", "--data", root, "--model", "toy", "--out", head, "--cache", tmp_path / "cache"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert load_head(head).labels == (*COLORS, "background")
