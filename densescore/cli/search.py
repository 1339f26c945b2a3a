"""Commands that search by example: ``densescore index | find``."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts.types import PositiveInt

from densescore.cli import options as cli
from densescore.cli.console import Progress, error, notice, print_json, print_table
from densescore.cli.many import WorkOptions, input_option
from densescore.cli.program import examples
from densescore.errors import DensescoreError

_MODEL = "lite0-stages"


@examples(
    "densescore index photos/ -o photos.index",
    "densescore index slides/ -o slides.index --scales 1,2,4,8",
)
def index(
    inputs: Annotated[list[str], input_option("Folders, images, videos, patterns or lists, as for densescore score.")],
    /,
    *,
    out: Annotated[Path, cli.out_option("Folder of the index; an existing one takes in what is new or has changed.")],
    fps: Annotated[float | None, cli.ONE_FPS] = None,
    basis: Annotated[Path | None, cli.option("Another index whose components a new one takes.")] = None,
    as_json: cli.Json = False,
    options: cli.ScorerOptions = cli.ScorerOptions(model=_MODEL),
    work: WorkOptions = WorkOptions(),
) -> None:
    """Index every patch of many images for densescore find. Run again, it resumes, or follows changes on the disk."""
    options.check()
    from densescore.jobs.many.table import find_inputs
    from densescore.search.index import PatchIndex, is_index

    paths = find_inputs(inputs, fps)
    is_default = options == cli.ScorerOptions(model=_MODEL)  # an existing index has its own
    index = PatchIndex(out, None if is_default and is_index(out) else options.build(), basis=basis)
    with Progress() as progress:
        task = progress.add("images", len(paths))
        done = failed = 0

        def callback(count: int, problem: str | None) -> None:
            nonlocal done, failed
            done += count
            if problem is not None:
                failed += 1
                error(problem)
            progress.update(task, done, failed=failed)

        try:
            failed = index.add(paths, callback, pool=work.pool(index.scorer.arguments(), index.scorer))
        except KeyboardInterrupt:
            notice(f"stopped; {out} holds the finished parts, and the same command resumes")
            sys.exit(130)
    size = sum(path.stat().st_size for path in out.iterdir())
    if as_json:
        print_json({"out": str(out), "images": len(index.images), "patches": len(index), "bytes": size,
                    "failed": failed})  # fmt: skip
    else:
        notice(f"{out}: {len(index.images):,} images, {len(index):,} patches, {size / 1e6:.1f} MB")
        notice(f"next: densescore find {out} --like PICTURE --box x0,y0,x1,y1 --sheet found.jpg")
    if failed:
        sys.exit(1)


@examples(
    "densescore find photos.index --like query.jpg --box 40,60,200,220 --sheet found.jpg",
    "densescore find photos.index --like a.jpg --box 0,0,90,90 --like b.jpg --box 5,5,80,80 --csv found.csv",
)
def find(
    folder: Annotated[Path, cli.option("Folder of the index.")],
    /,
    *,
    like: Annotated[list[Path], cli.option("Picture of an example; repeatable.")],
    box: Annotated[list[str] | None, cli.option("x0,y0,x1,y1 in its pixels, or all; one for each --like.")] = None,
    unlike: Annotated[list[Path] | None, cli.option("Picture of a counter-example; repeatable.")] = None,
    unlike_box: Annotated[list[str] | None, cli.more_option("The same for each --unlike.")] = None,
    top: Annotated[PositiveInt, cli.option("Maximum number of images.")] = 50,
    sheet: Annotated[Path | None, cli.option("Contact sheet of the places (.jpg, .png, .pdf, …).")] = None,
    report: Annotated[Path | None, cli.option("Page of the images with their boxes (.html).")] = None,
    table: Annotated[Path | None, cli.option("Places as CSV.", "--csv")] = None,
    coco: Annotated[Path | None, cli.more_option("Places as COCO results (.json).")] = None,
    overwrite: Annotated[bool, cli.more_option("Replace existing results.")] = False,
    as_json: cli.Json = False,
) -> None:
    """Find the images with a place that looks like an example, and show where."""
    from densescore.io.files import atomic_write
    from densescore.io.names import to_json
    from densescore.report.page import write_report
    from densescore.search.index import PatchIndex
    from densescore.search.match import coco_places, contact_sheet, report_entries

    # Check all arguments
    positive, negative = _pairs(like, box, "like"), _pairs(unlike or [], unlike_box, "unlike")
    for path in (sheet, report, table, coco):
        cli.check_new(path, overwrite, [folder, *like, *(unlike or ())])
    index = PatchIndex.open(folder)

    # Search
    matches = index.search(positive, top=top, unlike=negative)
    rows = [match.to_row() for match in matches]

    # Write the other forms
    if sheet is not None:
        contact_sheet(matches).save(sheet, overwrite=overwrite)
    if report is not None:
        text = f"Places like {', '.join(path.name for path in like)}, most similar first."
        write_report(report, report_entries(matches), {"text": text}, overwrite=overwrite)
    if coco is not None:
        with atomic_write(coco, overwrite=overwrite) as temporary:
            temporary.write_text(to_json(coco_places(matches)))
    if table is not None:
        with atomic_write(table, overwrite=overwrite) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    # Print
    if as_json:
        print_json(rows)
    else:
        boxes = [",".join(f"{side:.0f}" for side in match.box) for match in matches]
        cells = [(row["image"], box, f"{row['similarity']:.2f}") for row, box in zip(rows, boxes, strict=True)]
        print_table(("image", "box", "similarity"), cells)
    for match in matches:
        if not match.exists:
            notice(f"{match.source}: gone since it was indexed; `densescore index` takes it out")


def _pairs(pictures: Sequence[Path], boxes: Sequence[str] | None, option: str) -> list[tuple[Path, Any]]:
    """Examples: each picture with its box."""
    boxes = boxes or ["all"] * len(pictures)
    name = "--box" if option == "like" else "--unlike-box"
    if len(boxes) != len(pictures):
        raise DensescoreError(f"{name}: expected one for each --{option}, {len(pictures)}, got {len(boxes)}")
    corners = [None if text == "all" else cli.numbers(text, name) for text in boxes]
    for text, box in zip(boxes, corners, strict=True):
        if box is not None and len(box) != 4:
            raise DensescoreError(f"{name}: expected x0,y0,x1,y1 or all, got {text!r}")
    return list(zip(pictures, corners, strict=True))
