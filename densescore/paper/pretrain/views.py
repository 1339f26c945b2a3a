"""What the network sees of an image: a random patch in training, ten fixed ones in testing."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2

from densescore.errors import DensescoreError
from densescore.io.images import read_image
from densescore.paper.pretrain.images import Sample


def central_square(side: int) -> v2.Transform:
    """uint8 ``[3, H, W]`` → ``[3, side, side]``: the short side scaled to `side`, then the square in the middle."""
    return v2.Compose([v2.Resize(side, antialias=True), v2.CenterCrop(side)])


def training_view(side: int, patch: int) -> v2.Transform:
    """A random patch of the central square, mirrored half of the time; colors stay: → ``[1, 3, P, P]``."""
    return v2.Compose([central_square(side), v2.RandomCrop(patch), v2.RandomHorizontalFlip(), _one])


def center_view(side: int, patch: int) -> v2.Transform:
    """The patch in the middle: → ``[1, 3, P, P]``."""
    return v2.Compose([central_square(side), v2.CenterCrop(patch), _one])


def ten_views(side: int, patch: int) -> v2.Transform:
    """The patches in the corners and in the middle, and their mirror images: → ``[10, 3, P, P]``."""
    return v2.Compose([central_square(side), v2.TenCrop(patch), torch.stack])


def _one(patch: Tensor) -> Tensor:
    return patch[None]


class Viewed(NamedTuple):
    """Views of some images.

    Attributes:
        pixels: uint8 ``[N, V, 3, P, P]``, V views of each image that could be read.
        labels: int64 ``[N]``.
        unreadable: what was wrong with the others.
    """

    pixels: Tensor
    labels: Tensor
    unreadable: list[str]


class Views(Dataset[tuple[Tensor | None, int, str]]):
    """Views of images; chance follows from the seed, the epoch and the image alone, whatever process makes the view.

    Args:
        samples: images and their classes.
        transform: uint8 ``[3, H, W]`` → ``[V, 3, P, P]``.
        seed: of the random views.
    """

    def __init__(self, samples: Sequence[Sample], transform: v2.Transform, seed: int = 0) -> None:
        self._samples, self._transform, self._seed = samples, transform, seed

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor | None, int, str]:
        """(views, or None if the image cannot be read; class; what was wrong) of an ``(epoch, index)``, or index."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        path, label = self._samples[index]
        try:
            pixels = torch.from_numpy(read_image(path)).permute(2, 0, 1)
        except DensescoreError as error:
            return None, label, str(error)
        if pixels.dtype != torch.uint8:  # 16-bit gray
            pixels = (pixels * 255).round().to(torch.uint8)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which queues a call for each kind of device, for good: this is done for each image.
            torch.default_generator.manual_seed(derive(self._seed, epoch, index))
            return self._transform(pixels), label, ""


def collate(items: list[tuple[Tensor | None, int, str]]) -> Viewed:
    """A batch of what could be read; of nothing, if nothing could, whose views have no size."""
    read = [(pixels, label) for pixels, label, _ in items if pixels is not None]
    pixels = torch.stack([pixels for pixels, _ in read]) if read else torch.empty(0, 1, 3, 0, 0, dtype=torch.uint8)
    labels = torch.tensor([label for _, label in read], dtype=torch.int64)
    return Viewed(pixels, labels, [problem for pixels, _, problem in items if pixels is None])


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """One process's share of an epoch's batches, from any of them on: lists of ``(epoch, index)``.

    The order follows from seed and epoch, so the sampler's whole state is (epoch, step). An incomplete last batch is
    left out; another order leaves out others in the next epoch.

    Args:
        count: images.
        batch: images per batch, of all processes together.
        seed: of the order.
        epoch: the epoch.
        start: first batch to give.
        rank: this process.
        world: number of processes.
    """

    def __init__(
        self, count: int, batch: int, seed: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        generator = torch.Generator().manual_seed(derive(seed, epoch))
        self._order = torch.randperm(count, generator=generator)
        self._batch, self._epoch, self._start, self._rank, self._world = batch, epoch, start, rank, world

    def __len__(self) -> int:
        return len(self._order) // self._batch - self._start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self._start, self._start + len(self)):
            whole = self._order[step * self._batch : (step + 1) * self._batch]
            yield [(self._epoch, index) for index in whole[self._rank :: self._world].tolist()]


def derive(*seeds: int) -> int:
    """One seed of several numbers, as torch takes it."""
    return int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0] >> 1)
