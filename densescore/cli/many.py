"""Commands that score many images into one file: ``densescore score | report``."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt, PositiveInt

from densescore.cli import options as cli
from densescore.cli.console import Progress, error, notice, print_json
from densescore.cli.program import examples
from densescore.errors import DensescoreError

if TYPE_CHECKING:
    from densescore.jobs.many.ray_engine import RayPool
    from densescore.jobs.many.rows import Row
    from densescore.report.page import Entry
    from densescore.scoring.scorer import DenseScorer

work_option = cli.panel("Parallel work", 5)
format_option = cli.panel("Other formats", 6)
input_option = partial(cli.option, allow_leading_hyphen=True)  # for "-", standard input


def _check_inputs(words: Sequence[str]) -> None:
    """Refuse mistyped options among the inputs."""
    for word in words:
        if word.startswith("-") and word != "-":
            raise DensescoreError(f"unknown option: {word}")


@Parameter(name="*")
@dataclass(frozen=True)
class OtherFormats:
    """Exports of the table; see `densescore.jobs.many.exports.Exports`."""

    csv: Annotated[Path | None, format_option("The table as CSV, for spreadsheets.")] = None
    coco: Annotated[Path | None, format_option("Regions as COCO results (.json).")] = None
    yolo: Annotated[Path | None, format_option("Folder for regions as YOLO labels.")] = None
    yolo_confidence: Annotated[bool, format_option("Confidence as a sixth column of YOLO labels.")] = False


@Parameter(name="*")
@dataclass(frozen=True)
class WorkOptions:
    """Where the work is done."""

    engine: Annotated[Literal["local", "ray"], work_option("local, or ray: workers of a Ray cluster.")] = "local"
    address: Annotated[str, work_option("Address of the Ray cluster; by default a new one on this machine.")] = ""
    workers: Annotated[PositiveInt | None, work_option("Workers in the cluster; by default as many as fit.")] = None
    cpus: Annotated[float, work_option("Processors per worker.")] = 1

    def pool(self, arguments: dict[str, Any], scorer: "DenseScorer") -> "RayPool | None":
        """Workers that make `scorer` from `arguments`, on its device and runtime; None for this process."""
        from densescore.jobs.many.ray_engine import RayPool

        if self.engine == "local":
            return None
        arguments = {**arguments, "device": scorer.device.type, "runtime": scorer.runtime}
        return RayPool(arguments, self.address or None, self.workers, self.cpus)


@examples(
    "densescore score photos/ -o scores.parquet",
    "densescore score 'photos/**/*.jpg' -o scores.parquet --class goldfish --maps",
    "densescore score photos/ -o pets.parquet --classes dog,cat",
    "densescore score photos/ -o scores.parquet --csv scores.csv --coco results.json --yolo labels",
    "densescore score clip.mp4 photos/ -o scores.parquet --fps 2",
)
def score(
    inputs: Annotated[
        list[str],
        input_option("Folders, images, videos, quoted patterns ('photos/**/*.jpg'), lists (.txt), or - (stdin)."),
    ],
    /,
    *,
    out: Annotated[Path, cli.out_option("The table (.parquet): one row per image or frame.")],
    fps: Annotated[float | None, cli.ONE_FPS] = None,
    top: Annotated[PositiveInt, cli.option("Number of classes to rank per image.")] = 5,
    all_scores: Annotated[bool, cli.more_option("Also store the scores of all classes.")] = False,
    mapped: Annotated[NonNegativeInt, cli.more_option("Number of top classes with regions and maps.")] = 1,
    classes: cli.ClassOptions = cli.ClassOptions(),
    maps: Annotated[bool, cli.option("Store heatmaps in a zarr folder next to the table.")] = False,
    patch_scores: Annotated[bool, cli.more_option("Store all patches' scores and boxes in that folder.")] = False,
    formats: OtherFormats = OtherFormats(),
    overwrite: cli.Overwrite = False,
    as_json: cli.Json = False,
    options: cli.ScorerOptions = cli.ScorerOptions(),
    decoders: Annotated[PositiveInt | None, work_option("Decoder threads; 1 by default, with a GPU up to 8.")] = None,
    part_size: Annotated[PositiveInt, work_option("Images per part: the most work that an interruption loses.")] = 64,
    work: WorkOptions = WorkOptions(),
) -> None:
    """Score many images into one table. If interrupted, run the same command to resume."""
    # Check all arguments
    started = time.monotonic()
    _check_inputs(inputs)
    options.check(classes.names)
    from densescore.jobs.many.exports import Exports
    from densescore.jobs.many.ray_engine import ray_engine
    from densescore.jobs.many.rows import Outputs
    from densescore.jobs.many.table import find_inputs, input_files, local_engine, score_table

    paths = find_inputs(inputs, fps)
    exports, is_new = Exports(**vars(formats)), not out.exists()
    files = [*input_files(inputs, paths), *options.files]
    exports.check(out, regions=bool(mapped or classes.names), overwrite=overwrite, inputs=files)

    # Load the model
    scorer = options.build()
    columns = Outputs(top, all_scores, mapped, classes.among(scorer.labels), maps, patch_scores)
    pool = work.pool(options.arguments(), scorer)
    run = local_engine(scorer, decoders) if pool is None else ray_engine(pool)

    # Score, part by part
    counts = {"images": len(paths), "before": 0, "scored": 0, "failed": 0}
    with Progress() as progress:
        task = progress.add("images", len(paths))

        def callback(before: int, rows: "Sequence[Row]") -> None:
            counts["before"] += before
            counts["scored"] += len(rows)
            for row in rows:
                if row["error"] is not None:
                    counts["failed"] += 1
                    error(("" if row["image"] in row["error"] else f"{row['image']}: ") + row["error"])
            progress.update(task, counts["before"] + counts["scored"], failed=counts["failed"])

        try:
            counts["failed"] = score_table(
                paths, out, scorer, columns, part_size=part_size, overwrite=overwrite, inputs=[*inputs, *options.files],
                engine=run, callback=callback,
            )  # fmt: skip
        except KeyboardInterrupt:
            notice(f"stopped; finished parts are in {out}.parts, and the same command resumes")
            sys.exit(130)
    exports.write(out, overwrite=overwrite, inputs=files, is_new=is_new)

    # Summarize
    written = [*map(str, (out, *exports.places.values()))]
    if as_json:
        seconds = round(time.monotonic() - started, 3)
        print_json({"out": written[0], "beside": written[1:], **counts, "seconds": seconds})
    else:
        before = f", {counts['before']:,} of them scored before" if counts["before"] else ""
        failed = f"; {counts['failed']:,} failed, see the column error" if counts["failed"] else ""
        notice(f"{', '.join(written)}: {counts['images']:,} images{before}{failed}")
    if counts["failed"]:
        sys.exit(1)


@examples(
    "densescore report photos/ --classes dog,cat -o report.html",
    "densescore report scores.parquet -o report.html",
)
def report(
    inputs: Annotated[
        list[str], input_option("Folders, images, patterns or lists, as for densescore score; or its table (.parquet).")
    ],
    /,
    *,
    out: Annotated[Path, cli.out_option("The page (.html).")] = Path("report.html"),
    classes: cli.ClassOptions = cli.ClassOptions(),
    top: Annotated[PositiveInt | None, cli.option("Without --classes: top classes per image; 3 by default.")] = None,
    images: Annotated[Path | None, cli.option("With a table: the folder where its images are now.")] = None,
    overwrite: cli.Overwrite = False,
    as_json: cli.Json = False,
    options: cli.ScorerOptions = cli.ScorerOptions(),
) -> None:
    """Write one self-contained page of many images, ranked by class, with maps and boxes; it works offline."""
    # Check all arguments
    _check_inputs(inputs)
    table = inputs[0] if len(inputs) == 1 and inputs[0].lower().endswith(".parquet") else None
    options.check(classes.names if table is None else ())
    if out.suffix.lower() not in (".html", ".htm"):
        raise DensescoreError(f"--output: expected a name that ends in .html, got {out}")
    if images is not None and table is None:
        raise DensescoreError("--images: applies to a table (.parquet) only, to find its images in that folder")
    for name in inputs:
        if name.lower().endswith((".csv", ".tsv", ".json", ".jsonl")):
            raise DensescoreError(f"{name}: expected images, or the table (.parquet) that densescore score wrote")
    if table is not None and (options != cli.ScorerOptions() or top is not None):
        raise DensescoreError(f"{table}: already scored: --top and model options apply to images only")
    from densescore.io.names import as_text
    from densescore.jobs.many.table import find_inputs, input_files
    from densescore.report.page import write_report
    from densescore.report.sources import ScoreTable, scored_entries

    # Read the table, or score the images
    if table is not None:
        rows = ScoreTable(table)
        cli.check_new(out, overwrite, inputs)
        entries, count, files = rows.entries(classes.names, images), len(rows), [table]
        description = rows.description
    else:
        paths = find_inputs(inputs)
        files = input_files(inputs, paths)
        cli.check_new(out, overwrite, [*files, *options.files])
        scorer = options.build()
        entries, count = scored_entries(paths, scorer, classes.among(scorer.labels), top or 3), len(paths)
        description = {"model": scorer.name, "k": scorer.k}
    about = {"text": f"Scored by {as_text(str(description['model']))}, k = {description['k']:g}."}

    # Write the page
    with Progress() as progress:
        watched = _watch(entries, count, progress)
        failed = write_report(out, watched, about, overwrite=overwrite, inputs=[*files, *options.files])
    size = out.stat().st_size
    if as_json:
        print_json({"out": str(out), "images": count, "failed": failed, "bytes": size})
    else:
        end = f"; {failed:,} failed, listed at its end" if failed else ""
        notice(f"{out}: {count:,} images, {size / 1e6:.1f} MB{end}")
    if failed:
        sys.exit(1)


def _watch(entries: "Iterable[Entry]", count: int, progress: Progress) -> "Iterator[Entry]":
    """Yield the entries, printing their errors and the progress."""
    task, failed = progress.add("images", count), 0
    for done, entry in enumerate(entries, 1):
        if entry.error is not None:
            failed += 1
            error(entry.error if entry.name in entry.error else f"{entry.name}: {entry.error}")
        progress.update(task, done, failed=failed)
        yield entry
