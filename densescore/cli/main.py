"""The command line: all commands; those of this file are ``classify``, ``heatmap`` and ``models``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table

import densescore
from densescore.cli.actions import app as actions_app
from densescore.cli.demo import app as demo_app
from densescore.cli.evaluate import app as evaluation_app
from densescore.cli.export import app as model_export_app
from densescore.cli.huge import app as huge_app
from densescore.cli.options import (
    Calibration,
    Context,
    Device,
    DType,
    K,
    Model,
    PatchSizes,
    RuntimeOption,
    Scales,
    Stride,
    Weights,
    check_new,
    err,
    readable_errors,
    scorer_options,
)
from densescore.cli.pretrain import app as pretrain_app
from densescore.cli.reproduce import app as reproduce_app
from densescore.cli.score import app as many_app
from densescore.cli.train import app as transfer_app
from densescore.errors import DensescoreError
from densescore.io.files import clear_scratch
from densescore.io.find_images import list_images
from densescore.io.images import read_image
from densescore.io.names import folder_names
from densescore.models import MODELS
from densescore.results.heatmaps import HEATMAPS, describe, export_heatmaps
from densescore.results.scores import find_label
from densescore.scoring.scorer import DenseScorer

app = typer.Typer(
    help="Score every patch of an image at every scale in one fully convolutional pass.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(transfer_app)
app.add_typer(evaluation_app)
app.add_typer(many_app)
app.add_typer(pretrain_app)
app.add_typer(actions_app)
app.add_typer(reproduce_app)
app.add_typer(huge_app)
app.add_typer(model_export_app)
app.add_typer(demo_app)
_out = Console()

Images = Annotated[list[Path], typer.Argument(help="Image files, or folders of them.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per line instead of tables.")]


def _each(paths: list[Path], as_json: bool, work: Callable[[Path], None]) -> None:
    """Do `work` on every image; one that fails is reported, and the rest go on. Exits with 1 if any failed."""
    failed = 0
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=err, transient=True, disable=len(paths) == 1) as progress:
        for path in progress.track(paths, description="images"):
            try:
                work(path)
            except DensescoreError as error:
                failed += 1
                if as_json:
                    print(json.dumps({"image": str(path), "error": str(error)}), flush=True)
                err.print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
    if failed:
        err.print(f"{failed} of {len(paths)} images failed", highlight=False)
        raise typer.Exit(1)


@app.command()
def classify(
    images: Images,
    model: Model = "lite0",
    weights: Weights = "default",
    top: Annotated[int, typer.Option(help="Classes to name per image.", min=1)] = 5,
    scales: Scales = "",
    patch_sizes: PatchSizes = "",
    stride: Stride = None,
    k: K = None,
    device: Device = "auto",
    dtype: DType = "auto",
    calibration: Calibration = None,
    runtime: RuntimeOption = "auto",
    context: Context = "image",
    as_json: Json = False,
) -> None:
    """Rank the classes of each image by the paper's score, the mean k-th power of its patches' scores."""
    with readable_errors():
        paths = list_images(images)
        scorer = DenseScorer(
            **scorer_options(model, weights, scales, patch_sizes, k, device, dtype, runtime, stride, calibration)
        )

        def work(path: Path) -> None:
            scores = scorer.score(path, context=context)  # type: ignore[arg-type]
            if as_json:
                record = describe(scores, str(path))
                record["top"] = [ranked._asdict() for ranked in scores.top(top)]
                print(json.dumps(record), flush=True)
                return
            table = Table(title=str(path), title_justify="left", title_style="bold")
            table.add_column("class")
            table.add_column("score", justify="right")
            table.add_column("best patch", justify="right")
            for label, score in scores.top(top):
                best = scores.patch_scores[:, scores.index(label)].max().item()
                table.add_row(label, f"{score:.4f}", f"{best:.3f}")
            _out.print(table)

        _each(paths, as_json, work)


@app.command()
def heatmap(
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder to write to: one folder inside per image.")] = Path("heatmaps"),
    classes: Annotated[str, typer.Option(help="Classes to map, with commas between.")] = "",
    top: Annotated[int, typer.Option(help="Without --classes: as many of the best.", min=1)] = 1,
    model: Model = "lite0",
    weights: Weights = "default",
    scales: Scales = "",
    patch_sizes: PatchSizes = "",
    stride: Stride = None,
    k: K = None,
    device: Device = "auto",
    dtype: DType = "auto",
    calibration: Calibration = None,
    runtime: RuntimeOption = "auto",
    context: Context = "image",
    rescale: Annotated[
        bool, typer.Option("--rescale", help="Colors from each map's own minimum to its maximum, not from 0 to 1.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write response maps: per class an overlay PNG and the raw map (npz), per image one manifest.json."""
    with readable_errors():
        paths = list_images(images)
        scorer = DenseScorer(
            **scorer_options(model, weights, scales, patch_sizes, k, device, dtype, runtime, stride, calibration)
        )
        chosen = [label.strip() for label in classes.split(",")] if classes else []
        for label in chosen:
            find_label(label, scorer.labels)
        folders = dict(zip(paths, folder_names(path.stem for path in paths), strict=True))
        inputs = [*paths, *map(Path, (model, weights))]
        clear_scratch(out)  # of killed runs

        def work(path: Path) -> None:
            folder = out / folders[path]
            check_new(folder, overwrite, inputs, HEATMAPS)
            pixels = read_image(path)
            scores = scorer.score(pixels, context=context)  # type: ignore[arg-type]
            labels = chosen or [best.label for best in scores.top(top)]
            value_range = None if rescale else (0.0, 1.0)
            manifest = export_heatmaps(
                scores, pixels, labels, folder,
                source=str(path), value_range=value_range, overwrite=overwrite, inputs=inputs,
            )  # fmt: skip
            if as_json:
                print(json.dumps({"folder": str(folder), **manifest}), flush=True)
                return
            for entry in manifest["classes"]:
                peak = entry["map_maximum"]
                _out.print(f"{folder / entry['overlay']}  {entry['label']}: map peak {peak:.3f}", soft_wrap=True)

        _each(paths, as_json, work)


@app.command()
def models(as_json: Json = False) -> None:
    """List the named networks, with the license and origin of their weights."""
    if as_json:
        for name, entry in MODELS.items():
            fields = ("description", "license", "origin", "mean", "std", "patch_size")
            print(json.dumps({"name": name, **{key: getattr(entry, key) for key in fields}}))
        return
    table = Table("name", "network", "P", "license of the weights", "origin")
    for name, entry in MODELS.items():
        table.add_row(name, entry.description, str(entry.patch_size), entry.license, entry.origin)
    _out.print(table)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"densescore {densescore.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Score every patch of an image at every scale in one fully convolutional pass."""
