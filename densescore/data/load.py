"""Loads a data set in any layout: VOC, COCO, YOLO, XML beside pictures, tables, a folder per class."""

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from densescore.data.boxed_set import BoxedSet, Labels, make_set
from densescore.data.coco import find_coco
from densescore.data.labeled_set import (
    NEGATIVE,
    POSITIVE,
    SPLIT_ALIASES,
    LabeledImage,
    LabeledSet,
    is_split,
    names_in_set,
)
from densescore.data.problems import Problems, check_class_names, check_positives, find_picture
from densescore.data.table import find_table
from densescore.data.voc import Voc, find_voc, find_xml_folder
from densescore.data.yolo import Yolo, find_labelimg_yolo, find_yolo
from densescore.errors import DensescoreError
from densescore.io.find import is_picture, pictures_in

_WHOLE = ("default", "all")  # tools' names for the split of a set without splits


class Layout(Protocol):
    """A set on disk, in one of the layouts."""

    def splits(self) -> list[str]:
        """Names of its splits; none, or one of `_WHOLE`, if it has none."""

    def read(self, split: str, labels: Labels, problems: Problems) -> LabeledSet:
        """Read one of its splits, or all without splits."""


def load_set(
    path: str | os.PathLike[str],
    split: str | None,
    *,
    labels: Labels = "auto",
    val_share: float | None = None,
    seed: int = 0,
    need_positives: bool = False,
) -> LabeledSet:
    """Load one split of a data set, in any layout of `docs/data-sets.md`.

    The whole data set is validated first; all problems are reported together.

    Args:
        path: the set's folder, a table (``.csv``, ``.tsv``, ``.jsonl``) or YOLO's YAML file.
        split: such as ``"train"`` or ``"val"``; the set may call it ``valid`` or ``train2017``. ``"train"`` of a set
            without splits is all of it, unless `val_share` is given. None: ``"val"``, or all of a set without splits.
        labels: ``"auto"`` reads boxes if the layout has them; ``"image"`` reads labels only; ``"box"`` refuses
            images without boxes; ``"both"`` reads boxes of images with boxes.
        val_share: share in (0, 1) of a set without a ``val`` split that is drawn as ``"val"``, stratified by class;
            the rest is ``"train"``.
        seed: seed of that draw. The same set, share and seed give the same split.
        need_positives: every class must have a positive image, as in training.

    Returns:
        A `BoxedSet` if every image has boxes.

    Raises:
        DensescoreError: no known layout, no such split; or all problems of the data, with file and field.
    """
    root = Path(path)
    if labels not in get_args(Labels):
        raise DensescoreError(f"labels: expected {', '.join(get_args(Labels))}, got {labels!r}")
    if val_share is not None and not (math.isfinite(val_share) and 0 < val_share < 1):
        raise DensescoreError(f"val_share: expected a share between 0 and 1, got {val_share}")
    problems = Problems()
    try:
        loaded = _read(root, _find_layout(root), split, labels, val_share, seed, problems)
        if need_positives and loaded.images:
            check_positives(loaded, root, problems)
    except DensescoreError:
        raise
    except (OSError, ValueError) as error:
        raise DensescoreError(f"{root}: cannot be read: {error}") from error
    problems.finish(root)
    return loaded


def load_boxed(
    path: str | os.PathLike[str],
    split: str,
    *,
    val_share: float | None = None,
    seed: int = 0,
    need_positives: bool = False,
) -> BoxedSet:
    """`load_set` of images that all have boxes; one without raises `DensescoreError`."""
    loaded = load_set(path, split, labels="box", val_share=val_share, seed=seed, need_positives=need_positives)
    if not isinstance(loaded, BoxedSet):
        raise DensescoreError(f"{path}: set {split!r} holds no images with boxes")
    return loaded


def _find_layout(root: Path) -> Layout:
    layout: Layout | None
    if not root.is_dir():
        layout = find_table(root)
        if root.suffix.lower() in (".yaml", ".yml") and root.is_file():
            layout = Yolo(root.parent, root)
        if layout is None:
            reason = "neither a folder, a table nor a YAML file" if root.exists() else "no such folder"
            raise DensescoreError(f"{root}: {reason}")
        return layout
    if (voc := find_voc(root)) is not None:
        return Voc(voc)
    for find in (find_coco, find_yolo, find_xml_folder, find_table, find_labelimg_yolo):
        layout = find(root)
        if layout is not None:
            return layout
    if any(map(pictures_in, _folders(root))):
        return ClassFolders(root)
    raise DensescoreError(
        f"{root}: neither VOC (ImageSets/Main), COCO (annotations/instances_<set>.json, <set>/_annotations.coco.json), "
        "YOLO (data.yaml), VOC's XML beside the pictures, a table (labels.csv, .tsv, .jsonl) nor a folder per class"
    )


