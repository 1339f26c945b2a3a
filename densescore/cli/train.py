"""Commands for classes of your own: ``densescore labels | train | evaluate | tune-k``."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts.types import PositiveInt
from cyclopts.validators import Number

from densescore.cli import options as cli
from densescore.cli.console import Progress, TrainingBar, fraction, info, notice, print_json, print_table
from densescore.cli.program import examples
from densescore.errors import DensescoreError

if TYPE_CHECKING:
    from densescore.data.labeled_set import LabeledSet
    from densescore.scoring.scorer import DenseScorer

Head = Annotated[str, cli.option("Trained head (.safetensors).")]


@dataclass(frozen=True)
class TrainOptions(cli.ScorerOptions):
    """Model and scales to train on; an empty model is chosen by the recipe."""

    model: cli.Model = ""
    patch_sizes: Annotated[str, cli.NOT_AN_OPTION] = ""
    k: Annotated[float | None, cli.NOT_AN_OPTION] = None
    threshold: Annotated[float | None, cli.NOT_AN_OPTION] = None
    labels: Annotated[Path | None, cli.NOT_AN_OPTION] = None


@dataclass(frozen=True)
class EvaluateOptions(cli.ScorerOptions):
    """The head to measure."""

    model: Head = field()
    patch_sizes: Annotated[str, cli.NOT_AN_OPTION] = ""
    labels: Annotated[Path | None, cli.NOT_AN_OPTION] = None


@dataclass(frozen=True)
class TuneOptions(EvaluateOptions):
    """The head whose k is tuned."""

    k: Annotated[float | None, cli.NOT_AN_OPTION] = None


@examples("densescore labels 000032 --data VOC2007 --set train")
def labels(
    image: Annotated[str, cli.option("Name of an image in the set.")],
    /,
    *,
    data: cli.Data,
    split: cli.Split = "train",
    out: Annotated[Path | None, cli.out_option("The picture (.png); IMAGE_labels.png by default.")] = None,
    overwrite: cli.Overwrite = False,
    as_json: cli.Json = False,
    scales: cli.Scales = "",
    rule: cli.RuleOptions = cli.RuleOptions(),
) -> None:
    """Count the labeled patches of an image and draw as in the paper's Figure 4."""
    # Check all arguments
    from densescore.geometry import PAPER_SCALES
    from densescore.transfer.patch_labels import AMBIGUOUS, LabelRule, label_patches

    label_rule = rule.change(LabelRule())
    levels = cli.numbers(scales, "--scales") or PAPER_SCALES
    cli.check_new(out, overwrite, [data])
    import numpy as np

    from densescore.data.load import load_boxed
    from densescore.geometry import Pyramid
    from densescore.io.files import atomic_write
    from densescore.io.images import read_image
    from densescore.transfer.figure import draw_patch_labels

    # Label the patches
    boxed = load_boxed(data, split)
    item = boxed.find(image)
    patches = Pyramid.of(item.height, item.width, scales=levels).boxes()
    targets = label_patches(patches, item.boxes, item.classes, len(boxed.classes), label_rule, item.difficult)

    # Draw and count them
    path = out or Path(f"{Path(item.name).name}_labels.png")
    with atomic_write(path, overwrite=overwrite, inputs=[data, item.path]) as temporary:
        draw_patch_labels(read_image(item.path), patches, targets, item, boxed.classes, temporary, rule=label_rule)
    names = {**dict(enumerate(boxed.classes)), len(boxed.classes): "background", AMBIGUOUS: "left out"}
    counts = {names[int(target)]: int(n) for target, n in zip(*np.unique(targets, return_counts=True), strict=True)}
    if as_json:
        print_json({"image": item.name, "picture": str(path), "patches": counts})
        return
    info(f"{item.name}: {path}")
    print_table(("label", "patches"), [*counts.items()])


