"""The commands for what persons do: ``densescore train-actions | evaluate-actions``."""

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from densescore.cli.options import (
    Cache,
    Device,
    Json,
    Overwrite,
    Scales,
    Split,
    Weights,
    check_new,
    check_new_weights,
    err,
    numbers,
    progress_bar,
    readable_errors,
    tracked,
)
from densescore.errors import DensescoreError
from densescore.evaluation.evaluate import evaluate_classes, mean_of, score_set
from densescore.io.checkpoint import checkpoint_folder
from densescore.models.adaptation import save_head
from densescore.models.registry import load_classifier
from densescore.network.devices import find_device
from densescore.paper.actions.evaluation import RESULTS, evaluate_persons, mean_ap, write_action_results
from densescore.paper.actions.file import is_actions_file, load_actions, save_actions
from densescore.paper.actions.training import ActionRecipe, read_patches, run_frozen, score_persons, train_persons
from densescore.paper.actions.voc import as_boxes, read_actions
from densescore.scoring.scorer import DenseScorer
from densescore.transfer.feature_cache import DEFAULT_CACHE, FeatureCache
from densescore.transfer.pipeline import cached_scores, train_model
from densescore.transfer.recipe import RECIPES

app = typer.Typer()
_out = Console()

Data = Annotated[Path, typer.Option(help="Folder with VOC's ImageSets/Action.", show_default=False)]


@app.command("train-actions")
def train_actions(
    data: Data,
    out: Annotated[Path, typer.Option(help="The file to write (.safetensors).", show_default=False)],
    model: Annotated[str, typer.Option(help="A name that `densescore models` lists.")] = "lite0",
    weights: Weights = "default",
    split: Split = "train",
    retrain: Annotated[str, typer.Option(help="Beside FCa and FCb: none, last (stage, or FC6) or all.")] = "none",
    sliding: Annotated[
        bool, typer.Option("--sliding", help="Train a head for dense scoring instead: tested without boxes, with maps.")
    ] = False,
    epochs: Annotated[
        int | None, typer.Option(help=f"Passes over the persons; {ActionRecipe.epochs} by default.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all draws; recorded in the file.", min=0)] = 0,
    scales: Scales = "",
    device: Device = "auto",
    cache: Cache = DEFAULT_CACHE,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Learn what persons do from one square patch around each; persons who do several things are left out."""
    given = None if weights == "random" else weights
    with readable_errors():
        check_new_weights(out, overwrite, [data, model, weights])
        if sliding and (retrain != "none" or epochs is not None):
            raise DensescoreError("--sliding trains FCa and FCb by its own schedule: leave out --retrain and --epochs")
        if scales and not sliding:
            raise DensescoreError("--scales: a person is one patch; scales are for --sliding")
        actions = read_actions(data, split)
        if sliding:
            plan = RECIPES["default"]
            if scales:
                plan = replace(plan, scales=numbers(scales, "--scales"), test_scales=None)
            scorer = DenseScorer(model, weights=given, scales=plan.scales, device=device)
            with checkpoint_folder(out) as checkpoint, progress_bar() as progress:
                head = train_model(
                    as_boxes(actions),
                    scorer,
                    FeatureCache(scorer, cache),
                    plan,
                    seed,
                    checkpoint=checkpoint,
                    track=tracked(progress, "features"),
                )
                save_head(out, head, overwrite=overwrite)
        else:
            recipe = ActionRecipe(retrain=retrain, epochs=epochs or ActionRecipe.epochs)  # type: ignore[arg-type]
            classifier = load_classifier(model, weights=given)
            network, labels = train_persons(
                actions,
                classifier,
                recipe,
                seed,
                device=find_device(device),
                callback=lambda epoch, loss: err.print(f"epoch {epoch + 1}: loss {loss:.4f}", highlight=False),
            )
            record = {"seed": seed, "set": split, "persons": len(actions.persons)}
            record["versions"] = {name: version(name) for name in ("densescore", "torch", "timm")}
            save_actions(
                out, network, labels, classifier.name, classifier.patch_size, recipe, record, overwrite=overwrite
            )
        if as_json:
            print(json.dumps({"out": str(out), "persons": len(actions.persons), "actions": actions.actions}))
        else:
            _out.print(f"{out}: {len(actions.actions)} actions, {len(actions.persons)} persons", soft_wrap=True)


@app.command("evaluate-actions")
def evaluate_actions(
    data: Data,
    model: Annotated[str, typer.Option(help="What train-actions wrote (.safetensors).", show_default=False)],
    weights: Weights = "default",
    split: Split = "val",
    out: Annotated[Path | None, typer.Option(help="Folder for VOC's result files.")] = None,
    device: Device = "auto",
    cache: Cache = DEFAULT_CACHE,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Average precision per action: of persons in given boxes, or of whole images if trained with --sliding."""
    given = None if weights == "random" else weights
    with readable_errors():
        check_new(out, overwrite, [data, model, weights], RESULTS)
        actions = read_actions(data, split)
        if is_actions_file(model):
            used = find_device(device)
            network, labels, classifier, recipe = load_actions(model, given)
            patches = read_patches(actions, classifier.patch_size, recipe.margin)
            scores = score_persons(network, run_frozen(network.to(used), patches, used), used)
            rows = evaluate_persons(actions, scores, labels)
            if out is not None:
                write_action_results(actions, scores, labels, out, overwrite=overwrite)
            lines: list[tuple[str, int, list[float | None]]] = [(row.action, row.persons, [row.ap]) for row in rows]
            means: dict[str, float | None] = {"ap": mean_ap(rows)}
        else:
            if out is not None:
                raise DensescoreError("--out: VOC's action files rank persons; a sliding-window head ranks images")
            scorer = DenseScorer(model, weights=given, device=device)
            score = cached_scores(scorer, FeatureCache(scorer, cache))
            classes = evaluate_classes(score_set(as_boxes(actions), score, (scorer.k,)), scorer.k)
            lines = [(row.label, row.positives, [row.ap, row.pointing]) for row in classes]
            means = {field: mean_of(classes, field) for field in ("ap", "pointing")}
        if as_json:
            record = [
                {"action": action, "positives": count, **dict(zip(means, values, strict=True))}
                for action, count, values in lines
            ]
            print(json.dumps({"set": split, "model": model, "means": means, "actions": record}))
            return
        table = Table("action", "positives", *means, title=f"{split}: {model}", title_justify="left")
        for action, count, values in lines:
            table.add_row(action, str(count), *map(_share, values))
        table.add_section()
        table.add_row("mean", "", *map(_share, means.values()))
        _out.print(table)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
