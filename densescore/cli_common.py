"""What the command line's parts share."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from densescore_kernels.errors import DensescoreError

err = Console(stderr=True)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Print an expected error in a line and exit with 2, without a traceback."""
    try:
        yield
    except DensescoreError as error:
        err.print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
