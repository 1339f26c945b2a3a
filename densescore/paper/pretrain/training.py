"""Train a source network: the loop, its steps, its accuracy and its file. The same code on one device or on many."""

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from densescore.errors import DensescoreError
from densescore.io.checkpoint import checkpoint_folder, read_checkpoint, write_checkpoint
from densescore.io.names import to_json
from densescore.models.krizhevsky import Krizhevsky, initialize
from densescore.models.registry import MODELS
from densescore.models.weights import save_weights
from densescore.paper.pretrain import SourceRecipe
from densescore.paper.pretrain.images import (
    EpochBatches,
    Sample,
    SourceImages,
    Views,
    center_view,
    collate,
    derive_seed,
    ten_views,
    training_view,
)
from densescore.paper.pretrain.process import Process, autocast, find_precision

RAW = (1 / 255,) * 3
"""Training sees pixels in 0..255 less the mean, as Krizhevsky et al. had them: their first weights, learning rate and
normalization are made for numbers of that size, and with smaller ones the network does not start to learn."""


@dataclass(frozen=True)
class Accuracy:
    """Loss and accuracy of a network on labeled images."""

    images: int  # readable ones
    loss: float  # mean negative log of the true class's probability
    top1: float
    top5: float
    unreadable: tuple[str, ...] = ()  # errors of this process's unreadable images


@dataclass(frozen=True)
class Event:
    """Progress of a training, for the callback."""

    epoch: int  # from 0
    step: int  # done in the epoch
    steps: int  # of an epoch
    loss: float  # mean training loss of the epoch so far, on this process's images
    rate: float  # images per second of all processes, without validation and checkpoints
    learning_rate: float
    validation: Accuracy | None = None  # at the end of an epoch, by the patch in the middle
    unreadable: list[str] = field(default_factory=list)  # errors since the last event


def normalizer(mean: tuple[float, float, float], std: tuple[float, float, float]) -> v2.Transform:
    """uint8 pixels ``[…, 3, P, P]`` → float32; mean and std are of pixels in [0, 1]."""
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def pretrain_krizhevsky(
    out: Path,
    images: SourceImages,
    recipe: SourceRecipe,
    process: Process,
    *,
    width: int = 4096,
    precision: str = "auto",
    seed: int = 0,
    workers: int = 4,
    checkpoint_steps: int = 1000,
    callback: Callable[[Event], None] = lambda _: None,
    overwrite: bool = False,
) -> Accuracy:
    """Train ``krizhevsky``, FC6 and FC7 of `width`, from random weights; write it with its labels and accuracy.

    Rank 0 writes `out`; until then, a checkpoint lies next to it.
    """
    entry = MODELS["krizhevsky"]
    network = Krizhevsky(len(images.classes), width)
    initialize(network, seed)
    read_only = nullcontext(out.with_suffix(".checkpoint"))  # for the other processes
    with checkpoint_folder(out) if process.rank == 0 else read_only as folder:
        result = train_source(
            network.to(process.device), images, recipe, process, normalize=normalizer(entry.mean, RAW),
            precision=find_precision(precision, process.device), seed=seed, workers=workers,
            checkpoint=folder / "network.pt", checkpoint_steps=checkpoint_steps, callback=callback,
        )  # fmt: skip
        if process.rank == 0:
            training = {
                "recipe": asdict(recipe),
                "seed": seed,
                "images": {"train": len(images.train), "val": len(images.val), "digest": images.digest()},
                "ten_views": asdict(result),
                "versions": {name: version(name) for name in ("densescore", "torch", "torchvision")},
            }
            # C1 takes the factor from RAW pixels to the model's; zero padding stays zero, so the result is exact
            weights = network.state_dict()
            factor = 255 * torch.tensor(entry.std).view(3, 1, 1)
            weights["features.0.weight"] = weights["features.0.weight"].cpu() * factor
            save_weights(out, weights, images.classes, training, overwrite=overwrite)
    process.wait()
    return result


