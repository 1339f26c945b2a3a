"""The command for images too large for memory: ``densescore huge``."""

from pathlib import Path
from typing import Annotated

import typer

from densescore.cli.command import Without, command
from densescore.cli.console import describe_map, say, say_json
from densescore.cli.options import ClassOptions, Json, ScorerOptions, numbers, out_option
from densescore.cli.progress import Progress


@command(
    "densescore huge slide.tif -o slide-scores --classes 'sea urchin'",
    "densescore huge scene.tif -o scene-scores --model trees.safetensors --patch-sizes 128,256 --map-step 8",
)
def huge(
    image: Annotated[Path, typer.Argument(help="A TIFF, BigTIFF, GeoTIFF or zarr image.", show_default=False)],
    out: Annotated[Path, out_option("Folder to write to, or to go on with.")],
    classes: ClassOptions = ClassOptions(),
    top: Annotated[int, typer.Option(help="Without --classes: map as many of the best.", min=1)] = 1,
    map_step: Annotated[int, typer.Option(help="Image pixels per pixel of the maps.", min=1)] = 1,
    memory: Annotated[float, typer.Option(help="GB for one tile in the network.")] = 1.0,
    bands: Annotated[str, typer.Option(help="Channels to read, from 0, with commas between: 0,1,2.")] = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start again where the folder holds other scores.")
    ] = False,
    as_json: Json = False,
    options: Annotated[ScorerOptions, Without("scales")] = ScorerOptions(patch_sizes="224,448"),
) -> None:
    """Score an image too large for memory, tile by tile. Stopped or killed, the same command goes on where it was."""
    options.arguments()
    options.check_classes(classes.names)
    channels = [int(band) for band in numbers(bands, "--bands")] if bands else None
    from densescore.jobs.huge.scoring import score_huge

    scorer = options.build()
    with Progress("tiles") as progress:
        result = score_huge(
            scorer,
            image,
            out,
            classes=classes.names,
            top=top,
            map_step=map_step,
            memory=memory,
            bands=channels,
            overwrite=overwrite,
            inputs=options.files,
            track=progress.track,
        )
    if as_json:
        say_json(result)
        return
    for entry in result["classes"]:
        say(f"{out / entry['map']}  {describe_map(entry)}")
