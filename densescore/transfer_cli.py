"""The commands for a user's own classes: ``densescore labels | train | evaluate | tune-k``."""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table

from densescore.cli_common import Context, Device, Scales, err, numbers, readable_errors
from densescore.data.boxed import BoxedSet
from densescore.data.load import load_boxed
from densescore.data.patch_labels import AMBIGUOUS, LabelRule, label_patches
from densescore.devkit import write_results
from densescore.engine import DenseScorer
from densescore.evaluation import evaluate_classes, k_curve, mean_of, score_set
from densescore.files import written_whole
from densescore.geometry import PAPER_SCALES, Pyramid
from densescore.image import read_image
from densescore.models.adaptation import load_head, save_head
from densescore.pictures import draw_patch_labels
from densescore.transfer.cache import DEFAULT_BYTES, DEFAULT_CACHE, FeatureCache
from densescore.transfer.pipeline import cached_scores, train_model
from densescore.transfer.recipe import RECIPES
from densescore_kernels.errors import DensescoreError

app = typer.Typer()
_out = Console()

Data = Annotated[Path, typer.Option(help="Folder in VOC's, COCO's or YOLO's layout.", show_default=False)]
Split = Annotated[str, typer.Option("--set", help="Image set of the data.")]
Head = Annotated[str, typer.Option(help="A trained head (.safetensors).", show_default=False)]
Cache = Annotated[Path, typer.Option(help="Folder in which features are kept.")]
CacheSize = Annotated[float, typer.Option(help="Most that it may hold, in GB.", min=0)]
Classes = Annotated[str, typer.Option(help="Mean over these classes only, with commas between.")]
PatchShare = Annotated[float, typer.Option(help="Least share of a positive patch that its object fills.")]
ObjectShare = Annotated[float, typer.Option(help="Least share of the object that a positive patch holds.")]
Overlap = Annotated[str, typer.Option(help="What overlaps a second object: touch, part, rule or class.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of tables.")]


def _progress() -> Progress:
    return Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=err, transient=True)


