"""Train a source network: the loop, its steps and its schedule. The same code on one device or on many."""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from densescore.errors import DensescoreError
from densescore.io.checkpoint import read_checkpoint, write_checkpoint
from densescore.paper.pretrain.accuracy import Accuracy, measure
from densescore.paper.pretrain.distributed import Process
from densescore.paper.pretrain.images import SourceImages
from densescore.paper.pretrain.precision import Precision
from densescore.paper.pretrain.recipe import SourceRecipe
from densescore.paper.pretrain.views import EpochBatches, Views, center_view, collate, derive, ten_views, training_view

_STATEFUL = ("network", "optimizer", "plateau", "scaler")


@dataclass(frozen=True)
class Event:
    """A training's progress, for the callback.

    Attributes:
        epoch: from 0.
        step: steps done in the epoch.
        steps: of an epoch.
        loss: mean training loss of the epoch so far, on this process's images.
        rate: images per second of all processes since the last event, but for validation and checkpoints.
        learning_rate: now.
        validation: at the end of an epoch, by the patch in the middle.
        unreadable: images that this process left out since the last event, and why.
    """

    epoch: int
    step: int
    steps: int
    loss: float
    rate: float
    learning_rate: float
    validation: Accuracy | None = None
    unreadable: list[str] = field(default_factory=list)


