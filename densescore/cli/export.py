"""The command that writes a model for other runtimes: ``densescore export``."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from densescore.cli.options import check_new, readable_errors
from densescore.network.export import export_model

app = typer.Typer()
_out = Console()


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="The file: .onnx, or .pt2 for torch.export.load.", show_default=False)],
    model: Annotated[
        str, typer.Option(help="A name that `densescore models` lists, or a head (.safetensors).")
    ] = "lite0",
    weights: Annotated[str, typer.Option(help="A weights file for the model, 'default', or 'random'.")] = "default",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What the file carries, as JSON.")] = False,
) -> None:
    """Write a dense model as one graph of any height and width, checked against torch."""
    with readable_errors():
        check_new(out, overwrite, [model, weights])
        found = export_model(model, out, weights=None if weights == "random" else weights, overwrite=overwrite)
    if as_json:
        print(json.dumps(found))
        return
    patch, stride = found["patch"], found["stride"]
    _out.print(
        f"{out}: pixels [1, 3, {patch} + {stride}n, {patch} + {stride}m] → probabilities "
        f"[1, {len(found['labels'])}, n + 1, m + 1]; at most {found['largest_difference']:.1e} from torch",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