@examples(
    "densescore train --data photos/ -o head.safetensors                    # a folder per class, no boxes",
    "densescore train --data VOC2007 --set trainval -o head.safetensors",
    "densescore train --data birds/ --recipe paper --model alexnet -o birds.safetensors",
)
def train(
    *,
    data: cli.Data,
    out: Annotated[Path, cli.out_option("The head's file (.safetensors).")],
    images: cli.DataOptions = cli.DataOptions(),
    recipe: Annotated[Literal["default", "paper"], cli.option("default or paper.")] = "default",
    objective: Annotated[Literal["softmax", "multilabel"] | None, cli.more_option("Instead of the recipe's.")] = None,
    flips: Annotated[bool | None, cli.more_option("Also train on mirror images.", negative="--no-flips")] = None,
    boxes: Annotated[
        bool | None, cli.more_option("Also train a detector; default: if all images have boxes.", negative="--no-boxes")
    ] = None,
    unfreeze: Annotated[Literal["fc6"] | None, cli.more_option("Fine-tune FC6 and FC7, without image labels.")] = None,
    from_scratch: Annotated[bool, cli.more_option("Train from random weights (the paper's NO PRETRAIN).")] = False,
    crops: Annotated[
        PositiveInt | None, cli.more_option("With --from-scratch: training crops; 12288 by default.")
    ] = None,
    precision: Annotated[
        float, cli.option("Precision that the answer yes promises.", validator=Number(gt=0, lt=1))
    ] = 0.9,
    classes: cli.ClassOptions = cli.ClassOptions(),
    drop_classes: Annotated[str, cli.more_option("Classes to leave out, separated by commas.")] = "",
    strict: Annotated[
        bool, cli.more_option("Refuse classes that cannot be learned instead of leaving them out.")
    ] = False,
    seed: cli.Seed = 0,
    overwrite: cli.Overwrite = False,
    as_json: cli.Json = False,
    options: TrainOptions = TrainOptions(),
    rule: cli.RuleOptions = cli.RuleOptions(),
    cache: cli.CacheOptions = cli.CacheOptions(),
) -> None:
    """Train a head for your own classes on labeled or boxed images. If interrupted, run the same command to resume.

    The default --model is lite0-stages; with --recipe paper or --from-scratch, lite0.
    """
    # Check all arguments
    cli.check_new_weights(out, overwrite, [data, *options.files])
    if not options.model:  # the paper transfers the last stage's features only
        options = replace(options, model="lite0" if recipe == "paper" or from_scratch else "lite0-stages")
    if from_scratch:
        _check_from_scratch(options, unfreeze=unfreeze, flips=flips)
    elif crops is not None:
        raise DensescoreError("--crops is for --from-scratch")
    from densescore.data.boxed_set import boxed_part, select_classes
    from densescore.io.checkpoint import checkpoint_folder
    from densescore.models.head import save_head
    from densescore.transfer.cross_validation import mean_ap
    from densescore.transfer.pipeline import describe_classes
    from densescore.transfer.recipe import RECIPES, change_recipe

    plan = change_recipe(
        RECIPES[recipe],
        rule=rule.change(RECIPES[recipe].rule),
        objective=objective,
        flips=flips,
        scales=cli.numbers(options.scales, "--scales") or None,
    )

    # Read the data set
    dataset = images.read(data, need_positives=from_scratch or unfreeze is not None)
    dropped = _check_subset([name.strip() for name in drop_classes.split(",") if name], dataset, "--drop-classes") or []
    chosen = _check_subset(classes.names, dataset) or dataset.classes
    dataset = select_classes(dataset, [name for name in chosen if name not in dropped])
    boxed = boxed_part(dataset)
    if (from_scratch or unfreeze) and not boxed.images:
        raise DensescoreError(f"{data}: --from-scratch and --unfreeze need images with boxes, and there are none")
    if boxes and not boxed.images:
        raise DensescoreError(f"{data}: --boxes needs images with boxes, and there are none")
    if boxes and (from_scratch or unfreeze):
        raise DensescoreError("--boxes needs a frozen network: leave out --from-scratch and --unfreeze")
    supervision = "boxes and labels" if len(boxed.images) == len(dataset.images) else "labels"
    if 0 < len(boxed.images) < len(dataset.images):
        supervision = f"labels, and boxes of {len(boxed.images):,} of them"
    notice(f"training on {len(dataset.images):,} images of {len(dataset.classes)} classes ({supervision})")

    # Train
    with checkpoint_folder(out) as checkpoint, Progress("steps") as progress:
        if from_scratch:
            from densescore.network.dense_network import find_device
            from densescore.paper.from_scratch import CROPS, train_from_scratch

            file = train_from_scratch(
                boxed, options.model, plan, seed, crops=crops or CROPS, device=find_device(options.device),
                checkpoint=checkpoint, track=lambda items: progress.track(items, "batches of the round", "batches"),
                callback=lambda done: notice(str(done)),
            )  # fmt: skip
        else:
            bar = TrainingBar(progress, len(dataset.images) * (1 + plan.flips))
            scorer = options.build(scales=plan.scales)
            shared: dict[str, Any] = {"track": bar.track, "callback": bar.callback}
            if unfreeze:
                from densescore.paper.train_fc6 import train_unfrozen

                file = train_unfrozen(boxed, scorer, cache.of, plan, seed, weights=options.weights, **shared)
            else:
                from densescore.transfer.pipeline import train_model

                shared |= {"boxes": boxes, "precision": precision, "strict": strict}
                file = train_model(dataset, scorer, cache.of(scorer), plan, seed, **shared)
        save_head(out, file, overwrite=overwrite)

    # Summarize
    rows = describe_classes(file)
    mean = mean_ap([row["ap"] for row in rows])
    if as_json:
        record = {"head": str(out), "images": len(dataset.images), "patches": file.training["patches"]}
        print_json({**record, "held_out_map": mean, "classes": rows})
        return
    print_table(
        ("class", "images", "AP", "yes is right", "finds", "advice"),
        [
            (
                row["label"],
                f"{row['images']:,}",
                fraction(row["ap"]),
                _percent(row["precision"], True),
                _percent(row["recall"]),
                row["advice"],
            )
            for row in rows
        ],
        title="Cross-validation on the training images",
        last=("mean", "", fraction(mean), "", "", ""),
    )
    info(f"{out} is ready. Try it:")
    info(f"densescore heatmap photo.jpg --model {shlex.quote(str(out))}")


