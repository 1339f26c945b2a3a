"""What the command line's parts share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

from densescore_kernels.errors import DensescoreError

err = Console(stderr=True)

Scales = Annotated[str, typer.Option(help="Short side of the image over side of a patch, with commas: 1,2,4.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Context = Annotated[str, typer.Option(help="image: one dense pass. patch: the paper's crops (slow).")]


@contextmanager
def readable_errors() -> Iterator[None]:
    """Print an expected error in a line and exit with 2, without a traceback."""
    try:
        yield
    except DensescoreError as error:
        err.print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Read ``"1,2,4"``.

    Raises:
        DensescoreError: names the option and what it got.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise DensescoreError(f"{option}: expected numbers with commas between, got {text!r}") from error
