"""The command that shows a page: ``densescore demo``."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from densescore.cli.options import Device, DType, K, RuntimeOption, Scales, err, readable_errors, scorer_options
from densescore.errors import DensescoreError
from densescore.io.find_images import list_images
from densescore.scoring.scorer import DenseScorer

app = typer.Typer()

Models = Annotated[
    list[str] | None, typer.Option("--model", help="A model's name or a trained head (.safetensors); may be repeated.")
]


@app.command()
def demo(
    model: Models = None,
    examples: Annotated[Path | None, typer.Option(help="Folder of pictures to pick from.")] = None,
    scales: Scales = "",
    k: K = None,
    device: Device = "auto",
    dtype: DType = "auto",
    runtime: RuntimeOption = "auto",
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.", min=1, max=65535)] = 7860,
    root_path: Annotated[str, typer.Option(help="Path under which a proxy shows this.")] = "",
    upload: Annotated[float, typer.Option(help="Most megabytes of an upload.", min=0.01)] = 20,
    pixels: Annotated[float, typer.Option(help="Most megapixels of an image.", min=0.01)] = 50,
    seconds: Annotated[float, typer.Option(help="Most time for a request, its waiting included.", min=1)] = 60,
    waiting: Annotated[int, typer.Option(help="Images that may wait for the one that is scored.", min=0)] = 8,
) -> None:
    """Show a page in the browser: drop a photograph, see its classes and where they are. The same by HTTP."""
    with readable_errors():
        try:
            from densescore.demo.server import build_app, serve
            from densescore.demo.service import Limits, Service
        except ImportError as error:
            raise DensescoreError(f"the page needs {error.name}: pip install 'densescore[demo]'") from error
        names = model or ["lite0"]
        makers: dict[str, Callable[[], DenseScorer]] = {}
        for name in names:
            options = scorer_options(name, "default", scales, "", k, device, dtype, runtime)
            makers[Path(name).name] = partial(DenseScorer, **options)
        if len(makers) < len(names):
            raise DensescoreError(f"--model: two have the same name, {', '.join(names)}")
        first = next(iter(makers))
        scorer = makers[first]()  # what is wrong with it is said now, not at the first photograph
        makers[first] = lambda: scorer
        pictures = [str(path.resolve()) for path in list_images([examples])[:12]] if examples else []
        service = Service(makers, Limits(int(upload * 1e6), int(pixels * 1e6), seconds, waiting))
        web = build_app(service, pictures, root_path=root_path or None)
        err.print(f"http://{host}:{port}/ shows the page; POST an image to /score for JSON", highlight=False)
        try:
            serve(web, host, port)
        finally:
            service.close()
