"""Exports of tools, in the tools' own layouts: read, with each box on the pixels that the annotator drew it on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from densescore import DensescoreError, read_image
from densescore.data.files import is_file
from densescore.data.load import load_boxed, load_set
from densescore.data.pictures import Picture, read_size, upright
from tests.data.exports import (
    COLORS,
    check_pixels,
    coco_record,
    cvat_coco,
    draw,
    labelimg,
    pictures,
    roboflow_coco,
    xml,
    yolo,
)
from tests.data.voc_set import annotation

EXPORTS: dict[str, Callable[[Path], Path]] = {"roboflow": roboflow_coco, "cvat": cvat_coco, "labelimg": labelimg}


@pytest.mark.parametrize("tool", EXPORTS)
def test_an_export_is_read_with_each_box_on_its_pixels(tool: str, tmp_path: Path) -> None:
    root = EXPORTS[tool](tmp_path)
    share = None if tool == "roboflow" else 0.5
    train, val = (load_boxed(root, split, val_share=share, need_positives=True) for split in ("train", "val"))
    for boxed in (train, val):
        assert boxed.classes == tuple(COLORS)
        check_pixels(boxed)
    if share:
        assert not {image.name for image in train.images} & {image.name for image in val.images}
        assert len(train.images) == len(val.images) == 2
        check_pixels(load_boxed(root, "train"))  # without a share, all of it


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_sizes_and_turns_are_those_of_the_decoder(orientation: int, suffix: str, tmp_path: Path) -> None:
    drawn = draw(tmp_path / f"a{suffix}", "cat", orientation)
    picture = read_size(tmp_path / f"a{suffix}")
    assert (picture.height, picture.width) == read_image(picture.path).shape[:2] == drawn.upright[::-1]
    assert picture.stored == drawn.stored
    assert picture.orientation == orientation
    np.testing.assert_allclose(upright(drawn.stored_box, picture), drawn.upright_box, atol=0)


def test_the_exif_of_a_png_may_follow_its_pixels(tmp_path: Path) -> None:
    drawn = draw(tmp_path / "a.png", "cat", 6)
    content = (tmp_path / "a.png").read_bytes()
    at = content.index(b"eXIf") - 4
    chunk = content[at : at + 12 + int.from_bytes(content[at : at + 4], "big")]
    end = content.index(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(content[:at] + content[at + len(chunk) : end] + chunk + content[end:])
    assert read_size(tmp_path / "a.png").orientation == 6
    assert read_image(tmp_path / "a.png").shape[:2] == drawn.upright[::-1]


def write_one(root: Path, reader: str, orientation: int, of_upright: bool, side: int = 80) -> Path:
    """One cat in a picture that is turned, boxed in its stored or in its upright pixels."""
    drawn = draw(root / "images/train/a.jpg", "cat", orientation, width=side)
    if reader == "coco":
        record = coco_record({"a.jpg": drawn}, [{"id": 1, "name": "cat"}], upright=of_upright)
        (root / "annotations").mkdir()
        (root / "annotations/instances_train.json").write_text(json.dumps(record))
    elif reader == "labelimg":
        (root / "images/train/a.xml").write_text(xml(drawn, upright=of_upright))
    elif reader == "voc":
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (root / name).mkdir(parents=True)
        (root / "images/train/a.jpg").rename(root / "JPEGImages/a.jpg")
        (root / "Annotations/a.xml").write_text(xml(drawn, upright=of_upright))
        (root / "ImageSets/Main/train.txt").write_text("a\n")
    else:
        (root / "labels/train").mkdir(parents=True)
        (root / "labels/train/a.txt").write_text("0 0.5 0.5 0.25 0.25\n")
        (root / "data.yaml").write_text("names: [cat]\n")
    return root


@pytest.mark.parametrize("of_upright", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("reader", ["coco", "labelimg", "voc", "yolo"])
def test_boxes_of_a_turned_picture_are_turned_or_refused(
    reader: str, orientation: int, of_upright: bool, tmp_path: Path
) -> None:
    root = write_one(tmp_path, reader, orientation, of_upright)
    labels = load_set(root, "train", labels="image")
    assert labels.truth().tolist() == [[1]]
    if orientation == 1 and reader == "yolo":
        assert load_boxed(root, "train").images[0].boxes.tolist() == [[30, 22.5, 50, 37.5]]
    elif orientation == 1 or (orientation >= 5 and reader != "yolo"):
        check_pixels(load_boxed(root, "train"))
    else:
        with pytest.raises(DensescoreError, match=rf"a\.\w+.*turned by its EXIF orientation {orientation}"):
            load_boxed(root, "train")


@pytest.mark.parametrize("reader", ["coco", "labelimg", "voc"])
def test_a_turned_square_does_not_tell_what_its_boxes_are_of(reader: str, tmp_path: Path) -> None:
    with pytest.raises(DensescoreError, match="turned by its EXIF orientation 6"):
        load_boxed(write_one(tmp_path, reader, 6, False, side=60), "train")


@pytest.mark.parametrize("reader", ["coco", "labelimg", "voc"])
@pytest.mark.parametrize(("width", "height"), [(60, 80), (80, 61), (40, 30), (160, 120)])
def test_a_size_that_is_not_the_pictures_is_refused(reader: str, width: int, height: int, tmp_path: Path) -> None:
    root = write_one(tmp_path, reader, 1, False)
    for path in root.rglob("*.json"):
        path.write_text(path.read_text().replace('"width": 80, "height": 60', f'"width": {width}, "height": {height}'))
    for path in root.rglob("*.xml"):
        path.write_text(annotation(width, height, [("cat", 5, 5, 20, 20, 0)]))
    with pytest.raises(DensescoreError, match=rf"size: {width}×{height}, but the picture .* has 80×60 pixels"):
        load_boxed(root, "train")


def test_a_roboflow_root_is_a_class_where_something_is_annotated_as_it(tmp_path: Path) -> None:
    root = roboflow_coco(tmp_path)
    path = root / "train" / "_annotations.coco.json"
    record = json.loads(path.read_text())
    record["annotations"][0]["category_id"] = 0
    path.write_text(json.dumps(record))
    assert load_boxed(root, "train").classes == ("animals", "cat", "dog")
    record["annotations"][0]["category_id"] = 1
    record["categories"][0]["name"] = "cat"  # a root with a class's name, as projects of one class have it
    for item in record["categories"][1:]:
        item["supercategory"] = "cat"
    path.write_text(json.dumps(record))
    assert load_boxed(root, "train").classes == ("cat", "dog")


def test_the_file_that_is_named_as_the_split_goes_first(tmp_path: Path) -> None:
    root = cvat_coco(tmp_path)
    folder = root / "annotations"
    record = json.loads((folder / "instances_default.json").read_text())
    (root / "images/default").rename(root / "images/train")
    (folder / "instances_default.json").rename(folder / "instances_train.json")
    for name in ("instances_train-small", "instances_Train2017", "instances_trainval", "instances_train2014"):
        (folder / f"{name}.json").write_text(json.dumps({**record, "images": record["images"][:1]}))
    assert len(load_boxed(root, "train").images) == 4
    (folder / "instances_train.json").unlink()
    with pytest.raises(
        DensescoreError, match="no image set 'train'; there are Train2017, train-small, train2014, trainval"
    ):
        load_boxed(root, "train")


def test_labelimg_pictures_without_xml_are_left_out_and_counted(tmp_path: Path) -> None:
    root = labelimg(tmp_path)
    draw(root / "later.jpg", "cat")
    with pytest.warns(UserWarning, match=r"1 picture without an XML file left out, such as .*later\.jpg"):
        assert len(load_boxed(root, "train").images) == 4


@pytest.mark.parametrize("layout", ["{split}/{name}", "{split}/images/{name}", "images/{split}/{name}"])
def test_xml_may_lie_in_folders_of_its_own_and_of_splits(layout: str, tmp_path: Path) -> None:
    for split in ("train", "valid"):
        folder = (tmp_path / layout.format(split=split, name="x")).parent
        for name, drawn in pictures(folder, [f"{n}.jpg" for n in range(4)]).items():
            target = Path(str(folder).replace("images", "annotations")) / f"{Path(name).stem}.xml"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(xml(drawn))
    for split, part in (("train", "train"), ("val", "valid")):
        boxed = load_boxed(tmp_path, split)
        assert len(boxed.images) == 4
        assert all(part in image.path.parts for image in boxed.images)
        check_pixels(boxed)


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "gb2312", "latin-1", "cp1251", "shift_jis"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("declared", [True, False])
def test_xml_in_any_encoding_that_its_declaration_or_mark_gives(encoding: str, declared: bool, tmp_path: Path) -> None:
    label = {"gb2312": "狗", "shift_jis": "ネコ", "cp1251": "кот"}.get(encoding, "été")
    drawn = draw(tmp_path / "a.jpg", "cat")
    head = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>\n' if declared else ""
    content = (head + xml(drawn).replace("cat", label)).encode(encoding)
    (tmp_path / "a.xml").write_bytes(content)
    known = encoding in ("utf-8", "utf-8-sig", "utf-16") or (declared and encoding != "utf-16-le")
    if known:
        assert load_boxed(tmp_path, "train").classes == (label,)
    else:
        with pytest.raises(DensescoreError, match=r"a\.xml: not"):
            load_boxed(tmp_path, "train")


def test_a_set_list_is_no_class_whatever_its_name(tmp_path: Path) -> None:
    root = write_one(tmp_path, "voc", 1, False)
    sets = root / "ImageSets/Main"
    for name in ("val", "train_val"):
        (sets / f"{name}.txt").write_text("a\n")
    for name in ("cat_train", "cat_val", "cat_train_val"):
        (sets / f"{name}.txt").write_text("a  1\n")
    for split in ("train", "val", "train_val"):
        assert load_boxed(root, split).classes == ("cat",)


@pytest.mark.parametrize("name", ["a b.png", "cat -1.JPG", "x.y.jpeg", "é 1.webp", "sub/a.jpg"])
def test_voc_names_with_spaces_and_pictures_of_any_format(name: str, tmp_path: Path) -> None:
    root = write_one(tmp_path, "voc", 1, False)
    stem = str(Path(name).with_suffix(""))
    drawn = draw(root / "JPEGImages" / name, "dog")
    target = root / "Annotations" / f"{stem}.xml"
    target.parent.mkdir(exist_ok=True)
    target.write_text(xml(drawn))
    (root / "ImageSets/Main/train.txt").write_text(f"{stem}\na\n")
    (root / "ImageSets/Main/dog_train.txt").write_text(f"{stem} 1\na -1\n")
    (root / "ImageSets/Main/cat_train.txt").write_text(f"{stem}\t-1\na\t1\n")
    boxed = load_boxed(root, "train")
    assert [image.name for image in boxed.images] == [stem, "a"]
    assert boxed.truth().tolist() == [[-1, 1], [1, -1]]


YAMLS = {
    "by index": "names: {0: cat, 1: dog}",
    "no, and numbers": "names: ['no', dog]",
    "count": "nc: 2\nnames:\n- cat\n- dog",
}


@pytest.mark.parametrize("text", YAMLS.values(), ids=YAMLS)
def test_names_of_a_yaml_are_texts_by_their_index(text: str, tmp_path: Path) -> None:
    root = yolo(tmp_path)
    (root / "data.yaml").write_text(text)
    boxed = load_boxed(root, "train")
    assert boxed.classes == ("no" if "no" in text.split("[")[-1] else "cat", "dog")
    assert [image.classes.tolist() for image in boxed.images] == [[0], [1]]
    (root / "data.yaml").write_text("names: [no, 1, 1.0, ~]")
    assert load_boxed(root, "train").classes == ("no", "1", "1.0", "~")


def test_labels_are_named_by_the_keys_of_the_yaml(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    for path in root.glob("labels/train/*.txt"):
        path.write_text(str(int(path.read_text()[0]) + 1) + path.read_text()[1:])
    (root / "data.yaml").write_text("names: {1: cat, 2: dog}")
    boxed = load_boxed(root, "train")
    assert boxed.classes == ("cat", "dog")
    check_pixels(boxed)
    (root / "data.yaml").write_text("names: {2: cat, 3: dog}")
    with pytest.raises(DensescoreError, match=r"0\.txt:1: unknown class 1"):
        load_boxed(root, "train")


PATHS = {
    "relative": ("", "train: pictures/images/a\nval: pictures/images/b"),
    "path": ("", "path: pictures\ntrain: images/a\nval: images/b"),
    "a path that is elsewhere": ("", "path: /nowhere\ntrain: pictures/images/a\nval: pictures/images/b"),
    "roboflow": ("", "train: ../pictures/images/a\nval: ../pictures/images/b"),
    "above": ("sub", "train: ../pictures/images/a\nval: ../pictures/images/b"),
    "list": ("", "train: [pictures/images/a]\nval: pictures/images/b"),
    "files": ("", "path: pictures\ntrain: a.txt\nvalidation: b.txt"),
}


@pytest.mark.parametrize(("folder", "text"), PATHS.values(), ids=PATHS)
def test_a_yaml_says_where_its_pictures_are(folder: str, text: str, tmp_path: Path) -> None:
    made = yolo(tmp_path / "made", split="a")
    shutil.copytree(made / "images/a", tmp_path / "set/pictures/images/a")
    shutil.copytree(made / "images/a", tmp_path / "set/pictures/images/b")
    shutil.copytree(made / "labels/a", tmp_path / "set/pictures/labels/a")
    for split in "ab":
        lines = [f"./images/{split}/{n}.jpg\n" for n in range(2)]
        (tmp_path / f"set/pictures/{split}.txt").write_text("".join(lines))
    root = tmp_path / "set" / folder
    root.mkdir(exist_ok=True)
    (root / "data.yaml").write_text(f"names: [cat, dog]\n{text}\n")
    train, val = load_boxed(root, "train"), load_boxed(root, "val")
    check_pixels(train)
    assert [len(image.boxes) for image in val.images] == [0, 0]
    assert all(image.path.parent.name == "b" for image in val.images)


@pytest.mark.parametrize("beside", [False, True])
def test_labelimg_yolo(beside: bool, tmp_path: Path) -> None:
    made = yolo(tmp_path / "made")
    root = tmp_path / "set"
    shutil.copytree(made / "images/train", root if beside else root / "images")
    labels = root if beside else root / "labels"
    labels.mkdir(exist_ok=True)
    for path in (made / "labels/train").iterdir():
        shutil.copy(path, labels)
    (labels / "classes.txt").write_text("cat\ndog\n")
    draw((root if beside else root / "images") / "new.jpg", "cat")
    with pytest.warns(UserWarning, match=r"1 pictures? without a label file left out"):
        boxed = load_boxed(root, "train")
    assert len(boxed.images) == 2
    check_pixels(boxed)


def test_polygons_are_boxed(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    (root / "labels/train/0.txt").write_text("0 0.25 0.5 0.5 0.25 0.75 0.5 0.5 0.75\n")
    assert load_boxed(root, "train").images[0].boxes.tolist() == [[20, 15, 60, 45]]


def test_two_pictures_of_one_stem_are_two_images(tmp_path: Path) -> None:
    made = pictures(tmp_path, ["x/a.jpg", "y/a.jpg", "y/a.png", "z.jpg"], (1,))
    record = coco_record(made, [{"id": n, "name": name} for n, name in enumerate(COLORS)])
    (tmp_path / "train.json").write_text(json.dumps(record))
    boxed = load_boxed(tmp_path, "train")
    check_pixels(boxed)
    assert [image.name for image in boxed.images] == ["x/a", "y/a.jpg", "y/a.png", "z"]
    for asked, path in (("x/a", "x/a.jpg"), ("y/a.jpg", "y/a.jpg"), ("a.png", "y/a.png"), ("z.jpg", "z.jpg")):
        assert boxed.find(asked).path == tmp_path / path
    assert boxed.find(str(tmp_path / "x/a.jpg")).name == "x/a"
    for asked in ("a", "a.jpg", "y/a"):
        with pytest.raises(DensescoreError, match=r"is one of several images: .*a\.jpg"):
            boxed.find(asked)
    with pytest.raises(DensescoreError, match="no image 'b'"):
        boxed.find("b")


def test_nothing_but_regular_files_is_read(tmp_path: Path) -> None:
    assert not is_file(tmp_path)
    assert not is_file(Path("/dev/zero"))
    assert not is_file(tmp_path / ("x" * 300))
    assert not is_file(Path("a\0b"))
    assert Picture(tmp_path, 3, 2, 6).stored == (3, 2)
