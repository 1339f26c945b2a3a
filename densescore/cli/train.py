"""The commands for a user's own classes: ``densescore labels | train``."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from densescore.cli.options import (
    Cache,
    CacheSize,
    Context,
    Data,
    Device,
    Json,
    NetworkWeights,
    Overwrite,
    Scales,
    Split,
    check_new_weights,
    feature_cache,
    numbers,
    progress_bar,
    readable_errors,
    tracked,
)
from densescore.data.load import load_boxed
from densescore.errors import DensescoreError
from densescore.geometry import PAPER_SCALES, Pyramid
from densescore.io.checkpoint import checkpoint_folder
from densescore.io.files import atomic_write
from densescore.io.images import read_image
from densescore.models.adaptation import save_head
from densescore.network.devices import find_device
from densescore.scoring.scorer import DenseScorer
from densescore.transfer.feature_cache import DEFAULT_BYTES, DEFAULT_CACHE
from densescore.transfer.from_scratch import CROPS, train_from_scratch
from densescore.transfer.patch_figure import draw_patch_labels
from densescore.transfer.patch_labels import AMBIGUOUS, LabelRule, label_patches
from densescore.transfer.pipeline import train_model
from densescore.transfer.recipe import RECIPES
from densescore.transfer.train_fc6 import train_unfrozen

app = typer.Typer()
_out = Console()

PatchShare = Annotated[float | None, typer.Option(help="Least share of a positive patch that its object fills; 0.2.")]
ObjectShare = Annotated[float | None, typer.Option(help="Least share of the object that a positive patch holds; 0.6.")]
Overlap = Annotated[str, typer.Option(help="What overlaps a second object: touch, part, rule or class (default).")]


def _rule(base: LabelRule, patch_share: float | None, object_share: float | None, overlap: str) -> LabelRule:
    """`base` with what the options say instead."""
    given = {"patch_share": patch_share, "object_share": object_share, "overlap": overlap or None}
    return replace(base, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


@app.command()
def labels(
    image: Annotated[str, typer.Argument(help="Name of an image of the set.", show_default=False)],
    data: Data,
    split: Split = "train",
    out: Annotated[Path | None, typer.Option(help="The PNG; <image>_labels.png by default.")] = None,
    scales: Scales = "",
    patch_share: PatchShare = None,
    object_share: ObjectShare = None,
    overlap: Overlap = "",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Count an image's labelled patches, and draw examples of them (the paper's Figure 4)."""
    with readable_errors():
        rule = _rule(LabelRule(), patch_share, object_share, overlap)
        boxed = load_boxed(data, split)
        found = next((item for item in boxed.images if item.name == Path(image).stem), None)
        if found is None:
            raise DensescoreError(f"{data}: set {split!r} has no image {image!r}")
        chosen = numbers(scales, "--scales") if scales else PAPER_SCALES
        patches = Pyramid.of(found.height, found.width, scales=chosen).boxes()
        given = label_patches(patches, found.boxes, found.classes, len(boxed.classes), rule, found.difficult)
        path = out or Path(f"{found.name}_labels.png")
        with atomic_write(path, overwrite=overwrite, inputs=[data, found.path]) as temporary:
            draw_patch_labels(read_image(found.path), patches, given, found, boxed.classes, temporary)
        names = {**dict(enumerate(boxed.classes)), len(boxed.classes): "background", AMBIGUOUS: "left out"}
        counts = {
            names[int(label)]: int(count) for label, count in zip(*np.unique(given, return_counts=True), strict=True)
        }
        if as_json:
            print(json.dumps({"image": found.name, "picture": str(path), "patches": counts}))
            return
        table = Table("label", "patches")
        for name, count in counts.items():
            table.add_row(name, str(count))
        _out.print(f"{found.name}: {path}", soft_wrap=True)
        _out.print(table)


