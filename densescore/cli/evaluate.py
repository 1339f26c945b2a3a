"""The commands that measure a head: ``densescore evaluate | tune-k``."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from densescore.cli.command import Without, command
from densescore.cli.console import say_json, share, show_table
from densescore.cli.options import ClassOptions, Json, Overwrite, ScorerOptions, check_new, numbers, out_option
from densescore.cli.progress import Progress
from densescore.cli.training_options import CacheOptions, Data, DataOptions
from densescore.errors import DensescoreError

if TYPE_CHECKING:
    from densescore.data.labeled_set import LabeledSet

Head = Annotated[str, typer.Option("--model", help="A trained head (.safetensors).", show_default=False)]


def _chosen(names: Sequence[str], boxed: "LabeledSet") -> list[str] | None:
    """The classes to take the mean over; None for all."""
    for name in names:
        if name not in boxed.classes:
            raise DensescoreError(f"--classes: the set has no class {name!r}, only {', '.join(boxed.classes)}")
    return list(names) or None


@command(
    "densescore evaluate --data VOC2007 --set test --model head.safetensors",
    "densescore evaluate --data VOC2007 --set test --model head.safetensors --classes dog,cat -o results",
)
def evaluate(
    data: Data,
    model: Head,
    chosen: DataOptions = DataOptions(split="val"),
    classes: ClassOptions = ClassOptions(),
    out: Annotated[
        Path | None,
        out_option("Folder for VOC result files, curves and pictures."),
    ] = None,
    maps: Annotated[bool, typer.Option(help="Also localization and boxes.")] = True,
    overwrite: Overwrite = False,
    as_json: Json = False,
    options: Annotated[ScorerOptions, Without("model patch_sizes labels")] = ScorerOptions(),
    cache: CacheOptions = CacheOptions(),
) -> None:
    """Average precision and localization on a set, as PASCAL VOC counts them; --classes: the mean over these only."""
    options = replace(options, model=model)
    options.arguments()
    from densescore.evaluation.voc_results import RESULTS, write_results

    check_new(out, overwrite, [data, *options.files], RESULTS)
    from densescore.evaluation.evaluate import evaluate_classes, mean_of, score_set
    from densescore.transfer.pipeline import cached_scores

    boxed = chosen.read(data)
    names = _chosen(classes.names, boxed)
    scorer = options.build()
    score = cached_scores(scorer, cache.of(scorer))
    with Progress() as progress:
        result = score_set(
            boxed,
            score,
            (scorer.k,),
            locate="shrunk" if maps else None,
            boxes=maps,
            track=lambda images: progress.track(images, "images"),
        )
    rows = evaluate_classes(result, scorer.k)
    fields = ("ap", "ap_2007", "pointing", "located_ap", "box_ap_30", "box_ap_50", "box_ap")
    means = {field: mean_of(rows, field, names) for field in fields}
    about = {"model": model, "context": scorer.context, "scales": scorer.scales, "means": means, "mean_over": names}
    if out is not None:
        drawn = score if maps else None
        with Progress("classes") as progress:
            write_results(
                result,
                rows,
                scorer.k,
                out,
                about=about,
                score=drawn,
                track=lambda names: progress.track(names, "curves and pictures"),
                overwrite=overwrite,
                inputs=[data, *options.files],
            )
    if as_json:
        say_json({**about, "set": chosen.split, "k": scorer.k, "classes": [asdict(row) for row in rows]})
        return
    show_table(
        (
            "class",
            "positives",
            "AP",
            "AP (2007 rule)",
            "pointing",
            "AP score and location",
            "box AP 0.3",
            "0.5",
            "COCO",
        ),
        [(row.label, row.positives, *(share(getattr(row, field)) for field in fields)) for row in rows],
        title=f"{chosen.split}: {len(boxed.images)} images, k = {scorer.k:g}",
        last=("mean", "", *(share(means[field]) for field in fields)),
    )


@command("densescore tune-k --data VOC2007 --set val --model head.safetensors -o tuned.safetensors")
def tune_k(
    data: Data,
    model: Head,
    chosen: DataOptions = DataOptions(split="val"),
    ks: Annotated[str, typer.Option(help="Exponents to try, with commas between.")] = "1,1.5,2,3,4,5,6,7,8,10,12,16",
    classes: ClassOptions = ClassOptions(),
    out: Annotated[
        Path | None,
        out_option("Write the head, with the chosen k, to this file."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    options: Annotated[ScorerOptions, Without("model patch_sizes k labels")] = ScorerOptions(),
    cache: CacheOptions = CacheOptions(),
) -> None:
    """Find the exponent of the image score with the best mean AP on a set, as the paper found 5."""
    options = replace(options, model=model)
    options.arguments()
    tried = numbers(ks, "--ks")
    check_new(out, overwrite, [data, *options.files])
    from densescore.evaluation.evaluate import k_curve, score_set
    from densescore.models.adaptation import load_head, save_head
    from densescore.transfer.pipeline import cached_scores

    boxed = chosen.read(data)
    names = _chosen(classes.names, boxed)
    scorer = options.build()
    score = cached_scores(scorer, cache.of(scorer))
    with Progress() as progress:
        result = score_set(boxed, score, tried, locate=None, track=lambda images: progress.track(images, "images"))
    curve = k_curve(result, classes=names)
    best = max(curve, key=lambda point: (point[1], -point[0]))  # the smallest of equals
    if out is not None:
        save_head(out, replace(load_head(model), k=best[0]), overwrite=overwrite)
    if as_json:
        say_json({"set": chosen.split, "curve": [{"k": k, "map": value} for k, value in curve], "k": best[0]})
        return
    show_table(
        ("k", "mAP"),
        [(f"{k:g}", f"{value:.4f}{'  best' if k == best[0] else ''}") for k, value in curve],
        title=f"{chosen.split}: {len(boxed.images)} images",
        numeric=False,
    )