@examples("densescore check --data photos/", "densescore check --data VOC2007 -o suspects.csv")
def check(
    *,
    data: cli.Data,
    images: cli.DataOptions = cli.DataOptions(),
    out: Annotated[Path | None, cli.out_option("Table of all suspects (.csv).")] = None,
    report: Annotated[Path | None, cli.option("Page with the pictures of all suspects (.html).")] = None,
    top: Annotated[PositiveInt, cli.option("Suspects to print.")] = 20,
    seed: cli.Seed = 0,
    overwrite: cli.Overwrite = False,
    as_json: cli.Json = False,
    options: TrainOptions = TrainOptions(),
    cache: cli.CacheOptions = cli.CacheOptions(),
) -> None:
    """List labels and boxes that look wrong, most suspect first, and pictures that repeat, in the set or in val."""
    # Check all arguments
    for path in (out, report):
        cli.check_new(path, overwrite, [data, *options.files])
    import csv

    from densescore.io.files import atomic_write
    from densescore.report.page import ClassSummary, write_report
    from densescore.report.sources import place_entry
    from densescore.transfer.label_check import Suspect, find_repeats, find_suspects, rate_labels
    from densescore.transfer.recipe import RECIPES, change_recipe

    plan = change_recipe(RECIPES["default"], scales=cli.numbers(options.scales, "--scales") or None)
    dataset = images.read(data)
    pictures = list(dataset.images)
    with suppress(DensescoreError):  # no such split
        pictures += replace(images, split="val").read(data).images

    # Cross-validate
    scorer = replace(options, model=options.model or "lite0-stages").build(scales=plan.scales)
    with Progress("steps") as progress:
        bar = TrainingBar(progress, len(dataset.images) * (1 + plan.flips))
        rated = rate_labels(dataset, scorer, cache.of(scorer), plan, seed, track=bar.track, callback=bar.callback)
    suspects = [*find_suspects(rated), *find_repeats(pictures)]

    # Write and print
    if out is not None:
        with atomic_write(out, overwrite=overwrite) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([Suspect._fields, *suspects])
    if report is not None:
        paths = {picture.name: picture.path for picture in pictures}
        entries = [
            place_entry(
                paths[each.image],
                ClassSummary(
                    label=each.problem.split()[0], title=f"{each.label} {each.problem}".strip(),
                    confidence=each.suspicion, boxes=[(*each.box, None)] if each.box else (),
                ),
            )
            for each in suspects
        ]  # fmt: skip
        text = f"{len(suspects):,} suspects of {dataset.name}, most suspect first."
        write_report(report, entries, {"text": text}, overwrite=overwrite, inputs=[*paths.values(), *options.files])
    if as_json:
        print_json({"images": len(dataset.images), "suspects": [each._asdict() for each in suspects]})
        return
    print_table(
        ("image", "class", "problem", "suspicion"),
        [(each.image, each.label, each.problem, f"{each.suspicion:.2f}") for each in suspects[:top]],
        title=f"{len(suspects):,} suspects among {len(dataset.images):,} images",
    )


