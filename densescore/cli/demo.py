"""The command that shows a page: ``densescore demo``."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from densescore.cli.command import Without, command
from densescore.cli.console import note
from densescore.cli.options import ScorerOptions
from densescore.errors import DensescoreError

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
    upload: Annotated[float, typer.Option(help="Most megabytes of an upload.", min=0.01)] = 20,
    pixels: Annotated[float, typer.Option(help="Most megapixels of an image.", min=0.01)] = 50,
    seconds: Annotated[float, typer.Option(help="Most time for a request, its waiting included.", min=1)] = 60,
    waiting: Annotated[int, typer.Option(help="Images that may wait for the one that is scored.", min=0)] = 8,
    options: Annotated[ScorerOptions, Without("model weights patch_sizes stride calibration")] = ScorerOptions(),
) -> None:
    """Show a page in the browser: drop a photograph, see its classes and where they are. The same by HTTP."""
    options.arguments()
    try:
        from densescore.demo.server import build_app, serve
        from densescore.demo.service import Limits, Service
    except ImportError as error:
        raise DensescoreError(f"the page needs {error.name}: pip install 'densescore[demo]'") from error
    from densescore.io.images import list_images

    names = model or [options.model]
    makers: dict[str, Callable[[], DenseScorer]] = {
        Path(name).name: replace(options, model=name).build for name in names
    }
    if len(makers) < len(names):
        raise DensescoreError(f"--model: two have the same name, {', '.join(names)}")
    first = next(iter(makers))
    scorer = makers[first]()  # what is wrong with it is said now, not at the first photograph
    makers[first] = lambda: scorer
    pictures = [str(path.resolve()) for path in list_images([examples])[:12]] if examples else []
    service = Service(makers, Limits(int(upload * 1e6), int(pixels * 1e6), seconds, waiting))
    web = build_app(service, pictures, root_path=root_path or None)
    note(f"http://{host}:{port}/ shows the page; POST an image to /score for JSON")
    try:
        serve(web, host, port)
    finally:
        service.close()
