"""The command for many images: ``densescore score``."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from densescore.cli.command import command
from densescore.cli.console import complain, note, say_json
from densescore.cli.images import Fps
from densescore.cli.options import ClassOptions, Json, Overwrite, ScorerOptions, one_of, out_option
from densescore.cli.progress import Progress

if TYPE_CHECKING:
    from densescore.jobs.many.rows import Row

Inputs = Annotated[
    list[str],
    typer.Argument(
        help="Folders, images, videos, patterns in quotes ('photos/**/*.jpg'), lists of paths (.txt), or - for a list "
        "on standard input.",
        show_default=False,
    ),
]
_WORK, _FORMS = "How the work is done", "Other forms of the table"


@dataclass(frozen=True)
class OtherForms:
    """Files beside the table; see `densescore.jobs.many.exports.Exports`."""

    csv: Annotated[
        Path | None,
        typer.Option("--csv", help="The table as CSV, for spreadsheets.", show_default=False, rich_help_panel=_FORMS),
    ] = None
    coco: Annotated[
        Path | None,
        typer.Option(
            "--coco", help="The regions as COCO's results (.json).", show_default=False, rich_help_panel=_FORMS
        ),
    ] = None
    yolo: Annotated[
        Path | None,
        typer.Option(
            "--yolo", help="Folder: the regions as YOLO's labels.", show_default=False, rich_help_panel=_FORMS
        ),
    ] = None


@command(
    "densescore score photos/ -o scores.parquet",
    "densescore score 'photos/**/*.jpg' -o scores.parquet --class goldfish --maps",
    "densescore score photos/ -o pets.parquet --classes dog,cat",
    "densescore score photos/ -o scores.parquet --csv scores.csv --coco results.json --yolo labels",
    "densescore score clip.mp4 photos/ -o scores.parquet --fps 2",
)
def score(
    inputs: Inputs,
    out: Annotated[Path, out_option("The table (.parquet): one row per image or frame.")],
    fps: Fps = None,
    top: Annotated[int, typer.Option(help="Classes to rank per image.", min=1)] = 5,
    all_scores: Annotated[bool, typer.Option("--all-scores", help="Also the scores of all classes.")] = False,
    mapped: Annotated[int, typer.Option(help="As many of the best classes are mapped: regions, maps.", min=0)] = 1,
    classes: ClassOptions = ClassOptions(),
    maps: Annotated[bool, typer.Option("--maps", help="Keep response maps, in a zarr folder beside --out.")] = False,
    patch_scores: Annotated[
        bool, typer.Option("--patch-scores", help="Keep all patches' scores and boxes there.")
    ] = False,
    forms: OtherForms = OtherForms(),
    overwrite: Overwrite = False,
    as_json: Json = False,
    options: ScorerOptions = ScorerOptions(),
    decoders: Annotated[
        int | None,
        typer.Option(
            help="Threads that decode ahead; by default 1, or with a GPU one per processor, up to 8.",
            min=1,
            show_default=False,
            rich_help_panel=_WORK,
        ),
    ] = None,
    part_size: Annotated[
        int, typer.Option(help="Images per part: the most that a kill can cost.", min=1, rich_help_panel=_WORK)
    ] = 64,
    engine: Annotated[
        str, typer.Option(help="local, or ray: workers of a Ray cluster, one model each.", rich_help_panel=_WORK)
    ] = "local",
    address: Annotated[
        str,
        typer.Option(
            help="Of the Ray cluster; by default a new one on this machine.", show_default=False, rich_help_panel=_WORK
        ),
    ] = "",
    workers: Annotated[
        int | None,
        typer.Option(help="Models at work in the cluster; by default all fit.", min=1, rich_help_panel=_WORK),
    ] = None,
    cpus: Annotated[float, typer.Option(help="Processors per worker.", rich_help_panel=_WORK)] = 1,
) -> None:
    """Score many images into one table. Stopped or killed, the same command goes on where it was."""
    started = time.monotonic()
    options.arguments()
    one_of(engine, ("local", "ray"), "--engine")
    options.check_classes(classes.names)
    from densescore.jobs.many.exports import Exports
    from densescore.jobs.many.inputs import find_inputs
    from densescore.jobs.many.ray_engine import ray_engine
    from densescore.jobs.many.rows import Kept
    from densescore.jobs.many.table import local_engine, score_table

    paths = find_inputs(inputs, fps)
    exports, files = Exports(**vars(forms)), [*paths, *options.files]
    exports.check(out, regions=bool(mapped or classes.names), overwrite=overwrite, inputs=files)
    scorer = options.build()
    kept = Kept(top, all_scores, mapped, classes.among(scorer.labels), maps, patch_scores)
    if engine == "local":
        work = local_engine(scorer, decoders)
    else:  # the workers use the device and the runtime that were chosen here
        arguments = {**options.arguments(), "device": scorer.device.type, "runtime": scorer.runtime}
        work = ray_engine(arguments, address=address or None, workers=workers, cpus=cpus)
    counts = {"images": len(paths), "before": 0, "scored": 0, "failed": 0}
    with Progress() as progress:
        task = progress.add("images", len(paths))

        def callback(found: int, rows: "Sequence[Row]") -> None:
            counts["before"] += found
            counts["scored"] += len(rows)
            for row in rows:
                if row["error"] is not None:
                    counts["failed"] += 1
                    complain(("" if row["image"] in row["error"] else f"{row['image']}: ") + row["error"])
            progress.update(task, counts["before"] + counts["scored"], failed=counts["failed"])

        try:
            counts["failed"] = score_table(
                paths,
                out,
                scorer,
                kept,
                part_size=part_size,
                overwrite=overwrite,
                inputs=options.files,
                engine=work,
                callback=callback,
            )
        except KeyboardInterrupt:
            note(f"stopped; what is done is in {out}.parts, and the same command goes on")
            raise typer.Exit(130) from None
    exports.write(out, overwrite=overwrite, inputs=files)
    _summarize([out, *exports.places.values()], counts, time.monotonic() - started, as_json)
    if counts["failed"]:
        raise typer.Exit(1)


def _summarize(out: Sequence[Path], counts: dict[str, int], seconds: float, as_json: bool) -> None:
    if as_json:
        say_json({"out": str(out[0]), "beside": list(map(str, out[1:])), **counts, "seconds": round(seconds, 3)})
        return
    text = f"{', '.join(map(str, out))}: {counts['images']:,} images"
    if counts["before"]:
        text += f", {counts['before']:,} of them scored before"
    if counts["failed"]:
        text += f"; {counts['failed']:,} failed, see the column error"
    note(text)