def _tracked(progress: Progress, description: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    return lambda items: progress.track(items, description=description)


def _chosen(classes: str, boxed: BoxedSet) -> list[str] | None:
    names = [name.strip() for name in classes.split(",")] if classes else None
    for name in names or []:
        if name not in boxed.classes:
            raise DensescoreError(f"--classes: the set has no class {name!r}, only {', '.join(boxed.classes)}")
    return names


def _scorer(model: str, scales: str, device: str, k: float | None = None) -> DenseScorer:
    return DenseScorer(model, scales=numbers(scales, "--scales") if scales else None, device=device, k=k)


def _cache(scorer: DenseScorer, folder: Path, size: float, context: str) -> FeatureCache:
    return FeatureCache(scorer, folder, max_bytes=int(size * 1e9), context=context)  # type: ignore[arg-type]


@app.command()
def labels(
    image: Annotated[str, typer.Argument(help="Name of an image of the set.", show_default=False)],
    data: Data,
    split: Split = "train",
    out: Annotated[Path | None, typer.Option(help="The PNG; <image>_labels.png by default.")] = None,
    scales: Scales = "",
    patch_share: PatchShare = LabelRule.patch_share,
    object_share: ObjectShare = LabelRule.object_share,
    overlap: Overlap = LabelRule.overlap,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Count an image's labelled patches, and draw examples of them (the paper's Figure 4)."""
    with readable_errors():
        rule = LabelRule(patch_share, object_share, overlap)  # type: ignore[arg-type]
        boxed = load_boxed(data, split)
        found = next((item for item in boxed.images if item.name == Path(image).stem), None)
        if found is None:
            raise DensescoreError(f"{data}: set {split!r} has no image {image!r}")
        chosen = numbers(scales, "--scales") if scales else PAPER_SCALES
        patches = Pyramid.of(found.height, found.width, scales=chosen).boxes()
        given = label_patches(patches, found.boxes, found.classes, len(boxed.classes), rule, found.difficult)
        path = out or Path(f"{found.name}_labels.png")
        with written_whole(path, overwrite=overwrite) as temporary:
            draw_patch_labels(read_image(found.path), patches, given, found, boxed.classes, temporary)
        names = {**dict(enumerate(boxed.classes)), len(boxed.classes): "background", AMBIGUOUS: "left out"}
        counts = {
            names[int(label)]: int(count) for label, count in zip(*np.unique(given, return_counts=True), strict=True)
        }
        if as_json:
            print(json.dumps({"image": found.name, "picture": str(path), "patches": counts}))
            return
        table = Table("label", "patches", title=f"{found.name}: {path}", title_justify="left")
        for name, count in counts.items():
            table.add_row(name, str(count))
        _out.print(table)


@app.command()
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="The head's file (.safetensors).", show_default=False)],
    model: Annotated[str, typer.Option(help="A name that `densescore models` lists.")] = "lite0",
    split: Split = "train",
    recipe: Annotated[str, typer.Option(help=f"{' or '.join(RECIPES)}.")] = "default",
    objective: Annotated[str, typer.Option(help="softmax or multilabel, instead of the recipe's.")] = "",
    flips: Annotated[bool | None, typer.Option(help="Train on mirror images, too; by default as the recipe.")] = None,
    scales: Scales = "",
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
        if out.suffix != ".safetensors":
            raise DensescoreError(f"--out: a head's file ends in .safetensors, got {out}")
        if out.exists() and not overwrite:  # before the work, not after
            raise DensescoreError(f"{out}: exists already; choose another --out, or --overwrite")
        if recipe not in RECIPES:
            raise DensescoreError(f"--recipe: expected {' or '.join(RECIPES)}, got {recipe!r}")
        plan = RECIPES[recipe]
        if objective:
            plan = replace(plan, objective=objective)  # type: ignore[arg-type]
        if flips is not None:
            plan = replace(plan, flips=flips)
        boxed = load_boxed(data, split, need_positives=True)
        if scales:
            plan = replace(plan, scales=numbers(scales, "--scales"), test_scales=None)
        scorer = DenseScorer(model, scales=plan.scales, device=device)
        checkpoint = out.with_suffix(".checkpoint")
        losses: list[float] = []
        with _progress() as progress:

            def report(stage: int, number: int, loss: float) -> None:
                losses.append(loss)
                progress.console.print(f"stage {stage + 1}, round {number + 1}: loss {loss:.4f}")

            file = train_model(
                boxed,
                scorer,
                _cache(scorer, cache, cache_size, context),
                plan,
                seed,
                checkpoint=checkpoint,
                track=_tracked(progress, "features"),
                report=report,
            )
        save_head(out, file, overwrite=overwrite)
        shutil.rmtree(checkpoint, ignore_errors=True)
        counts = file.training["patches"]
        if as_json:
            last = losses[-1] if losses else None
            print(json.dumps({"head": str(out), "images": len(boxed.images), "patches": counts, "loss": last}))
            return
        table = Table("class", "patches", title=f"{out}: trained on {len(boxed.images)} images", title_justify="left")
        for name, count in counts.items():
            table.add_row(name, f"{count:,}")
        _out.print(table)


@app.command()
def evaluate(
    data: Data,
    model: Head,
    split: Split = "val",
    k: Annotated[float | None, typer.Option("--k", help="Exponent of the image score; by default the head's.")] = None,
    classes: Classes = "",
    out: Annotated[Path | None, typer.Option(help="Folder for VOC result files, curves and pictures.")] = None,
    scales: Scales = "",
    maps: Annotated[bool, typer.Option(help="Also localisation, from response maps.")] = True,
    device: Device = "auto",
    context: Context = "image",
    cache: Cache = DEFAULT_CACHE,
    cache_size: CacheSize = DEFAULT_BYTES / 1e9,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Average precision and localisation on a set, as PASCAL VOC counts them."""
    with readable_errors():
        if out is not None and out.exists() and not overwrite:
            raise DensescoreError(f"{out}: exists already; choose another --out, or --overwrite")
        boxed = load_boxed(data, split)
        names = _chosen(classes, boxed)
        scorer = _scorer(model, scales, device, k)
        score = cached_scores(scorer, _cache(scorer, cache, cache_size, context))
        with _progress() as progress:
            result = score_set(
                boxed, score, (scorer.k,), locate="shrunk" if maps else None, track=_tracked(progress, "images")
            )
        rows = evaluate_classes(result, scorer.k)
        fields = ("ap", "ap_2007", "pointing", "located_ap")
        means = {field: mean_of(rows, field, names) for field in fields}
        about = {"model": model, "context": context, "scales": scorer.scales, "means": means, "mean_over": names}
        if out is not None:
            drawn = score if maps else None
            write_results(result, rows, scorer.k, out, about=about, score=drawn, overwrite=overwrite)
        if as_json:
            print(json.dumps({**about, "set": split, "k": scorer.k, "classes": [asdict(row) for row in rows]}))
            return
        table = Table(title=f"{split}: {len(boxed.images)} images, k = {scorer.k:g}", title_justify="left")
        for heading in ("class", "positives", "AP", "AP (2007 rule)", "pointing", "AP score and location"):
            table.add_column(heading, justify="left" if heading == "class" else "right")
        for row in rows:
            table.add_row(row.label, str(row.positives), *(_share(getattr(row, field)) for field in fields))
        table.add_section()
        table.add_row("mean", "", *(_share(means[field]) for field in fields))
        _out.print(table)


@app.command("tune-k")
def tune_k(
    data: Data,
    model: Head,
    split: Split = "val",
    ks: Annotated[str, typer.Option(help="Exponents to try, with commas between.")] = "1,1.5,2,3,4,5,6,7,8,10,12,16",
    classes: Classes = "",
    out: Annotated[Path | None, typer.Option(help="Write the head, with the chosen k, to this file.")] = None,
    scales: Scales = "",
    device: Device = "auto",
    context: Context = "image",
    cache: Cache = DEFAULT_CACHE,
    cache_size: CacheSize = DEFAULT_BYTES / 1e9,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find the exponent of the image score with the best mean AP on a set, as the paper found 5."""
    with readable_errors():
        if out is not None and out.exists() and not overwrite:
            raise DensescoreError(f"{out}: exists already; choose another --out, or --overwrite")
        boxed = load_boxed(data, split)
        names = _chosen(classes, boxed)
        scorer = _scorer(model, scales, device)
        score = cached_scores(scorer, _cache(scorer, cache, cache_size, context))
        with _progress() as progress:
            result = score_set(boxed, score, numbers(ks, "--ks"), locate=None, track=_tracked(progress, "images"))
        curve = k_curve(result, classes=names)
        best = max(curve, key=lambda point: (point[1], -point[0]))  # the smallest of equals
        if out is not None:
            save_head(out, replace(load_head(model), k=best[0]), overwrite=overwrite)
        if as_json:
            print(json.dumps({"set": split, "curve": [{"k": k, "map": value} for k, value in curve], "k": best[0]}))
            return
        table = Table("k", "mAP", title=f"{split}: {len(boxed.images)} images", title_justify="left")
        for k, value in curve:
            table.add_row(f"{k:g}", f"{value:.4f}{'  best' if k == best[0] else ''}")
        _out.print(table)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
