"""Reading VOC, COCO and YOLO, and saying all that is wrong with them at once."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densescore import DensescoreError
from densescore.data.labeled_set import DIFFICULT, NEGATIVE, POSITIVE
from densescore.data.load import load_boxed
from tests.conftest import DATA
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
    # A pixel past the border, as real sets have it, is clipped.
    np.testing.assert_array_equal(image.boxes, [[0, 0, 80, 60], [10, 20, 30, 40]])
    assert image.classes.tolist() == [2, 0]
    assert image.difficult.tolist() == [False, True]
    assert image.truth.tolist() == [DIFFICULT, NEGATIVE, POSITIVE]
    assert boxed.truth().shape == (3, 3)


def test_without_class_files_the_boxes_say_what_an_image_shows(tmp_path: Path) -> None:
    root = write_voc(tmp_path, {"train": 6})
    official = load_boxed(root, "train")
    for path in root.glob("ImageSets/Main/*_train.txt"):
        path.unlink()
    np.testing.assert_array_equal(load_boxed(root, "train").truth(), official.truth())


def test_a_malformed_voc_folder_gets_one_error_with_all_problems(tmp_path: Path) -> None:
    root = write_voc(tmp_path, {"train": 7})
    xml = root / "Annotations"
    (xml / "train_000.xml").unlink()
    (xml / "train_001.xml").write_text("<annotation>")
    (xml / "train_002.xml").write_text(annotation(80, 60, [("red", 1, 1, 95, 60, 0), ("pink", 1, 1, 9, 9, 0)]))
    (xml / "train_003.xml").write_text(annotation(80, 60, [("red", 9, 9, 3, 20, 0)]).replace(">20<", ">x<"))
    (root / "JPEGImages" / "train_004.jpg").unlink()
    (root / "ImageSets/Main/green_train.txt").write_text("".join(f"train_{i:03d} -1\n" for i in range(6)))
    with pytest.raises(DensescoreError) as caught:
        load_boxed(root, "train", need_positives=True)
    message = str(caught.value)
    for part in (
        "train_000.xml: no such file",
        "train_001.xml: not valid XML",
        "train_002.xml: object 1: box (0.0, 0.0, 95.0, 60.0) lies outside the image of 80×60",
        "train_002.xml: object 2: name: unknown class 'pink', not one of blue, green, red",
        "train_003.xml: object 1: bndbox/ymax: expected a number, got 'x'",
        "train_004.jpg: no such picture",
        "green_train.txt: image train_006: no line",
        "class green: no positive image in set 'train'",
    ):
        assert part in message
    with pytest.raises(DensescoreError, match="no image set 'test'; there are train"):
        load_boxed(root, "test")
    with pytest.raises(DensescoreError, match="neither VOC"):
        load_boxed(root / "JPEGImages", "train")


def test_an_empty_box_and_a_listing_without_a_box(tmp_path: Path) -> None:
    root = write_voc(tmp_path, {"train": 3})
    (root / "Annotations/train_000.xml").write_text(annotation(80, 60, [("red", 20, 20, 10, 40, 0)]))
    with pytest.raises(DensescoreError) as caught:
        load_boxed(root, "train")
    assert "is empty within the image" in str(caught.value)
    assert "image train_000: class blue: listed as positive, but no box" in str(caught.value)


def pictures(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", (80, 60)).save(folder / name)


def coco(tmp_path: Path, boxes: list[dict[str, object]]) -> Path:
    pictures(tmp_path / "train2017", ["a.jpg", "b.jpg"])
    (tmp_path / "annotations").mkdir()
    record = {
        "images": [{"id": i, "file_name": f"{n}.jpg", "width": 80, "height": 60} for i, n in ((1, "a"), (2, "b"))],
        "categories": [{"id": 7, "name": "red"}, {"id": 3, "name": "blue"}],
        "annotations": boxes,
    }
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(record))
    return tmp_path


def test_coco(tmp_path: Path) -> None:
    boxes: list[dict[str, object]] = [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 20, 30, 40], "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 3, "bbox": [0, 0, 80, 60], "iscrowd": 1},
    ]
    boxed = load_boxed(coco(tmp_path, boxes), "train")
    assert boxed.classes == ("blue", "red")
    np.testing.assert_array_equal(boxed.images[0].boxes, [[10, 20, 40, 60]])
    assert boxed.truth().tolist() == [[NEGATIVE, POSITIVE], [DIFFICULT, NEGATIVE]]
    assert boxed.images[1].path == tmp_path / "train2017" / "b.jpg"


def test_a_malformed_coco_file(tmp_path: Path) -> None:
    boxes: list[dict[str, object]] = [
        {"id": 1, "image_id": 1, "category_id": 9, "bbox": [10, 20, 30, 40]},
        {"id": 2, "image_id": 2, "category_id": 3, "bbox": [0, 0, 99, 60]},
        {"id": 3, "image_id": 2, "category_id": 3, "bbox": [0, 0]},
    ]
    with pytest.raises(DensescoreError) as caught:
        load_boxed(coco(tmp_path, boxes), "train", need_positives=True)
    for part in ("annotation 1: category_id", "annotation 2: box", "annotation 3: bbox", "class red: no positive"):
        assert part in str(caught.value)
    (tmp_path / "annotations" / "instances_train2017.json").write_text("{")
    with pytest.raises(DensescoreError, match=r"train2017\.json: cannot be read as COCO"):
        load_boxed(tmp_path, "train")


def yolo(tmp_path: Path, lines: str) -> Path:
    pictures(tmp_path / "images" / "train", ["a.jpg", "b.jpg"])
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text(lines)
    (tmp_path / "labels" / "train" / "b.txt").write_text("")
    (tmp_path / "data.yaml").write_text("names: [red, blue]\nnc: 2\n")
    return tmp_path


def test_yolo(tmp_path: Path) -> None:
    boxed = load_boxed(yolo(tmp_path, "1 0.5 0.5 0.5 0.5\n0 0.25 0.5 0.25 1\n"), "train")
    assert boxed.classes == ("red", "blue")
    np.testing.assert_allclose(boxed.images[0].boxes, [[20, 15, 60, 45], [10, 0, 30, 60]], atol=1)
    assert boxed.images[0].classes.tolist() == [1, 0]
    assert boxed.truth().tolist() == [[POSITIVE, POSITIVE], [NEGATIVE, NEGATIVE]]


def test_a_malformed_yolo_file(tmp_path: Path) -> None:
    yolo(tmp_path, "1 0.5 0.5 0.5\n0 2.5 0.5 0.25 1\n")
    with pytest.raises(DensescoreError) as caught:
        load_boxed(tmp_path, "train")
    assert "a.txt:1: expected a class and x y width height" in str(caught.value)
    assert "a.txt:2: expected" in str(caught.value)
    (tmp_path / "labels/train/a.txt").write_text("5 0.5 0.5 0.5 0.5\n")
    with pytest.raises(DensescoreError, match="unknown class 5"):
        load_boxed(tmp_path, "train")


def test_the_real_set_is_whole() -> None:
    folder = DATA / "voc2012-mini"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, which the repository does not ship")
    train, val = load_boxed(folder, "train", need_positives=True), load_boxed(folder, "val")
    assert (len(train.images), len(val.images), len(train.classes)) == (647, 250, 20)
    assert (train.truth()[:, train.classes.index("cat")] == POSITIVE).sum() == 162
    assert (val.truth()[:, val.classes.index("person")] == DIFFICULT).sum() == 23
    assert not {image.name for image in train.images} & {image.name for image in val.images}
