"""The command for images too large for memory: ``densescore huge``."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from densescore.cli.options import (
    Device,
    DType,
    K,
    Model,
    RuntimeOption,
    Stride,
    Weights,
    err,
    numbers,
    readable_errors,
    scorer_options,
)
from densescore.jobs.huge import score_huge
from densescore.scoring.scorer import DenseScorer

app = typer.Typer()
_out = Console()


@app.command()
def huge(
    image: Annotated[Path, typer.Argument(help="A TIFF, BigTIFF, GeoTIFF or zarr image.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write to, or to go on with.", show_default=False)],
    patch_sizes: Annotated[str, typer.Option(help="Sides of the patches in image pixels, with commas.")] = "224,448",
    classes: Annotated[str, typer.Option(help="Classes to map, with commas between.")] = "",
    top: Annotated[int, typer.Option(help="Without --classes: as many of the best.", min=1)] = 1,
    model: Model = "lite0",
    weights: Weights = "default",
    stride: Stride = None,
    k: K = None,
    map_step: Annotated[int, typer.Option(help="Image pixels per pixel of the maps.", min=1)] = 1,
    memory: Annotated[float, typer.Option(help="GB for one tile in the network.")] = 1.0,
    bands: Annotated[str, typer.Option(help="Channels to read, from 0, with commas: 0,1,2.")] = "",
    device: Device = "auto",
    dtype: DType = "auto",
    runtime: RuntimeOption = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew where the folder holds other scores.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The result as one JSON object.")] = False,
) -> None:
    """Score an image too large for memory, tile by tile; killed and run again, it goes on where it was."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with readable_errors(), Progress(*columns, console=err, transient=True) as progress:

        def track(items: Sequence[Any], description: str) -> Iterable[Any]:
            return progress.track(items, description=description)

        scorer = DenseScorer(**scorer_options(model, weights, "", patch_sizes, k, device, dtype, runtime, stride))
        result = score_huge(
            scorer,
            image,
            out,
            classes=classes.split(",") if classes else (),
            top=top,
            map_step=map_step,
            memory=memory,
            bands=[int(band) for band in numbers(bands, "--bands")] if bands else None,
            overwrite=overwrite,
            inputs=[model, weights],
            track=track,
        )
    if as_json:
        print(json.dumps(result))
        return
    for entry in result["classes"]:
        _out.print(f"{out / entry['map']}  {entry['label']}: map peak {entry['map_maximum']:.3f}", soft_wrap=True)
