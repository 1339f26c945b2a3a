import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from densescore.errors import DensescoreError
from densescore.models.krizhevsky import Krizhevsky
from densescore.models.registry import Classifier, load_classifier
from densescore.paper.actions.evaluation import evaluate_persons, mean_ap
from densescore.paper.actions.network import ActionRecipe, PersonNetwork, load_actions, person_patch, save_actions
from densescore.paper.actions.training import labels_of, read_patches, run_frozen, score_persons, train_persons
from densescore.paper.actions.voc import ActionSet, as_boxes, read_actions
from densescore.scoring.scorer import DenseScorer
from densescore.transfer.patch_labels import AMBIGUOUS, label_patches
from tests.cli.runner import refuse, succeed

BOX = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"


def write_actions(root: Path, persons: list[tuple[str, tuple[int, int, int, int], str]], split: str = "train") -> Path:
    """(image, box in VOC's pixels, actions with spaces between) → a VOC folder. Pictures: red left, blue right."""
    voc = root / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "Annotations", "ImageSets/Action"):
        (voc / name).mkdir(parents=True, exist_ok=True)
    objects: dict[str, list[str]] = {}
    lines = []
    for image, box, names in persons:
        objects.setdefault(image, []).append(f"<object><name>person</name>{BOX.format(*box)}</object>")
        lines.append((image, len(objects[image]), names.split()))
    for image, persons_of_image in objects.items():
        size = "<size><width>60</width><height>40</height><depth>3</depth></size>"
        (voc / "Annotations" / f"{image}.xml").write_text(f"<annotation>{size}{''.join(persons_of_image)}</annotation>")
        pixels = np.zeros((40, 60, 3), np.uint8)
        pixels[:, :30, 0], pixels[:, 30:, 2] = 220, 220
        Image.fromarray(pixels).save(voc / "JPEGImages" / f"{image}.jpg", quality=95)
    sets = voc / "ImageSets" / "Action"
    (sets / f"{split}.txt").write_text("".join(f"{image} {index}\n" for image, index, _ in lines))
    for action in ("jump", "run", "other"):
        rows = (f"{image} {index} {1 if action in names else -1:2}\n" for image, index, names in lines)
        (sets / f"{action}_{split}.txt").write_text("".join(rows))
    return root


LEFT, RIGHT = (1, 1, 20, 40), (41, 1, 60, 40)
PERSONS = [
    *((f"a{index}", LEFT, "jump") for index in range(4)),
    *((f"b{index}", RIGHT, "run") for index in range(4)),
    ("c", LEFT, "jump"), ("c", RIGHT, "jump run"), ("d", (21, 1, 40, 40), "other"),
]  # fmt: skip


def test_persons_and_their_actions(tmp_path: Path) -> None:
    actions = read_actions(write_actions(tmp_path, PERSONS), "train")
    assert actions.actions == ("jump", "run")
    assert [(person.image, person.index) for person in actions.persons[-3:]] == [("c", 1), ("c", 2), ("d", 1)]
    assert actions.truth()[-3:].tolist() == [[True, False], [True, True], [False, False]]
    assert actions.persons[0].box.tolist() == [0, 0, 20, 40]  # from 0, ends excluded
    labels, targets, several = labels_of(actions)
    assert labels == ("jump", "run", "background")
    assert several.nonzero()[0].tolist() == [9]
    assert targets[~torch.from_numpy(several)].tolist() == [0] * 4 + [1] * 4 + [0, 2]


def test_boxes_for_dense_scoring(tmp_path: Path) -> None:
    boxed = as_boxes(read_actions(write_actions(tmp_path, PERSONS), "train"))
    assert (len(boxed.images), boxed.classes) == (10, ("jump", "run"))
    c, d = boxed.images[8:]
    assert c.truth.tolist() == [1, 1]
    assert d.truth.tolist() == [-1, -1]
    assert list(zip(c.classes.tolist(), c.difficult.tolist(), strict=True)) == [(0, False), (0, True), (1, True)]
    assert d.difficult.all()
    # A patch of a person of one action is labeled with it; patches of the others are ignored
    patches = np.array([[0, 0, 40, 40], [20, 0, 60, 40]], np.float32)
    first = boxed.images[0]
    assert label_patches(patches[:1], first.boxes, first.classes, 2).tolist() == [0]
    for image in (c, d):
        labels = label_patches(patches[1:], image.boxes, image.classes, 2, difficult=image.difficult)
        assert labels.tolist() == [AMBIGUOUS]


