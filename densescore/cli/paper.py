"""Commands for the paper's tables, source networks and actions.

``reproduce | source-classes | pretrain | convert-caffe | train-actions | evaluate-actions``
"""

import tempfile
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts.types import NonNegativeFloat, NonNegativeInt, PositiveInt

from densescore.cli import console
from densescore.cli import options as cli
from densescore.cli.console import Progress, error, fraction, info, notice, print_json, print_table
from densescore.cli.program import examples
from densescore.errors import DensescoreError
from densescore.paper.pretrain import SourceRecipe
from densescore.paper.pretrain.source_classes import DEFAULT_WORDNET, WordNet
from densescore.paper.reproduce.tables import TABLES, as_markdown, as_record

if TYPE_CHECKING:
    from densescore.paper.pretrain.training import Event

ImageNetClasses = Annotated[
    str,
    cli.option(
        "pre-1000c, pre-1000r or pre-1512 (the paper's), or terms separated by commas: all, ilsvrc, "
        "random:COUNT:SEED, subtree:NOUN, a wnid, a file of wnids.",
        "--classes",
    ),
]
WordNetFolder = Annotated[Path, cli.more_option("Folder with WordNet 3.0's data.noun.", "--wordnet")]
NetworkFile = Annotated[Path, cli.out_option("The network's file (.safetensors).")]


class SourceProgress(Progress):
    """Progress of a pre-training: a bar per epoch and a line at its end, from one of several processes."""

    def __init__(self, shown: bool = True) -> None:
        super().__init__(shown=shown)
        self._first, self._task = shown, self.add("")

    def notice(self, text: str) -> None:
        """Print a line above the bar."""
        if self._first:
            notice(text)

    def show(self, event: "Event") -> None:
        """Callback of the training."""
        description = f"epoch {event.epoch + 1}, loss {event.loss:.3f}"
        self.update(self._task, event.step, total=event.steps, description=description, rate=event.rate)
        if event.validation is not None:
            self.notice(
                f"{description}, {event.rate:.0f} images/s, learning rate {event.learning_rate:g}; validation: loss "
                f"{event.validation.loss:.4f}, top-1 {event.validation.top1:.3f}, top-5 {event.validation.top5:.3f}"
            )
        for problem in event.unreadable:
            error(f"left out: {problem}")


@examples("densescore reproduce --smoke", "densescore reproduce --table 2 --imagenet imagenet/ --voc12 VOC2012 -o work")
def reproduce(
    *,
    table: Annotated[str, cli.option("1, 2 or 3, or several, separated by commas.")] = "1,2,3",
    imagenet: Annotated[Path | None, cli.option("Folder with train/<wnid>/* (and val/<wnid>/*).")] = None,
    voc07: Annotated[Path | None, cli.option("Folder of VOC 2007, trainval and test.")] = None,
    voc12: Annotated[Path | None, cli.option("Folder of VOC 2012, trainval.")] = None,
    out: Annotated[Path | None, cli.out_option("Folder of all files, to resume; reproduce by default.")] = None,
    smoke: Annotated[bool, cli.option("Run every step on small generated images, in minutes.")] = False,
    wordnet: WordNetFolder = DEFAULT_WORDNET,
    seed: cli.Seed = 0,
    device: cli.Device = "auto",
    readers: Annotated[NonNegativeInt, cli.more_option("Processes that read images.")] = 4,
    cache_size: Annotated[NonNegativeFloat, cli.more_option("Maximum size of the feature cache in GB.")] = 100.0,
    as_json: cli.Json = False,
) -> None:
    """Run or resume the paper's Tables 1 to 3: pre-train, transfer, evaluate, and compare with the paper's numbers."""
    # Check all arguments
    terms = [part.strip() for part in table.split(",")]
    if unknown := [part for part in terms if part not in map(str, TABLES)]:
        raise DensescoreError(f"--table: expected 1, 2 or 3, got {', '.join(unknown)}")
    tables = [int(part) for part in terms]
    folders = {"imagenet": imagenet, "voc07": voc07, "voc12": voc12}
    data = {name: folder for name, folder in folders.items() if folder is not None}
    if smoke and data:
        raise DensescoreError("--smoke generates its own images: leave out --imagenet, --voc07 and --voc12")
    needed = {"imagenet", *(TABLES[number].data for number in tables)}
    if not smoke and (missing := sorted(needed - data.keys())):
        raise DensescoreError(f"table {table} needs --{', --'.join(missing)}; to try the steps, use --smoke")
    from densescore.network.dense_network import find_device
    from densescore.paper.reproduce.chain import PAPER, SMOKE, Chain, draw_all

    # Run the chain
    with tempfile.TemporaryDirectory() as scratch, SourceProgress() as progress:
        chain = Chain(
            SMOKE if smoke else PAPER, draw_all(Path(scratch) / "data") if smoke else data,
            out or (Path(scratch) / "work" if smoke else Path("reproduce")), find_device(device),
            workers=0 if smoke else readers, cache_bytes=int(cache_size * 1e9), seed=seed, wordnet=wordnet,
            say=progress.notice, callback=progress.show,
        )  # fmt: skip
        results = {number: chain.table(number) for number in tables}

    # Print the tables
    for number, rows in results.items():
        if as_json:
            print_json({**as_record(number, rows), "smoke": smoke})
        else:
            from rich.markdown import Markdown

            console.out.print(Markdown(as_markdown(number, rows, chain.plan.remark)))


