"""A folder per class (torchvision's ``ImageFolder``): each picture shows its folder's class, and no other."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from densescore.data.boxed_set import Labels
from densescore.data.labeled_set import NEGATIVE, POSITIVE, LabeledImage, LabeledSet, is_split, names_in_set
from densescore.data.problems import Problems, check_class_names, find_picture
from densescore.io.find import is_picture, pictures_in


@dataclass(frozen=True)
class ClassFolders:
    """A folder per class below `root`, or below a folder per split."""

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