def normalizer(mean: tuple[float, float, float], std: tuple[float, float, float]) -> v2.Transform:
    """uint8 pixels ``[…, 3, P, P]`` → float32, mean subtracted and divided by std, which are of pixels in [0, 1]."""
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def train_source(
    network: nn.Module,
    images: SourceImages,
    recipe: SourceRecipe,
    process: Process,
    *,
    normalize: v2.Transform,
    precision: Precision,
    seed: int = 0,
    workers: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_steps: int = 1000,
    callback: Callable[[Event], None] = lambda _: None,
    callback_steps: int = 20,
) -> Accuracy:
    """Train a network in place, and measure it.

    All chance (the order, the patches, dropout) follows from `seed`, the epoch, the step and the image. A training
    that was killed and goes on from its checkpoint ends with the very weights that it would have had, as far as the
    device's arithmetic repeats itself (a CPU's does). The number of processes may change between; then dropout differs.

    Args:
        network: ``[N, 3, P, P]`` → ``[N, C]`` logits, with the weights to start from; on `process`'s device.
        images: what to train and validate on.
        recipe: see `SourceRecipe`.
        process: this process's.
        normalize: of `normalizer`.
        precision: of the network's arithmetic.
        seed: of all chance.
        workers: processes that read images, for each process that trains.
        checkpoint: a file that is written every so many steps and after each epoch, and read at the start if it is
            there. The caller removes it.
        checkpoint_steps: between two checkpoints.
        callback: called after each so many steps, and of each epoch's validation.
        callback_steps: between two reports.

    Returns:
        Loss and accuracy on the validation images, by ten views.

    Raises:
        DensescoreError: too few images for a batch, a batch that processes cannot share, a loss that is not finite,
            or a checkpoint of another training.
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
                run.tell()
            if checkpoint is not None and run.total % checkpoint_steps == 0:
                run.write(checkpoint, owner)
        run.end_epoch()
        if checkpoint is not None:
            run.write(checkpoint, owner)
    return run.measure(ten_views(recipe.side, recipe.patch))


class _Run:
    """A training's state, and what moves it on."""

    def __init__(
        self,
        network: nn.Module,
        images: SourceImages,
        recipe: SourceRecipe,
        process: Process,
        normalize: v2.Transform,
        precision: Precision,
        seed: int,
        workers: int,
        callback: Callable[[Event], None],
    ) -> None:
        self.network, self.images, self.recipe, self.process = network, images, recipe, process
        self.normalize, self.precision, self.seed, self.workers = normalize, precision, seed, workers
        self.callback = callback
        self.optimizer = torch.optim.SGD(
            network.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.plateau = ReduceLROnPlateau(
            self.optimizer, factor=0.1, patience=recipe.patience, threshold=recipe.tolerance, eps=0
        )
        self.scaler = precision.scaler(process.device)
        devices = [process.device] if process.device.type == "cuda" else None
        self.model = DistributedDataParallel(network, device_ids=devices) if process.world > 1 else network
        self.epoch = self.step = self.total = 0
        self.loss = torch.zeros((), dtype=torch.float64, device=process.device)  # summed over the epoch's steps
        self.unreadable: list[str] = []
        self._images, self._since = 0, time.perf_counter()  # of the rate

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def over(self) -> bool:
        divisions = round(math.log10(self.recipe.learning_rate / self.learning_rate))
        return self.epoch >= self.recipe.max_epochs or divisions > self.recipe.divisions

    @property
    def steps(self) -> int:
        return len(self.images.train) // self.recipe.batch

    @property
    def mean_loss(self) -> float:
        """Of the epoch so far; asked for only now and then, as it waits for the device.

        Raises:
            DensescoreError: it is not finite.
        """
        loss = self.loss.item() / max(1, self.step)
        if not math.isfinite(loss):
            raise DensescoreError(
                f"the training loss became {loss} in epoch {self.epoch + 1}, by step {self.step}; use a learning rate "
                f"below {self.learning_rate:g}"
            )
        return loss

    def state_dict(self) -> dict[str, Any]:
        _ = self.mean_loss  # a training that has blown up is not written
        counters = {"epoch": self.epoch, "step": self.step, "total": self.total}
        parts = {name: getattr(self, name).state_dict() for name in _STATEFUL}
        return {"counters": counters, "loss": self.loss.cpu(), **parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loss.copy_(state["loss"])
        self.epoch, self.step, self.total = (state["counters"][name] for name in ("epoch", "step", "total"))
        for name in _STATEFUL:
            getattr(self, name).load_state_dict(state[name])

    def write(self, checkpoint: str | os.PathLike[str], owner: str) -> None:
        start = time.perf_counter()
        if self.process.rank == 0:
            write_checkpoint(checkpoint, self.state_dict(), owner)
        self.process.wait()
        self._since += time.perf_counter() - start

    def epoch_steps(self) -> Iterator[int]:
        """Do the epoch's steps that are left, giving the number done after each."""
        recipe, process = self.recipe, self.process
        views = Views(self.images.train, training_view(recipe.side, recipe.patch), self.seed)
        batches = EpochBatches(
            len(views), recipe.batch, self.seed, self.epoch, start=self.step, rank=process.rank, world=process.world
        )
        loader = DataLoader(
            views,
            batch_sampler=batches,
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=process.device.type == "cuda",
        )
        self.model.train()
        for viewed in loader:
            if not len(viewed.labels):
                raise DensescoreError(f"no image of a batch of {recipe.batch} can be read: {viewed.unreadable[0]}")
            self._descend(viewed.pixels.flatten(0, 1), viewed.labels)
            self.unreadable += viewed.unreadable
            self._images += recipe.batch
            self.step, self.total = self.step + 1, self.total + 1
            yield self.step

    def _descend(self, pixels: Tensor, labels: Tensor) -> None:
        """One step of gradient descent."""
        pixels, labels = (tensor.to(self.process.device, non_blocking=True) for tensor in (pixels, labels))
        devices = [self.process.device] if self.process.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            chance = derive(self.seed, self.total, self.process.rank)  # of dropout
            torch.default_generator.manual_seed(chance)
            if devices:
                torch.cuda.manual_seed(chance)
            with self.precision.autocast(self.process.device):
                logits = self.model(self.normalize(pixels))
            loss = F.cross_entropy(logits.float(), labels)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.loss += loss.detach()

    def tell(self, validation: Accuracy | None = None) -> None:
        """Report the training's progress to the callback."""
        rate = self._images / (time.perf_counter() - self._since)
        event = Event(
            self.epoch, self.step, self.steps, self.mean_loss, rate, self.learning_rate, validation, self.unreadable
        )
        self.callback(event)
        self.unreadable, self._images, self._since = [], 0, time.perf_counter()

    def end_epoch(self) -> None:
        """Validate, steer the learning rate by it, and go on to the next epoch."""
        start = time.perf_counter()
        validation = self.measure(center_view(self.recipe.side, self.recipe.patch))
        self._since += time.perf_counter() - start
        self.unreadable += validation.unreadable
        self.tell(validation)
        self.plateau.step(validation.loss)
        self.epoch, self.step = self.epoch + 1, 0
        self.loss.zero_()

    def measure(self, view: v2.Transform) -> Accuracy:
        return measure(
            self.network,
            self.images.val,
            view,
            self.normalize,
            self.process,
            precision=self.precision,
            batch=max(1, self.recipe.batch // self.process.world),
            workers=self.workers,
        )


def _fingerprint(network: nn.Module, images: SourceImages, recipe: SourceRecipe, seed: int) -> str:
    """A digest that tells one pre-training from another; of the network, by the names and shapes of its tensors."""
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return hashlib.sha256(json.dumps([shapes, images.digest(), asdict(recipe), seed]).encode()).hexdigest()
