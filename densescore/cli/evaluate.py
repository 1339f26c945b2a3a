"""The commands that measure a head: ``densescore evaluate | tune-k``."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

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
    check_new,
    feature_cache,
    numbers,
    progress_bar,
    readable_errors,
    tracked,
)
from densescore.data.boxed_set import BoxedSet
from densescore.data.load import load_boxed
from densescore.errors import DensescoreError
from densescore.evaluation.evaluate import evaluate_classes, k_curve, mean_of, score_set
from densescore.evaluation.voc_results import RESULTS, write_results
from densescore.models.adaptation import load_head, save_head
from densescore.scoring.scorer import DenseScorer
from densescore.transfer.feature_cache import DEFAULT_BYTES, DEFAULT_CACHE
from densescore.transfer.pipeline import cached_scores

app = typer.Typer()
_out = Console()

Head = Annotated[str, typer.Option(help="A trained head (.safetensors).", show_default=False)]
Classes = Annotated[str, typer.Option(help="Mean over these classes only, with commas between.")]


def _chosen(classes: str, boxed: BoxedSet) -> list[str] | None:
    names = [name.strip() for name in classes.split(",")] if classes else None
    for name in names or []:
        if name not in boxed.classes:
            raise DensescoreError(f"--classes: the set has no class {name!r}, only {', '.join(boxed.classes)}")
    return names


def _scorer(model: str, weights: str, scales: str, device: str, k: float | None = None) -> DenseScorer:
    chosen = numbers(scales, "--scales") if scales else None
    return DenseScorer(model, weights=weights, scales=chosen, device=device, k=k)


@app.command()
def evaluate(
    data: Data,
    model: Head,
    weights: NetworkWeights = "default",
    split: Split = "val",
    k: Annotated[float | None, typer.Option("--k", help="Exponent of the image score; by default the head's.")] = None,
    classes: Classes = "",
    out: Annotated[Path | None, typer.Option(help="Folder for VOC result files, curves and pictures.")] = None,
    scales: Scales = "",
    maps: Annotated[bool, typer.Option(help="Also localization, from response maps.")] = True,
    device: Device = "auto",
    context: Context = "image",
    cache: Cache = DEFAULT_CACHE,
    cache_size: CacheSize = DEFAULT_BYTES / 1e9,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Average precision and localization on a set, as PASCAL VOC counts them."""
    with readable_errors():
        check_new(out, overwrite, [data, model, weights], RESULTS)
        boxed = load_boxed(data, split)
        names = _chosen(classes, boxed)
        scorer = _scorer(model, weights, scales, device, k)
        score = cached_scores(scorer, feature_cache(scorer, cache, cache_size, context))
        with progress_bar() as progress:
            result = score_set(
                boxed, score, (scorer.k,), locate="shrunk" if maps else None, track=tracked(progress, "images")
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
    weights: NetworkWeights = "default",
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
        check_new(out, overwrite, [data, model, weights])
        boxed = load_boxed(data, split)
        names = _chosen(classes, boxed)
        scorer = _scorer(model, weights, scales, device)
        score = cached_scores(scorer, feature_cache(scorer, cache, cache_size, context))
        with progress_bar() as progress:
            result = score_set(boxed, score, numbers(ks, "--ks"), locate=None, track=tracked(progress, "images"))
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
