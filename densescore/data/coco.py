"""COCO's JSON layout, as COCO, CVAT, Label Studio and Roboflow write it.

pycocotools trusts the file: a repeated id loses an image, a null is a traceback. So the file is read and checked here.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densescore.data.boxed_set import Annotated, Labels, make_image, make_set
from densescore.data.files import is_file, is_inside
from densescore.data.labeled_set import LabeledSet
from densescore.data.pictures import names_in_set
from densescore.data.problems import Corners, Problems, check_class_names, finite_number, repeated, whole_number
from densescore.data.splits import is_split
from densescore.errors import DensescoreError

_WHOLE_FILES = ("_annotations.coco.json", "annotations.json", "instances.json", "result.json", "coco.json")
_OTHER_TASKS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")


@dataclass(frozen=True)
class Coco:
    """A set in COCO's layout.

    Attributes:
        root: the folder.
        files: each split's annotations, and the folders that its pictures' names may start from.
    """

    root: Path
    files: dict[str, tuple[Path, tuple[Path, ...]]]

    def splits(self) -> list[str]:
        """Names of the splits; ``"default"`` stands for a set without any."""
        return list(self.files)

    def read(self, split: str, labels: Labels, problems: Problems) -> LabeledSet:
        """Read one split, its images in the order of the file.

        The box of an ``iscrowd`` annotation covers several objects and counts as difficult. Classes are the categories,
        in alphabetic order, without an unused one that is only the ``supercategory`` of others (Roboflow's root).
        """
        path, folders = self.files[split]
        record = _load(path)
        lists = {key: _records(path, record, key, problems) for key in ("images", "annotations", "categories")}
        images = {item["id"]: item for item in _identified(path, "image", lists["images"], problems)}
        categories = _categories(path, lists, problems)
        classes = tuple(sorted(set(categories.values())))
        index = {label: number for number, label in enumerate(classes)}
        check_class_names(sorted(categories.values()), f"{path}: categories", problems)
        if not images:
            problems.add(path, "images: none")
        objects: dict[Any, list[Annotated]] = {identity: [] for identity in images}
        for number, item in enumerate(lists["annotations"]):
            where = f"{path}: annotation {item.get('id', f'number {number}')}"
            owner, category = item.get("image_id"), item.get("category_id")
            corners = None if labels == "image" or "bbox" not in item else _corners(item["bbox"], where, problems)
            crowd = item.get("iscrowd", 0)
            if not _is_id(owner) or owner not in objects:
                problems.add(where, f"image_id: no image has the id {owner!r}")
            elif not _is_id(category) or category not in categories:
                problems.add(where, f"category_id: unknown class {category!r}")
            elif crowd not in (0, 1):
                problems.add(where, f"iscrowd: expected 0 or 1, got {crowd!r}")
            elif corners is not None or labels == "image" or "bbox" not in item:
                objects[owner].append(Annotated(where, index[categories[category]], corners, bool(crowd)))
        paths = {}
        for identity, item in images.items():
            where, name = f"{path}: image {identity}", item.get("file_name")
            if not isinstance(name, str) or not is_inside(name):
                problems.add(where, f"file_name: expected a path inside {folders[-1]}, got {name!r}")
            else:
                paths[identity] = next((base / name for base in folders if is_file(base / name)), folders[0] / name)
        for name in repeated(map(str, paths.values())):
            problems.add(path, f"file_name: {name} belongs to several images")
        names = dict(zip(paths, names_in_set(list(paths.values())), strict=True))
        found = []
        for identity, picture in paths.items():
            where, item = f"{path}: image {identity}", images[identity]
            size = whole_number(item.get("width")), whole_number(item.get("height"))
            if labels == "image":
                size = 1, 1
            for side, value in zip(("width", "height"), size, strict=True):
                if value is None:
                    problems.add(where, f"{side}: expected a whole number from 1 on, got {item.get(side)!r}")
            if size[0] is None or size[1] is None:
                continue
            image = make_image(
                names[identity], picture, (size[0], size[1]), objects[identity], len(classes), problems,
                where=where, labels="box" if labels == "auto" else labels,
            )  # fmt: skip
            if image is not None:
                found.append(image)
        return make_set(split, classes, found)


def find_coco(folder: Path) -> Coco | None:
    """The set of a folder, if it has COCO's, CVAT's, Label Studio's or Roboflow's files.

    ``annotations/instances_<split>.json`` goes first, then ``<split>/_annotations.coco.json``, then
    ``annotations/<split>.json``, ``<split>.json`` and the files of sets without splits.
    """
    files: dict[str, tuple[Path, tuple[Path, ...]]] = {}
    for path, split, folders in _candidates(folder):
        if is_file(path):
            there = tuple(base for base in folders if base.is_dir())
            files.setdefault(split, (path, there or (folder,)))
    return Coco(folder, files) if files else None


def _candidates(folder: Path) -> Iterator[tuple[Path, str, list[Path]]]:
    """Possible annotations, the split of each, and the folders that names of pictures may start from."""
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
    except (OSError, ValueError, RecursionError) as error:
        raise DensescoreError(f"{path}: cannot be read as COCO annotations: {error}") from error
    if not isinstance(record, dict):
        raise DensescoreError(f"{path}: cannot be read as COCO annotations: not a JSON object")
    return record


def _records(path: Path, record: dict[str, Any], key: str, problems: Problems) -> list[dict[str, Any]]:
    """A list of objects; what is not one is noted, and left out."""
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


def _identified(path: Path, kind: str, items: list[dict[str, Any]], problems: Problems) -> list[dict[str, Any]]:
    """Those with an id of their own; the others are noted."""
    seen = set[object]()
    found = []
    for number, item in enumerate(items):
        identity = item.get("id")
        if not _is_id(identity):
            problems.add(f"{path}: {kind} number {number}", f"id: expected a number or a text, got {identity!r}")
        elif identity in seen:
            problems.add(f"{path}: {kind} {identity}", "id: given more than once")
        else:
            seen.add(identity)
            found.append(item)
    return found


def _categories(path: Path, lists: dict[str, list[dict[str, Any]]], problems: Problems) -> dict[Any, str]:
    """Names of the categories by id, without a root that no annotation uses."""
    found = _identified(path, "category", lists["categories"], problems)
    used = {item.get("category_id") for item in lists["annotations"] if _is_id(item.get("category_id"))}
    children: dict[Any, set[Any]] = {}
    for item in found:
        if isinstance(item.get("supercategory"), str):
            children.setdefault(item["supercategory"], set()).add(item["id"])
    names = {}
    for item in found:
        name, identity = item.get("name"), item["id"]
        if not isinstance(name, str):
            problems.add(f"{path}: category {identity}", f"name: expected a text, got {name!r}")
            continue
        if identity in used or not children.get(name, set()) - {identity}:
            names[identity] = name.strip()
    return names


def _corners(box: object, where: str, problems: Problems) -> Corners | None:
    """``x0 y0 x1 y1`` of an annotation's box; None, with a problem noted, if it is none."""
    numbers = [finite_number(value) for value in box] if isinstance(box, list) else []
    if len(numbers) != 4 or None in numbers:
        problems.add(where, f"bbox: expected x, y, width, height, got {str(box)[:80]}")
        return None
    x, y, width, height = (float(number or 0) for number in numbers)
    return x, y, x + width, y + height
