"""Loss and top-1/top-5 accuracy of a network on labelled images, over the views of each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from densescore.pretrain.images import Sample
from densescore.pretrain.precision import Precision
from densescore.pretrain.processes import Place
from densescore.pretrain.views import Views, collate
from densescore_kernels.errors import DensescoreError


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
    normalise: v2.Transform,
    place: Place,
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
        normalise: uint8 pixels → the network's input.
        place: this process's.
        precision: of the network's arithmetic.
        batch: views at a time.
        workers: processes that read images.

    Raises:
        DensescoreError: no image can be read.
    """
    network.eval()
    share = samples[place.rank :: place.world]
    views = Views(share, view)
    sums = torch.zeros(4, dtype=torch.float64, device=place.device)
    unreadable: list[str] = []
    if share:
        count = len(view(torch.zeros(3, 8, 8, dtype=torch.uint8)))  # V
        loader = DataLoader(views, max(1, batch // count), num_workers=workers, collate_fn=collate)
        with torch.inference_mode():
            for viewed in loader:
                unreadable += viewed.unreadable
                if not len(viewed.labels):
                    continue
                pixels, labels = viewed.pixels.to(place.device), viewed.labels.to(place.device)
                with precision.autocast(place.device):
                    logits = network(normalise(pixels.flatten(0, 1)))
                # In float64: ten equal float32 numbers add up without rounding, so that ties stay ties.
                probabilities = logits.float().softmax(1).double().unflatten(0, pixels.shape[:2]).mean(1)  # [N, C]
                sums += torch.stack(_count(probabilities, labels))
    images, loss, top1, top5 = place.sum(sums).tolist()
    if not images:
        raise DensescoreError(f"none of the {len(samples)} images to measure on can be read: {unreadable[:1]}")
    return Accuracy(int(images), loss / images, top1 / images, top5 / images, tuple(unreadable))


def _count(probabilities: Tensor, labels: Tensor) -> list[Tensor]:
    """Images, summed loss, right at the first place, right among five; a tie counts as the worse place."""
    own = probabilities.gather(1, labels[:, None])  # [N, 1]
    place = (probabilities >= own).sum(1)
    loss = -own.clamp(min=1e-30).log().sum()
    counts = [torch.tensor(len(labels), device=labels.device), loss, (place <= 1).sum(), (place <= 5).sum()]
    return [value.double() for value in counts]
