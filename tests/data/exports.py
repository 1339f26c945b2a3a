"""Exports in annotation tools' layouts; each box of their pictures holds one plain color, turned by EXIF or not."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from densescore import read_image
from densescore.data.boxed_set import BoxedSet, boxed_part
from densescore.data.labeled_set import LabeledSet
from tests.data.voc_set import annotation

COLORS = {"cat": (230, 20, 20), "dog": (20, 20, 230)}
_INVERSE = {
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A picture on disk: width and height, stored and upright, and the box of its class in both."""

    label: str
    stored: tuple[int, int]
    upright: tuple[int, int]
    stored_box: tuple[int, int, int, int]
    upright_box: tuple[int, int, int, int]


def draw(path: Path, label: str, orientation: int = 1, *, width: int = 80, height: int = 60, seed: int = 0) -> Drawn:
    """Write a picture that shows a class as a plain rectangle, stored in an EXIF orientation."""
    chance = np.random.default_rng([seed, orientation])
    pixels = chance.integers(90, 150, (height, width, 3), dtype=np.uint8)
    x, y = int(chance.integers(2, 20)), int(chance.integers(2, 30))
    pixels[y : y + 16, x : x + 27] = COLORS[label]
    upright = Image.fromarray(pixels)
    inverse = _INVERSE[orientation]
    stored = upright if inverse is None else upright.transpose(inverse)
    exif = Image.Exif()
    if orientation != 1:
        exif[ExifTags.Base.Orientation] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    is_jpeg = path.suffix.lower() in (".jpg", ".jpeg")
    stored.save(path, exif=exif, **({"quality": 95, "subsampling": 0} if is_jpeg else {"lossless": True}))
    return Drawn(label, stored.size, upright.size, colored(np.asarray(stored), label), colored(pixels, label))


def colored(pixels: NDArray[np.uint8], label: str) -> tuple[int, int, int, int]:
    """The box around the pixels of a class's color."""
    rows, cols = (np.abs(pixels.astype(int) - COLORS[label]).max(2) < 40).nonzero()
    return int(cols.min()), int(rows.min()), int(cols.max()) + 1, int(rows.max()) + 1


def check_pixels(labeled: LabeledSet) -> None:
    """Each box of a set holds its class's color, in the picture as densescore decodes it."""
    assert isinstance(labeled, BoxedSet)
    assert sum(len(image.boxes) for image in labeled.images) >= len(labeled.images) > 0
    for image in labeled.images:
        pixels = read_image(image.path)
        assert pixels.shape[:2] == (image.height, image.width)
        for box, label in zip(image.boxes, image.classes, strict=True):
            assert np.abs(np.array(colored(pixels, labeled.classes[label])) - box).max() <= 1, image.name


def check_boxes(labeled: LabeledSet) -> None:
    """Boxes lie within their images and are of the set's classes."""
    assert labeled.truth().shape == (len(labeled.images), len(labeled.classes))
    assert len(set(labeled.classes)) == len(labeled.classes) > 0
    for image in boxed_part(labeled).images:
        assert (image.boxes >= 0).all()
        assert (image.boxes[:, 2:] <= [image.width, image.height]).all()
        assert (image.boxes[:, :2] < image.boxes[:, 2:]).all()
        assert ((image.classes >= 0) & (image.classes < len(labeled.classes))).all()


def coco_record(drawn: dict[str, Drawn], categories: list[dict[str, Any]], *, upright: bool = True) -> dict[str, Any]:
    """COCO's JSON for pictures by file name; the last category of a name is the one that annotations use."""
    ids = {str(item["name"]): item["id"] for item in categories}
    images, annotations = [], []
    for number, (name, picture) in enumerate(drawn.items(), 1):
        width, height = picture.upright if upright else picture.stored
        x0, y0, x1, y1 = picture.upright_box if upright else picture.stored_box
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": ids[picture.label], "iscrowd": 0}
        annotations.append({"id": number, "image_id": number, **box})
    return {"images": images, "categories": categories, "annotations": annotations}


def pictures(folder: Path, names: Sequence[str], orientations: Sequence[int] = (1, 6, 8, 5)) -> dict[str, Drawn]:
    """Pictures of cats and dogs in turn, some turned."""
    labels = tuple(COLORS)
    return {
        name: draw(folder / name, labels[number % 2], orientations[number % len(orientations)], seed=number)
        for number, name in enumerate(names)
    }


def roboflow_coco(root: Path, count: int = 4) -> Path:
    """Roboflow's COCO export: a folder per split with its JSON inside, and an unused root category."""
    categories: list[dict[str, Any]] = [{"id": 0, "name": "animals", "supercategory": "none"}]
    categories += [{"id": n, "name": name, "supercategory": "animals"} for n, name in enumerate(COLORS, 1)]
    for split in ("train", "valid"):
        drawn = pictures(root / split, [f"{n}_jpg.rf.{n:04x}.jpg" for n in range(count)])
        (root / split / "_annotations.coco.json").write_text(json.dumps(coco_record(drawn, categories, upright=False)))
    return root


def cvat_coco(root: Path, count: int = 4) -> Path:
    """CVAT's COCO export: one subset called default, boxes of the upright pictures."""
    categories = [{"id": n, "name": name, "supercategory": ""} for n, name in enumerate(COLORS, 1)]
    drawn = pictures(root / "images" / "default", [f"frame {n}.JPG" for n in range(count)])
    (root / "annotations").mkdir()
    path = root / "annotations" / "instances_default.json"
    path.write_text(json.dumps({"licenses": [], "info": {}, **coco_record(drawn, categories)}))
    return root


def xml(picture: Drawn, *, upright: bool = False) -> str:
    """VOC's XML for a picture, its pixels counted from 1."""
    x0, y0, x1, y1 = picture.upright_box if upright else picture.stored_box
    return annotation(*(picture.upright if upright else picture.stored), [(picture.label, x0 + 1, y0 + 1, x1, y1, 0)])


def labelimg(root: Path, count: int = 4) -> Path:
    """LabelImg's folder: XML beside the pictures, boxes of the stored pixels."""
    names = [f"my photo {n}{suffix}" for n, suffix in enumerate((".png", ".JPG", ".jpeg", ".png")[:count])]
    for name, picture in pictures(root, names).items():
        (root / name).with_suffix(".xml").write_text(xml(picture))
    return root


def yolo(root: Path, names: str = "[cat, dog]", *, split: str = "train", count: int = 2) -> Path:
    """A YOLO set of pictures that are not turned, with a label file each."""
    for name, picture in pictures(root / "images" / split, [f"{n}.jpg" for n in range(count)], (1,)).items():
        x0, y0, x1, y1 = picture.stored_box
        width, height = picture.stored
        values = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
        path = (root / "labels" / split / name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(" ".join(map(str, (tuple(COLORS).index(picture.label), *values))) + "\n")
    (root / "data.yaml").write_text(f"names: {names}\n")
    return root
