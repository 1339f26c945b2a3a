"""COCO's JSON, as COCO, CVAT, Label Studio and Roboflow write it.

pycocotools trusts the file: a repeated id loses an image, a null is a traceback. So it is read and checked here.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densescore.data.boxed_set import Annotated, Labels, make_image, make_set
from densescore.data.labeled_set import LabeledSet, is_split, names_in_set
from densescore.data.problems import (
    Corners,
    Problems,
    check_class_names,
    finite_number,
    is_inside,
    repeated,
    slashed,
    whole_number,
)
from densescore.errors import DensescoreError
from densescore.io.find import is_file

_WHOLE_FILES = ("_annotations.coco.json", "annotations.json", "instances.json", "result.json", "coco.json")
_OTHER_TASKS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")


@dataclass(frozen=True)
class Coco:
    """A set in COCO's layout: split → its annotations, and the folders that its file names may start from."""

    files: dict[str, tuple[Path, tuple[Path, ...]]]

    def splits(self) -> list[str]:
        """Names of the splits; ``"default"`` if there are none."""
        return list(self.files)

    def read(self, split: str, labels: Labels, problems: Problems) -> LabeledSet:
        """Read one split, in the order of the file; boxes of crowds (``iscrowd``) are difficult, classes are sorted."""
        # Check the lists, and the classes
        path, folders = self.files[split]
        record = _load(path)
        lists = {key: _records(path, record, key, problems) for key in ("images", "annotations", "categories")}
        images = _by_id(path, "image", lists["images"], problems)
        categories = _categories(path, lists, problems)
        classes = tuple(sorted(set(categories.values())))
        index = {label: number for number, label in enumerate(classes)}
        check_class_names(sorted(categories.values()), f"{path}: categories", problems)
        if not images:
            problems.add(path, "images: none")
        # Collect the objects of each image
        objects: dict[Any, list[Annotated]] = {identity: [] for identity in images}
        for number, item in enumerate(lists["annotations"]):
            where = f"{path}: annotation {item.get('id', f'number {number}')}"
            image_id, category, crowd = item.get("image_id"), item.get("category_id"), item.get("iscrowd", 0)
            unboxed = labels == "image" or "bbox" not in item
            corners = None if unboxed else _corners(item["bbox"], where, problems)
            rotation = 0.0 if unboxed else _rotation(item, where, problems)
            if not _is_id(image_id) or image_id not in objects:
                problems.add(where, f"image_id: no image has the id {image_id!r}")
            elif not _is_id(category) or category not in categories:
                problems.add(where, f"category_id: unknown class {category!r}")
            elif crowd not in (0, 1):
                problems.add(where, f"iscrowd: expected 0 or 1, got {crowd!r}")
            elif unboxed or corners is not None:
                objects[image_id].append(
                    Annotated(where, categories[category], corners, bool(crowd), bool(crowd), rotation)
                )
        # Find the pictures
        paths = {}
        for identity, item in images.items():
            name = item.get("file_name")
            if not isinstance(name, str) or not is_inside(name):
                where = f"{path}: image {identity}"
                problems.add(where, f"file_name: expected a path inside {folders[-1]}, got {name!r}")
            else:
                name = slashed(name, *folders)
                paths[identity] = next((base / name for base in folders if is_file(base / name)), folders[0] / name)
        for name in repeated(map(str, paths.values())):
            problems.add(path, f"file_name: {name} belongs to several images")
        # Make the images
        made = []
        for (identity, picture), name in zip(paths.items(), names_in_set(list(paths.values())), strict=True):
            where, item, size = f"{path}: image {identity}", images[identity], []
            for side in ("width", "height"):
                size.append(1 if labels == "image" else whole_number(item.get(side)))
                if size[-1] is None:
                    problems.add(where, f"{side}: expected a whole number from 1 on, got {item.get(side)!r}")
            if size[0] is None or size[1] is None:
                continue
            image = make_image(
                name, picture, (size[0], size[1]), objects[identity], index, problems, where=where, labels=labels
            )
            if image is not None:
                made.append(image)
        return make_set(split, classes, made)


def find_coco(folder: Path) -> Coco | None:
    """The set of a folder with COCO's, CVAT's, Label Studio's or Roboflow's files."""
    files: dict[str, tuple[Path, tuple[Path, ...]]] = {}
    for path, split, folders in _candidates(folder):
        if is_file(path):
            there = tuple(base for base in folders if base.is_dir())
            files.setdefault(split, (path, there or (folder,)))
    return Coco(files) if files else None


