"""The commands for source networks: ``densescore source-classes``."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from densescore.cli_common import err, readable_errors
from densescore.files import written_whole
from densescore.pretrain.source_classes import choose, differences_from_paper, fall_2011
from densescore.pretrain.wordnet import DEFAULT_WORDNET, WordNet

app = typer.Typer()
_out = Console()

Classes = Annotated[
    str,
    typer.Option(
        help="pre-1000c, pre-1000r or pre-1512 (the paper's), or terms with commas between: all, ilsvrc, "
        "random:COUNT:SEED, subtree:NOUN, a wnid, a file of wnids."
    ),
]
WordNetFolder = Annotated[Path, typer.Option("--wordnet", help="Folder with WordNet 3.0's data.noun.")]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of tables.")]


@app.command("source-classes")
def source_classes(
    classes: Classes = "pre-1512",
    out: Annotated[Path | None, typer.Option(help="Write the wnids to this file, one a line.")] = None,
    wordnet: WordNetFolder = DEFAULT_WORDNET,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    as_json: Json = False,
) -> None:
    """Resolve a choice of ImageNet's classes, among the 21,841 of the release of fall 2011, and count them."""
    with readable_errors():
        choice = choose(classes, fall_2011(), lambda: WordNet(wordnet))
        differences = differences_from_paper(choice)
        if out is not None:
            with written_whole(out, overwrite=overwrite) as temporary:
                temporary.write_text("".join(f"{wnid}\n" for wnid in choice.wnids))
        if as_json:
            counts = [{"term": term, "classes": count} for term, count in choice.added]
            print(json.dumps({"classes": len(choice.wnids), "added": counts, "unlike_paper": differences}))
            return
        table = Table("term", "classes it adds", title=classes, title_justify="left")
        for term, count in choice.added:
            table.add_row(term, f"{count:,}")
        table.add_section()
        table.add_row("all", f"{len(choice.wnids):,}")
        _out.print(table)
        for difference in differences:
            err.print(f"unlike the paper: {difference}", highlight=False)
