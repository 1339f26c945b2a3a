"""Commands for the paper's action classification: ``densescore train-actions | evaluate-actions``."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts.types import PositiveInt

from densescore.cli import options as cli
from densescore.cli.console import Progress, fraction, info, notice, print_json, print_table
from densescore.cli.program import examples
from densescore.errors import DensescoreError

ActionData = Annotated[Path, cli.option("Folder with VOC's ImageSets/Action.", "--data")]


@dataclass(frozen=True)
class TrainActionsOptions(cli.ScorerOptions):
    """Model for actions; a person is one patch, and --scales is for --sliding."""

    patch_sizes: Annotated[str, cli.NOT_AN_OPTION] = ""
    stride: Annotated[int | None, cli.NOT_AN_OPTION] = None
    k: Annotated[float | None, cli.NOT_AN_OPTION] = None
    dtype: Annotated[str, cli.NOT_AN_OPTION] = "auto"
    runtime: Annotated[str, cli.NOT_AN_OPTION] = "auto"


@dataclass(frozen=True)
class EvaluateActionsOptions(TrainActionsOptions):
    """File of `train_actions`, at the scales that it names."""

    model: Annotated[str, cli.option("File from train-actions (.safetensors).")] = field()
    scales: Annotated[str, cli.NOT_AN_OPTION] = ""


@examples(
    "densescore train-actions --data VOC2012 --set train -o actions.safetensors",
    "densescore train-actions --data VOC2012 --sliding -o sliding.safetensors",
)
def train_actions(
    *,
    data: ActionData,
    out: Annotated[Path, cli.out_option("The trained file (.safetensors).")],
    split: cli.Split = "train",
    retrain: Annotated[
        Literal["none", "last", "all"],
        cli.option("Layers trained below FCa and FCb: none, last (stage, or FC6), all."),
    ] = "none",
    sliding: Annotated[bool, cli.option("Train a head for dense scoring: no boxes at test.")] = False,
    epochs: Annotated[PositiveInt | None, cli.more_option("Number of epochs; 30 by default.")] = None,
    seed: cli.Seed = 0,
    overwrite: cli.Overwrite = False,
    as_json: cli.Json = False,
    options: TrainActionsOptions = TrainActionsOptions(),
    cache: cli.CacheOptions = cli.CacheOptions(),
) -> None:
    """Train an action classifier on one square patch per person; persons with several actions are left out."""
    # Check all arguments
    cli.check_new_weights(out, overwrite, [data, *options.files])
    if sliding and (retrain != "none" or epochs is not None):
        raise DensescoreError("--sliding trains FCa and FCb by its own schedule: leave out --retrain and --epochs")
    if options.scales and not sliding:
        raise DensescoreError("--scales: a person is one patch; scales are for --sliding")
    scales = cli.numbers(options.scales, "--scales") or None
    from densescore.io.checkpoint import checkpoint_folder
    from densescore.models.head import save_head
    from densescore.models.registry import load_classifier
    from densescore.network.dense_network import find_device
    from densescore.paper.actions.network import ActionRecipe
    from densescore.paper.actions.training import train_on_boxes
    from densescore.paper.actions.voc import as_boxes, read_actions
    from densescore.transfer.pipeline import train_model
    from densescore.transfer.recipe import RECIPES, change_recipe

    # Train
    actions = read_actions(data, split)
    with Progress() as progress:
        if sliding:
            plan = change_recipe(RECIPES["default"], scales=scales)
            scorer = options.build(scales=plan.scales)
            with checkpoint_folder(out):
                features, track = cache.of(scorer), partial(progress.track, description="features")
                head = train_model(as_boxes(actions), scorer, features, plan, seed, track=track)
                save_head(out, head, overwrite=overwrite)
        else:
            train_on_boxes(
                out, actions, load_classifier(options.model, weights=options.weights),
                ActionRecipe(retrain=retrain, epochs=epochs or ActionRecipe.epochs), seed,
                device=find_device(options.device), track=lambda items: progress.track(items, "persons"),
                callback=lambda epoch, loss: notice(f"epoch {epoch + 1}: loss {loss:.4f}"), overwrite=overwrite,
            )  # fmt: skip
    if as_json:
        print_json({"out": str(out), "persons": len(actions.persons), "actions": actions.actions})
    else:
        info(f"{out}: {len(actions.actions)} actions, {len(actions.persons)} persons")


@examples("densescore evaluate-actions --data VOC2012 --set val --model actions.safetensors")
def evaluate_actions(
    *,
    data: ActionData,
    options: EvaluateActionsOptions,
    split: cli.Split = "val",
    out: Annotated[Path | None, cli.out_option("Folder for VOC's result files.")] = None,
    overwrite: cli.Overwrite = False,
    as_json: cli.Json = False,
    cache: cli.CacheOptions = cli.CacheOptions(),
) -> None:
    """Average precision per action: of persons in given boxes, or of whole images after --sliding."""
    # Check all arguments
    from densescore.paper.actions.evaluation import RESULTS

    cli.check_new(out, overwrite, [data, *options.files], RESULTS)
    from densescore.paper.actions.network import is_actions_file
    from densescore.paper.actions.voc import read_actions

    # Score persons, or whole images
    actions = read_actions(data, split)
    rows: list[tuple[str, int, list[float | None]]]
    if is_actions_file(options.model):
        from densescore.network.dense_network import find_device
        from densescore.paper.actions.evaluation import evaluate_persons, mean_ap, write_action_results
        from densescore.paper.actions.network import load_actions
        from densescore.paper.actions.training import read_patches, run_frozen, score_persons

        device = find_device(options.device)
        network, labels, classifier, recipe = load_actions(options.model, options.weights)
        with Progress() as progress:
            patches = read_patches(
                actions, classifier.patch_size, recipe.margin, lambda items: progress.track(items, "persons")
            )
        scores = score_persons(network, run_frozen(network.to(device), patches))
        per_action = evaluate_persons(actions, scores, labels)
        if out is not None:
            write_action_results(actions, scores, labels, out, overwrite=overwrite)
        rows = [(row.action, row.persons, [row.ap]) for row in per_action]
        means: dict[str, float | None] = {"ap": mean_ap(per_action)}
    else:
        from densescore.evaluation.evaluate import evaluate_classes, mean_of, score_set
        from densescore.paper.actions.voc import as_boxes
        from densescore.transfer.pipeline import cached_scores

        if out is not None:
            raise DensescoreError("--output: VOC's action files rank persons; a sliding-window head ranks images")
        scorer = options.build()
        score = cached_scores(scorer, cache.of(scorer))
        with Progress() as progress:
            result = score_set(
                as_boxes(actions), score, (scorer.k,), track=lambda items: progress.track(items, "images")
            )
        per_class = evaluate_classes(result, scorer.k)
        rows = [(row.label, row.positives, [row.ap, row.pointing]) for row in per_class]
        means = {metric: mean_of(per_class, metric) for metric in ("ap", "pointing")}

    # Summarize
    if as_json:
        record = [
            {"action": action, "positives": count, **dict(zip(means, values, strict=True))}
            for action, count, values in rows
        ]
        print_json({"set": split, "model": options.model, "means": means, "actions": record})
        return
    print_table(
        ("action", "positives", *means),
        [(action, count, *map(fraction, values)) for action, count, values in rows],
        title=f"{split}: {options.model}",
        last=("mean", "", *map(fraction, means.values())),
    )