@examples(
    "densescore source-classes --classes pre-1512",
    "densescore source-classes --classes ilsvrc,subtree:furniture -o wnids.txt",
)
def source_classes(
    *,
    classes: ImageNetClasses = "pre-1512",
    out: Annotated[Path | None, cli.out_option("File for the wnids, one per line.")] = None,
    wordnet: WordNetFolder = DEFAULT_WORDNET,
    overwrite: cli.Overwrite = False,
    as_json: cli.Json = False,
) -> None:
    """List and count a selection of ImageNet's 21,841 classes (release of fall 2011)."""
    cli.check_new(out, overwrite)
    from densescore.io.files import atomic_write
    from densescore.paper.pretrain.source_classes import choose, differences_from_paper, fall_2011

    choice = choose(classes, fall_2011(), lambda: WordNet(wordnet))
    differences = differences_from_paper(choice)
    if out is not None:
        with atomic_write(out, overwrite=overwrite, inputs=[*classes.split(","), wordnet]) as temporary:
            temporary.write_text("".join(f"{wnid}\n" for wnid in choice.wnids))
    if as_json:
        counts = [{"term": term, "classes": count} for term, count in choice.added]
        print_json({"classes": len(choice.wnids), "added": counts, "unlike_paper": differences})
        return
    print_table(
        ("term", "classes it adds"),
        [(term, f"{count:,}") for term, count in choice.added],
        title=classes,
        last=("all", f"{len(choice.wnids):,}"),
    )
    for difference in differences:
        notice(f"unlike the paper: {difference}")


