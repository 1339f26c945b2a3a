"""Commands for models: ``densescore models | export``."""

from pathlib import Path
from typing import Annotated

from densescore.cli import options as cli
from densescore.cli.console import info, print_json, print_table
from densescore.cli.program import examples
from densescore.errors import DensescoreError


@examples("densescore models", "densescore models resnet", "densescore models --json")
def models(
    search: Annotated[str, cli.option("Part of a name, such as resnet, to look for among all networks.")] = "",
    /,
    *,
    everything: Annotated[bool, cli.option("Also list the networks of timm and torchvision.", "--all")] = False,
    as_json: cli.JsonLines = False,
) -> None:
    """List the named models, or search all networks that can be named; --json adds origin and preprocessing."""
    from densescore.models.registry import MODELS, all_names

    if everything or search:
        names = [name for name in all_names() if search.lower() in name.lower()]
        if not names:
            raise DensescoreError(f"{search}: no network has this in its name; densescore models --all lists them")
        for name in names:
            print_json({"name": name}) if as_json else info(name)
    elif as_json:
        for name, entry in MODELS.items():
            fields = ("description", "license", "origin", "mean", "std", "patch_size")
            print_json({"name": name, **{key: getattr(entry, key) for key in fields}})
    else:
        rows = [(name, item.description, item.patch_size, item.license) for name, item in MODELS.items()]
        print_table(("name", "network", "patch", "weights"), rows, numeric=False)


@examples("densescore export lite0 -o lite0.onnx", "densescore export birds.safetensors -o birds.pt2")
def export(
    model: Annotated[str, cli.option("Name from `densescore models`, or a trained head (.safetensors).")] = "lite0",
    /,
    *,
    out: Annotated[Path, cli.out_option("The file: .onnx, or .pt2 for torch.export.load.")],
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
