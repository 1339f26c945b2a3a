"""One entrance to all layouts: VOC, COCO, YOLO, XML beside pictures, tables, a folder per class."""

import math
import os
from pathlib import Path
from typing import Protocol, get_args

from densescore.data.boxed_set import BoxedSet, Labels, make_set
from densescore.data.class_folders import find_class_folders
from densescore.data.coco import find_coco
from densescore.data.labeled_set import LabeledSet
from densescore.data.problems import Problems, check_positives
from densescore.data.splits import WHOLE, draw_val, listed, match_split
from densescore.data.table import find_table
from densescore.data.voc import Voc, find_voc
from densescore.data.xml_folder import find_xml_folder
from densescore.data.yolo import Yolo, find_labelimg_yolo, find_yolo
from densescore.errors import DensescoreError


class Layout(Protocol):
    """A set on disk, in one of the layouts."""

    def splits(self) -> list[str]:
        """Names of its splits; none, or one of `WHOLE`, if it has none."""

    def read(self, split: str, labels: Labels, problems: Problems) -> LabeledSet:
        """Read one of its splits, or all if it has none."""


def load_set(
    path: str | os.PathLike[str],
    split: str,
    *,
    labels: Labels = "auto",
    val_share: float | None = None,
    seed: int = 0,
    need_positives: bool = False,
) -> LabeledSet:
    """Read one split of a data set, in whichever layout it has. `docs/data-sets.md` describes the layouts.

    Args:
        path: the set's folder, a table (``.csv``, ``.tsv``, ``.jsonl``) or YOLO's YAML file.
        split: such as ``"train"`` or ``"val"``; the set may call it ``valid`` or ``train2017``. Of a set without splits
            ``"train"`` is all of it, unless `val_share` is given.
        labels: ``"auto"`` reads boxes where the layout has them; ``"image"`` reads labels only; ``"box"`` refuses
            images without boxes; ``"both"`` takes boxes where an image has them.
        val_share: in (0, 1): draw this share of a set without a ``val`` split as ``"val"``, of each class alike; the
            rest is ``"train"``.
        seed: of that draw. The same set, share and seed give the same split.
        need_positives: every class must have a positive image, as training needs.

    Returns:
        A `BoxedSet` if every image has boxes.

    Raises:
        DensescoreError: no known layout, no such split; or all problems of the data at once, with file and field.
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
    except (OSError, ValueError) as error:
        if isinstance(error, DensescoreError):
            raise
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
    """`load_set` of images that all have boxes.

    Raises:
        DensescoreError: an image has no boxes; or see `load_set`.
    """
    loaded = load_set(path, split, labels="box", val_share=val_share, seed=seed, need_positives=need_positives)
    if not isinstance(loaded, BoxedSet):
        raise DensescoreError(f"{path}: set {split!r} holds no images with boxes")
    return loaded


def _find_layout(root: Path) -> Layout:
    if not root.is_dir():
        layout: Layout | None = find_table(root)
        if root.suffix.lower() in (".yaml", ".yml") and root.is_file():
            layout = Yolo(root.parent, root)
        if layout is None:
            raise DensescoreError(
                f"{root}: {'neither a folder, a table nor a YAML file' if root.exists() else 'no such folder'}"
            )
        return layout
    if (voc := find_voc(root)) is not None:
        return Voc(voc)
    for find in (find_coco, find_yolo, find_xml_folder, find_table, find_labelimg_yolo, find_class_folders):
        found: Layout | None = find(root)
        if found is not None:
            return found
    raise DensescoreError(
        f"{root}: neither VOC (ImageSets/Main), COCO (annotations/instances_<set>.json, <set>/_annotations.coco.json), "
        "YOLO (data.yaml), VOC's XML beside the pictures, a table (labels.csv, .tsv, .jsonl) nor a folder per class"
    )


def _read(
    root: Path, layout: Layout, split: str, labels: Labels, share: float | None, seed: int, problems: Problems
) -> LabeledSet:
    names = layout.splits()
    whole = next((name for name in names if name.casefold() in WHOLE), "train" if not names else None)
    own = match_split(split, names)
    if share is None:
        if own is None and not (split == "train" and whole):
            hint = "; val_share (--val-share 0.2) draws one" if match_split("val", names) is None else ""
            raise DensescoreError(f"{root}: no image set {split!r}; there are {listed(names)}{hint}")
        loaded = layout.read(own or whole or split, labels, problems)
        return make_set(split, loaded.classes, loaded.images)
    if match_split("val", names) is not None:
        raise DensescoreError(f"{root}: has a set {match_split('val', names)!r} of its own: val_share has no meaning")
    if split not in ("train", "val"):
        raise DensescoreError(f"{root}: val_share draws the sets train and val, not {split!r}")
    source = match_split("train", names) or whole
    if source is None:
        raise DensescoreError(f"{root}: no image set to draw from; there are {listed(names)}")
    loaded = layout.read(source, labels, problems)
    drawn = draw_val(loaded.truth(), share, seed) == (split == "val")
    images = [image for image, kept in zip(loaded.images, drawn, strict=True) if kept]
    if loaded.images and not images:
        problems.add(root, f"val_share: {share} of {len(loaded.images)} images leaves none for {split}")
    return make_set(split, loaded.classes, images)