@examples(
    "densescore pretrain --data imagenet/ --classes pre-1512 -o krizhevsky.safetensors",
    "torchrun --nproc-per-node 8 -m densescore pretrain --data imagenet/ -o krizhevsky.safetensors",
)
def pretrain(
    *,
    data: Annotated[Path, cli.option("Folder with train/<class>/* and val/<class>/*, or <class>/*.")],
    out: NetworkFile,
    classes: ImageNetClasses = "all",
    wordnet: WordNetFolder = DEFAULT_WORDNET,
    width: Annotated[NonNegativeInt, cli.more_option("Outputs of FC6 and FC7; 4096, or 6144 above 1,000 classes.")] = 0,
    batch: Annotated[PositiveInt, cli.more_option("Images per step, over all devices.")] = SourceRecipe.batch,
    learning_rate: Annotated[float, cli.more_option("Initial learning rate.")] = SourceRecipe.learning_rate,
    patience: Annotated[
        NonNegativeInt, cli.more_option("Epochs without improvement per rate.")
    ] = SourceRecipe.patience,
    epochs: Annotated[PositiveInt, cli.more_option("Maximum number of epochs.")] = SourceRecipe.max_epochs,
    seed: cli.Seed = 0,
    device: cli.Device = "auto",
    dtype: cli.Dtype = "auto",
    readers: Annotated[NonNegativeInt, cli.more_option("Processes per device that read images.")] = 4,
    checkpoint_steps: Annotated[PositiveInt, cli.more_option("Steps between checkpoints.")] = 1000,
    overwrite: cli.Overwrite = False,
    as_json: cli.Json = False,
) -> None:
    """Train the paper's network on a folder of labeled images. If interrupted, run the same command to resume."""
    cli.check_new_weights(out, overwrite, [data])
    recipe = SourceRecipe(batch=batch, learning_rate=learning_rate, patience=patience, max_epochs=epochs)
    from densescore.paper.pretrain.images import available_classes, find_images
    from densescore.paper.pretrain.process import process_group
    from densescore.paper.pretrain.source_classes import choose, differences_from_paper
    from densescore.paper.pretrain.training import pretrain_krizhevsky

    choice = choose(classes, available_classes(data), lambda: WordNet(wordnet))
    images = find_images(data, choice.wnids)
    with process_group(device) as process, SourceProgress(process.rank == 0) as progress:
        for difference in differences_from_paper(choice):
            progress.notice(f"unlike the paper: {difference}")
        progress.notice(f"{len(choice.wnids):,} classes, {len(images.train):,} + {len(images.val):,} images")
        result = pretrain_krizhevsky(
            out, images, recipe, process, width=width or (4096 if len(choice.wnids) <= 1000 else 6144),
            precision=dtype, seed=seed, workers=readers, checkpoint_steps=checkpoint_steps,
            callback=progress.show, overwrite=overwrite,
        )  # fmt: skip
    if process.rank == 0:
        if as_json:
            print_json({"out": str(out), "classes": len(choice.wnids), **asdict(result)})
        else:
            info(f"{out}: average of ten views, top-1 {result.top1:.3f}, top-5 {result.top5:.3f}")


@examples("densescore convert-caffe bvlcalexnet.onnx -o alexnet.safetensors")
def convert_caffe(
    onnx: Annotated[Path, cli.option("ONNX file of BVLC's AlexNet or CaffeNet.")],
    /,
    *,
    out: NetworkFile,
    mean: Annotated[str, cli.option("Mean of blue, green, red; 104.00699,116.66877,122.67892 by default.")] = "",
    overwrite: cli.Overwrite = False,
    as_json: cli.Json = False,
) -> None:
    """Convert Caffe's reference AlexNet or CaffeNet from ONNX, and compare both on the same input."""
    cli.check_new_weights(out, overwrite, [onnx])
    values = cli.numbers(mean, "--mean")
    if mean and len(values) != 3:
        raise DensescoreError(f"--mean: expected three numbers, got {mean!r}")
    from densescore.models.labels import imagenet_labels
    from densescore.models.weights import save_weights
    from densescore.paper import caffe

    blue, green, red = values or caffe.CAFFE_MEAN
    converted = caffe.convert_caffe(onnx, (blue, green, red))
    classes = len(converted.weights["classifier.6.bias"])
    labels = imagenet_labels() if classes == 1000 else tuple(f"class {index}" for index in range(classes))
    save_weights(out, converted.weights, labels, {"converted_from": onnx.name}, overwrite=overwrite)
    if as_json:
        print_json({"out": str(out), "model": converted.name, "difference": converted.difference})
        return
    difference = f"{converted.difference:.1g}"
    info(f"{out}: weights for {converted.name}; probabilities differ by at most {difference} of the highest")


# --- Actions ---

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
