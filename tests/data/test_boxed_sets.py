"""Boxes and labels of small VOC, COCO and YOLO sets, number by number."""

import json
from pathlib import Path

import numpy as np
import pytest

from densescore import DensescoreError
from densescore.data.labeled_set import DIFFICULT, NEGATIVE, POSITIVE
from densescore.data.load import load_boxed
from tests.conftest import DATA
from tests.data.exports import pictures
from tests.data.voc_set import CLASSES, annotation, write_voc


def test_voc_boxes_start_from_zero_and_exclude_their_ends(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "VOCdevkit" / "VOC2012", {"train": 3})
    (root / "Annotations" / "train_000.xml").write_text(
        annotation(80, 60, [("red", 1, 1, 81, 60, 0), ("blue", 11, 21, 30, 40, 1)])
    )
    (root / "ImageSets/Main/blue_train.txt").write_text("train_000  0\ntrain_001 -1\ntrain_002  1\n")
    (root / "ImageSets/Main/red_train.txt").write_text("train_000  1\ntrain_001 -1\ntrain_002  1\n")
    boxed = load_boxed(tmp_path, "train", need_positives=True)
    image = boxed.images[0]
    assert boxed.classes == CLASSES
    # A pixel past the border, as in real sets, is clipped.
    np.testing.assert_array_equal(image.boxes, [[0, 0, 80, 60], [10, 20, 30, 40]])
    assert image.classes.tolist() == [2, 0]
    assert image.difficult.tolist() == [False, True]
    assert image.truth.tolist() == [DIFFICULT, NEGATIVE, POSITIVE]
    assert boxed.truth().shape == (3, 3)
    for path in root.glob("ImageSets/Main/*_train.txt"):
        path.unlink()
    np.testing.assert_array_equal(load_boxed(root, "train").truth(), boxed.truth())  # by the boxes


def test_all_problems_of_a_voc_folder_are_in_one_error(tmp_path: Path) -> None:
    root = write_voc(tmp_path, {"train": 9})
    xml = root / "Annotations"
    (xml / "train_000.xml").unlink()
    (xml / "train_001.xml").write_text("<annotation>")
    (xml / "train_002.xml").write_text(annotation(80, 60, [("red", 1, 1, 95, 60, 0), ("pink", 1, 1, 9, 9, 0)]))
    (xml / "train_003.xml").write_text(annotation(80, 60, [("red", 9, 9, 3, 20, 0)]).replace(">20<", ">x<"))
    (root / "JPEGImages" / "train_004.jpg").unlink()
    (xml / "train_006.xml").write_text(annotation(80, 60, [("red", 20, 20, 10, 40, 0)]))
    (root / "ImageSets/Main/green_train.txt").write_text("".join(f"train_{i:03d} -1\n" for i in range(8)))
    with pytest.raises(DensescoreError) as caught:
        load_boxed(root, "train", need_positives=True)
    for part in (
        "train_000.xml: no such file",
        "train_001.xml: not valid XML",
        "train_002.xml: object 1: box (0.0, 0.0, 95.0, 60.0) lies outside the image of 80×60",
        "train_002.xml: object 2: name: unknown class 'pink', not one of blue, green, red",
        "train_003.xml: object 1: bndbox/ymax: expected a number, got 'x'",
        "train_004.jpg: no such picture",
        "train_006.xml: object 1: box (19.0, 19.0, 10.0, 40.0) is empty within the image",
        "image train_006: class blue: listed as positive, but no box",
        "green_train.txt: image train_008: no line",
        "class green: no positive image in set 'train'",
    ):
        assert part in str(caught.value)
    with pytest.raises(DensescoreError, match="no image set 'test'; there are train"):
        load_boxed(root, "test")
    with pytest.raises(DensescoreError, match="neither VOC"):
        load_boxed(root / "JPEGImages", "train")


def test_coco(tmp_path: Path) -> None:
    pictures(tmp_path / "train2017", ["a.jpg", "b.jpg"], (1,))
    (tmp_path / "annotations").mkdir()
    record = {
        "images": [{"id": i, "file_name": f"{n}.jpg", "width": 80, "height": 60} for i, n in ((1, "a"), (2, "b"))],
        "categories": [{"id": 7, "name": "red"}, {"id": 3, "name": "blue"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 20, 30, 40], "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 3, "bbox": [0, 0, 80, 60], "iscrowd": 1},
        ],
    }
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(record))
    boxed = load_boxed(tmp_path, "train")
    assert boxed.classes == ("blue", "red")
    np.testing.assert_array_equal(boxed.images[0].boxes, [[10, 20, 40, 60]])
    assert boxed.truth().tolist() == [[NEGATIVE, POSITIVE], [DIFFICULT, NEGATIVE]]
    assert boxed.images[1].path == tmp_path / "train2017" / "b.jpg"
    with pytest.raises(DensescoreError, match="class blue: no positive image in set 'train'"):
        load_boxed(tmp_path, "train", need_positives=True)


def test_yolo(tmp_path: Path) -> None:
    pictures(tmp_path / "images" / "train", ["a.jpg", "b.jpg"], (1,))
    (tmp_path / "labels" / "train").mkdir(parents=True)
    lines = "1 0.5 0.5 0.5 0.5\n0 0.25 0.5 0.25 1\n0 0.25 0.5 0.5 0.25 0.75 0.5 0.5 0.75\n"  # the last a polygon
    (tmp_path / "labels" / "train" / "a.txt").write_text(lines)
    (tmp_path / "labels" / "train" / "b.txt").write_text("")
    (tmp_path / "data.yaml").write_text("names: [red, blue]\nnc: 2\n")
    boxed = load_boxed(tmp_path, "train")
    assert boxed.classes == ("red", "blue")
    boxes = [[20, 15, 60, 45], [10, 0, 30, 60], [20, 15, 60, 45]]
    np.testing.assert_allclose(boxed.images[0].boxes, boxes, atol=1e-4)
    assert boxed.images[0].classes.tolist() == [1, 0, 0]
    assert boxed.truth().tolist() == [[POSITIVE, POSITIVE], [NEGATIVE, NEGATIVE]]


def test_the_real_set_is_whole() -> None:
    folder = DATA / "voc2012-mini"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, which the repository does not ship")
    train, val = load_boxed(folder, "train", need_positives=True), load_boxed(folder, "val")
    assert (len(train.images), len(val.images), len(train.classes)) == (647, 250, 20)
    assert (train.truth()[:, train.classes.index("cat")] == POSITIVE).sum() == 162
    assert (val.truth()[:, val.classes.index("person")] == DIFFICULT).sum() == 23
    assert not {image.name for image in train.images} & {image.name for image in val.images}
