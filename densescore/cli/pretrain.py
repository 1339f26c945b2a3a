"""The commands for source networks: ``densescore source-classes | pretrain | convert-caffe``."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from densescore.cli.command import command
from densescore.cli.console import note, say, say_json, show_table
from densescore.cli.options import Device, Json, Overwrite, check_new, check_new_weights, numbers, out_option
from densescore.cli.source_progress import SourceProgress
from densescore.cli.training_options import Seed
from densescore.errors import DensescoreError
from densescore.paper.pretrain.recipe import SourceRecipe
from densescore.paper.pretrain.wordnet import DEFAULT_WORDNET, WordNet

Classes = Annotated[
    str,
    typer.Option(
        "--classes",
        help="pre-1000c, pre-1000r or pre-1512 (the paper's), or terms with commas between: all, ilsvrc, "
        "random:COUNT:SEED, subtree:NOUN, a wnid, a file of wnids.",
    ),
]
WordNetFolder = Annotated[Path, typer.Option("--wordnet", help="Folder with WordNet 3.0's data.noun.")]
NetworkFile = Annotated[Path, out_option("The network's file (.safetensors).")]


@command(
    "densescore source-classes --classes pre-1512",
    "densescore source-classes --classes ilsvrc,subtree:furniture -o wnids.txt",
)
def source_classes(
    classes: Classes = "pre-1512",
    out: Annotated[
        Path | None,
        out_option("Write the wnids to this file, one a line."),
    ] = None,
    wordnet: WordNetFolder = DEFAULT_WORDNET,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Resolve a choice of ImageNet's classes, among the 21,841 of the release of fall 2011, and count them."""
    check_new(out, overwrite)
    from densescore.io.files import atomic_write
    from densescore.paper.pretrain.source_classes import choose, differences_from_paper, fall_2011

    choice = choose(classes, fall_2011(), lambda: WordNet(wordnet))
    differences = differences_from_paper(choice)
    if out is not None:
        with atomic_write(out, overwrite=overwrite, inputs=[*classes.split(","), wordnet]) as temporary:
            temporary.write_text("".join(f"{wnid}\n" for wnid in choice.wnids))
    if as_json:
        counts = [{"term": term, "classes": count} for term, count in choice.added]
        say_json({"classes": len(choice.wnids), "added": counts, "unlike_paper": differences})
        return
    show_table(
        ("term", "classes it adds"),
        [(term, f"{count:,}") for term, count in choice.added],
        title=classes,
        last=("all", f"{len(choice.wnids):,}"),
    )
    for difference in differences:
        note(f"unlike the paper: {difference}")


@command(
    "densescore pretrain --data imagenet/ --classes pre-1512 -o krizhevsky.safetensors",
    "torchrun --nproc-per-node 8 -m densescore pretrain --data imagenet/ -o krizhevsky.safetensors",
)
def pretrain(
    data: Annotated[
        Path, typer.Option(help="Folder with train/<class>/* and val/<class>/*, or <class>/*.", show_default=False)
    ],
    out: NetworkFile,
    classes: Classes = "all",
    wordnet: WordNetFolder = DEFAULT_WORDNET,
    width: Annotated[
        int,
        typer.Option(
            help="Of FC6 and FC7; by default the paper's: 4096, and 6144 above 1,000 classes.",
            min=0,
            show_default=False,
        ),
    ] = 0,
    batch: Annotated[int, typer.Option(help="Images per step, of all devices together.", min=1)] = SourceRecipe.batch,
    learning_rate: Annotated[float, typer.Option(help="At first.")] = SourceRecipe.learning_rate,
    patience: Annotated[
        int, typer.Option(help="Epochs without gain before the learning rate is divided.", min=0)
    ] = SourceRecipe.patience,
    epochs: Annotated[int, typer.Option(help="At most.", min=1)] = SourceRecipe.max_epochs,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    workers: Annotated[int, typer.Option(help="Processes that read images, per device.", min=0)] = 4,
    checkpoint_steps: Annotated[int, typer.Option(help="Steps between two checkpoints.", min=1)] = 1000,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train the paper's network on a folder of labeled images. Stopped or killed, the same command goes on."""
    check_new_weights(out, overwrite, [data])
    recipe = SourceRecipe(batch=batch, learning_rate=learning_rate, patience=patience, max_epochs=epochs)
    from densescore.paper.pretrain.distributed import process_group
    from densescore.paper.pretrain.images import available_classes, find_images
    from densescore.paper.pretrain.pipeline import pretrain_krizhevsky
    from densescore.paper.pretrain.source_classes import choose, differences_from_paper

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
            say_json({"out": str(out), "classes": len(choice.wnids), **asdict(result)})
        else:
            say(f"{out}: by ten views, top-1 {result.top1:.3f}, top-5 {result.top5:.3f}")


@command("densescore convert-caffe bvlcalexnet.onnx -o alexnet.safetensors")
def convert_caffe(
    onnx: Annotated[Path, typer.Argument(help="ONNX file of BVLC's AlexNet or CaffeNet.", show_default=False)],
    out: NetworkFile,
    mean: Annotated[
        str | None,
        typer.Option(
            help="Taken off its pixels: blue, green, red, in 0..255.", show_default="104.00699,116.66877,122.67892"
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Convert Caffe's reference AlexNet or CaffeNet from ONNX, and check it by running both on the same input."""
    check_new_weights(out, overwrite, [onnx])
    values = None if mean is None else numbers(mean, "--mean")
    if values is not None and len(values) != 3:
        raise DensescoreError(f"--mean: expected three numbers, got {mean!r}")
    from densescore.models.labels import imagenet_labels
    from densescore.models.weights import save_weights
    from densescore.paper.caffe import CAFFE_MEAN
    from densescore.paper.caffe import convert_caffe as convert

    blue, green, red = values or CAFFE_MEAN
    converted = convert(onnx, (blue, green, red))
    classes = len(converted.weights["classifier.6.bias"])
    labels = imagenet_labels() if classes == 1000 else tuple(f"class {index}" for index in range(classes))
    save_weights(out, converted.weights, labels, {"converted_from": onnx.name}, overwrite=overwrite)
    if as_json:
        say_json({"out": str(out), "model": converted.name, "difference": converted.difference})
        return
    difference = f"{converted.difference:.1g}"
    say(f"{out}: weights for {converted.name}; probabilities differ by at most {difference} of the highest")