def _percent(value: tuple[float, float, float] | None, interval: bool = False) -> str:
    if value is None:
        return "–"
    middle, low, high = (round(100 * share) for share in value)
    return f"{middle} % ({low}–{high})" if interval else f"{middle} %"


def _check_from_scratch(options: TrainOptions, **others: object) -> None:
    """Refuse options that --from-scratch ignores, naming them all."""
    allowed = TrainOptions(model=options.model, device=options.device, scales=options.scales)
    ignored = [name for name, value in vars(options).items() if value != getattr(allowed, name)]
    ignored += [name for name, value in others.items() if value is not None]
    if ignored:
        raise DensescoreError(
            "--from-scratch trains all layers, from random weights, on randomly mirrored crops: leave out "
            + ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
        )


def _check_subset(names: Sequence[str], dataset: "LabeledSet", option: str = "--classes") -> list[str] | None:
    """Names of the set's classes; None for all."""
    for name in names:
        if name not in dataset.classes:
            raise DensescoreError(f"{option}: the set has no class {name!r}, only {', '.join(dataset.classes)}")
    return list(names) or None


def _known_classes(dataset: "LabeledSet", scorer: "DenseScorer") -> Sequence[str]:
    """The set's classes that the model knows; a notice names the others. All, if it knows none."""
    others = [name for name in dataset.classes if name not in scorer.labels]
    if not others or len(others) == len(dataset.classes):
        return dataset.classes
    notice(f"not evaluated, since the model does not know them: {', '.join(others)}")
    return [name for name in dataset.classes if name not in others]


@examples(
    "densescore evaluate --data VOC2007 --set test --model head.safetensors",
    "densescore evaluate --data VOC2007 --set test --model head.safetensors --classes dog,cat -o results",
)
def evaluate(
    *,
    data: cli.Data,
    options: EvaluateOptions,
    images: cli.DataOptions = cli.DataOptions(split=""),
    classes: cli.ClassOptions = cli.ClassOptions(),
    out: Annotated[Path | None, cli.out_option("Folder for VOC result files, curves and pictures.")] = None,
    maps: Annotated[bool, cli.option("Evaluate localization and boxes as well.", negative="--no-maps")] = True,
    overwrite: cli.Overwrite = False,
    as_json: cli.Json = False,
    cache: cli.CacheOptions = cli.CacheOptions(),
) -> None:
    """Average precision and localization on a set, as in PASCAL VOC; means over all classes, or over --classes."""
    # Check all arguments
    options.check()
    from densescore.evaluation.voc_results import RESULTS, write_results

    cli.check_new(out, overwrite, [data, *options.files], RESULTS)
    from densescore.data.boxed_set import select_classes
    from densescore.evaluation.evaluate import calibration_error, evaluate_classes, mean_of, promises, score_set
    from densescore.transfer.pipeline import cached_scores

    # Score the images
    dataset = images.read(data)
    names = _check_subset(classes.names, dataset)
    scorer = options.build()
    dataset = select_classes(dataset, names or _known_classes(dataset, scorer))
    score = cached_scores(scorer, cache.of(scorer))
    with Progress() as progress:
        result = score_set(
            dataset, score, (scorer.k,), locate="heatmap" if maps else None, boxes=maps,
            track=lambda items: progress.track(items, "images"),
        )  # fmt: skip

    # Measure
    rows = evaluate_classes(result, scorer.k)
    metrics = {
        "ap": "AP", "ap_2007": "AP (2007 rule)", "pointing": "pointing", "located_ap": "AP score and location",
        "box_ap_30": "box AP 0.3", "box_ap_50": "0.5", "box_ap": "COCO",
    }  # fmt: skip
    means = {metric: mean_of(rows, metric) for metric in metrics}
    about = {
        "model": options.model, "context": scorer.context, "scales": scorer.scales, "means": means, "mean_over": names,
    }  # fmt: skip
    if out is not None:
        with Progress("classes") as progress:
            write_results(
                result, rows, scorer.k, out, about=about, score=score if maps else None,
                track=lambda items: progress.track(items, "curves and pictures"), overwrite=overwrite,
                inputs=[data, *options.files],
            )  # fmt: skip

    # Summarize
    kept, error = promises(result), calibration_error(result)
    if as_json:
        record = {**about, "set": dataset.name, "k": scorer.k, "classes": [asdict(row) for row in rows]}
        print_json({**record, "calibration_error": error, "promises": [asdict(row) for row in kept]})
        return
    print_table(
        ("class", "positives", *metrics.values()),
        [(row.label, row.positives, *(fraction(getattr(row, metric)) for metric in metrics)) for row in rows],
        title=f"{dataset.name}: {len(dataset.images)} images, k = {scorer.k:g}",
        last=("mean", "", *map(fraction, means.values())),
    )
    if error is not None:
        print_table(
            ("class", "answered yes", "right", "promised", "found of all"),
            [(row.label, row.yes, *map(fraction, (row.precision, row.promised, row.recall))) for row in kept],
            title=f"Answers; expected calibration error {error:.3f}",
        )


