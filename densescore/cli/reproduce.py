"""The command for the paper's tables: ``densescore reproduce``."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from densescore.cli.command import command
from densescore.cli.console import out as terminal
from densescore.cli.console import say_json
from densescore.cli.options import Device, Json, out_option
from densescore.cli.source_progress import SourceProgress
from densescore.cli.training_options import Seed
from densescore.errors import DensescoreError
from densescore.paper.pretrain.wordnet import DEFAULT_WORDNET
from densescore.paper.reproduce.tables import TABLES, as_markdown, as_record


@command(
    "densescore reproduce --smoke",
    "densescore reproduce --table 2 --imagenet imagenet/ --voc12 VOC2012 -o work",
)
def reproduce(
    table: Annotated[str, typer.Option(help="1, 2, 3, or several with commas between.")] = "1,2,3",
    imagenet: Annotated[
        Path | None, typer.Option(help="Folder with train/<wnid>/* (and val/<wnid>/*).", show_default=False)
    ] = None,
    voc07: Annotated[
        Path | None, typer.Option(help="Folder of VOC 2007: trainval and test.", show_default=False)
    ] = None,
    voc12: Annotated[Path | None, typer.Option(help="Folder of VOC 2012: trainval.", show_default=False)] = None,
    out: Annotated[
        Path | None,
        out_option("Folder for all files; what is there is not done again.", "reproduce"),
    ] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Every step on tiny drawn pictures, in minutes.")] = False,
    wordnet: Annotated[Path, typer.Option(help="Folder with WordNet 3.0's data.noun.")] = DEFAULT_WORDNET,
    seed: Seed = 0,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(help="Processes that read images.", min=0)] = 4,
    cache_size: Annotated[float, typer.Option(help="Most that cached features may take, in GB.", min=0)] = 100.0,
    as_json: Json = False,
) -> None:
    """Run or resume the paper's Tables 1 to 3: pre-train, transfer, measure; write them beside the paper's numbers."""
    wanted = [part.strip() for part in table.split(",")]
    if unknown := [part for part in wanted if part not in map(str, TABLES)]:
        raise DensescoreError(f"--table: expected 1, 2 or 3, got {', '.join(unknown)}")
    numbers = [int(part) for part in wanted]
    given = {"imagenet": imagenet, "voc07": voc07, "voc12": voc12}
    data = {name: folder for name, folder in given.items() if folder is not None}
    if smoke and data:
        raise DensescoreError("--smoke draws its own pictures: leave out --imagenet, --voc07 and --voc12")
    needed = {"imagenet", *(TABLES[number].data for number in numbers)}
    if not smoke and (missing := sorted(needed - data.keys())):
        raise DensescoreError(f"table {table} needs --{', --'.join(missing)}; to try the steps, --smoke")
    from densescore.network.devices import find_device
    from densescore.paper.reproduce.chain import Chain
    from densescore.paper.reproduce.plan import PAPER, SMOKE
    from densescore.paper.reproduce.smoke import draw_all

    with tempfile.TemporaryDirectory() as scratch, SourceProgress(shown=True) as progress:
        chain = Chain(
            SMOKE if smoke else PAPER,
            draw_all(Path(scratch) / "data") if smoke else data,
            out or (Path(scratch) / "work" if smoke else Path("reproduce")),
            find_device(device),
            workers=0 if smoke else workers,
            cache_bytes=int(cache_size * 1e9),
            seed=seed,
            wordnet=wordnet,
            say=progress.say,
            callback=progress.show,
        )
        measured = {number: chain.table(number) for number in numbers}
    for number, rows in measured.items():
        if as_json:
            say_json({**as_record(number, rows), "smoke": smoke})
        else:
            from rich.markdown import Markdown

            terminal.print(Markdown(as_markdown(number, rows, chain.plan.remark)))
