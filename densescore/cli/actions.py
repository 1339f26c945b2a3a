"""The commands for what persons do: ``densescore train-actions | evaluate-actions``."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from densescore.cli.command import Without, command
from densescore.cli.console import note, say, say_json, share, show_table
from densescore.cli.options import (
    Json,
    Overwrite,
    Scales,
    ScorerOptions,
    check_new,
    check_new_weights,
    numbers,
    out_option,
)
from densescore.cli.progress import Progress
from densescore.cli.training_options import ActionData, CacheOptions, Seed, Split
from densescore.errors import DensescoreError


@command(
    "densescore train-actions --data VOC2012 --set train -o actions.safetensors",
    "densescore train-actions --data VOC2012 --sliding -o sliding.safetensors",
)
def train_actions(
    data: ActionData,
    out: Annotated[Path, out_option("The file to write (.safetensors).")],
    split: Split = "train",
    retrain: Annotated[str, typer.Option(help="Beside FCa and FCb: none, last (stage, or FC6) or all.")] = "none",
    sliding: Annotated[
        bool, typer.Option("--sliding", help="Train a head for dense scoring instead: tested without boxes, with maps.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over the persons.", min=1, show_default="30")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
    scales: Scales = "",
    options: Annotated[ScorerOptions, Without("scales patch_sizes stride k dtype runtime")] = (ScorerOptions()),
    cache: CacheOptions = CacheOptions(),
) -> None:
    """Learn what persons do from one square patch around each; persons who do several things are left out."""
    check_new_weights(out, overwrite, [data, *options.files])
    if sliding and (retrain != "none" or epochs is not None):
        raise DensescoreError("--sliding trains FCa and FCb by its own schedule: leave out --retrain and --epochs")
    if scales and not sliding:
        raise DensescoreError("--scales: a person is one patch; scales are for --sliding")
    chosen = numbers(scales, "--scales") if scales else None
    from densescore.io.checkpoint import checkpoint_folder
    from densescore.models.adaptation import save_head
    from densescore.models.registry import load_classifier
    from densescore.network.devices import find_device
    from densescore.paper.actions.pipeline import sliding_recipe, train_on_boxes, train_sliding
    from densescore.paper.actions.training import ActionRecipe
    from densescore.paper.actions.voc import read_actions

    actions = read_actions(data, split)
    with Progress() as progress:
        if sliding:
            plan = sliding_recipe(chosen)
            scorer = options.build(scales=plan.scales)
            with checkpoint_folder(out) as checkpoint:
                head = train_sliding(
                    actions,
                    scorer,
                    cache.of(scorer),
                    plan,
                    seed,
                    checkpoint=checkpoint,
                    track=lambda items: progress.track(items, "features"),
                )
                save_head(out, head, overwrite=overwrite)
        else:
            recipe = ActionRecipe(retrain=retrain, epochs=epochs or ActionRecipe.epochs)  # type: ignore[arg-type]
            train_on_boxes(
                out,
                actions,
                load_classifier(options.model, weights=options.weights),
                recipe,
                seed,
                device=find_device(options.device),
                track=lambda items: progress.track(items, "persons"),
                callback=lambda epoch, loss: note(f"epoch {epoch + 1}: loss {loss:.4f}"),
                overwrite=overwrite,
            )
    if as_json:
        say_json({"out": str(out), "persons": len(actions.persons), "actions": actions.actions})
    else:
        say(f"{out}: {len(actions.actions)} actions, {len(actions.persons)} persons")


@command("densescore evaluate-actions --data VOC2012 --set val --model actions.safetensors")
def evaluate_actions(
    data: ActionData,
    model: Annotated[str, typer.Option("--model", help="What train-actions wrote (.safetensors).", show_default=False)],
    split: Split = "val",
    out: Annotated[Path | None, out_option("Folder for VOC's result files.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    options: Annotated[ScorerOptions, Without("model scales patch_sizes stride k dtype runtime")] = (ScorerOptions()),
    cache: CacheOptions = CacheOptions(),
) -> None:
    """Average precision per action: of persons in given boxes, or of whole images if trained with --sliding."""
    from densescore.paper.actions.evaluation import RESULTS

    check_new(out, overwrite, [data, model, *options.files], RESULTS)
    from densescore.paper.actions.file import is_actions_file
    from densescore.paper.actions.voc import read_actions

    options = replace(options, model=model)
    actions = read_actions(data, split)
    lines: list[tuple[str, int, list[float | None]]]
    if is_actions_file(model):
        from densescore.network.devices import find_device
        from densescore.paper.actions.evaluation import evaluate_persons, mean_ap, write_action_results
        from densescore.paper.actions.file import load_actions
        from densescore.paper.actions.training import read_patches, run_frozen, score_persons

        used = find_device(options.device)
        network, labels, classifier, recipe = load_actions(model, options.weights)
        with Progress() as progress:
            patches = read_patches(
                actions, classifier.patch_size, recipe.margin, lambda items: progress.track(items, "persons")
            )
        scores = score_persons(network, run_frozen(network.to(used), patches, used), used)
        rows = evaluate_persons(actions, scores, labels)
        if out is not None:
            write_action_results(actions, scores, labels, out, overwrite=overwrite)
        lines = [(row.action, row.persons, [row.ap]) for row in rows]
        means: dict[str, float | None] = {"ap": mean_ap(rows)}
    else:
        from densescore.evaluation.evaluate import evaluate_classes, mean_of, score_set
        from densescore.paper.actions.voc import as_boxes
        from densescore.transfer.pipeline import cached_scores

        if out is not None:
            raise DensescoreError("--out: VOC's action files rank persons; a sliding-window head ranks images")
        scorer = options.build()
        score = cached_scores(scorer, cache.of(scorer))
        with Progress() as progress:
            result = score_set(
                as_boxes(actions), score, (scorer.k,), track=lambda images: progress.track(images, "images")
            )
        classes = evaluate_classes(result, scorer.k)
        lines = [(row.label, row.positives, [row.ap, row.pointing]) for row in classes]
        means = {field: mean_of(classes, field) for field in ("ap", "pointing")}
    if as_json:
        record = [
            {"action": action, "positives": count, **dict(zip(means, values, strict=True))}
            for action, count, values in lines
        ]
        say_json({"set": split, "model": model, "means": means, "actions": record})
        return
    show_table(
        ("action", "positives", *means),
        [(action, count, *map(share, values)) for action, count, values in lines],
        title=f"{split}: {model}",
        last=("mean", "", *map(share, means.values())),
    )
