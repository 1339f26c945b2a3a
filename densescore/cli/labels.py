"""The command that shows how patches are labeled: ``densescore labels``."""

from pathlib import Path
from typing import Annotated

import typer

from densescore.cli.command import command
from densescore.cli.console import say, say_json, show_table
from densescore.cli.options import Json, Overwrite, Scales, check_new, numbers, out_option
from densescore.cli.training_options import Data, RuleOptions, Split
from densescore.geometry import PAPER_SCALES
from densescore.transfer.patch_labels import LabelRule


@command("densescore labels 000032 --data VOC2007 --set train")
def labels(
    image: Annotated[str, typer.Argument(help="Name of an image of the set.", show_default=False)],
    data: Data,
    split: Split = "train",
    out: Annotated[Path | None, out_option("The PNG; <image>_labels.png by default.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    scales: Scales = "",
    rule: RuleOptions = RuleOptions(),
) -> None:
    """Count an image's labeled patches, and draw examples of them (the paper's Figure 4)."""
    asked = rule.change(LabelRule())
    chosen = numbers(scales, "--scales") if scales else PAPER_SCALES
    check_new(out, overwrite)
    import numpy as np

    from densescore.data.load import load_boxed
    from densescore.geometry import Pyramid
    from densescore.io.files import atomic_write
    from densescore.io.images import read_image
    from densescore.transfer.patch_figure import draw_patch_labels
    from densescore.transfer.patch_labels import AMBIGUOUS, label_patches

    boxed = load_boxed(data, split)
    found = boxed.find(image)
    patches = Pyramid.of(found.height, found.width, scales=chosen).boxes()
    given = label_patches(patches, found.boxes, found.classes, len(boxed.classes), asked, found.difficult)
    path = out or Path(f"{Path(found.name).name}_labels.png")
    with atomic_write(path, overwrite=overwrite, inputs=[data, found.path]) as temporary:
        draw_patch_labels(read_image(found.path), patches, given, found, boxed.classes, temporary, rule=asked)
    names = {**dict(enumerate(boxed.classes)), len(boxed.classes): "background", AMBIGUOUS: "left out"}
    counts = {names[int(label)]: int(count) for label, count in zip(*np.unique(given, return_counts=True), strict=True)}
    if as_json:
        say_json({"image": found.name, "picture": str(path), "patches": counts})
        return
    say(f"{found.name}: {path}")
    show_table(("label", "patches"), [*counts.items()])
