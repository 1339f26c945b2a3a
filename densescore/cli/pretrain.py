"""The commands for source networks: ``densescore source-classes | pretrain | convert-caffe``."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from densescore.cli.options import Device, Json, Overwrite, check_new_weights, err, numbers, readable_errors
from densescore.errors import DensescoreError
from densescore.io.files import atomic_write
from densescore.models.registry import imagenet_labels
from densescore.models.weights import save_weights
from densescore.paper.caffe import CAFFE_MEAN, convert_caffe
from densescore.paper.pretrain.distributed import process_group
from densescore.paper.pretrain.images import available_classes, find_images
from densescore.paper.pretrain.pipeline import pretrain_krizhevsky
from densescore.paper.pretrain.recipe import SourceRecipe
from densescore.paper.pretrain.source_classes import choose, differences_from_paper, fall_2011
from densescore.paper.pretrain.training import Event
from densescore.paper.pretrain.wordnet import DEFAULT_WORDNET, WordNet

app = typer.Typer()
_out = Console()

Classes = Annotated[
    str,
    typer.Option(
        help="pre-1000c, pre-1000r or pre-1512 (the paper's), or terms with commas between: all, ilsvrc, "
        "random:COUNT:SEED, subtree:NOUN, a wnid, a file of wnids."
    ),
]
WordNetFolder = Annotated[Path, typer.Option("--wordnet", help="Folder with WordNet 3.0's data.noun.")]


@app.command("source-classes")
def source_classes(
    classes: Classes = "pre-1512",
    out: Annotated[Path | None, typer.Option(help="Write the wnids to this file, one a line.")] = None,
    wordnet: WordNetFolder = DEFAULT_WORDNET,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Resolve a choice of ImageNet's classes, among the 21,841 of the release of fall 2011, and count them."""
    with readable_errors():
        choice = choose(classes, fall_2011(), lambda: WordNet(wordnet))
        differences = differences_from_paper(choice)
        if out is not None:
            with atomic_write(out, overwrite=overwrite, inputs=[*classes.split(","), wordnet]) as temporary:
                temporary.write_text("".join(f"{wnid}\n" for wnid in choice.wnids))
        if as_json:
            counts = [{"term": term, "classes": count} for term, count in choice.added]
            print(json.dumps({"classes": len(choice.wnids), "added": counts, "unlike_paper": differences}))
            return
        table = Table("term", "classes it adds", title=classes, title_justify="left")
        for term, count in choice.added:
            table.add_row(term, f"{count:,}")
        table.add_section()
        table.add_row("all", f"{len(choice.wnids):,}")
        _out.print(table)
        for difference in differences:
            err.print(f"unlike the paper: {difference}", highlight=False)


