"""The command that lists the named networks: ``densescore models``."""

from typing import Annotated

import typer

from densescore.cli.command import command
from densescore.cli.console import say, say_json, show_table
from densescore.cli.images import JsonLines


@command("densescore models", "densescore models --json")
def models(
    everything: Annotated[
        bool, typer.Option("--all", help="Also the names of timm's and torchvision's networks.", show_default=False)
    ] = False,
    as_json: JsonLines = False,
) -> None:
    """List the named networks, with the license and origin of their weights."""
    from densescore.models.registry import MODELS, all_names

    if everything:
        for name in all_names():
            say_json({"name": name}) if as_json else say(name)
        return

    if as_json:
        for name, entry in MODELS.items():
            fields = ("description", "license", "origin", "mean", "std", "patch_size")
            say_json({"name": name, **{key: getattr(entry, key) for key in fields}})
        return
    show_table(
        ("name", "network", "P", "license of the weights", "origin"),
        [(name, entry.description, entry.patch_size, entry.license, entry.origin) for name, entry in MODELS.items()],
        numeric=False,
    )