def train_source(
    network: nn.Module,
    images: SourceImages,
    recipe: SourceRecipe,
    process: Process,
    *,
    normalize: v2.Transform,
    precision: torch.dtype,
    seed: int = 0,
    workers: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_steps: int = 1000,
    callback: Callable[[Event], None] = lambda _: None,
    callback_steps: int = 20,
) -> Accuracy:
    """Train a network ``[N, 3, P, P]`` → ``[N, C]`` in place; its accuracy on the validation images by ten views.

    Resumed from its checkpoint, on however many processes, it ends with the same weights (but for dropout's draws).
    """
    if recipe.batch % process.world:
        raise DensescoreError(f"batch: {recipe.batch} images cannot be shared evenly by {process.world} processes")
    if len(images.train) < recipe.batch:
        raise DensescoreError(f"batch: {recipe.batch} is more than the {len(images.train)} training images")
    run = _Run(network, images, recipe, process, normalize, precision, seed, workers, callback)
    owner = _fingerprint(network, images, recipe, seed)
    if checkpoint is not None and (state := read_checkpoint(checkpoint, owner)) is not None:
        run.load_state_dict(state)
    while not run.over:
        for step in run.epoch_steps():
            if step % callback_steps == 0 and step < run.steps:  # the last is reported with the validation
                run.report()
            if checkpoint is not None and run.total % checkpoint_steps == 0:
                run.write(checkpoint, owner)
        run.end_epoch()
        if checkpoint is not None:
            run.write(checkpoint, owner)
    return run.measure(ten_views(recipe.side, recipe.patch))