@examples("densescore tune-k --data VOC2007 --set val --model head.safetensors -o tuned.safetensors")
def tune_k(
    *,
    data: cli.Data,
    options: TuneOptions,
    images: cli.DataOptions = cli.DataOptions(split=""),
    ks: Annotated[str, cli.option("Exponents to try, separated by commas.")] = "1,1.5,2,3,4,5,6,7,8,10,12,16",
    classes: cli.ClassOptions = cli.ClassOptions(),
    out: Annotated[Path | None, cli.out_option("File for the head with the best k.")] = None,
    overwrite: cli.Overwrite = False,
    as_json: cli.Json = False,
    cache: cli.CacheOptions = cli.CacheOptions(),
) -> None:
    """Find the exponent k of the image score with the highest mean AP on a set, as the paper found 5."""
    # Check all arguments
    options.check()
    exponents = cli.numbers(ks, "--ks")
    if not exponents:
        raise DensescoreError("--ks: expected one or more exponents")
    cli.check_new(out, overwrite, [data, *options.files])
    from densescore.evaluation.evaluate import k_curve, score_set
    from densescore.models.head import load_head, save_head
    from densescore.transfer.pipeline import cached_scores

    # Score the images with each exponent
    dataset = images.read(data)
    names = _check_subset(classes.names, dataset)
    scorer = options.build()
    score = cached_scores(scorer, cache.of(scorer))
    with Progress() as progress:
        result = score_set(dataset, score, exponents, locate=None, track=lambda items: progress.track(items, "images"))
    curve = k_curve(result, classes=names)
    best, _ = max(curve, key=lambda point: (point[1], -point[0]))  # on a tie, the smallest k

    # Save and summarize
    if out is not None:
        head = load_head(options.model)
        if head.calibration is not None and best != head.k:  # fitted on scores at the old k
            notice(f"{out}: has no probabilities: those of {options.model} are for k = {head.k:g}, not {best:g}")
            head = replace(head, calibration=None)
        save_head(out, replace(head, k=best), overwrite=overwrite)
    if as_json:
        print_json({"set": dataset.name, "curve": [{"k": k, "map": value} for k, value in curve], "k": best})
        return
    print_table(
        ("k", "mAP"),
        [(f"{k:g}", f"{value:.4f}{'  best' if k == best else ''}") for k, value in curve],
        title=f"{dataset.name}: {len(dataset.images)} images",
        numeric=False,
    )
