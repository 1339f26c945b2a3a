"""What commands over several images share: the argument, and the work on each image."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from densescore.cli.console import complain, say_json
from densescore.cli.progress import Progress
from densescore.errors import DensescoreError

Images = Annotated[list[Path], typer.Argument(help="Images or videos, or folders of them.", show_default=False)]
Fps = Annotated[
    float | None,
    typer.Option(
        "--fps",
        help="Frames per second of videos. With it, videos are also taken out of folders.",
        min=1e-6,
        show_default="1",
    ),
]
JsonLines = Annotated[bool, typer.Option("--json", help="One JSON object per line instead of tables.")]


def each(paths: Sequence[Path], as_json: bool, work: Callable[[Path], None]) -> None:
    """Do `work` on every image; one that fails is reported, and the rest go on. Exits with 1 if any failed."""
    failed = 0
    with Progress(shown=len(paths) > 1) as progress:
        task = progress.add("images", len(paths))
        for done, path in enumerate(paths, 1):
            try:
                work(path)
            except DensescoreError as error:
                failed += 1
                if as_json:
                    say_json({"image": str(path), "error": str(error)})
                complain(error)
            progress.update(task, done, failed=failed)
    if failed:
        complain(f"{failed} of {len(paths)} images failed")
        raise typer.Exit(1)
