"""A folder per class (torchvision's ``ImageFolder``): each picture shows its folder's class, and no other."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from densescore.data.boxed_set import Labels
from densescore.data.labeled_set import NEGATIVE, POSITIVE, LabeledImage, LabeledSet
from densescore.data.pictures import find_picture, is_picture, names_in_set, pictures_in
from densescore.data.problems import Problems
from densescore.data.splits import is_split


@dataclass(frozen=True)
class ClassFolders:
    """A set of a folder per class, or of a folder per split that holds one per class.

    Attributes:
        root: the folder.
    """

    root: Path

    def splits(self) -> list[str]:
        """Names of the splits, or none.

        A folder called ``train`` that holds pictures itself is a class: trains.
        """
        folders = _folders(self.root)
        named = [path for path in folders if is_split(path.name)]
        return [path.name for path in named] if named and all(map(_folders, named)) else []

    def read(self, split: str, labels: Labels, problems: Problems) -> LabeledSet:
        """Read one split, or all where the set has none; classes in alphabetic order."""
        if labels in ("box", "both"):
            problems.add(self.root, "a folder per class has labels only, no boxes")
        root = self.root / split if self.splits() else self.root
        for path in sorted(root.iterdir()):
            if is_picture(path):
                problems.add(path, "lies in no class's folder")
        folders = _folders(root)
        truth = np.where(np.eye(len(folders), dtype=bool), POSITIVE, NEGATIVE).astype(np.int8)
        images = []
        for row, folder in zip(truth, folders, strict=True):
            paths = pictures_in(folder)
            if not paths:
                problems.add(folder, "no pictures")
            for path, name in zip(paths, names_in_set(paths, root), strict=True):
                picture = find_picture(path, problems)
                if picture is not None:
                    size = {"height": picture.height, "width": picture.width}
                    images.append(LabeledImage(name=name, path=path, truth=row, **size))
        return LabeledSet(split, tuple(folder.name for folder in folders), tuple(images))


def find_class_folders(folder: Path) -> ClassFolders | None:
    """The set of a folder whose folders hold pictures."""
    return ClassFolders(folder) if any(map(pictures_in, _folders(folder))) else None


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