def test_every_problem_of_an_action_set_is_named(tmp_path: Path) -> None:
    root = write_actions(tmp_path, PERSONS)
    voc = root / "VOCdevkit" / "VOC2012"
    (voc / "JPEGImages" / "a1.jpg").unlink()
    (voc / "Annotations" / "a2.xml").write_text("<annotation>")
    sets = voc / "ImageSets" / "Action"
    (sets / "train.txt").write_text((sets / "train.txt").read_text() + "a3 2\nb1\n")
    (sets / "run_train.txt").write_text((sets / "run_train.txt").read_text().replace("b0 1  1\n", "b0 1 5\n"))
    with pytest.raises(DensescoreError) as caught:
        read_actions(root, "train")
    for message in (
        "a1.jpg: no such picture",
        "a2.xml: not valid XML",
        "train.txt: a3: no object 2; its annotation has 1",
        "train.txt:13: expected an image and an object's number, got 'b1'",
        "run_train.txt: b0 1: expected 1 or -1, got '5'",
        "run_train.txt: a3 2: no line, though the set lists it",
    ):
        assert message in str(caught.value)
    with pytest.raises(DensescoreError, match=r"no ImageSets/Action"):
        read_actions(tmp_path / "none", "train")
    few = read_actions(write_actions(tmp_path / "few", [("a", LEFT, "jump"), ("b", LEFT, "jump run")]), "train")
    with pytest.raises(DensescoreError, match="nobody does run and nothing else"):
        labels_of(few)
    with pytest.raises(DensescoreError, match=r"a.jpg: 60×40 pixels .* says 61×40"):
        read_patches(ActionSet("train", few.actions, (replace(few.persons[0], width=61),)), 32, 1.0)


def coordinates(height: int, width: int) -> NDArray[np.uint8]:
    rows, cols = np.mgrid[:height, :width]
    return np.stack([rows, cols, 0 * rows], axis=2).astype(np.uint8)


@pytest.mark.parametrize("box", [(10, 5, 30, 45), (0, 0, 8, 40), (50, 30, 60, 40), (0, 0, 60, 40), (-1, 0, 3, 2)])
def test_a_patch_is_the_square_about_its_box_mirrored_past_the_border(box: tuple[int, int, int, int]) -> None:
    pixels = coordinates(40, 60)
    x0, y0, x1, y1 = box
    side = max(x1 - x0, y1 - y0)
    patch = person_patch(pixels, np.array(box, np.float32), side)
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)

    def mirror(position: int, size: int) -> int:
        while not 0 <= position < size:
            position = -position if position < 0 else 2 * (size - 1) - position
        return position

    expected = [[(mirror(top + i, 40), mirror(left + j, 60), 0) for j in range(side)] for i in range(side)]
    np.testing.assert_array_equal(patch, expected)


def test_a_margin_widens_the_patch() -> None:
    pixels = coordinates(40, 60)
    patch = person_patch(pixels, np.array([20, 10, 30, 20], np.float32), 20, margin=2.0)
    np.testing.assert_array_equal(patch, pixels[5:25, 15:35])
    assert person_patch(pixels, np.array([0, 0, 60, 40], np.float32), 24, margin=9.0).shape == (24, 24, 3)


def small_classifier() -> Classifier:
    torch.manual_seed(0)
    classifier = load_classifier(Krizhevsky(classes=5, width=24), patch_size=224)
    return replace(classifier, name="krizhevsky")


@pytest.mark.parametrize("retrain", ["none", "last", "all"])
def test_only_the_retrained_layers_change(tmp_path: Path, retrain: str) -> None:
    actions = read_actions(write_actions(tmp_path, PERSONS), "train")
    recipe = ActionRecipe(retrain=retrain, epochs=2, width=8, batch=5)  # type: ignore[arg-type]
    network, labels = train_persons(actions, small_classifier(), recipe)
    before = PersonNetwork(small_classifier(), 3, recipe.retrain, 8).state_dict()
    after = network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert labels == ("jump", "run", "background")
    assert {name for name in changed if not name.startswith("head.")} == {
        name for name in before if name.startswith("retrained.")
    }
    again, _ = train_persons(actions, small_classifier(), recipe)
    assert all(torch.equal(value, after[name]) for name, value in again.state_dict().items())
    path = tmp_path / "actions.safetensors"
    weights = tmp_path / "weights.pth"
    torch.save(small_classifier().module.state_dict(), weights)
    save_actions(path, network, labels, "krizhevsky", 224, recipe, {"seed": 0})
    read, read_labels, classifier, read_recipe = load_actions(path, weights)
    assert (read_labels, read_recipe, classifier.patch_size) == (labels, recipe, 224)
    patches = read_patches(actions, 224, 1.0)
    scores = [score_persons(each, run_frozen(each, patches)) for each in (read, network)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)
    if retrain == "last":
        assert sum(value.numel() for value in network.trained_state().values()) < 256 * 36 * 24 + 24 + 24 * 8 + 8 + 40
        torch.save(Krizhevsky(classes=5, width=24).state_dict(), weights)
        with pytest.raises(DensescoreError, match="was trained with other weights of krizhevsky"):
            load_actions(path, weights)