def _read(
    root: Path, layout: Layout, split: str | None, labels: Labels, share: float | None, seed: int, problems: Problems
) -> LabeledSet:
    names = layout.splits()
    listed = f"there are {', '.join(sorted(names)) or 'none'}"
    whole = next((name for name in names if name.casefold() in _WHOLE), "train" if not names else None)
    val = match_split("val", names)
    if split is None:
        split = "val" if share is not None or not whole else "all"
    # One of the set's own splits
    if share is None:
        match = match_split(split, names)
        if match is None and not (split in ("train", "all") and whole):
            hint = "; val_share (--val-share 0.2) draws one" if val is None else ""
            raise DensescoreError(f"{root}: no image set {split!r}; {listed}{hint}")
        loaded = layout.read(match or whole or split, labels, problems)
        return make_set(split, loaded.classes, loaded.images)
    # A drawn split
    if val is not None:
        raise DensescoreError(f"{root}: has a set {val!r}, so val_share cannot draw one")
    if split not in ("train", "val"):
        raise DensescoreError(f"{root}: val_share draws the sets train and val, not {split!r}")
    source = match_split("train", names) or whole
    if source is None:
        raise DensescoreError(f"{root}: no image set to draw from; {listed}")
    loaded = layout.read(source, labels, problems)
    in_split = draw_val(loaded.truth(), share, seed) == (split == "val")
    images = [image for image, drawn in zip(loaded.images, in_split, strict=True) if drawn]
    if loaded.images and not images:
        problems.add(root, f"val_share: {share} of {len(loaded.images)} images leaves none for {split}")
    return make_set(split, loaded.classes, images)


def match_split(split: str, names: Iterable[str]) -> str | None:
    """Name of a split in a set: itself, an alias, or its only extension (``train2017``, not ``trainval``)."""
    names = list(names)
    if split in names:
        return split
    for alias in SPLIT_ALIASES.get(split, (split,)):
        for name in names:
            if name.casefold() == alias:
                return name
    for addition in (r"[-_]?\d{4}", r"[^a-z].*"):
        matches = [name for name in names if re.fullmatch(re.escape(split.casefold()) + addition, name.casefold())]
        if matches:
            return matches[0] if len(matches) == 1 else None
    return None


def draw_val(truth: NDArray[np.int8], share: float, seed: int) -> NDArray[np.bool_]:
    """Draw validation images, bool ``[N]``, of ``truth [N, C]``, stratified by each image's rarest class.

    Remainders carry to the next group, for the share of the whole set; a class's last image stays in train.
    """
    shown = truth == POSITIVE
    counts = np.where(shown, shown.sum(0), len(truth) + 1)  # [N, C]
    rarest = np.where(shown.any(1), counts.argmin(1), -1) if truth.shape[1] else np.full(len(truth), -1)
    generator, drawn, remainder = np.random.default_rng(seed), np.zeros(len(truth), bool), 0.0
    for group in np.unique(rarest):
        members = generator.permutation((rarest == group).nonzero()[0])
        remainder += share * len(members)
        count = min(round(remainder), len(members))
        drawn[members[:count]] = True
        remainder -= count
    for column in shown.T[shown.any(0)]:  # [N], of a class
        if drawn[column].all():  # train keeps an image of it
            drawn[column.nonzero()[0][0]] = False
    return drawn


# A folder per class


@dataclass(frozen=True)
class ClassFolders:
    """A folder per class (torchvision's ``ImageFolder``) below `root`, or below a folder per split."""

    root: Path

    def splits(self) -> list[str]:
        """Names of the splits, or none. A folder ``train`` that holds pictures itself is a class: trains."""
        splits = [path for path in _folders(self.root) if is_split(path.name)]
        return [path.name for path in splits] if all(map(_folders, splits)) else []

    def read(self, split: str, labels: Labels, problems: Problems) -> LabeledSet:
        """Read one split, or all without splits; classes are sorted."""
        if labels in ("box", "both"):
            problems.add(self.root, "a folder per class has labels only, no boxes")
        root = self.root / split if self.splits() else self.root
        for path in sorted(filter(is_picture, root.iterdir())):
            problems.add(path, "lies in no class's folder")
        folders = _folders(root)
        check_class_names([folder.name for folder in folders], root, problems)
        truth = np.where(np.eye(len(folders), dtype=bool), POSITIVE, NEGATIVE).astype(np.int8)
        images = []
        for row, folder in zip(truth, folders, strict=True):
            paths = pictures_in(folder)
            if not paths:
                problems.add(folder, "no pictures")
            for path, name in zip(paths, names_in_set(paths, root), strict=True):
                if (picture := find_picture(path, problems)) is not None:
                    size = {"height": picture.height, "width": picture.width}
                    images.append(LabeledImage(name=name, path=path, truth=row, **size))
        return LabeledSet(split, tuple(folder.name for folder in folders), tuple(images))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