@app.command()
def pretrain(
    data: Annotated[
        Path, typer.Option(help="Folder with train/<class>/* and val/<class>/*, or <class>/*.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The network's file (.safetensors).", show_default=False)],
    classes: Classes = "all",
    wordnet: WordNetFolder = DEFAULT_WORDNET,
    width: Annotated[
        int, typer.Option(help="Of FC6 and FC7; by default the paper's: 4096, and 6144 above 1,000 classes.", min=0)
    ] = 0,
    batch: Annotated[int, typer.Option(help="Images per step, of all devices together.", min=1)] = SourceRecipe.batch,
    learning_rate: Annotated[float, typer.Option(help="At first.")] = SourceRecipe.learning_rate,
    patience: Annotated[
        int, typer.Option(help="Epochs without gain before the learning rate is divided.", min=0)
    ] = SourceRecipe.patience,
    epochs: Annotated[int, typer.Option(help="At most.", min=1)] = SourceRecipe.max_epochs,
    seed: Annotated[int, typer.Option(help="Of all draws; recorded in the file.", min=0)] = 0,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    workers: Annotated[int, typer.Option(help="Processes that read images, per device.", min=0)] = 4,
    checkpoint_steps: Annotated[int, typer.Option(help="Steps between two checkpoints.", min=1)] = 1000,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train the paper's network on a folder of labelled images. A training that was killed goes on where it was.

    On many devices: torchrun --nproc-per-node 8 -m densescore pretrain …
    """
    with readable_errors():
        check_new_weights(out, overwrite, [data])
        recipe = SourceRecipe(batch=batch, learning_rate=learning_rate, patience=patience, max_epochs=epochs)
        choice = choose(classes, available_classes(data), lambda: WordNet(wordnet))
        images = find_images(data, choice.wnids)
        with process_group(device) as process, SourceProgress(process.rank == 0) as progress:
            for difference in differences_from_paper(choice):
                progress.say(f"unlike the paper: {difference}")
            progress.say(f"{len(choice.wnids):,} classes, {len(images.train):,} + {len(images.val):,} images")
            result = pretrain_krizhevsky(
                out,
                images,
                recipe,
                process,
                width=width or (4096 if len(choice.wnids) <= 1000 else 6144),
                precision=precision,
                seed=seed,
                workers=workers,
                checkpoint_steps=checkpoint_steps,
                callback=progress.show,
                overwrite=overwrite,
            )
        if process.rank == 0:
            if as_json:
                print(json.dumps({"out": str(out), "classes": len(choice.wnids), **asdict(result)}))
            else:
                _out.print(f"{out}: by ten views, top-1 {result.top1:.3f}, top-5 {result.top5:.3f}", soft_wrap=True)


@app.command("convert-caffe")
def convert(
    onnx: Annotated[Path, typer.Argument(help="ONNX file of BVLC's AlexNet or CaffeNet.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The network's file (.safetensors).", show_default=False)],
    mean: Annotated[str, typer.Option(help="Taken off its pixels: blue, green, red, in 0..255.")] = ",".join(
        map(str, CAFFE_MEAN)
    ),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Convert Caffe's reference AlexNet or CaffeNet from ONNX, and check it by running both on the same input."""
    with readable_errors():
        check_new_weights(out, overwrite, [onnx])
        values = numbers(mean, "--mean")
        if len(values) != 3:
            raise DensescoreError(f"--mean: expected three numbers, got {mean!r}")
        converted = convert_caffe(onnx, (values[0], values[1], values[2]))
        classes = len(converted.weights["classifier.6.bias"])
        labels = imagenet_labels() if classes == 1000 else tuple(f"class {index}" for index in range(classes))
        save_weights(out, converted.weights, labels, {"converted_from": onnx.name}, overwrite=overwrite)
        if as_json:
            print(json.dumps({"out": str(out), "model": converted.name, "difference": converted.difference}))
            return
        _out.print(
            f"{out}: weights for {converted.name}; probabilities differ by at most {converted.difference:.1g} of the "
            "highest",
            soft_wrap=True,
        )


class SourceProgress:
    """Shows a pre-training's events: a bar per epoch, a line for each that is done. Of many processes, one shows."""

    def __init__(self, shown: bool) -> None:
        columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        self._bar = Progress(*columns, console=err, transient=True, disable=not shown)
        self._shown, self._task = shown, self._bar.add_task("", rate="")

    def __enter__(self) -> "SourceProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._shown:
            err.print(text, highlight=False, soft_wrap=True)

    def show(self, event: Event) -> None:
        """Show an event."""
        rate = f"{event.rate:.0f} images/s"
        description = f"epoch {event.epoch + 1}, loss {event.loss:.3f}"
        self._bar.update(
            self._task, total=event.steps, completed=event.step, description=description, rate=rate, refresh=True
        )
        if event.validation is not None:
            self.say(
                f"{description}, {rate}, learning rate {event.learning_rate:g}; validation: loss "
                f"{event.validation.loss:.4f}, top-1 {event.validation.top1:.3f}, top-5 {event.validation.top5:.3f}"
            )
        for problem in event.unreadable:
            err.print(f"left out: {problem}", highlight=False, soft_wrap=True)