def test_lite0_is_cut_before_its_last_stage() -> None:
    classifier = load_classifier("lite0", weights=None)
    pixels = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    network = PersonNetwork(classifier, 4, "last", width=8).eval()
    with torch.inference_mode():
        assert network.frozen(pixels).shape == (1, 192, 7, 7)
        features = network.rest(network.retrained(network.frozen(pixels)))
        classifier.module.classifier = torch.nn.Identity()
        whole = classifier.module((pixels.float() / 255 - 0.5) / 0.5)
    torch.testing.assert_close(features, whole, rtol=1e-4, atol=1e-6)
    trained = {name.split(".")[0] for name, value in network.named_parameters() if value.requires_grad}
    assert trained == {"retrained", "head"}


def test_average_precision_ranks_persons(tmp_path: Path) -> None:
    actions = read_actions(write_actions(tmp_path, PERSONS), "train")
    labels = ("run", "background", "jump")  # in another order than the set's
    scores = np.zeros((11, 3))
    scores[:, 2] = [0.9, 0.8, 0.7, 0.6, 0, 0, 0, 0, 0.5, 0.4, 0.95]  # jump: a person of none comes first
    scores[:, 0] = np.arange(11)  # run: c 2 is second but one, and two that do not run before it
    jump, run = evaluate_persons(actions, scores, labels)
    assert (jump.persons, run.persons) == (6, 5)
    assert jump.ap == pytest.approx(6 / 7)  # interpolated precision is the best at that recall or beyond
    assert run.ap == pytest.approx((5 / 7 * 5) / 5)
    assert mean_ap([jump, run]) == pytest.approx((6 / 7 + 5 / 7) / 2)
    with pytest.raises(DensescoreError, match="knows no jump"):
        evaluate_persons(actions, scores, ("run",))


def test_the_commands_train_and_evaluate(tmp_path: Path) -> None:
    """Red or blue, from four persons of each."""
    data = write_actions(tmp_path, [person for person in PERSONS if person[0][0] in "ab"])
    write_actions(tmp_path, [("e", LEFT, "jump"), ("e", RIGHT, "run"), ("f", RIGHT, "run")], split="val")
    out = tmp_path / "actions.safetensors"
    train = ["train-actions", "--data", str(data), "--retrain", "last", "--epochs", "4", "--device", "cpu"]
    result = succeed(*train, "--out", out)
    assert "2 actions, 8 persons" in result.stdout
    evaluate = ["evaluate-actions", "--data", str(data), "--model", str(out), "--device", "cpu"]
    result = succeed(*evaluate, "--out", tmp_path / "results", "--json")
    measured = json.loads(result.stdout)
    assert measured["means"]["ap"] == 1
    assert [row["positives"] for row in measured["actions"]] == [1, 2]
    lines = (tmp_path / "results" / "comp10_action_val_run.txt").read_text().splitlines()
    assert [line.split()[:2] for line in lines] == [["e", "1"], ["e", "2"], ["f", "1"]]
    assert min(float(line.split()[2]) for line in lines[1:]) > float(lines[0].split()[2])
    refuse(*train, "--out", out, message="exists already")


def test_a_sliding_head_learns_from_boxes_and_locates_without(tmp_path: Path) -> None:
    """Who jumps is on the left, who runs on the right; every picture is alike."""
    data = write_actions(tmp_path, [person for person in PERSONS if person[0][0] in "ab"])
    write_actions(tmp_path, [("e", LEFT, "jump"), ("e", RIGHT, "run")], split="val")
    out = tmp_path / "sliding.safetensors"
    common = ["--data", str(data), "--device", "cpu", "--cache", str(tmp_path / "cache"), "--json"]
    train = ["train-actions", *common, "--out", str(out), "--sliding", "--scales", "1"]
    result = succeed(*train)
    result = succeed("evaluate-actions", *common, "--model", out)
    assert [(row["action"], row["positives"]) for row in json.loads(result.stdout)["actions"]] == [
        ("jump", 1), ("run", 1),
    ]  # fmt: skip
    jump, run = DenseScorer(out).score(data / "VOCdevkit/VOC2012/JPEGImages/e.jpg").response_map(["jump", "run"])
    assert jump[:, :20].mean() > 2 * jump[:, 40:].mean()
    assert run[:, 40:].mean() > 2 * run[:, :20].mean()
    for options, message in ((["--retrain", "last"], "leave out --retrain"), (["--epochs", "3"], "--epochs")):
        refuse(*train[:-2], *options, "--overwrite", message=message)
    boxes = ["train-actions", *common, "--out", str(tmp_path / "x.safetensors"), "--scales", "1"]
    refuse(*boxes, message="scales are for --sliding")
