"""Tools' exports in their own layouts are read with each box on the pixels that it was drawn on."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image

from densescore import DensescoreError, read_image
from densescore.data.boxed_set import upright
from densescore.data.labeled_set import read_size
from densescore.data.load import load_boxed, load_set
from densescore.io.find import is_file
from tests.data import exports
from tests.data.exports import COLORS, check_pixels, coco_record, cvat_coco, draw, pictures, roboflow_coco, xml, yolo
from tests.data.voc_set import annotation

EXPORTS = {"roboflow": roboflow_coco, "cvat": cvat_coco, "labelimg": exports.labelimg}


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
def test_sizes_and_turned_boxes_match_the_decoder(orientation: int, suffix: str, tmp_path: Path) -> None:
    drawn = draw(tmp_path / f"a{suffix}", "cat", orientation)
    picture = read_size(tmp_path / f"a{suffix}")
    assert (picture.height, picture.width) == read_image(picture.path).shape[:2] == drawn.upright[::-1]
    assert picture.stored == drawn.stored
    assert picture.orientation == orientation
    np.testing.assert_allclose(upright(drawn.stored_box, picture), drawn.upright_box, atol=0)


def test_phones_pictures_in_class_folders(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    (tmp_path / "cat").mkdir()
    heif.from_pillow(Image.new("RGB", (80, 60), "red")).save(tmp_path / "cat/a.HEIC", exif=exif.tobytes())
    (image,) = load_set(tmp_path, "train").images
    assert (image.height, image.width) == read_image(image.path).shape[:2] == (80, 60)


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
    """One cat in a turned picture, with a box in stored or in upright pixels."""
    drawn = draw(root / ("JPEGImages" if reader == "voc" else "images/train") / "a.jpg", "cat", orientation, width=side)
    files = {
        "coco": {
            "annotations/instances_train.json": json.dumps(
                coco_record({"a.jpg": drawn}, [{"id": 1, "name": "cat"}], upright=of_upright)
            )
        },
        "labelimg": {"images/train/a.xml": xml(drawn, upright=of_upright)},
        "voc": {"Annotations/a.xml": xml(drawn, upright=of_upright), "ImageSets/Main/train.txt": "a\n"},
        "yolo": {"labels/train/a.txt": "0 0.5 0.5 0.25 0.25\n", "data.yaml": "names: [cat]\n"},
    }[reader]
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("of_upright", [False, True])
@pytest.mark.parametrize("side", [80, 60])  # the turned square is ambiguous
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("reader", ["coco", "labelimg", "voc", "yolo"])
def test_turned_boxes_of_pictures(reader: str, orientation: int, side: int, of_upright: bool, tmp_path: Path) -> None:
    root = write_one(tmp_path, reader, orientation, of_upright, side)
    labels = load_set(root, "train", labels="image")
    assert labels.truth().tolist() == [[1]]
    if orientation == 1 and reader == "yolo":
        expected = [0.375 * side, 22.5, 0.625 * side, 37.5]
        assert load_boxed(root, "train").images[0].boxes.tolist() == [expected]
    elif orientation == 1 or (orientation >= 5 and reader != "yolo" and side != 60):
        check_pixels(load_boxed(root, "train"))
    else:
        with pytest.raises(DensescoreError, match=rf"a\.\w+.*turned by its EXIF orientation {orientation}"):
            load_boxed(root, "train")


@pytest.mark.parametrize("reader", ["coco", "labelimg", "voc"])
@pytest.mark.parametrize(("width", "height"), [(60, 80), (80, 61), (40, 30), (160, 120)])
def test_a_wrong_size_is_refused(reader: str, width: int, height: int, tmp_path: Path) -> None:
    root = write_one(tmp_path, reader, 1, False)
    for path in root.rglob("*.json"):
        path.write_text(path.read_text().replace('"width": 80, "height": 60', f'"width": {width}, "height": {height}'))
    for path in root.rglob("*.xml"):
        path.write_text(annotation(width, height, [("cat", 5, 5, 20, 20, 0)]))
    with pytest.raises(DensescoreError, match=rf"size: {width}×{height}, but the picture .* has 80×60 pixels"):
        load_boxed(root, "train")


def test_a_roboflow_root_is_a_class_if_annotations_use_it(tmp_path: Path) -> None:
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


def test_the_file_with_the_splits_name_goes_first(tmp_path: Path) -> None:
    root = cvat_coco(tmp_path)
    folder = root / "annotations"
    record = json.loads((folder / "instances_default.json").read_text())
    (root / "images/default").rename(root / "images/train")
    (folder / "instances_default.json").rename(folder / "instances_train.json")
    for name in ("instances_train-small", "instances_Train2017", "instances_trainval", "instances_train2014"):
        (folder / f"{name}.json").write_text(json.dumps({**record, "images": record["images"][:1]}))
    assert len(load_boxed(root, "train").images) == 4
    (folder / "instances_train.json").unlink()
    listed = "there are Train2017, train-small, train2014, trainval"
    with pytest.raises(DensescoreError, match=f"no image set 'train'; {listed}"):
        load_boxed(root, "train")


def test_labelimg_pictures_without_xml_are_left_out_and_counted(tmp_path: Path) -> None:
    root = exports.labelimg(tmp_path)
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


ENCODINGS = {"utf-8": "été", "utf-8-sig": "été", "utf-16": "été", "utf-16-le": "été", "latin-1": "été",
             "gb2312": "狗", "shift_jis": "ネコ", "cp1251": "кот"}  # fmt: skip


@pytest.mark.parametrize(("encoding", "label"), ENCODINGS.items())
@pytest.mark.parametrize("declared", [True, False])
def test_encodings_of_xml(encoding: str, label: str, declared: bool, tmp_path: Path) -> None:
    drawn = draw(tmp_path / "a.jpg", "cat")
    head = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>\n' if declared else ""
    (tmp_path / "a.xml").write_bytes((head + xml(drawn).replace("cat", label)).encode(encoding))
    known = encoding in ("utf-8", "utf-8-sig", "utf-16") or (declared and encoding != "utf-16-le")
    if known:
        assert load_boxed(tmp_path, "train").classes == (label,)
    else:
        with pytest.raises(DensescoreError, match=r"a\.xml: not"):
            load_boxed(tmp_path, "train")


def test_a_set_list_is_no_class_file_whatever_its_name(tmp_path: Path) -> None:
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


def test_names_of_a_yaml_are_texts_by_their_index(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    for text, classes in (
        ("names: {0: cat, 1: dog}", ("cat", "dog")),
        ("names: ['no', dog]", ("no", "dog")),
        ("nc: 2\nnames:\n- cat\n- dog", ("cat", "dog")),
        ("names: [no, 1, 1.0, ~]", ("no", "1", "1.0", "~")),
    ):
        (root / "data.yaml").write_text(text)
        boxed = load_boxed(root, "train")
        assert boxed.classes == classes
        assert [image.classes.tolist() for image in boxed.images] == [[0], [1]]
    # Label files use the keys of the YAML
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
def test_pictures_at_the_paths_of_a_yaml(folder: str, text: str, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("name", ["", "/dev/zero", "x" * 300, "a\0b", "\ud800"])
def test_nothing_but_regular_files_is_read(name: str, tmp_path: Path) -> None:
    assert not is_file(tmp_path / name)


# --- Turned boxes ---


def _turned_corners(angle: float) -> NDArray[np.float64]:
    """A box of 30×12 about (40, 30), turned by degrees: corners ``[4, 2]``."""
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return np.array([(-15, -6), (15, -6), (15, 6), (-15, 6)]) @ [[cos, sin], [-sin, cos]] + [40, 30]


def _cvat_coco(root: Path, angle: float) -> None:
    box = (25, 24, 55, 36)
    drawn = exports.Drawn("cat", stored=(80, 60), upright=(80, 60), stored_box=box, upright_box=box)
    record = coco_record({"a.png": drawn}, [{"id": 1, "name": "cat"}])
    record["annotations"][0]["attributes"] = {"occluded": False, "rotation": angle}
    (root / "train/_annotations.coco.json").write_text(json.dumps(record))


def _cvat_voc(root: Path, angle: float) -> None:
    text = f"<attributes><attribute><name>rotation</name><value>{angle}</value></attribute></attributes></object>"
    xml = annotation(80, 60, [("cat", 26, 25, 55, 36, 0)]).replace("</object>", text)
    (root / "train/a.xml").write_text(xml)


def _rolabelimg(root: Path, angle: float) -> None:
    fields = {"cx": 40, "cy": 30, "w": 30, "h": 12, "angle": np.radians(angle)}
    box = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
    text = f"<object><type>robndbox</type><name>cat</name><robndbox>{box}</robndbox></object></annotation>"
    (root / "train/a.xml").write_text(annotation(80, 60, []).replace("</annotation>", text))


def _yolo_obb(root: Path, angle: float) -> None:
    (root / "train").rename(root / "images")
    (root / "labels").mkdir()
    (root / "data.yaml").write_text("train: images\nnames: [cat]\n")
    numbers = " ".join(map(str, (_turned_corners(angle) / [80, 60]).ravel()))
    (root / "labels/a.txt").write_text(f"0 {numbers}\n")


TURNED = {"CVAT's COCO": _cvat_coco, "CVAT's VOC": _cvat_voc, "roLabelImg": _rolabelimg, "YOLO OBB": _yolo_obb}


@pytest.mark.parametrize("angle", [0, 30, 90, 135.5, 180, 301, -45])
@pytest.mark.parametrize("tool", TURNED)
def test_a_turned_box_becomes_the_upright_box_around_it(tool: str, angle: float, tmp_path: Path) -> None:
    draw(tmp_path / "train/a.png", "cat")
    TURNED[tool](tmp_path, angle)
    image = load_boxed(tmp_path, "train").images[0]
    corners = _turned_corners(angle)
    np.testing.assert_allclose(image.boxes, [[*corners.min(0), *corners.max(0)]], atol=1e-3)


@pytest.mark.parametrize("tool", [tool for tool in TURNED if tool != "YOLO OBB"])
def test_a_turned_box_that_reaches_past_the_picture_is_clipped(tool: str, tmp_path: Path) -> None:
    draw(tmp_path / "train/a.png", "cat")
    TURNED[tool](tmp_path, 90)
    for path in [*tmp_path.glob("train/*.json"), *tmp_path.glob("train/*.xml")]:  # from (40, 30) to (76, 30)
        text = path.read_text().replace("[25, 24,", "[61, 24,").replace("<cx>40", "<cx>76")
        path.write_text(text.replace(">26<", ">62<").replace(">55<", ">91<"))
    np.testing.assert_allclose(load_boxed(tmp_path, "train").images[0].boxes, [[70, 15, 80, 45]], atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attributes": {"rotation": "left"}}, "attributes.rotation: expected a number of degrees, got 'left'"),
        ({"attributes": {"rotation": None}}, "attributes.rotation: expected a number of degrees, got 'None'"),
        ({"rotation": 0.5}, "rotation: turned boxes are read of CVAT's attributes.rotation only, got 0.5"),
        ({"angle": 90}, "angle: turned boxes are read of CVAT's attributes.rotation only, got 90"),
        ({"bbox": [40, 30, 30, 12, 45]}, "bbox: expected x, y, width, height"),
    ],
)
def test_other_turned_boxes_are_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    draw(tmp_path / "train/a.png", "cat")
    _cvat_coco(tmp_path, 30)
    file = tmp_path / "train/_annotations.coco.json"
    record = json.loads(file.read_text())
    record["annotations"][0].update(change)
    file.write_text(json.dumps(record))
    with pytest.raises(DensescoreError, match=re.escape(message)):
        load_boxed(tmp_path, "train")


# --- Key points ---


@pytest.mark.parametrize("shape", [(5, 2), (17, 3), (4, 3), (1, 2)])
def test_the_boxes_of_pose_labels(shape: tuple[int, int], tmp_path: Path) -> None:
    root = yolo(tmp_path)
    with (root / "data.yaml").open("a") as file:
        file.write(f"kpt_shape: {list(shape)}\n")
    points = " ".join(["0.1", "0.9", "2.0000"][: shape[1]] * shape[0])  # 2: visible
    for path in (root / "labels/train").iterdir():
        path.write_text(f"0 0.5 0.5 0.25 0.5 {points}\n")
    boxed = load_boxed(root, "train")
    assert all(image.boxes.tolist() == [[30, 15, 50, 45]] for image in boxed.images)
    (root / "labels/train/0.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    with pytest.raises(DensescoreError, match=f"x y width height, and {shape[0] * shape[1]} numbers of key points"):
        load_boxed(root, "train")
