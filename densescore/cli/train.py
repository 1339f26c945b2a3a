"""The command that trains a head for a user's own classes: ``densescore train``."""

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from densescore.cli.command import Without, command
from densescore.cli.console import note, say, say_json, show_table
from densescore.cli.options import (
    Json,
    Overwrite,
    Scales,
    ScorerOptions,
    check_new_weights,
    numbers,
    one_of,
    out_option,
)
from densescore.cli.progress import Progress
from densescore.cli.training_options import CacheOptions, Data, DataOptions, RuleOptions, Seed
from densescore.errors import DensescoreError
from densescore.transfer.recipe import RECIPES

if TYPE_CHECKING:
    from densescore.transfer.rounds import Round


@command(
    "densescore train --data photos/ -o head.safetensors                    # a folder per class, no boxes",
    "densescore train --data VOC2007 --set trainval -o head.safetensors",
    "densescore train --data birds/ --recipe paper --model alexnet -o birds.safetensors",
)
def train(
    data: Data,
    out: Annotated[Path, out_option("The head's file (.safetensors).")],
    chosen: DataOptions = DataOptions(),
    recipe: Annotated[str, typer.Option(help=f"{' or '.join(RECIPES)}.")] = "default",
    objective: Annotated[
        str | None, typer.Option(help="softmax or multilabel, instead of the recipe's.", show_default=False)
    ] = None,
    flips: Annotated[bool | None, typer.Option(help="Train on mirror images, too; by default as the recipe.")] = None,
    boxes: Annotated[
        bool | None,
        typer.Option(
            "--boxes/--no-boxes",
            help="Also train a layer that finds the objects' boxes; by default if every image has boxes.",
        ),
    ] = None,
    unfreeze: Annotated[
        str,
        typer.Option(
            help="fc6: train FC6 and FC7, too, where the network has them; without image labels.", show_default=False
        ),
    ] = "",
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="The whole network, from random weights (the paper's NO PRETRAIN).")
    ] = False,
    crops: Annotated[
        int | None, typer.Option(help="With --from-scratch: crops to train on.", min=1, show_default="12288")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
    scales: Scales = "",
    options: Annotated[ScorerOptions, Without("scales patch_sizes k labels")] = ScorerOptions(model=""),
    rule: RuleOptions = RuleOptions(),
    cache: CacheOptions = CacheOptions(),
) -> None:
    """Train a head for your own classes, from labeled or boxed images. Stopped or killed, the same command goes on.

    Without --model, on lite0-stages; with --recipe paper, and from scratch, on lite0.
    """
    check_new_weights(out, overwrite, [data, *options.files])
    one_of(recipe, tuple(RECIPES), "--recipe")
    one_of(unfreeze or "fc6", ("fc6",), "--unfreeze")
    if not options.model:  # the paper transfers the last features alone
        options = replace(options, model="lite0" if recipe == "paper" or from_scratch else "lite0-stages")
    if from_scratch:
        _check_from_scratch(options, unfreeze=unfreeze, flips=flips)
    elif crops is not None:
        raise DensescoreError("--crops is for --from-scratch")
    from densescore.data.boxed_set import boxed_part
    from densescore.io.checkpoint import checkpoint_folder
    from densescore.models.adaptation import save_head
    from densescore.transfer.pipeline import change_recipe

    plan = change_recipe(
        RECIPES[recipe],
        rule=rule.change(RECIPES[recipe].rule),
        objective=objective,
        flips=flips,
        scales=numbers(scales, "--scales") if scales else None,
    )
    images = chosen.read(data, need_positives=True)
    boxed = boxed_part(images)
    if (from_scratch or unfreeze) and not boxed.images:
        raise DensescoreError(f"{data}: --from-scratch and --unfreeze need images with boxes, and there are none")
    if boxes and not boxed.images:
        raise DensescoreError(f"{data}: --boxes needs images with boxes, and there are none")
    if boxes and (from_scratch or unfreeze):
        raise DensescoreError("--boxes is for heads on the network as it is: leave out --from-scratch and --unfreeze")
    taught = "boxes and labels" if len(boxed.images) == len(images.images) else "labels"
    if 0 < len(boxed.images) < len(images.images):
        taught = f"boxes and labels of {len(boxed.images):,}, labels alone of the others"
    note(f"{len(images.images):,} images of {len(images.classes)} classes teach by {taught}")
    losses: list[float] = []

    def callback(done: "Round") -> None:
        losses.append(done.loss)
        note(str(done))

    with checkpoint_folder(out) as checkpoint, Progress() as progress:
        if from_scratch:
            from densescore.network.devices import find_device
            from densescore.transfer.from_scratch import CROPS, train_from_scratch

            device = find_device(options.device)
            file = train_from_scratch(
                boxed,
                options.model,
                plan,
                seed,
                crops=crops or CROPS,
                device=device,
                checkpoint=checkpoint,
                track=lambda batches: progress.track(batches, "batches of the round", unit="batches"),
                callback=callback,
            )
        else:
            scorer = options.build(scales=plan.scales)

            def track(items: Iterable[int]) -> Iterable[int]:
                return progress.track(items, "features")

            if unfreeze:
                from densescore.transfer.train_fc6 import train_unfrozen

                file = train_unfrozen(
                    boxed,
                    scorer,
                    cache.of,
                    plan,
                    seed,
                    weights=options.weights,
                    checkpoint=checkpoint,
                    track=track,
                    callback=callback,
                )
            else:
                from densescore.transfer.pipeline import train_model

                kept = cache.of(scorer)
                file = train_model(
                    images, scorer, kept, plan, seed, boxes=boxes, checkpoint=checkpoint, track=track, callback=callback
                )
        save_head(out, file, overwrite=overwrite)
    counts = file.training["patches"]
    if as_json:
        last = losses[-1] if losses else None
        say_json({"head": str(out), "images": len(images.images), "patches": counts, "loss": last})
        return
    say(f"{out}: trained on {len(images.images)} images")
    shown = file.training.get("labels", {})
    show_table(
        ("class", "images", "labeled patches"),
        [(name, f"{shown[name]:,}" if name in shown else "", f"{count:,}") for name, count in counts.items()],
    )


def _check_from_scratch(options: ScorerOptions, **others: object) -> None:
    """Refuse what has no meaning beside ``--from-scratch``.

    Raises:
        DensescoreError: names the options.
    """
    expected = ScorerOptions(model=options.model, device=options.device)
    given = {field.name: getattr(options, field.name) != getattr(expected, field.name) for field in fields(options)}
    given |= {name: value not in ("", None, "image") for name, value in others.items()}
    if any(given.values()):
        raise DensescoreError(
            "--from-scratch trains all layers, from random weights, on crops that are mirrored at random: leave out "
            + ", ".join(f"--{name.replace('_', '-')}" for name, value in given.items() if value)
        )
