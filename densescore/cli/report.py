"""The command that makes one page of many images: ``densescore report``."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from densescore.cli.command import command
from densescore.cli.console import complain, note, say_json
from densescore.cli.options import ClassOptions, Json, Overwrite, ScorerOptions, check_new, out_option
from densescore.cli.progress import Progress
from densescore.errors import DensescoreError

if TYPE_CHECKING:
    from densescore.report.entries import Entry

Inputs = Annotated[
    list[str],
    typer.Argument(
        help="Folders, image files, patterns or lists, as for densescore score; or one table (.parquet) that it made.",
        show_default=False,
    ),
]


@command(
    "densescore report photos/ --classes dog,cat --out report.html",
    "densescore report scores.parquet --out report.html",
)
def report(
    inputs: Inputs,
    out: Annotated[Path, out_option("The page (.html).", True)] = Path("report.html"),
    classes: ClassOptions = ClassOptions(),
    top: Annotated[
        int | None,
        typer.Option(help="Without --classes: show as many of an image's best classes.", min=1, show_default="3"),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="With a table: the folder that its images are in now.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    options: ScorerOptions = ScorerOptions(),
) -> None:
    """Make one page of many images, ranked per class, with maps and boxes: it needs no server and no network."""
    options.arguments()
    if out.suffix.lower() not in (".html", ".htm"):
        raise DensescoreError(f"--out: expected a name that ends in .html, got {out}")
    table = inputs[0] if len(inputs) == 1 and inputs[0].lower().endswith(".parquet") else None
    if images is not None and table is None:
        raise DensescoreError("--images: is for a table (.parquet), whose images are found again in that folder")
    if table is None:
        options.check_classes(classes.names)
    elif options != ScorerOptions() or top is not None:
        raise DensescoreError(f"{table}: has its scores; --top and what makes scores are for images")
    check_new(out, overwrite, [*inputs, *options.files])
    from densescore.io.names import as_text
    from densescore.jobs.many.inputs import find_inputs
    from densescore.report.page import write_report
    from densescore.report.sources import ScoreTable, scored_entries

    if table is not None:
        rows = ScoreTable(table)
        entries, count, files = rows.entries(classes.names, images), len(rows), [table]
        made = rows.description
    else:
        files = find_inputs(inputs)
        check_new(out, overwrite, [*files, *options.files])
        scorer = options.build()
        chosen = classes.among(scorer.labels)
        entries, count = scored_entries(files, scorer, chosen, top or 3), len(files)
        made = {"model": scorer.name, "k": scorer.k}
    about = {"text": f"Scored by {as_text(str(made['model']))}, k = {made['k']:g}."}
    with Progress() as progress:
        failed = write_report(
            out, _watched(entries, count, progress), about, overwrite=overwrite, inputs=[*files, *options.files]
        )
    megabytes = out.stat().st_size / 1e6
    if as_json:
        say_json({"out": str(out), "images": count, "failed": failed, "bytes": out.stat().st_size})
    else:
        note(
            f"{out}: {count:,} images, {megabytes:.1f} MB"
            + (f"; {failed:,} failed, listed at its end" if failed else "")
        )
    if failed:
        raise typer.Exit(1)


def _watched(entries: "Iterable[Entry]", count: int, progress: Progress) -> "Iterator[Entry]":
    """The entries; their errors are said, and progress is shown."""
    task, failed = progress.add("images", count), 0
    for done, entry in enumerate(entries, 1):
        if entry.error is not None:
            failed += 1
            complain(entry.error if entry.name in entry.error else f"{entry.name}: {entry.error}")
        progress.update(task, done, failed=failed)
        yield entry
