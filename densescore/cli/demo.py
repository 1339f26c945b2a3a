"""The command that shows a page: ``densescore demo``."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from densescore.cli.command import Without, command
from densescore.cli.console import note
from densescore.cli.options import ScorerOptions
from densescore.errors import DensescoreError, MissingPackageError

if TYPE_CHECKING:
    from densescore.scoring.scorer import DenseScorer

Models = Annotated[
    list[str] | None, typer.Option("--model", help="A model's name or a trained head (.safetensors); may be repeated.")
]


@command(
    "densescore demo",
    "densescore demo --model lite0 --model birds.safetensors --examples photos/ --port 8000",
)
def demo(
    model: Models = None,
    examples: Annotated[Path | None, typer.Option(help="Folder of pictures to pick from.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.", min=1, max=65535)] = 7860,
    root_path: Annotated[str, typer.Option(help="Path under which a proxy shows this.", show_default=False)] = "",
    proxy: Annotated[
        list[str] | None,
        typer.Option(help="Address or network of a proxy whose X-Forwarded-For is believed; may be repeated."),
    ] = None,
    upload: Annotated[float, typer.Option(help="Most megabytes of an upload.", min=0.01)] = 20,
    pixels: Annotated[float, typer.Option(help="Most megapixels of an image.", min=0.01)] = 50,
    max_cells: Annotated[int, typer.Option(help="Most patches of an image.", min=1)] = 8000,
    seconds: Annotated[float, typer.Option(help="Most time for a request, its waiting included.", min=1)] = 60,
    waiting: Annotated[int, typer.Option(help="Images that may wait for the one that is scored.", min=0)] = 8,
    options: Annotated[ScorerOptions, Without("model weights patch_sizes stride")] = ScorerOptions(),
) -> None:
    """Show a page in the browser: drop a photograph, see its classes and where they are. The same by HTTP."""
    options.arguments()
    try:
        from densescore.demo.limits import Limits
        from densescore.demo.server import build_app, serve
        from densescore.demo.service import Service
    except ImportError as error:
        raise MissingPackageError(f"the page needs {error.name}: pip install 'densescore[demo]'") from error
    from densescore.io.find_images import list_images

    names = model or [options.model]
    # JSON and browsers take valid text only.
    makers: dict[str, Callable[[], DenseScorer]] = {
        Path(name).name.encode(errors="replace").decode(): replace(options, model=name).build for name in names
    }
    if len(makers) < len(names):
        raise DensescoreError(f"--model: two have the same name, {', '.join(names)}")
    pictures = [str(path.resolve()) for path in list_images([examples])[:12]] if examples else []
    limits = Limits(
        upload=int(upload * 1e6), pixels=int(pixels * 1e6), cells=max_cells, seconds=seconds, waiting=waiting
    )
    service = Service(makers, limits)
    try:
        service.load(next(iter(makers)))  # what is wrong with it is said now, not at the first photograph
        web = build_app(service, pictures, root_path=root_path or None, proxies=proxy or ())
        note(f"http://{host}:{port}/ shows the page; POST an image to /score for JSON")
        serve(web, host, port)
    finally:
        if not service.close():  # Python would wait at its end for the image that is being scored
            os._exit(0)
