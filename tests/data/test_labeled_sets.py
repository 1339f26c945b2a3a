"""Sets with labels and no boxes: folders, tables, VOC's image sets alone; and drawn splits."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densescore import DensescoreError
from densescore.data.boxed_set import BoxedImage, BoxedSet, boxed_part
from densescore.data.labeled_set import POSITIVE, UNKNOWN, LabeledSet
from densescore.data.load import draw_val, load_boxed, load_set, match_split
from tests.data.exports import cvat_coco, draw, labelimg, pictures, roboflow_coco, yolo
from tests.data.voc_set import write_voc


def folders(root: Path, counts: dict[str, int]) -> Path:
    """A folder per class with its number of pictures; the first is turned."""
    for label, count in counts.items():
        pictures(root / label, [f"{n}.{'png' if n else 'JPG'}" for n in range(count)], (6, 1))
    return root


def test_a_folder_per_class(tmp_path: Path) -> None:
    root = folders(tmp_path, {"cat/dog": 2, "bird": 3, "train": 1})
    shutil.copytree(root / "bird", root / ".hidden")
    (root / "bird" / "notes.txt").write_text("none")
    labeled = load_set(root, "train", need_positives=True)
    assert type(labeled) is LabeledSet
    assert labeled.classes == ("bird", "cat", "train")  # a folder "train" of pictures is a class of trains
    assert labeled.truth().tolist() == [[1, -1, -1]] * 3 + [[-1, 1, -1]] * 2 + [[-1, -1, 1]]
    names = "bird/0 bird/1 bird/2 cat/dog/0 cat/dog/1 train/0"
    assert [image.name for image in labeled.images] == names.split()
    assert labeled.find("train/0.JPG").truth.tolist() == [-1, -1, 1]
    with pytest.raises(DensescoreError, match="no image set 'val'; there are none; .*--val-share"):
        load_set(root, "val")
    with pytest.raises(DensescoreError, match="labels only, no boxes"):
        load_boxed(root, "train")


def test_folders_of_splits(tmp_path: Path) -> None:
    for split, count in (("Train", 3), ("validation", 2)):
        folders(tmp_path / split, {"cat": count, "dog": 1})
    assert len(load_set(tmp_path, "train").images) == 4
    assert [image.name for image in load_set(tmp_path, "val").images] == ["cat/0", "cat/1", "dog/0"]
    with pytest.raises(DensescoreError, match="has a set 'validation', so val_share cannot draw one"):
        load_set(tmp_path, "train", val_share=0.5)


def test_all_problems_of_folders_are_in_one_error(tmp_path: Path) -> None:
    root = folders(tmp_path, {"cat": 2, "dog": 1})
    (root / "empty").mkdir()
    (root / "stray.jpg").write_bytes(b"")
    (root / "cat" / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(DensescoreError) as caught:
        load_set(root, "train")
    for message in ("empty: no pictures", "stray.jpg: lies in no class's folder", "broken.jpg: cannot be read as a"):
        assert message in str(caught.value)


JSON_LINES = """{"image": "a.jpg", "labels": ["cat", "dog"]}

