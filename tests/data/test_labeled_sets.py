"""Sets that have labels and no boxes: folders, tables, VOC's image sets alone; and the splits drawn of them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densescore import DensescoreError
from densescore.data.boxed_set import BoxedImage, BoxedSet, Labels, boxed_part
from densescore.data.labeled_set import NEGATIVE, POSITIVE, UNKNOWN, LabeledSet
from densescore.data.load import load_boxed, load_set
from densescore.data.splits import draw_val, match_split
from tests.data.exports import cvat_coco, draw, labelimg, pictures, roboflow_coco, yolo
from tests.data.voc_set import write_voc


def folders(root: Path, counts: dict[str, int]) -> Path:
    """A folder per class of so many pictures, one of them turned."""
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
    assert [image.name for image in labeled.images] == [
        "bird/0",
        "bird/1",
        "bird/2",
        "cat/dog/0",
        "cat/dog/1",
        "train/0",
    ]
    assert (labeled.images[0].height, labeled.images[0].width) == (60, 80)
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
    with pytest.raises(DensescoreError, match="has a set 'validation' of its own"):
        load_set(tmp_path, "train", val_share=0.5)


def test_all_faults_of_folders_are_said_at_once(tmp_path: Path) -> None:
    root = folders(tmp_path, {"cat": 2, "dog": 1})
    (root / "empty").mkdir()
    (root / "stray.jpg").write_bytes(b"")
    (root / "cat" / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(DensescoreError) as caught:
        load_set(root, "train")
    for message in ("empty: no pictures", "stray.jpg: lies in no class's folder", "broken.jpg: cannot be read as a"):
        assert message in str(caught.value)


TABLES = {
    "csv": ("labels.csv", "image,labels\na.jpg,cat;dog\nb.jpg,\nc.jpg,?cat\nd.jpg, dog ; ?\n"),
    "rows": ("my.csv", "id,label,image\n1,cat,a.jpg\n2,dog,a.jpg\n3,,b.jpg\n4,?cat,c.jpg\n5,dog,d.jpg\n6,?,d.jpg\n"),
    "tsv": ("labels.tsv", "filename\tlabels\na.jpg\tcat;dog\nb.jpg\t\nc.jpg\t?cat\nd.jpg\tdog;?\n"),
    "jsonl": (
        "labels.jsonl",
        '{"image": "a.jpg", "labels": ["cat", "dog"]}\n\n{"image": "b.jpg", "labels": []}\n'
        '{"image": "c.jpg", "labels": "?cat"}\n{"image": "d.jpg", "labels": ["dog", "?"]}\n',
    ),
    "otherwise written": (
        "labels.csv",
        "image,labels\na.jpg,cat\n./a.jpg,dog\nb.jpg,\n./c.jpg,?cat\nd.jpg,dog\n.//d.jpg,?\n",
    ),
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


BAD_ROWS = {
    "no such picture": ("z.jpg,cat", "labels.csv:3: .*z.jpg: no such picture"),
    "absolute": ("/etc/passwd,cat", "labels.csv:3: image: expected a path within"),
    "above": ("../a.jpg,cat", "labels.csv:3: image: expected a path within"),
    "empty": (",cat", "labels.csv:3: image: expected a path within"),
    "fields": ("b.jpg,cat,dog", "labels.csv:3: 3 fields, but the header has 2"),
    "one field": ("b.jpg", "labels.csv:3: 1 fields, but the header has 2"),
    "both": ("b.jpg,cat;?cat", "labels.csv:3: labels: cat is both shown and unknown in b.jpg"),
    "quote": ('"b.jpg,cat', "labels.csv:3: not valid CSV"),
    "long": ("b.jpg," + "x" * 200_000, "labels.csv:3: not valid CSV: field larger"),
}


@pytest.mark.parametrize(("row", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_rows_of_a_csv(row: str, message: str, tmp_path: Path) -> None:
    pictures(tmp_path, ["a.jpg", "b.jpg"])
    (tmp_path / "labels.csv").write_text(f"image,labels\na.jpg,cat\n{row}\n")
    with pytest.raises(DensescoreError, match=message):
        load_set(tmp_path, "train")


BAD_LINES = {
    "json": ("{", "not valid JSON"),
    "deep": ("[" * 100_000, "not valid JSON"),
    "list": ("[]", "expected an object with image and labels"),
    "no image": ('{"labels": []}', "image: expected a path, got None"),
    "image a number": ('{"image": 3, "labels": []}', "image: expected a path, got 3"),
    "no labels": ('{"image": "a.jpg"}', "labels: expected a text or a list of texts"),
    "labels null": ('{"image": "a.jpg", "labels": null}', "labels: expected a text or a list of texts"),
    "label a number": ('{"image": "a.jpg", "labels": [1]}', "labels: expected a text or a list of texts"),
    "split": ('{"image": "a.jpg", "labels": [], "split": 1}', "split: expected a text, got 1"),
    "surrogate": ('{"image": "\\ud800.jpg", "labels": []}', "image: expected a path within"),
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_lines_of_json(line: str, message: str, tmp_path: Path) -> None:
    pictures(tmp_path, ["a.jpg"])
    (tmp_path / "labels.jsonl").write_text('{"image": "a.jpg", "labels": "cat"}\n' + line + "\n")
    with pytest.raises(DensescoreError, match=r"labels\.jsonl:2: " + message):
        load_set(tmp_path, "train")


@pytest.mark.parametrize("header", ["", "image;labels", "picture,tag", "image", "image,split"])
def test_a_header_without_the_columns(header: str, tmp_path: Path) -> None:
    pictures(tmp_path, ["a.jpg"])
    (tmp_path / "labels.csv").write_text(f"{header}\na.jpg,cat\n")
    with pytest.raises(DensescoreError, match=r"labels\.csv:1: expected columns image and labels"):
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


def test_two_names_of_one_picture_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "images", ["a.jpg"])
    (tmp_path / "labels.csv").write_text("image,labels\na.jpg,cat\nimages/a.jpg,dog\n")
    with pytest.raises(DensescoreError, match=r"labels\.csv:3: image: .*a\.jpg is also the picture of another name"):
        load_set(tmp_path, "train")


def test_a_table_of_something_else_is_no_table_of_labels(tmp_path: Path) -> None:
    root = folders(tmp_path, {"cat": 1, "dog": 1})
    (root / "metadata.csv").write_text("filename,caption\ncat/0.JPG,a cat\n")
    assert load_set(root, "train").classes == ("cat", "dog")


READERS: dict[str, tuple[Callable[[Path], Path], list[list[int]]]] = {
    "roboflow": (roboflow_coco, [[1, -1], [-1, 1], [1, -1], [-1, 1]]),
    "cvat": (cvat_coco, [[1, -1], [-1, 1], [1, -1], [-1, 1]]),
    "labelimg": (labelimg, [[1, -1], [-1, 1], [1, -1], [-1, 1]]),
    "yolo": (yolo, [[1, -1], [-1, 1]]),
    "voc": (lambda root: write_voc(root, {"train": 3}), [[1, -1, -1], [-1, 1, -1], [1, -1, 1]]),
}


@pytest.mark.parametrize(("make", "truth"), READERS.values(), ids=READERS)
def test_labels_alone_of_a_set_with_boxes(make: Callable[[Path], Path], truth: list[list[int]], tmp_path: Path) -> None:
    root = make(tmp_path)
    labeled = load_set(root, "train", labels="image")
    assert not any(isinstance(image, BoxedImage) for image in labeled.images)
    both, auto = load_set(root, "train", labels="both"), load_set(root, "train")
    assert isinstance(both, BoxedSet)
    assert isinstance(auto, BoxedSet)
    for loaded in (labeled, both, auto):
        np.testing.assert_array_equal(loaded.truth(), load_boxed(root, "train").truth())
        assert [image.name for image in loaded.images] == [image.name for image in labeled.images]
    assert labeled.truth().tolist() == truth


def test_bad_boxes_do_not_hinder_labels(tmp_path: Path) -> None:
    root = cvat_coco(tmp_path)
    path = root / "annotations" / "instances_default.json"
    record = json.loads(path.read_text())
    record["annotations"][0]["bbox"] = None
    record["annotations"][1].pop("bbox")
    record["images"][2]["width"] = None
    path.write_text(json.dumps(record))
    assert load_set(root, "train", labels="image").truth().tolist() == [[1, -1], [-1, 1], [1, -1], [-1, 1]]


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


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan"), float("inf")])
def test_shares_are_between_0_and_1(share: float, tmp_path: Path) -> None:
    with pytest.raises(DensescoreError, match="val_share: expected a share between 0 and 1"):
        load_set(folders(tmp_path, {"cat": 2, "dog": 2}), "train", val_share=share)


@pytest.mark.parametrize("labels", ["boxes", "", "Image"])
def test_labels_are_one_of_four(labels: Labels, tmp_path: Path) -> None:
    with pytest.raises(DensescoreError, match="labels: expected auto, image, box, both, got"):
        load_set(folders(tmp_path, {"cat": 2}), "train", labels=labels)


def test_a_drawn_split_is_whole_stratified_and_the_same_again(tmp_path: Path) -> None:
    root = folders(tmp_path, {"cat": 20, "dog": 10, "bird": 5})
    train, val = (load_set(root, split, val_share=0.2, seed=3) for split in ("train", "val"))
    names = [image.name for image in val.images]
    assert sorted([*names, *(image.name for image in train.images)]) == sorted(
        image.name for image in load_set(root, "train").images
    )
    assert ((val.truth() == POSITIVE).sum(0) == [1, 4, 2]).all()
    assert names == [image.name for image in load_set(root, "val", val_share=0.2, seed=3).images]
    assert names != [image.name for image in load_set(root, "val", val_share=0.2, seed=4).images]
    with pytest.raises(DensescoreError, match="val_share draws the sets train and val, not 'test'"):
        load_set(root, "test", val_share=0.2)
    with pytest.raises(DensescoreError, match=re.escape("val_share: 0.01 of 35 images leaves none for val")):
        load_set(root, "val", val_share=0.01)


@given(
    truth=st.integers(1, 5).flatmap(
        lambda count: st.lists(st.lists(st.sampled_from([1, 0, -1]), min_size=count, max_size=count), max_size=60)
    ),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 9),
)
def test_each_class_gives_its_share(truth: list[list[int]], share: float, seed: int) -> None:
    rows = np.array(truth, np.int8).reshape(len(truth), -1 if truth else 1)
    drawn = draw_val(rows, share, seed)
    assert drawn.shape == (len(rows),)
    assert abs(int(drawn.sum()) - share * len(rows)) <= 0.5 + 1e-9
    np.testing.assert_array_equal(drawn, draw_val(rows, share, seed))
    single = (rows == POSITIVE).sum(1) <= 1
    if single.all():  # without images of several classes, no class is more than an image off
        for column in range(rows.shape[1] if len(rows) else 0):
            shown = rows[:, column] == POSITIVE
            assert abs(int(drawn[shown].sum()) - share * shown.sum()) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("split", "names", "found"),
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
def test_which_split_is_meant(split: str, names: list[str], found: str | None) -> None:
    assert match_split(split, names) == found


def test_the_yaml_itself_names_a_set(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    (root / "data.yaml").rename(root / "pets.yaml")
    assert load_boxed(root / "pets.yaml", "train").classes == ("cat", "dog")


def test_no_known_layout(tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg", "cat")
    with pytest.raises(DensescoreError, match="neither VOC .* nor a folder per class"):
        load_set(tmp_path, "train")
    with pytest.raises(DensescoreError, match="neither a folder, a table nor a YAML file"):
        load_set(tmp_path / "a.jpg", "train")
    with pytest.raises(DensescoreError, match="no such folder"):
        load_set(tmp_path / "none", "train")
    assert NEGATIVE < UNKNOWN < POSITIVE
