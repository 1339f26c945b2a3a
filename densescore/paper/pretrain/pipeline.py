"""A tree of images in, the file of a source network out."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from densescore.io.checkpoint import checkpoint_folder
from densescore.models.krizhevsky import Krizhevsky, initialize
from densescore.models.registry import MODELS
from densescore.models.weights import save_weights
from densescore.paper.pretrain.accuracy import Accuracy
from densescore.paper.pretrain.distributed import Process
from densescore.paper.pretrain.images import SourceImages
from densescore.paper.pretrain.precision import find_precision
from densescore.paper.pretrain.recipe import SourceRecipe
from densescore.paper.pretrain.training import Event, normalizer, train_source

RAW = (1 / 255,) * 3
"""Training sees pixels in 0..255 less the mean, as Krizhevsky et al. had them: their first weights, learning rate and
normalization are made for numbers of that size, and with smaller ones the network does not start to learn."""


def fold_std(weights: dict[str, Tensor], std: tuple[float, float, float]) -> dict[str, Tensor]:
    """Weights for pixels in [0, 1] less the mean, divided by `std`, from weights for `RAW` ones: C1 takes the factor.

    The mean being the same, zeros past the border mean the same, and the result is exact.
    """
    factor = 255 * torch.tensor(std).view(3, 1, 1)
    return {**weights, "features.0.weight": weights["features.0.weight"].cpu() * factor}


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
    """Train ``krizhevsky`` from random weights and write it, with its labels and its accuracy.

    Args:
        out: the file (``.safetensors``), which ``weights=`` takes. A checkpoint lies beside it until it is written.
        images: of `find_images`.
        recipe: see `SourceRecipe`.
        process: this process's; the first writes.
        width: of FC6 and FC7.
        precision: see `find_precision`.
        seed: of all chance.
        workers: processes that read images, for each process that trains.
        checkpoint_steps: between two checkpoints.
        callback: called after each 20 steps, and of each epoch's validation.
        overwrite: replace `out` if it is there.
    """
    entry = MODELS["krizhevsky"]
    network = Krizhevsky(len(images.classes), width)
    initialize(network, seed)
    shared = nullcontext(out.with_suffix(".checkpoint"))  # of other processes, which only read it
    with checkpoint_folder(out) if process.rank == 0 else shared as folder:
        result = train_source(
            network.to(process.device),
            images,
            recipe,
            process,
            normalize=normalizer(entry.mean, RAW),
            precision=find_precision(precision, process.device),
            seed=seed,
            workers=workers,
            checkpoint=folder / "network.pt",
            checkpoint_steps=checkpoint_steps,
            callback=callback,
        )
        if process.rank == 0:
            training = {
                "recipe": asdict(recipe),
                "seed": seed,
                "images": {"train": len(images.train), "val": len(images.val), "digest": images.digest()},
                "ten_views": asdict(result),
                "versions": {name: version(name) for name in ("densescore", "torch", "torchvision")},
            }
            save_weights(out, fold_std(network.state_dict(), entry.std), images.classes, training, overwrite=overwrite)
    process.wait()
    return result
