"""The command for many images: ``densescore score``."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

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
    err,
    readable_errors,
    scorer_options,
)
from densescore.errors import DensescoreError
from densescore.jobs.many.inputs import find_inputs
from densescore.jobs.many.ray_engine import ray_engine
from densescore.jobs.many.rows import Kept, Row
from densescore.jobs.many.run import recorded
from densescore.jobs.many.table import local_engine, score_table
from densescore.scoring.scorer import DenseScorer

app = typer.Typer()

Inputs = Annotated[
    list[str],
    typer.Argument(
        help="Folders, image files, patterns in quotes ('photos/**/*.jpg'), lists of paths (.txt), or - for a list on "
        "standard input.",
        show_default=False,
    ),
]


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("– images/s" if speed is None else f"{speed:.2f} images/s")


@app.command()
def score(
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="The table (.parquet): one row per image.", show_default=False)],
    top: Annotated[int, typer.Option(help="Classes to rank per image.", min=1)] = 5,
    all_scores: Annotated[bool, typer.Option("--all-scores", help="Also the scores of all classes.")] = False,
    mapped: Annotated[int, typer.Option(help="As many of the best classes are mapped: regions, maps.", min=0)] = 1,
    classes: Annotated[str, typer.Option(help="Map these classes instead, with commas between.")] = "",
    maps: Annotated[bool, typer.Option("--maps", help="Keep response maps, in a zarr folder beside --out.")] = False,
    patch_scores: Annotated[
        bool, typer.Option("--patch-scores", help="Keep all patches' scores and boxes there.")
    ] = False,
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
    decoders: Annotated[int, typer.Option(help="Threads that decode ahead.", min=1)] = 1,
    engine: Annotated[str, typer.Option(help="local, or ray: workers of a Ray cluster, one model each.")] = "local",
    address: Annotated[str, typer.Option(help="Of the Ray cluster; by default a new one on this machine.")] = "",
    workers: Annotated[
        int | None, typer.Option(help="Models at work in the cluster; by default all fit.", min=1)
    ] = None,
    cpus: Annotated[float, typer.Option(help="Processors per worker.")] = 1,
    part_size: Annotated[int, typer.Option(help="Images per part: the most that a kill can cost.", min=1)] = 64,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object at the end.")] = False,
) -> None:
    """Score many images into one table. Stopped or killed at any moment, the same command goes on where it was."""
    started = time.monotonic()
    with readable_errors():
        paths = find_inputs(inputs)
        chosen = tuple(label.strip() for label in classes.split(",")) if classes else ()
        kept = Kept(top, all_scores, mapped, chosen, maps, patch_scores)
        if runtime == "auto":  # which one is faster is timed; parts of one table must come from the same
            runtime = recorded(out, "runtime") or "auto"
        options = scorer_options(model, weights, scales, patch_sizes, k, device, dtype, runtime, stride, calibration)
        if engine not in ("local", "ray"):
            raise DensescoreError(f"--engine: expected local or ray, got {engine!r}")
        scorer = DenseScorer(**options)
        # Workers are to do what this process would: what it settled on is theirs, too.
        tolerance = {**options, "device": scorer.device.type, "runtime": scorer.runtime}
        work = (
            local_engine(scorer, decoders)
            if engine == "local"
            else ray_engine(tolerance, address=address or None, workers=workers, cpus=cpus)
        )
        counts = {"images": len(paths), "before": 0, "scored": 0, "failed": 0}
        with _progress() as progress:
            task = progress.add_task("images", total=len(paths), failed="")

            def callback(found: int, rows: Sequence[Row]) -> None:
                counts["before"] += found
                counts["scored"] += len(rows)
                for row in rows:
                    if row["error"] is not None:
                        counts["failed"] += 1
                        name = "" if row["image"] in row["error"] else f"{row['image']}: "
                        err.print("[bold red]error:[/]", Text(name + row["error"]), highlight=False, soft_wrap=True)
                failed = f"{counts['failed']} failed" if counts["failed"] else ""
                progress.update(task, completed=counts["before"] + counts["scored"], failed=failed)

            try:
                counts["failed"] = score_table(
                    paths,
                    out,
                    scorer,
                    kept,
                    context=context,  # type: ignore[arg-type]
                    part_size=part_size,
                    overwrite=overwrite,
                    inputs=[model, weights, *([] if calibration is None else [calibration])],
                    engine=work,
                    callback=callback,
                )
            except KeyboardInterrupt:
                err.print(f"stopped; what is done is in {out}.parts, and the same command goes on", highlight=False)
                raise typer.Exit(130) from None
        _summarize(out, counts, time.monotonic() - started, as_json)
    if counts["failed"]:
        raise typer.Exit(1)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate())
    return Progress(
        *columns, TimeRemainingColumn(), TextColumn("[red]{task.fields[failed]}"), console=err, transient=True
    )


def _summarize(out: Path, counts: dict[str, int], seconds: float, as_json: bool) -> None:
    if as_json:
        summary: dict[str, Any] = {"out": str(out), **counts, "seconds": round(seconds, 3)}
        print(json.dumps(summary))
        return
    text = f"{out}: {counts['images']:,} images"
    if counts["before"]:
        text += f", {counts['before']:,} of them scored before"
    if counts["failed"]:
        text += f"; {counts['failed']:,} failed, see the column error"
    err.print(text, highlight=False, soft_wrap=True)
