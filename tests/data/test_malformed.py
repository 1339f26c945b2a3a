"""Malformed sets: each raises one error that names the file and the field, whatever its content."""

import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from densescore import DensescoreError
from densescore.data.boxed_set import BoxedSet
from densescore.data.load import load_boxed, load_set
from tests.data.exports import check_boxes, check_pixels, cvat_coco, draw, labelimg, xml, yolo
from tests.data.voc_set import annotation, write_voc

NOT_NUMBERS: list[Any] = [None, "80", True, [], {}, float("nan"), float("inf"), 10**400, "x"]


def cvat_with(root: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """CVAT's export with its JSON changed."""
    path = cvat_coco(root) / "annotations" / "instances_default.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    return root


def refused(root: Path, *messages: str) -> None:
    """Loading the set raises one error with all messages."""
    with pytest.raises(DensescoreError) as caught:
        load_boxed(root, "train", need_positives=True)
    for message in messages:
        assert message in str(caught.value)


NUMBERS = [
    *((side, value) for side in ("width", "height") for value in [*NOT_NUMBERS, 0, -3, 79.5]),
    *((index, value) for index in range(4) for value in NOT_NUMBERS),  # of a bbox
]


@pytest.mark.parametrize(("field", "value"), NUMBERS, ids=lambda value: str(value)[:8])
def test_coco_numbers(field: Any, value: object, tmp_path: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        (record["annotations"][0]["bbox"] if isinstance(field, int) else record["images"][1])[field] = value

    message = "annotation 1: bbox: expected x, y, width, height, got"
    if isinstance(field, str):
        message = f"image 2: {field}: expected a whole number from 1 on, got"
    refused(cvat_with(tmp_path, change), f"instances_default.json: {message}")


FIELDS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "images missing": (lambda r: r.pop("images"), "images: missing"),
    "images no list": (lambda r: r.update(images={}), "images: expected a list"),
    "image null": (lambda r: r["images"].append(None), "images: number 4: expected an object, got 'None'"),
    "image id null": (lambda r: r["images"][1].update(id=None), "image number 1: id: expected a number or a text"),
    "image id list": (lambda r: r["images"][1].update(id=[2]), "image number 1: id: expected a number or a text"),
    "image id repeated": (lambda r: r["images"][1].update(id=1), "image 1: id: given more than once"),
    "image id a text": (lambda r: r["images"][1].update(id="2"), "annotation 2: image_id: no image has the id 2"),
    "file name null": (lambda r: r["images"][0].update(file_name=None), "image 1: file_name: expected a path inside"),
    "file name absolute": (lambda r: r["images"][0].update(file_name="/etc/passwd"), "image 1: file_name: expected"),
    "file name above": (lambda r: r["images"][0].update(file_name="a/../../x.jpg"), "image 1: file_name: expected"),
    "file name above, Windows": (lambda r: r["images"][0].update(file_name="..\\x"), "image 1: file_name: expected"),
    "file name NUL": (lambda r: r["images"][0].update(file_name="a\0.jpg"), "image 1: file_name: expected"),
    "file name surrogate": (lambda r: r["images"][0].update(file_name="\ud800.jpg"), "image 1: file_name: expected"),
    "file name long": (lambda r: r["images"][0].update(file_name="x" * 400), "no such picture"),
    "file name repeated": (lambda r: r["images"][0].update(file_name="frame 1.JPG"), "belongs to several images"),
    "no such picture": (lambda r: r["images"][0].update(file_name="z.jpg"), "z.jpg: no such picture"),
    "annotations missing": (lambda r: r.pop("annotations"), "annotations: missing"),
    "unknown image": (lambda r: r["annotations"][0].update(image_id=99), "annotation 1: image_id: no image has the id"),
    "image id of a list": (lambda r: r["annotations"][0].update(image_id=[1]), "annotation 1: image_id: no image has"),
    "image id true": (lambda r: r["annotations"][0].update(image_id=True), "annotation 1: image_id: no image has"),
    "unknown category": (lambda r: r["annotations"][0].update(category_id=9), "category_id: unknown class 9"),
    "category of a text": (lambda r: r["annotations"][0].update(category_id="1"), "category_id: unknown class '1'"),
    "crowd": (lambda r: r["annotations"][0].update(iscrowd="no"), "annotation 1: iscrowd: expected 0 or 1, got 'no'"),
    "no box": (lambda r: r["annotations"][0].pop("bbox"), "annotation 1: has no box"),
    "box of three": (lambda r: r["annotations"][0]["bbox"].pop(), "annotation 1: bbox: expected x, y, width, height"),
    "empty box": (lambda r: r["annotations"][0].update(bbox=[5, 5, 0, 5]), "is empty within the image of"),
    "negative box": (lambda r: r["annotations"][0].update(bbox=[5, 5, -2, 5]), "is empty within the image of"),
    "box outside": (lambda r: r["annotations"][0].update(bbox=[5, 5, 78, 5]), "lies outside the image of"),
    "category id repeated": (lambda r: r["categories"][1].update(id=1), "category 1: id: given more than once"),
    "category name null": (lambda r: r["categories"][1].update(name=None), "category 2: name: expected a text, got"),
    "category name empty": (lambda r: r["categories"][1].update(name=" "), "categories: a class has no name"),
    "category name repeated": (lambda r: r["categories"][1].update(name="cat"), "class 'cat' is given more than once"),
}


@pytest.mark.parametrize(("change", "message"), FIELDS.values(), ids=FIELDS)
def test_coco_fields(change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    refused(cvat_with(tmp_path, change), message)


def test_all_problems_of_a_coco_file_are_in_one_error(tmp_path: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        for name in ("no such picture", "unknown image", "category name null"):
            FIELDS[name][0](record)

    refused(cvat_with(tmp_path, change), "z.jpg", "annotation 1: image_id", "category 2: name")


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff\xfe{", b'{"images": [' * 9, b"[" * 200_000])
def test_files_that_are_not_coco(content: bytes, tmp_path: Path) -> None:
    path = cvat_coco(tmp_path) / "annotations" / "instances_default.json"
    path.write_bytes(content)
    with pytest.raises(DensescoreError, match=r"instances_default\.json: cannot be read as COCO annotations"):
        load_set(tmp_path, "train")


def of_size(field: str, value: str) -> tuple[str, str, str]:
    return rf"<{field}>\d+<", f"<{field}>{value}<", f"size/{field}: expected a whole number"


XML = [  # pattern, replacement, message
    *(of_size("width", value) for value in ("0", "-80", "nan", "inf", "1e999", "", "80px", "79.5")),
    *(of_size("height", value) for value in ("0", "-80", "nan", "inf", "1e999", "", "80px", "79.5")),
    ("<width>80</width>", "", "size/width: expected a whole number from 1 on, got None"),
    *(
        (rf"<{end}>\d+<", f"<{end}>{value}<", f"object 1: bndbox/{end}: expected a number")
        for end in ("xmin", "ymin", "xmax", "ymax")
        for value in ("nan", "inf", "x", "")
    ),
    ("<xmin>", "<x>", "not valid XML"),
    ("bndbox>", "polygon>", "object 1: has no box"),
    ("<name>cat</name>", "", "object 1: name: missing"),
    ("<difficult>0", "<difficult>maybe", "object 1: difficult: expected 0 or 1, got 'maybe'"),
    ("annotation>", "html>", "expected <annotation>, got <html>"),
]


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize(("old", "new", "message"), XML)
def test_xml_fields(old: str, new: str, message: str, beside: bool, tmp_path: Path) -> None:
    draw(tmp_path / "JPEGImages/b.jpg", "dog")
    drawn = draw(tmp_path / "JPEGImages/a.jpg", "cat")
    folder = tmp_path / ("JPEGImages" if beside else "Annotations")
    folder.mkdir(exist_ok=True)
    (folder / "a.xml").write_text(re.sub(old, new, xml(drawn)))
    (folder / "b.xml").write_text(annotation(80, 60, [("dog", 5, 5, 9, 9, 0)]))
    if not beside:
        (tmp_path / "ImageSets/Main").mkdir(parents=True)
        (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\n")
    refused(tmp_path, "a.xml: " + message if "object" not in message else message)


YOLO_LINES = {
    "few": ("0 0.5 0.5 0.5", "expected a class and x y width height, or a polygon"),
    "confidence": ("0 0.5 0.5 0.5 0.5 0.9", "expected a class and x y width height, or a polygon"),
    "nan": ("0 nan 0.5 0.5 0.5", "expected a class and x y width height"),
    "inf": ("0 0.5 0.5 inf 0.5", "expected a class and x y width height"),
    "text": ("0 a b c d", "expected a class and x y width height"),
    "pixels": ("0 30 40 10 10", "expected numbers in [0, 1], shares of the picture"),
    "outside": ("0 0.9 0.5 0.4 0.5", "box (56.0, 15.0, 88.0, 45.0) lies outside the image of 80×60"),
    "empty": ("0 0.5 0.5 0 0.5", "box (40.0, 15.0, 40.0, 45.0) is empty within the image of 80×60"),
    "unknown": ("2 0.5 0.5 0.5 0.5", "unknown class 2"),
    "negative": ("-1 0.5 0.5 0.5 0.5", "unknown class -1"),
    "superscript": ("² 0.5 0.5 0.5 0.5", "unknown class ²"),
    "huge": ("9" * 5000 + " 0.5 0.5 0.5 0.5", "unknown class 9"),
}


@pytest.mark.parametrize(("line", "message"), YOLO_LINES.values(), ids=YOLO_LINES)
def test_yolo_lines(line: str, message: str, tmp_path: Path) -> None:
    root = yolo(tmp_path)
    path = root / "labels/train/0.txt"
    path.write_text("\n" + path.read_text() + line + "\n")
    refused(root, "labels/train/0.txt:3: " + message)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)
YAMLS = {
    "repeated": ("names: [cat, dog, cat]", "names: class 'cat' is given more than once"),
    "repeated by spaces": ("names: ['cat', ' cat ', dog]", "class 'cat' is given more than once"),
    "repeated index": ("names: {0: cat, 0: dog}", "'0' is given more than once"),
    "repeated index, otherwise written": ("names: {0: cat, 00: dog}", "index 0 is given more than once"),
    "index a text": ("names: {cat: 0, dog: 1}", "names: expected a list of class names, or index: name"),
    "empty": ("names: ['', dog]", "names: a class has no name"),
    "none": ("names: []", "names: no classes"),
    "no names": ("nc: 2", "names: expected a list of class names, or index: name"),
    "nested": ("names: [[cat], dog]", "names: expected texts"),
    "count": ("names: [cat, dog]\nnc: 3", "nc: '3', but there are 2 names"),
    "key points": ("names: [cat, dog]\nkpt_shape: many", "kpt_shape: expected [points, 2 or 3], got 'many'"),
    "two names": ("names: [cat, dog]\nnames: [dog, cat]", "'names' is given more than once"),
    "alias bomb": (BOMB + "names: *j", "aliases are not read"),
    "deep": ("names: " + "[" * 100_000, "not valid YAML"),
    "no mapping": ("- cat\n- dog", "the YAML is no mapping"),
    "broken": ("names: [cat", "not valid YAML"),
    "large": ("# " + "x" * 2**21, "characters, more than"),
    "folder": ("names: [cat, dog]\ntrain: nowhere", "train: no such folder"),
    "folder a mapping": ("names: [cat, dog]\ntrain: {a: b}", "train: expected a folder or a list of pictures"),
}


@pytest.mark.parametrize(("text", "message"), YAMLS.values(), ids=YAMLS)
def test_yolo_descriptions(text: str, message: str, tmp_path: Path) -> None:
    root = yolo(tmp_path)
    (root / "data.yaml").write_text(text)
    refused(root, "data.yaml", message)


def test_yolo_labels_without_a_picture_are_refused_except_a_list_of_classes(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    (root / "labels/train/classes.txt").write_text("cat\ndog\n")
    check_pixels(load_boxed(root, "train"))
    (root / "labels/train/7.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    refused(root, "labels/train/7.txt: no picture of that name")


def voc(root: Path) -> Path:
    return write_voc(root, {"train": 3})


FILES = [
    (yolo, "labels/train/0.txt"), (labelimg, "my photo 0.xml"), (voc, "ImageSets/Main/train.txt"),
    (voc, "ImageSets/Main/red_train.txt"), (voc, "Annotations/train_000.xml"), (voc, "JPEGImages/train_000.jpg"),
]  # fmt: skip
KINDS = [(kind, *file) for kind in ("device", "folder", "dangling", "pipe", "bytes") for file in FILES]
KINDS.remove(("folder", labelimg, "my photo 0.xml"))  # a picture without XML


@pytest.mark.parametrize(("kind", "make", "name"), KINDS)
def test_other_things_in_place_of_a_file(kind: str, make: Callable[[Path], Path], name: str, tmp_path: Path) -> None:
    root = make(tmp_path)
    path = root / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "bytes":
        path.write_bytes(b"\xff\xfe\xfd\x00\x80")
    else:
        path.symlink_to("/dev/zero" if kind == "device" else root / "nowhere")
    with pytest.raises(DensescoreError) as caught:
        load_set(root, "train", labels="box")
    assert path.stem in str(caught.value)


@pytest.mark.parametrize(("past", "clipped"), [(0, False), (1, True), (2, True), (2.5, None), (30, None)])
@pytest.mark.parametrize("side", range(4))
def test_boxes_past_the_border_are_clipped(past: float, clipped: bool | None, side: int, tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg", "cat")
    corners = [1.0, 1.0, 80.0, 60.0]  # VOC counts from 1
    corners[side] += past if side > 1 else -past
    text = annotation(80, 60, [("cat", 101, 102, 103, 104, 0)])
    for index, value in enumerate(corners):
        text = text.replace(f">{101 + index}<", f">{value}<")
    (tmp_path / "a.xml").write_text(text)
    if clipped is None:
        refused(tmp_path, "a.xml: object 1: box", "lies outside the image of 80×60")
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert load_boxed(tmp_path, "train").images[0].boxes.tolist() == [[0, 0, 80, 60]]
    notes = [str(warning.message) for warning in caught]
    assert len(notes) == clipped
    assert all("1 box reaches up to 2 pixels past the image; clipped" in note for note in notes)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))


def places(record: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Keys that lead to each value in a record."""
    items = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


@pytest.fixture(scope="module")
def cvat(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = cvat_coco(tmp_path_factory.mktemp("cvat")) / "annotations" / "instances_default.json"
    return path, path.read_text()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_anywhere_in_a_coco_file_is_read_or_refused(cvat: tuple[Path, str], data: st.DataObject) -> None:
    path, text = cvat
    record = json.loads(text)
    place = data.draw(st.sampled_from(places(record)[1:]))
    owner = record
    for key in place[:-1]:
        owner = owner[key]
    owner[place[-1]] = data.draw(VALUES)
    path.write_text(json.dumps(record))
    check_readable_or_refused(path.parents[1])


BYTES = {"labels/train/0.txt": yolo, "data.yaml": yolo, "my photo 0.xml": lambda root: labelimg(root, 1)}
PIECES = st.binary(max_size=8) | st.sampled_from([b"nan", b"-1", b"1e999", b"<", b"&", b"'", b"\0", b"*a"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(sorted(BYTES)), piece=PIECES)
def test_any_bytes_in_a_file_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str, piece: bytes
) -> None:
    root = BYTES[name](tmp_path_factory.mktemp("set"))
    content = (root / name).read_bytes()
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    (root / name).write_bytes(content[:start] + piece + content[end:])
    check_readable_or_refused(root)


def check_readable_or_refused(root: Path) -> None:
    """A DensescoreError, or boxes inside their images and of existing classes."""
    try:
        loaded = load_set(root, "train")
    except DensescoreError:
        return
    assert isinstance(loaded, BoxedSet)
    check_boxes(loaded)