@app.command()
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="The head's file (.safetensors).", show_default=False)],
    model: Annotated[str, typer.Option(help="A name that `densescore models` lists.")] = "lite0",
    weights: NetworkWeights = "default",
    split: Split = "train",
    recipe: Annotated[str, typer.Option(help=f"{' or '.join(RECIPES)}.")] = "default",
    objective: Annotated[str, typer.Option(help="softmax or multilabel, instead of the recipe's.")] = "",
    patch_share: PatchShare = None,
    object_share: ObjectShare = None,
    overlap: Overlap = "",
    flips: Annotated[bool | None, typer.Option(help="Train on mirror images, too; by default as the recipe.")] = None,
    scales: Scales = "",
    unfreeze: Annotated[
        str, typer.Option(help="fc6: train FC6 and FC7, too, where the network has them; without image labels.")
    ] = "",
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="The whole network, from random weights (the paper's NO PRETRAIN).")
    ] = False,
    crops: Annotated[int, typer.Option(help="With --from-scratch: crops to train on.", min=1)] = CROPS,
    seed: Annotated[int, typer.Option(help="Of all draws; recorded in the file.", min=0)] = 0,
    device: Device = "auto",
    context: Context = "image",
    cache: Cache = DEFAULT_CACHE,
    cache_size: CacheSize = DEFAULT_BYTES / 1e9,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a head for the classes of a folder of boxed images. A training that was killed goes on where it was."""
    with readable_errors():
        check_new_weights(out, overwrite, [data, model, weights])
        if recipe not in RECIPES:
            raise DensescoreError(f"--recipe: expected {' or '.join(RECIPES)}, got {recipe!r}")
        if unfreeze not in ("", "fc6"):
            raise DensescoreError(f"--unfreeze: expected fc6, got {unfreeze!r}")
        if from_scratch and (unfreeze or weights != "default" or flips is not None or context != "image"):
            raise DensescoreError(
                "--from-scratch trains all layers, from random weights, on crops that are mirrored at random: "
                "--unfreeze, --weights, --flips and --context have no meaning beside it"
            )
        plan = RECIPES[recipe]
        plan = replace(plan, rule=_rule(plan.rule, patch_share, object_share, overlap))
        if objective:
            plan = replace(plan, objective=objective)  # type: ignore[arg-type]
        if flips is not None:
            plan = replace(plan, flips=flips)
        if scales:
            plan = replace(plan, scales=numbers(scales, "--scales"), test_scales=None)
        boxed = load_boxed(data, split, need_positives=True)
        losses: list[float] = []
        with checkpoint_folder(out) as checkpoint, progress_bar() as progress:

            def callback(stage: int, number: int, loss: float) -> None:
                losses.append(loss)
                progress.console.print(f"stage {stage + 1}, round {number + 1}: loss {loss:.4f}")

            if from_scratch:
                found = find_device(device)
                file = train_from_scratch(
                    boxed, model, plan, seed, crops=crops, device=found, checkpoint=checkpoint, callback=callback
                )
            else:
                scorer = DenseScorer(model, weights=weights, scales=plan.scales, device=device)
                track = tracked(progress, "features")
                caches = partial(feature_cache, folder=cache, gigabytes=cache_size, context=context)
                if unfreeze:
                    file = train_unfrozen(
                        boxed, scorer, caches, plan, seed,
                        weights=weights, checkpoint=checkpoint, track=track, callback=callback,
                    )  # fmt: skip
                else:
                    file = train_model(
                        boxed, scorer, caches(scorer), plan, seed, checkpoint=checkpoint, track=track, callback=callback
                    )
            save_head(out, file, overwrite=overwrite)
        counts = file.training["patches"]
        if as_json:
            last = losses[-1] if losses else None
            print(json.dumps({"head": str(out), "images": len(boxed.images), "patches": counts, "loss": last}))
            return
        table = Table("class", "patches")
        for name, count in counts.items():
            table.add_row(name, f"{count:,}")
        _out.print(f"{out}: trained on {len(boxed.images)} images", soft_wrap=True)
        _out.print(table)