def _candidates(folder: Path) -> Iterator[tuple[Path, str, list[Path]]]:
    """Possible annotations, in order of preference: file, split, and folders that file names may start from."""
    for path in sorted(folder.glob("annotations/instances_*.json")):
        split = path.stem.removeprefix("instances_")
        yield path, split, _bases(folder, split)
    for path in sorted(folder.glob("*/_annotations.coco.json")):
        yield path, path.parent.name, [path.parent, path.parent / "images"]
    for path in sorted(folder.glob("annotations/*.json")):
        if not path.stem.startswith(("instances_", *_OTHER_TASKS)):
            yield path, path.stem, _bases(folder, path.stem)
    for path in sorted(folder.glob("*.json")):
        if is_split(path.stem):
            yield path, path.stem, _bases(folder, path.stem)
    for name in _WHOLE_FILES:
        yield folder / name, "default", [folder, folder / "images"]


def _bases(folder: Path, split: str) -> list[Path]:
    return [folder / split, folder / "images" / split, folder / "images", folder]


def _load(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise DensescoreError(f"{path}: cannot be read as COCO annotations: {error}") from error
    return record


def _records(path: Path, record: dict[str, Any], key: str, problems: Problems) -> list[dict[str, Any]]:
    """The objects of a list; a problem for anything else in it."""
    items = record.get(key)
    if not isinstance(items, list):
        problems.add(path, f"{key}: {'missing' if key not in record else 'expected a list'}")
        return []
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            problems.add(path, f"{key}: number {number}: expected an object, got {str(item)[:40]!r}")
    return [item for item in items if isinstance(item, dict)]


def _is_id(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _by_id(path: Path, kind: str, items: list[dict[str, Any]], problems: Problems) -> dict[Any, dict[str, Any]]:
    """Objects by their id; a problem for those without a unique one."""
    by_id: dict[Any, dict[str, Any]] = {}
    for number, item in enumerate(items):
        identity = item.get("id")
        if not _is_id(identity):
            problems.add(f"{path}: {kind} number {number}", f"id: expected a number or a text, got {identity!r}")
        elif identity in by_id:
            problems.add(f"{path}: {kind} {identity}", "id: given more than once")
        else:
            by_id[identity] = item
    return by_id


def _categories(path: Path, lists: dict[str, list[dict[str, Any]]], problems: Problems) -> dict[Any, str]:
    """Category id → name, without roots that no annotation uses."""
    items = _by_id(path, "category", lists["categories"], problems)
    used = {item.get("category_id") for item in lists["annotations"] if _is_id(item.get("category_id"))}
    children: dict[str, set[Any]] = {}
    for identity, item in items.items():
        if isinstance(item.get("supercategory"), str):
            children.setdefault(item["supercategory"], set()).add(identity)
    names = {}
    for identity, item in items.items():
        name = item.get("name")
        if not isinstance(name, str):
            problems.add(f"{path}: category {identity}", f"name: expected a text, got {name!r}")
        elif identity in used or not children.get(name, set()) - {identity}:
            names[identity] = name.strip()
    return names


def _corners(box: object, where: str, problems: Problems) -> Corners | None:
    """``x0 y0 x1 y1`` of an annotation's box; None and a problem if it is malformed."""
    numbers = [finite_number(value) for value in box] if isinstance(box, list) else []
    if len(numbers) != 4 or None in numbers:
        problems.add(where, f"bbox: expected x, y, width, height, got {str(box)[:80]}")
        return None
    x, y, width, height = (float(number or 0) for number in numbers)
    return x, y, x + width, y + height


def _rotation(item: dict[str, Any], where: str, problems: Problems) -> float:
    """Degrees by which CVAT's ``attributes.rotation`` turns a box; angles of other tools are refused."""
    for name in ("rotation", "angle", "theta"):
        if item.get(name):
            problems.add(where, f"{name}: turned boxes are read of CVAT's attributes.rotation only, got {item[name]!r}")
    attributes = item.get("attributes")
    value = attributes.get("rotation", 0) if isinstance(attributes, dict) else 0
    rotation = finite_number(value)
    if rotation is None:
        problems.add(where, f"attributes.rotation: expected a number of degrees, got {str(value)[:40]!r}")
    return rotation or 0.0