@dataclass(eq=False)
class _Run:
    """A training's state."""

    network: nn.Module
    images: SourceImages
    recipe: SourceRecipe
    process: Process
    normalize: v2.Transform
    precision: torch.dtype
    seed: int
    workers: int
    callback: Callable[[Event], None]

    def __post_init__(self) -> None:
        recipe, process = self.recipe, self.process
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.plateau = ReduceLROnPlateau(
            self.optimizer, factor=0.1, patience=recipe.patience, threshold=recipe.tolerance, eps=0
        )
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=self.precision == torch.float16)
        self.cuda = [process.device] if process.device.type == "cuda" else []
        parallel = process.world > 1
        self.model = DistributedDataParallel(self.network, self.cuda or None) if parallel else self.network
        self.steps = len(self.images.train) // recipe.batch
        self.epoch = self.step = self.total = 0
        self.loss = torch.zeros((), dtype=torch.float64, device=process.device)  # summed over the epoch's steps
        self._restart_clock()

    def _restart_clock(self) -> None:
        self.unreadable: list[str] = []
        self.clock_images, self.clock_start = 0, time.perf_counter()

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def over(self) -> bool:
        divisions = round(math.log10(self.recipe.learning_rate / self.learning_rate))
        return self.epoch >= self.recipe.max_epochs or divisions > self.recipe.divisions

    def mean_loss(self) -> float:
        """Mean loss of the epoch so far, which must be finite; waits for the device."""
        loss = self.loss.item() / max(1, self.step)
        if not math.isfinite(loss):
            raise DensescoreError(
                f"the training loss became {loss} in epoch {self.epoch + 1}, by step {self.step}; use a learning rate "
                f"below {self.learning_rate:g}"
            )
        return loss

    @property
    def parts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("network", "optimizer", "plateau", "scaler")}

    def write(self, checkpoint: str | os.PathLike[str], owner: str) -> None:
        start = time.perf_counter()
        if self.process.rank == 0:
            self.mean_loss()  # a training that has diverged is not written
            counters = {"epoch": self.epoch, "step": self.step, "total": self.total}
            parts = {name: part.state_dict() for name, part in self.parts.items()}
            write_checkpoint(checkpoint, {"counters": counters, "loss": self.loss.cpu(), **parts}, owner)
        self.process.wait()
        self.clock_start += time.perf_counter() - start

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loss.copy_(state["loss"])
        self.epoch, self.step, self.total = (state["counters"][name] for name in ("epoch", "step", "total"))
        for name, part in self.parts.items():
            part.load_state_dict(state[name])

    def epoch_steps(self) -> Iterator[int]:
        """Do the steps that the epoch has left, giving the number done after each."""
        recipe, process = self.recipe, self.process
        views = Views(self.images.train, training_view(recipe.side, recipe.patch), self.seed)
        batches = EpochBatches(
            len(views), recipe.batch, self.seed, self.epoch, start=self.step, rank=process.rank, world=process.world
        )
        loader = DataLoader(
            views, batch_sampler=batches, num_workers=self.workers, collate_fn=collate, pin_memory=bool(self.cuda)
        )
        self.model.train()
        for viewed in loader:
            if not len(viewed.labels):
                raise DensescoreError(f"no image of a batch of {recipe.batch} can be read: {viewed.unreadable[0]}")
            self._descend(viewed.pixels.flatten(0, 1), viewed.labels)
            self.unreadable += viewed.unreadable
            self.clock_images += recipe.batch
            self.step, self.total = self.step + 1, self.total + 1
            yield self.step

    def _descend(self, pixels: Tensor, labels: Tensor) -> None:
        """One step of gradient descent on ``[N, 3, P, P]`` and ``[N]``."""
        pixels, labels = (tensor.to(self.process.device, non_blocking=True) for tensor in (pixels, labels))
        with torch.random.fork_rng(devices=self.cuda):
            dropout_seed = derive_seed(self.seed, self.total, self.process.rank)
            torch.default_generator.manual_seed(dropout_seed)
            if self.cuda:
                torch.cuda.manual_seed(dropout_seed)
            with autocast(self.process, self.precision):
                logits = self.model(self.normalize(pixels))
            loss = F.cross_entropy(logits.float(), labels)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.loss += loss.detach()

    def report(self, validation: Accuracy | None = None) -> None:
        """Call the callback."""
        rate = self.clock_images / (time.perf_counter() - self.clock_start)
        progress = self.epoch, self.step, self.steps, self.mean_loss(), rate, self.learning_rate
        self.callback(Event(*progress, validation, self.unreadable))
        self._restart_clock()

    def end_epoch(self) -> None:
        """Validate, which steers the learning rate, and begin the next epoch."""
        start = time.perf_counter()
        validation = self.measure(center_view(self.recipe.side, self.recipe.patch))
        self.clock_start += time.perf_counter() - start
        self.unreadable += validation.unreadable
        self.report(validation)
        self.plateau.step(validation.loss)
        self.epoch, self.step = self.epoch + 1, 0
        self.loss.zero_()

    def measure(self, view: v2.Transform) -> Accuracy:
        batch = max(1, self.recipe.batch // self.process.world)
        return measure(
            self.network, self.images.val, view, self.normalize, self.process,
            precision=self.precision, batch=batch, workers=self.workers,
        )  # fmt: skip


def _fingerprint(network: nn.Module, images: SourceImages, recipe: SourceRecipe, seed: int) -> str:
    """SHA-256 of all that makes a pre-training; the network by the names and shapes of its tensors."""
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return hashlib.sha256(to_json([shapes, images.digest(), asdict(recipe), seed]).encode()).hexdigest()


def measure(
    network: nn.Module,
    samples: Sequence[Sample],
    view: v2.Transform,
    normalize: v2.Transform,
    process: Process,
    *,
    precision: torch.dtype,
    batch: int = 128,
    workers: int = 0,
) -> Accuracy:
    """Accuracy of a network ``[N, 3, P, P]`` → ``[N, C]``, probabilities averaged over an image's views.

    Each process takes its share of the images; `batch` views at a time.
    """
    network.eval()
    share = samples[process.rank :: process.world]
    sums = torch.zeros(4, dtype=torch.float64, device=process.device)
    unreadable: list[str] = []
    if share:
        views = len(view(torch.zeros(3, 8, 8, dtype=torch.uint8)))  # V
        loader = DataLoader(Views(share, view), max(1, batch // views), num_workers=workers, collate_fn=collate)
        with torch.inference_mode():
            for viewed in loader:
                unreadable += viewed.unreadable
                if not len(viewed.labels):
                    continue
                pixels, labels = viewed.pixels.to(process.device), viewed.labels.to(process.device)
                with autocast(process, precision):
                    logits = network(normalize(pixels.flatten(0, 1)))
                # In float64: ten equal float32 numbers add up without rounding: ties stay ties
                probabilities = logits.float().softmax(1).double().unflatten(0, pixels.shape[:2]).mean(1)  # [N, C]
                sums += _count(probabilities, labels)
    images, loss, top1, top5 = process.sum(sums).tolist()
    if not images:
        raise DensescoreError(f"none of the {len(samples)} images to measure on can be read: {unreadable[:1]}")
    return Accuracy(int(images), loss / images, top1 / images, top5 / images, tuple(unreadable))


def _count(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Images, summed loss, right at rank 1, right within rank 5: ``[4]``; a tie counts as the worse rank."""
    true = probabilities.gather(1, labels[:, None])  # [N, 1]
    ranks = (probabilities >= true).sum(1)
    count = torch.tensor(len(labels), device=labels.device)
    counts = (count, -true.clamp(min=1e-30).log().sum(), (ranks <= 1).sum(), (ranks <= 5).sum())
    return torch.stack([value.double() for value in counts])
