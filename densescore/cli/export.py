"""The command that writes a model for other runtimes: ``densescore export``."""

from pathlib import Path
from typing import Annotated

from densescore.cli.command import command
from densescore.cli.console import say, say_json
from densescore.cli.options import Json, Model, Overwrite, Weights, check_new, out_option


@command(
    "densescore export -o lite0.onnx",
    "densescore export --model birds.safetensors -o birds.pt2",
)
def export(
    out: Annotated[
        Path,
        out_option("The file: .onnx, or .pt2 for torch.export.load."),
    ],
    model: Model = "lite0",
    weights: Weights = "default",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a dense model as one graph of any height and width, checked against torch."""
    check_new(out, overwrite, [model, weights])
    from densescore.network.export import export_model

    found = export_model(model, out, weights=weights, overwrite=overwrite)
    if as_json:
        say_json(found)
        return
    patch, stride = found["patch"], found["stride"]
    say(
        f"{out}: pixels [1, 3, {patch} + {stride}n, {patch} + {stride}m] → probabilities "
        f"[1, {len(found['labels'])}, n + 1, m + 1]; at most {found['largest_difference']:.1e} from torch"
    )
