"""Loss and top-1/top-5 accuracy of a network on labeled images, over the views of each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from densescore.errors import DensescoreError
from densescore.paper.pretrain.distributed import Process
from densescore.paper.pretrain.images import Sample
from densescore.paper.pretrain.precision import Precision
from densescore.paper.pretrain.views import Views, collate


@dataclass(frozen=True)
class Accuracy:
    """What was measured.

    Attributes:
        images: that could be read.
        loss: mean negative log of the true class's probability.
        top1: share of images whose true class has the highest probability.
        top5: share whose true class is among the five highest.
        unreadable: what was wrong with the images that this process could not read.
    """

    images: int
    loss: float
    top1: float
    top5: float
    unreadable: tuple[str, ...] = ()


def measure(
    network: nn.Module,
    samples: Sequence[Sample],
    view: v2.Transform,
    normalize: v2.Transform,
    process: Process,
    *,
    precision: Precision,
    batch: int = 128,
    workers: int = 0,
) -> Accuracy:
    """Measure a network; each process takes its share of the images. Probabilities are averaged over an image's views.

    Args:
        network: ``[N, 3, P, P]`` → ``[N, C]`` logits.
        samples: images and their classes.
        view: uint8 image → ``[V, 3, P, P]``.
        normalize: uint8 pixels → the network's input.
        process: this process's.
        precision: of the network's arithmetic.
        batch: views at a time.
        workers: processes that read images.

    Raises:
        DensescoreError: no image can be read.
    """
    network.eval()
    share = samples[process.rank :: process.world]
    views = Views(share, view)
    sums = torch.zeros(4, dtype=torch.float64, device=process.device)
    unreadable: list[str] = []
    if share:
        count = len(view(torch.zeros(3, 8, 8, dtype=torch.uint8)))  # V
        loader = DataLoader(views, max(1, batch // count), num_workers=workers, collate_fn=collate)
        with torch.inference_mode():
            for viewed in loader:
                unreadable += viewed.unreadable
                if not len(viewed.labels):
                    continue
                pixels, labels = viewed.pixels.to(process.device), viewed.labels.to(process.device)
                with precision.autocast(process.device):
                    logits = network(normalize(pixels.flatten(0, 1)))
                # In float64: ten equal float32 numbers add up without rounding, so that ties stay ties.
                probabilities = logits.float().softmax(1).double().unflatten(0, pixels.shape[:2]).mean(1)  # [N, C]
                sums += torch.stack(_count(probabilities, labels))
    images, loss, top1, top5 = process.sum(sums).tolist()
    if not images:
        raise DensescoreError(f"none of the {len(samples)} images to measure on can be read: {unreadable[:1]}")
    return Accuracy(int(images), loss / images, top1 / images, top5 / images, tuple(unreadable))


def _count(probabilities: Tensor, labels: Tensor) -> list[Tensor]:
    """Images, summed loss, right at rank 1, right within rank 5; a tie counts as the worse rank."""
    own = probabilities.gather(1, labels[:, None])  # [N, 1]
    rank = (probabilities >= own).sum(1)
    loss = -own.clamp(min=1e-30).log().sum()
    counts = [torch.tensor(len(labels), device=labels.device), loss, (rank <= 1).sum(), (rank <= 5).sum()]
    return [value.double() for value in counts]
