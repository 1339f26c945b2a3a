"""One entrance to all layouts: VOC, COCO, YOLO."""

import os
from pathlib import Path

from densescore.data.boxed_set import BoxedSet
from densescore.data.coco import find_coco, read_coco
from densescore.data.voc import find_voc, read_voc
from densescore.data.yolo import find_yolo, read_yolo
from densescore.errors import DensescoreError


def load_boxed(folder: str | os.PathLike[str], split: str, *, need_positives: bool = False) -> BoxedSet:
    """Read one split of a data set, in whichever layout it has.

    Args:
        folder: VOC: holds ``ImageSets/Main``, or ``VOCdevkit/VOC2012`` that does. COCO: holds
            ``annotations/instances_<split>*.json`` or ``<split>/_annotations.coco.json``. YOLO: holds ``data.yaml``.
        split: such as ``"train"`` or ``"val"``.
        need_positives: every class must have a positive image, as training needs.

    Raises:
        DensescoreError: no known layout; or all problems of the data at once, with file and field.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DensescoreError(f"{root}: no such folder")
    if (voc := find_voc(root)) is not None:
        return read_voc(voc, split, need_positives=need_positives)
    if (coco := find_coco(root, split)) is not None:
        return read_coco(*coco, split, need_positives=need_positives)
    if (yolo := find_yolo(root)) is not None:
        return read_yolo(yolo, split, need_positives=need_positives)
    raise DensescoreError(
        f"{root}: neither VOC (ImageSets/Main), COCO (annotations/instances_{split}*.json, "
        f"{split}/_annotations.coco.json) nor YOLO (data.yaml)"
    )
