"""Commands for models: ``densescore models | export``."""

from pathlib import Path
from typing import Annotated

from densescore.cli import options as cli
from densescore.cli.console import info, print_json, print_table
from densescore.cli.program import examples


@examples("densescore models", "densescore models --json")
def models(
    *,
    everything: Annotated[bool, cli.option("Also list the networks of timm and torchvision.", "--all")] = False,
    as_json: cli.JsonLines = False,
) -> None:
    """List the named models, with the license and origin of their weights."""
    from densescore.models.registry import MODELS, all_names

    if everything:
        for name in all_names():
            print_json({"name": name}) if as_json else info(name)
    elif as_json:
        for name, entry in MODELS.items():
            fields = ("description", "license", "origin", "mean", "std", "patch_size")
            print_json({"name": name, **{key: getattr(entry, key) for key in fields}})
    else:
        rows = [(name, item.description, item.patch_size, item.license, item.origin) for name, item in MODELS.items()]
        print_table(("name", "network", "P", "license of the weights", "origin"), rows, numeric=False)


@examples("densescore export -o lite0.onnx", "densescore export --model birds.safetensors -o birds.pt2")
def export(
    *,
    out: Annotated[Path, cli.out_option("The file: .onnx, or .pt2 for torch.export.load.")],
    model: cli.Model = "lite0",
    weights: cli.Weights = "default",
    overwrite: cli.Overwrite = False,
    as_json: cli.Json = False,
) -> None:
    """Export a dense model as one graph for images of any size, checked against torch."""
    cli.check_new(out, overwrite, [model, weights])
    from densescore.network.export import export_model

    record = export_model(model, out, weights=weights, overwrite=overwrite)
    if as_json:
        print_json(record)
        return
    patch, stride = record["patch"], record["stride"]
    info(
        f"{out}: pixels [1, 3, {patch} + {stride}n, {patch} + {stride}m] → probabilities "
        f"[1, {len(record['labels'])}, n + 1, m + 1]; at most {record['largest_difference']:.1e} from torch"
    )
