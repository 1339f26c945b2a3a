"""COCO's JSON layout, read by pycocotools."""

import contextlib
import io
from pathlib import Path

import numpy as np

from densescore.data.boxed_set import BoxedImage, BoxedSet, Problems, check_box, check_positives, truth_from_boxes
from densescore.errors import DensescoreError


def find_coco(folder: Path, split: str) -> tuple[Path, Path] | None:
    """The annotations of a split and the folder of its pictures: COCO's own layout, or Roboflow's."""
    pairs = [(path, folder) for path in sorted(folder.glob(f"annotations/instances_{split}*.json"))]
    pairs += [(folder / split / "_annotations.coco.json", folder / split)]
    pairs += [(path, folder) for path in (folder / "annotations" / f"{split}.json", folder / f"{split}.json")]
    for annotations, pictures in pairs:
        if annotations.is_file():
            name = annotations.stem.removeprefix("instances_")
            inside = [pictures / name, pictures / "images" / name, pictures / "images", pictures]
            return annotations, next(path for path in inside if path.is_dir())
    return None


def read_coco(annotations: Path, pictures: Path, split: str, *, need_positives: bool = False) -> BoxedSet:
    """Read one split.

    Args:
        annotations: a file with ``images``, ``categories`` and ``annotations``; the box of an ``iscrowd`` annotation,
            which covers several objects, counts as difficult.
        pictures: folder that ``file_name`` starts from.
        split: for messages.
        need_positives: every class must have a positive image.

    Raises:
        DensescoreError: lists every problem with its file and field.
    """
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        raise DensescoreError("COCO data needs pycocotools: pip install 'densescore[train]'") from error
    problems = Problems()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            coco = COCO(str(annotations))
        categories = {item["id"]: str(item["name"]) for item in coco.loadCats(coco.getCatIds())}
    except Exception as error:  # not JSON, or JSON of another shape, fails in many ways
        raise DensescoreError(f"{annotations}: cannot be read as COCO annotations: {error!r}") from error
    classes = tuple(sorted(set(categories.values())))
    images = []
    for entry in coco.loadImgs(sorted(coco.getImgIds())):
        where = f"{annotations}: image {entry['id']}"
        missing = [field for field in ("file_name", "width", "height") if field not in entry]
        if missing:
            problems.add(where, f"{', '.join(missing)}: missing")
            continue
        path = pictures / entry["file_name"]
        if not path.is_file():
            problems.add(where, f"file_name: no such picture {path}")
        boxes, indices, crowds = [], [], []
        for item in coco.imgToAnns.get(entry["id"], []):
            place = f"{annotations}: annotation {item.get('id')}"
            if item.get("category_id") not in categories:
                problems.add(place, f"category_id: unknown class {item.get('category_id')}")
                continue
            if len(item.get("bbox", ())) != 4:
                problems.add(place, f"bbox: expected x, y, width, height, got {item.get('bbox')}")
                continue
            x, y, width, height = map(float, item["bbox"])
            corners = check_box((x, y, x + width, y + height), entry["width"], entry["height"], place, problems)
            if corners is not None:
                boxes.append(corners)
                indices.append(classes.index(categories[item["category_id"]]))
                crowds.append(bool(item.get("iscrowd", 0)))
        present, difficult = np.array(indices, np.int64), np.array(crowds, bool)
        images.append(
            BoxedImage(
                Path(entry["file_name"]).stem,
                path,
                int(entry["height"]),
                int(entry["width"]),
                np.array(boxes, np.float32).reshape(-1, 4),
                present,
                difficult,
                truth_from_boxes(present, difficult, len(classes)),
            )
        )
    if not images:
        problems.add(annotations, "images: none")
    boxed = BoxedSet(split, classes, tuple(images))
    if need_positives:
        check_positives(boxed, annotations, problems)
    problems.raise_if_any(annotations.parent)
    return boxed
