"""A tree of images, one folder per class, as ImageNet comes: its classes, and which images train and validate."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from densescore.errors import DensescoreError

HELD_OUT = 50
"""Images of a class that validate where it has no validation folder: as many as ILSVRC has per class."""

Sample = tuple[Path, int]
"""(picture, index of its class)."""


@dataclass(frozen=True, eq=False)
class SourceImages:
    """Labeled images.

    Attributes:
        classes: C names: of the folders, in the order of the network's outputs.
        train: to train on.
        val: to measure the loss on that steers the learning rate, and the accuracy.
    """

    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]

    def digest(self) -> str:
        """Of the classes and the images' names: tells one set from another."""
        names = [[f"{path.parent.name}/{path.name}" for path, _ in part] for part in (self.train, self.val)]
        return hashlib.sha256(repr([self.classes, *names]).encode()).hexdigest()


def available_classes(folder: str | os.PathLike[str]) -> list[str]:
    """The classes that a tree has images for, sorted: folders of `folder`/train, or of `folder` if it has no train.

    Raises:
        DensescoreError: there is no such folder, or none in it.
    """
    root = _train_folder(Path(folder))
    if not root.is_dir():
        raise DensescoreError(f"{folder}: no such folder")
    found = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if not found:
        raise DensescoreError(f"{root}: holds no folders, one per class")
    return found


def find_images(folder: str | os.PathLike[str], classes: Sequence[str]) -> SourceImages:
    """List the images of some classes.

    Args:
        folder: holds ``train/<class>/*`` and perhaps ``val/<class>/*``, or ``<class>/*``. Of a class without
            validation images, `HELD_OUT` images, or a tenth if that is less, are taken out of training for it: those
            whose names' digests come first, so that the choice stays when images are added.
        classes: names of folders.

    Raises:
        DensescoreError: a class has no folder, or not the two images that training and validation need.
    """
    root = Path(folder)
    train_root, val_root = _train_folder(root), root / "val"
    missing = [name for name in classes if not (train_root / name).is_dir()]
    if missing:
        shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise DensescoreError(f"{train_root}: {len(missing)} of {len(classes)} classes have no folder: {shown}")
    train = _list(train_root, classes)
    with_val = [name for name in classes if (val_root / name).is_dir()]
    val: dict[str, list[Path]] = {name: [] for name in classes} | _list(val_root, with_val)
    for name in classes:
        if not val[name]:
            in_order = sorted(train[name], key=lambda path: hashlib.sha256(path.name.encode()).digest())
            count = max(1, min(HELD_OUT, len(in_order) // 10))
            val[name], train[name] = sorted(in_order[:count]), sorted(in_order[count:])
        if not train[name]:
            raise DensescoreError(f"{train_root / name}: too few images to train and validate: need at least 2")
    parts = [tuple((path, index) for index, name in enumerate(classes) for path in part[name]) for part in (train, val)]
    return SourceImages(tuple(classes), parts[0], parts[1])


def _train_folder(root: Path) -> Path:
    return root / "train" if (root / "train").is_dir() else root


def _list(root: Path, classes: Sequence[str]) -> dict[str, list[Path]]:
    indices = {name: index for index, name in enumerate(classes)}
    found: dict[str, list[Path]] = {name: [] for name in classes}
    if indices:
        for path, index in make_dataset(str(root), indices, extensions=IMG_EXTENSIONS, allow_empty=True):
            found[classes[index]].append(Path(path))
    return found
