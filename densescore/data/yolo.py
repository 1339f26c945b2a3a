"""YOLO's layout: ``data.yaml``, and ``images/<split>`` beside ``labels/<split>`` or the other way round."""

from pathlib import Path

import numpy as np
from PIL import Image

from densescore.data.boxed_set import BoxedImage, BoxedSet, Problems, check_box, check_positives, truth_from_boxes
from densescore.errors import DensescoreError


def find_yolo(folder: Path) -> Path | None:
    """The set's ``data.yaml``."""
    return next((path for path in (folder / "data.yaml", folder / "data.yml") if path.is_file()), None)


def read_yolo(description: Path, split: str, *, need_positives: bool = False) -> BoxedSet:
    """Read one split.

    supervision reads the files; they are checked first, since it stops at the first problem, without its file's name.

    Args:
        description: ``data.yaml``, with ``names``.
        split: such as ``"train"``; ``"val"`` is also sought as ``"valid"``.
        need_positives: every class must have a positive image.

    Raises:
        DensescoreError: lists every problem with its file and line.
    """
    try:
        import supervision
        import yaml
    except ImportError as error:
        raise DensescoreError("YOLO data needs supervision: pip install 'densescore[train]'") from error
    pictures, labels = _folders(description.parent, split)
    problems = Problems()
    try:
        count = len(yaml.safe_load(description.read_text())["names"])
    except Exception as error:  # not YAML, or YAML of another shape
        raise DensescoreError(f"{description}: names: expected the names of the classes") from error
    for path in sorted(labels.glob("*.txt")):
        _check_lines(path, count, problems)
    problems.raise_if_any(labels)
    try:
        dataset = supervision.DetectionDataset.from_yolo(str(pictures), str(labels), str(description))
    except Exception as error:  # a foreign YAML or label file fails in many ways
        raise DensescoreError(f"{description}: cannot be read as a YOLO data set: {error!r}") from error
    classes = tuple(map(str, dataset.classes))
    images = []
    for name in sorted(dataset.image_paths):
        path = Path(name)
        with Image.open(path) as picture:
            width, height = picture.size
        found = dataset.annotations[name]
        indices = np.zeros(0, np.int64) if found.class_id is None else np.asarray(found.class_id, np.int64)
        boxes, present = [], []
        for line, (corners, index) in enumerate(zip(found.xyxy.tolist(), indices.tolist(), strict=True), 1):
            where = f"{labels / path.stem}.txt:{line}"
            inside = check_box(tuple(corners), width, height, where, problems)
            if inside is not None:
                boxes.append(inside)
                present.append(index)
        kept, easy = np.array(present, np.int64), np.zeros(len(present), bool)
        images.append(
            BoxedImage(
                path.stem,
                path,
                height,
                width,
                np.array(boxes, np.float32).reshape(-1, 4),
                kept,
                easy,
                truth_from_boxes(kept, easy, len(classes)),
            )
        )
    if not images:
        problems.add(pictures, "no pictures")
    boxed = BoxedSet(split, classes, tuple(images))
    if need_positives:
        check_positives(boxed, labels, problems)
    problems.raise_if_any(description.parent)
    return boxed


def _folders(root: Path, split: str) -> tuple[Path, Path]:
    names = [split, "valid"] if split == "val" else [split]
    pairs = [(root / "images" / name, root / "labels" / name) for name in names]
    pairs += [(root / name / "images", root / name / "labels") for name in names]
    for pictures, labels in pairs:
        if pictures.is_dir() and labels.is_dir():
            return pictures, labels
    raise DensescoreError(f"{root}: no images/{split} with labels/{split}, nor {split}/images with {split}/labels")


def _check_lines(path: Path, count: int, problems: Problems) -> None:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fields = line.split()
        try:
            numbers = [float(field) for field in fields]
        except ValueError:
            numbers = []
        if fields and (len(numbers) < 5 or not all(0 <= value <= 1 for value in numbers[1:])):
            problems.add(f"{path}:{number}", f"expected a class and x y width height in [0, 1], got {line.strip()!r}")
        elif fields and not (fields[0].isdigit() and int(fields[0]) < count):
            problems.add(f"{path}:{number}", f"unknown class {fields[0]}: names in the data's YAML has {count}")
