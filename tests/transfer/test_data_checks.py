"""What a training checks of its data: sizes, classes, what a resumed run may differ in; exports of tools train."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from densescore import DensescoreError, DenseScorer
from densescore.cli.main import app
from densescore.data.boxed_set import BoxedSet
from densescore.data.load import load_boxed
from densescore.evaluation.evaluate import evaluate_classes, score_set
from densescore.evaluation.voc_results import write_results
from densescore.models import MODELS, ModelEntry, load_head
from densescore.transfer.feature_cache import FeatureCache
from densescore.transfer.from_scratch import train_from_scratch
from densescore.transfer.pipeline import cached_features, cached_scores, train_model
from densescore.transfer.recipe import RECIPES, Recipe
from densescore.transfer.train_fc6 import train_unfrozen
from densescore.transfer.train_head import train_head
from densescore.transfer.training_patches import TrainingPatches
from densescore.transfer.tune_on_images import tune_on_images
from tests.conftest import Toy
from tests.data.exports import COLORS, cvat_coco, labelimg, roboflow_coco
from tests.data.voc_set import write_voc

QUICK = Recipe(scales=(1.0, 2.3), width=16, round=64, batch=32, max_rounds=2, tolerance=0.02)


@pytest.fixture
def toy() -> Iterator[DenseScorer]:
    MODELS["toy"] = ModelEntry("a toy", lambda weights: Toy(), lambda: {}, "none", "tests", patch_size=20)
    yield DenseScorer("toy", scales=QUICK.scales)
    del MODELS["toy"]


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def patches(seed: int = 0) -> TrainingPatches:
    """Random features of 300 patches and of 20 bags."""
    draw = np.random.default_rng(seed)
    return TrainingPatches(
        draw.normal(size=(300, 8)).astype(np.float16),
        np.arange(300) % 4,
        np.arange(300) // 15,
        draw.normal(size=(20, 12, 8)).astype(np.float16),
        np.where(draw.random((20, 3)) < 0.5, 1, -1).astype(np.int8),
    )


@pytest.mark.parametrize("row", [0, 1, 96, 299])
def test_a_head_is_not_resumed_on_other_features(row: int, tmp_path: Path) -> None:
    given, path = patches(), tmp_path / "head.pt"
    resume = partial(train_head, classes=3, recipe=QUICK, seed=1, checkpoint=path)
    with pytest.raises(KeyboardInterrupt):
        resume(given, callback=partial(_second, stop, []))
    given.features[row, 3] += 1
    with pytest.raises(DensescoreError, match="belongs to a training with other data"):
        resume(given)


def _second(then: Callable[..., None], calls: list[int], *_: object) -> None:
    """A callback that lets one round pass, after which a checkpoint is there."""
    calls.append(1)
    if len(calls) == 2:
        then()


@pytest.mark.parametrize(("bag", "place"), [(0, 0), (7, 5), (19, 11)])
def test_a_tuning_is_not_resumed_on_other_bags(bag: int, place: int, tmp_path: Path) -> None:
    given, path, recipe = patches(), tmp_path / "images.pt", replace(QUICK, image_rounds=4, image_patches=6)
    head = train_head(given, 3, QUICK, 1)
    resume = partial(tune_on_images, head, recipe=recipe, seed=1, checkpoint=path)
    with pytest.raises(KeyboardInterrupt):
        resume(given, callback=partial(_second, stop, []))
    given.bags[bag, place, 0] += 1
    with pytest.raises(DensescoreError, match="belongs to a training with other data"):
        resume(given)


def test_a_network_is_not_resumed_on_other_pictures(toy: DenseScorer, tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", {"train": 6})
    boxed = load_boxed(root, "train")
    resume = partial(train_from_scratch, boxed, "toy", QUICK, crops=6 * 4 * 4, checkpoint=tmp_path / "c")
    with pytest.raises(KeyboardInterrupt):
        resume(callback=partial(_second, stop, []))
    Image.new("RGB", (80, 60), "gray").save(boxed.images[4].path)
    with pytest.raises(DensescoreError, match="belongs to a training with other data"):
        resume()


def test_boxes_never_meet_the_pixels_of_another_size(toy: DenseScorer, tmp_path: Path) -> None:
    boxed = load_boxed(write_voc(tmp_path / "voc", {"train": 3}), "train")
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
    classes: tuple[str, ...], toy: DenseScorer, tmp_path: Path
) -> None:
    boxed = load_boxed(write_voc(tmp_path / "voc", {"train": 3}), "train")
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
def test_exponents_are_checked_before_anything_is_scored(k: float, tmp_path: Path) -> None:
    boxed = load_boxed(write_voc(tmp_path, {"val": 2}), "val")
    with pytest.raises(DensescoreError, match=r"k: got .*, expected a number from 1"):
        score_set(boxed, lambda image: pytest.fail("scored"), (1.0, k))


def test_results_of_classes_with_any_name_stay_in_their_folder(toy: DenseScorer, tmp_path: Path) -> None:
    boxed = load_boxed(write_voc(tmp_path / "voc", {"val": 3}), "val")
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