{"image": "b.jpg", "labels": []}
{"image": "c.jpg", "labels": "?cat"}
{"image": "d.jpg", "labels": ["dog", "?"]}
"""
TABLES = {
    "csv": ("labels.csv", "image,labels\na.jpg,cat;dog\nb.jpg,\nc.jpg,?cat\nd.jpg, dog ; ?\n"),
    "rows": ("my.csv", "id,label,image\n1,cat,a.jpg\n2,dog,a.jpg\n3,,b.jpg\n4,?cat,c.jpg\n5,dog,d.jpg\n6,?,d.jpg\n"),
    "tsv": ("labels.tsv", "filename\tlabels\na.jpg\tcat;dog\nb.jpg\t\nc.jpg\t?cat\nd.jpg\tdog;?\n"),
    "jsonl": ("labels.jsonl", JSON_LINES),
    "otherwise written": ("labels.csv", "image,labels\na.jpg,cat\n./a.jpg,dog\nb.jpg,\n./c.jpg,?cat\n.//d.jpg,dog;?\n"),
    "quoted": ("labels.csv", 'IMAGE,Labels\n"a.jpg","cat;dog"\r\n"b.jpg",""\r\n"c.jpg",?cat\r\n"d.jpg",dog;?\r\n'),
}


@pytest.mark.parametrize("images", [".", "images"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(("name", "text"), TABLES.values(), ids=TABLES)
def test_a_table_of_labels(name: str, text: str, encoding: str, images: str, tmp_path: Path) -> None:
    pictures(tmp_path / images, [f"{letter}.jpg" for letter in "abcd"])
    (tmp_path / name).write_bytes(text.encode(encoding))
    for path in (tmp_path, tmp_path / name):
        labeled = load_set(path, "train")
        assert labeled.classes == ("cat", "dog")
        assert [image.path.name for image in labeled.images] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
        assert labeled.truth().tolist() == [[1, 1], [-1, -1], [0, -1], [0, 1]]
        assert not boxed_part(labeled).images


def test_splits_of_a_table_share_its_classes(tmp_path: Path) -> None:
    pictures(tmp_path, [f"{letter}.jpg" for letter in "abc"])
    table = tmp_path / "labels.csv"
    table.write_text("image,labels,split\na.jpg,cat,train\nb.jpg,dog,val\nc.jpg,cat;bird,val\n")
    train, val = load_set(tmp_path, "train"), load_set(tmp_path, "val")
    assert train.classes == val.classes == ("bird", "cat", "dog")
    assert (len(train.images), len(val.images)) == (1, 2)
    with pytest.raises(DensescoreError, match="class bird: no positive image in set 'train'"):
        load_set(tmp_path, "train", need_positives=True)
    table.rename(tmp_path / "train.csv")
    (tmp_path / "train.csv").write_text("image,labels\na.jpg,cat\n")
    (tmp_path / "valid.csv").write_text("image,labels\nb.jpg,dog\nc.jpg,cat\n")
    assert load_set(tmp_path, "val").truth().tolist() == [[-1, 1], [1, -1]]
    assert load_set(tmp_path, "train").truth().tolist() == [[1, -1]]


CSV = (r"labels\.csv:3: ", "image,labels\na.jpg,cat\n{}\n")
JSON = (r"labels\.jsonl:2: ", '{{"image": "a.jpg", "labels": "cat"}}\n{}\n')
HEADER = (r"labels\.csv:1: ", "{}\na.jpg,cat\n")
BAD_ROWS = [
    (CSV, "z.jpg,cat", ".*z.jpg: no such picture"),
    (CSV, "/etc/passwd,cat", "image: expected a path within"),
    (CSV, "../a.jpg,cat", "image: expected a path within"),
    (CSV, ",cat", "image: expected a path within"),
    (CSV, "b.jpg,cat,dog", "3 fields, but the header has 2"),
    (CSV, "b.jpg", "1 fields, but the header has 2"),
    (CSV, "b.jpg,cat;?cat", "labels: cat is both shown and unknown in b.jpg"),
    (CSV, '"b.jpg,cat', "not valid CSV"),
    (CSV, "b.jpg," + "x" * 200_000, "not valid CSV: field larger"),
    (CSV, "images/a.jpg,dog", r"image: .*a\.jpg is also the picture of another name"),
    (JSON, "{", "not valid JSON"),
    (JSON, "[" * 100_000, "not valid JSON"),
    (JSON, "[]", "expected an object with image and labels"),
    (JSON, '{"labels": []}', "image: expected a path, got None"),
    (JSON, '{"image": 3, "labels": []}', "image: expected a path, got 3"),
    (JSON, '{"image": "a.jpg"}', "labels: expected a text or a list of texts"),
    (JSON, '{"image": "a.jpg", "labels": null}', "labels: expected a text or a list of texts"),
    (JSON, '{"image": "a.jpg", "labels": [1]}', "labels: expected a text or a list of texts"),
    (JSON, '{"image": "a.jpg", "labels": [], "split": 1}', "split: expected a text, got 1"),
    (JSON, '{"image": "\\ud800.jpg", "labels": []}', "image: expected a path within"),
    *((HEADER, row, "expected columns image and labels") for row in ("", "image;labels", "picture,tag", "image")),
    (HEADER, "image,split", "expected columns image and labels"),
]


@pytest.mark.parametrize(("table", "row", "message"), BAD_ROWS, ids=[row[:20] for _, row, _ in BAD_ROWS])
def test_a_bad_row_is_named(table: tuple[str, str], row: str, message: str, tmp_path: Path) -> None:
    place, text = table
    pictures(tmp_path / "images", ["a.jpg", "b.jpg"])
    (tmp_path / ("labels.jsonl" if table is JSON else "labels.csv")).write_text(text.format(row))
    with pytest.raises(DensescoreError, match=place + message):
        load_set(tmp_path, "train")


def test_a_column_per_class(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        pictures(tmp_path / split, ["a.jpg", "b.jpg"])
        (tmp_path / split / "_classes.csv").write_text("filename, Cat, dog\na.jpg, 1, 0\nb.jpg, ?, 1\n")
    for split in ("train", "val"):
        labeled = load_set(tmp_path, split)
        assert labeled.classes == ("Cat", "dog")
        assert labeled.truth().tolist() == [[1, -1], [0, 1]]
    (tmp_path / "train/_classes.csv").write_text("filename, Cat, dog\na.jpg, 1, yes\nb.jpg, 2, 1\n")
    with pytest.raises(DensescoreError, match=r"_classes\.csv:2: dog: expected 1, 0 or \?.*\n.*:3: Cat: expected 1"):
        load_set(tmp_path, "train")


@pytest.mark.parametrize(
    "text",
    [
        "filename,caption\ncat/0.JPG,a cat\n",
        'index,image,labels,confidences\n0,cat/0.JPG,"[""dog"", ""cat""]","[0.2, 0.1]"\n',  # of densescore score
    ],
)
def test_captions_and_scores_are_no_labels(text: str, tmp_path: Path) -> None:
    root = folders(tmp_path, {"cat": 1, "dog": 1})
    (root / "metadata.csv").write_text(text)
    assert load_set(root, "train").classes == ("cat", "dog")


IN_TURN = [[1, -1], [-1, 1], [1, -1], [-1, 1]]
READERS: dict[str, tuple[Callable[[Path], Path], list[list[int]]]] = {
    "roboflow": (roboflow_coco, IN_TURN),
    "cvat": (cvat_coco, IN_TURN),
    "labelimg": (labelimg, IN_TURN),
    "yolo": (yolo, [[1, -1], [-1, 1]]),
    "voc": (lambda root: write_voc(root, {"train": 3}), [[1, -1, -1], [-1, 1, -1], [1, -1, 1]]),
}


@pytest.mark.parametrize(("make", "truth"), READERS.values(), ids=READERS)
def test_labels_alone_of_a_set_with_boxes(make: Callable[[Path], Path], truth: list[list[int]], tmp_path: Path) -> None:
    root = make(tmp_path)
    labeled = load_set(root, "train", labels="image")
    assert not any(isinstance(image, BoxedImage) for image in labeled.images)
    boxed = [load_set(root, "train", labels="both"), load_set(root, "train")]
    assert all(isinstance(loaded, BoxedSet) for loaded in boxed)
    for loaded in (labeled, *boxed):
        np.testing.assert_array_equal(loaded.truth(), load_boxed(root, "train").truth())
        assert [image.name for image in loaded.images] == [image.name for image in labeled.images]
    assert labeled.truth().tolist() == truth


def test_images_with_boxes_and_images_without(tmp_path: Path) -> None:
    root = write_voc(tmp_path, {"train": 6})
    whole = load_boxed(root, "train")
    (root / "Annotations" / "train_001.xml").unlink()
    mixed = load_set(root, "train", labels="both")
    assert not isinstance(mixed, BoxedSet)
    assert [isinstance(image, BoxedImage) for image in mixed.images] == [True, False, True, True, True, True]
    assert boxed_part(mixed).images == tuple(i for i in mixed.images if i.name != "train_001")
    np.testing.assert_array_equal(mixed.truth(), whole.truth())
    with pytest.raises(DensescoreError, match=r"train_001\.xml: no such file"):
        load_set(root, "train")
    shutil.rmtree(root / "Annotations")
    alone = load_set(root, "train")
    assert type(alone) is LabeledSet
    np.testing.assert_array_equal(alone.truth(), whole.truth())
    (root / "ImageSets/Main/red_train.txt").write_text("".join(f"train_{n:03d} 0\n" for n in range(6)))
    assert (load_set(root, "train").truth()[:, 2] == UNKNOWN).all()
    for path in root.glob("ImageSets/Main/*_train.txt"):
        path.unlink()
    with pytest.raises(DensescoreError, match="neither Annotations nor ImageSets/Main/<class>_train.txt"):
        load_set(root, "train")


def test_coco_objects_without_boxes_are_labels(tmp_path: Path) -> None:
    root = cvat_coco(tmp_path)
    path = root / "annotations" / "instances_default.json"
    record = json.loads(path.read_text())
    record["annotations"][0].pop("bbox")
    path.write_text(json.dumps(record))
    mixed = load_set(root, "train", labels="both")
    assert [isinstance(image, BoxedImage) for image in mixed.images] == [False, True, True, True]
    with pytest.raises(DensescoreError, match="annotation 1: has no box"):
        load_set(root, "train")
    record["annotations"][1]["bbox"] = None  # labels alone are read whatever the boxes are
    record["images"][2]["width"] = None
    path.write_text(json.dumps(record))
    assert load_set(root, "train", labels="image").truth().tolist() == IN_TURN


BAD_OPTIONS: list[tuple[str, object, str]] = [
    *(("val_share", share, "expected a share between 0 and 1") for share in (0.0, 1.0, -0.1, np.nan, np.inf)),
    *(("labels", labels, "expected auto, image, box, both, got") for labels in ("boxes", "", "Image")),
]


@pytest.mark.parametrize(("option", "value", "message"), BAD_OPTIONS)
def test_bad_options_are_refused(option: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DensescoreError, match=f"{option}: {message}"):
        load_set(folders(tmp_path, {"cat": 2, "dog": 2}), "train", **{option: value})


def test_a_drawn_split_is_complete_stratified_and_reproducible(tmp_path: Path) -> None:
    root = folders(tmp_path, {"cat": 20, "dog": 10, "bird": 5})
    train, val = (load_set(root, split, val_share=0.2, seed=3) for split in ("train", "val"))

    def names(labeled: LabeledSet) -> list[str]:
        return [image.name for image in labeled.images]

    assert sorted(names(val) + names(train)) == names(load_set(root, "train"))
    assert ((val.truth() == POSITIVE).sum(0) == [1, 4, 2]).all()
    assert names(val) == names(load_set(root, "val", val_share=0.2, seed=3))
    assert names(val) != names(load_set(root, "val", val_share=0.2, seed=4))
    with pytest.raises(DensescoreError, match="val_share draws the sets train and val, not 'test'"):
        load_set(root, "test", val_share=0.2)
    with pytest.raises(DensescoreError, match=re.escape("val_share: 0.01 of 35 images leaves none for val")):
        load_set(root, "val", val_share=0.01)


@given(
    truth=st.integers(1, 5).flatmap(
        lambda count: st.lists(st.tuples(*[st.sampled_from([1, 0, -1])] * count), max_size=60)
    ),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 9),
)
def test_each_class_has_its_share_in_val(truth: list[tuple[int, ...]], share: float, seed: int) -> None:
    rows = np.array(truth, np.int8).reshape(len(truth), -1 if truth else 1)
    drawn = draw_val(rows, share, seed)
    assert drawn.shape == (len(rows),)
    shown = rows == POSITIVE
    assert shown[~drawn].any(0)[shown.any(0)].all()  # train keeps an image of each class
    assert -0.5 - rows.shape[1] - 1e-9 <= int(drawn.sum()) - share * len(rows) <= 0.5 + 1e-9
    np.testing.assert_array_equal(drawn, draw_val(rows, share, seed))
    if (shown.sum(1) <= 1).all():  # without images of several classes, each class is at most one image off
        for column in range(rows.shape[1] if len(rows) else 0):
            shown = rows[:, column] == POSITIVE
            assert abs(int(drawn[shown].sum()) - share * shown.sum()) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("split", "names", "match"),
    [
        ("val", ["train", "valid"], "valid"),
        ("val", ["Validation", "Train"], "Validation"),
        ("val", ["valid", "val"], "val"),
        ("train", ["train2017", "val2017"], "train2017"),
        ("train", ["train2014", "train2017"], None),
        ("train", ["train-small", "train2017"], "train2017"),
        ("train", ["trainval"], None),
        ("trainval", ["train", "trainval"], "trainval"),
        ("test", ["train"], None),
        ("[", ["("], None),
    ],
)
def test_names_of_splits(split: str, names: list[str], match: str | None) -> None:
    assert match_split(split, names) == match


def test_the_yaml_itself_names_a_set(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    (root / "data.yaml").rename(root / "pets.yaml")
    assert load_boxed(root / "pets.yaml", "train").classes == ("cat", "dog")


def test_no_known_layout(tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg", "cat")
    for name, message in (
        (".", "neither VOC .* nor a folder per class"),
        ("a.jpg", "neither a folder, a table nor a YAML file"),
        ("none", "no such folder"),
    ):
        with pytest.raises(DensescoreError, match=message):
            load_set(tmp_path / name, "train")
