"""Labeled images, one folder per class as ImageNet comes: which train and validate, and the views of each."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset
from torchvision.transforms import v2

from densescore.errors import DensescoreError
from densescore.io.images import read_image

HELD_OUT = 50
"""Validation images of a class without a validation folder: ILSVRC's number per class."""

Sample = tuple[Path, int]
"""(image, index of its class)."""


@dataclass(frozen=True, eq=False)
class SourceImages:
    """Images to train on, and to validate on."""

    classes: tuple[str, ...]  # folder names, in the order of the network's outputs
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]

    def digest(self) -> str:
        """SHA-256 of the classes and the image names."""
        names = [[f"{path.parent.name}/{path.name}" for path, _ in part] for part in (self.train, self.val)]
        return hashlib.sha256(repr([self.classes, *names]).encode()).hexdigest()


def available_classes(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the class folders below `folder`/train, or below `folder` if it has no train, sorted."""
    root = _train_folder(Path(folder))
    if not root.is_dir():
        raise DensescoreError(f"{folder}: no such folder")
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if not classes:
        raise DensescoreError(f"{root}: holds no folders, one per class")
    return classes


def find_images(folder: str | os.PathLike[str], classes: Sequence[str]) -> SourceImages:
    """The images of some classes, from ``train/<class>/*`` and ``val/<class>/*``, or from ``<class>/*``.

    Without validation images, a tenth of a class, at most `HELD_OUT`, is held out from training.
    """
    root = Path(folder)
    train_root, val_root = _train_folder(root), root / "val"
    missing = [name for name in classes if not (train_root / name).is_dir()]
    if missing:
        shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise DensescoreError(f"{train_root}: {len(missing)} of {len(classes)} classes have no folder: {shown}")
    train = _list_images(train_root, classes)
    with_val = [name for name in classes if (val_root / name).is_dir()]
    val: dict[str, list[Path]] = {name: [] for name in classes} | _list_images(val_root, with_val)
    for name in classes:
        if not val[name]:
            # Ordered by digests of names: the choice stays when images are added
            ordered = sorted(train[name], key=lambda path: hashlib.sha256(path.name.encode()).digest())
            count = max(1, min(HELD_OUT, len(ordered) // 10))
            val[name], train[name] = sorted(ordered[:count]), sorted(ordered[count:])
        if not train[name]:
            raise DensescoreError(f"{train_root / name}: too few images to train and validate: need at least 2")
    parts = [tuple((path, index) for index, name in enumerate(classes) for path in part[name]) for part in (train, val)]
    return SourceImages(tuple(classes), parts[0], parts[1])


def _train_folder(root: Path) -> Path:
    return root / "train" if (root / "train").is_dir() else root


def _list_images(root: Path, classes: Sequence[str]) -> dict[str, list[Path]]:
    indices = {name: index for index, name in enumerate(classes)}
    paths: dict[str, list[Path]] = {name: [] for name in classes}
    if indices:
        for path, index in make_dataset(str(root), indices, extensions=IMG_EXTENSIONS, allow_empty=True):
            paths[classes[index]].append(Path(path))
    return paths


def training_view(side: int, patch: int) -> v2.Transform:
    """A random patch of the central square, mirrored half of the time: → ``[1, 3, P, P]``."""
    return _view(side, v2.RandomCrop(patch), v2.RandomHorizontalFlip(), _add_axis)


def center_view(side: int, patch: int) -> v2.Transform:
    """The patch in the middle: → ``[1, 3, P, P]``."""
    return _view(side, v2.CenterCrop(patch), _add_axis)


def ten_views(side: int, patch: int) -> v2.Transform:
    """The patches in the corners and in the middle, and their mirror images: → ``[10, 3, P, P]``."""
    return _view(side, v2.TenCrop(patch), torch.stack)


def _view(side: int, *transforms: Callable[..., Any]) -> v2.Transform:
    """Transforms of an image's central square."""
    return v2.Compose([v2.Resize(side, antialias=True), v2.CenterCrop(side), *transforms])


def _add_axis(patch: Tensor) -> Tensor:
    return patch[None]


class Views(Dataset[tuple[Tensor | None, int, str]]):
    """Views uint8 ``[V, 3, P, P]`` of images; a view's chance follows from seed, epoch and image alone."""

    def __init__(self, samples: Sequence[Sample], transform: v2.Transform, seed: int = 0) -> None:
        self._samples, self._transform, self._seed = samples, transform, seed

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor | None, int, str]:
        """``(epoch, index)`` or index → (views, or None if the image cannot be read; class; error)."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        path, label = self._samples[index]
        try:
            pixels = torch.from_numpy(read_image(path)).permute(2, 0, 1)
        except DensescoreError as error:
            return None, label, str(error)
        if pixels.dtype != torch.uint8:  # 16-bit gray
            pixels = (pixels * 255).round().to(torch.uint8)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would queue a call for each kind of device, for every image
            torch.default_generator.manual_seed(derive_seed(self._seed, epoch, index))
            return self._transform(pixels), label, ""


class Viewed(NamedTuple):
    """A batch of views."""

    pixels: Tensor  # uint8 [N, V, 3, P, P]
    labels: Tensor  # int64 [N]
    unreadable: list[str]  # errors of the images that are left out


def collate(items: list[tuple[Tensor | None, int, str]]) -> Viewed:
    """A batch of the readable images, which may be none."""
    read = [(pixels, label) for pixels, label, _ in items if pixels is not None]
    pixels = torch.stack([pixels for pixels, _ in read]) if read else torch.empty(0, 1, 3, 0, 0, dtype=torch.uint8)
    labels = torch.tensor([label for _, label in read], dtype=torch.int64)
    return Viewed(pixels, labels, [error for pixels, _, error in items if pixels is None])


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """One process's share of an epoch's batches, from step `start` on: lists of ``(epoch, index)``.

    The order follows from seed and epoch, so (epoch, step) is the whole state; an incomplete last batch is left out.
    """

    def __init__(
        self, count: int, batch: int, seed: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
        self._order = torch.randperm(count, generator=generator)
        self._batch, self._epoch, self._start, self._rank, self._world = batch, epoch, start, rank, world

    def __len__(self) -> int:
        return len(self._order) // self._batch - self._start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self._start, self._start + len(self)):
            batch = self._order[step * self._batch : (step + 1) * self._batch]
            yield [(self._epoch, index) for index in batch[self._rank :: self._world].tolist()]


def derive_seed(*numbers: int) -> int:
    """One seed for torch from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
