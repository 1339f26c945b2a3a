"""What the command line's parts share."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from densescore.errors import DensescoreError
from densescore.io.files import check_replaceable
from densescore.io.find_images import list_images
from densescore.scoring.scorer import DenseScorer
from densescore.transfer.feature_cache import FeatureCache

err = Console(stderr=True)

CALIBRATION_IMAGES = 20

Scales = Annotated[str, typer.Option(help="Short side of the image over side of a patch, with commas: 1,2,4.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Model = Annotated[str, typer.Option(help="A name that `densescore models` lists, or a trained head (.safetensors).")]
Weights = Annotated[str, typer.Option(help="A weights file for the model, 'default', or 'random'.")]
PatchSizes = Annotated[str, typer.Option(help="Sides of the patches in image pixels, instead of --scales.")]
Stride = Annotated[
    int | None, typer.Option(help="Pixels of a level between patches: 16 or 8 for more than the network's 32.")
]
K = Annotated[float | None, typer.Option("--k", help="Exponent of the image score, eq. (1); 5 by default.")]
DType = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16, or int8 with --calibration.")]
Calibration = Annotated[
    Path | None, typer.Option(help=f"For int8: a folder of images like those to come; {CALIBRATION_IMAGES} are used.")
]
RuntimeOption = Annotated[str, typer.Option("--runtime", help="On a CPU: auto, torch or openvino.")]
Context = Annotated[str, typer.Option(help="image: one dense pass. patch: the paper's crops (slow).")]
NetworkWeights = Annotated[str, typer.Option("--weights", help="A weights file for the network, or 'default'.")]
Data = Annotated[Path, typer.Option(help="Folder in VOC's, COCO's or YOLO's layout.", show_default=False)]
Split = Annotated[str, typer.Option("--set", help="Image set of the data.")]
Cache = Annotated[Path, typer.Option(help="Folder in which features are kept.")]
CacheSize = Annotated[float, typer.Option(help="Most that it may hold, in GB.", min=0)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of tables.")]


def scorer_options(
    model: str,
    weights: str,
    scales: str,
    patch_sizes: str,
    k: float | None,
    device: str,
    dtype: str,
    runtime: str,
    stride: int | None = None,
    calibration: Path | None = None,
) -> dict[str, Any]:
    """Arguments of `DenseScorer` that the options of a command stand for."""
    options: dict[str, Any] = {"model": model, "weights": None if weights == "random" else weights}
    if scales:
        options["scales"] = numbers(scales, "--scales")
    if patch_sizes:
        options["patch_sizes"] = numbers(patch_sizes, "--patch-sizes")
    if calibration is not None:
        images = list_images([calibration])
        options["calibration"] = tuple(images[:: -(-len(images) // CALIBRATION_IMAGES)])
    return {**options, "k": k, "device": device, "dtype": dtype, "runtime": runtime, "stride": stride}


@contextmanager
def readable_errors() -> Iterator[None]:
    """Print an expected error in a line and exit with 2, without a traceback."""
    try:
        yield
    except DensescoreError as error:
        err.print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Read ``"1,2,4"``.

    Raises:
        DensescoreError: names the option and what it got.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise DensescoreError(f"{option}: expected numbers with commas between, got {text!r}") from error


def check_new(path: Path | None, overwrite: bool, inputs: Iterable[str | Path | None] = (), folder: str = "") -> None:
    """Before the work, not after: refuse to write over what is there; see `check_replaceable`.

    Raises:
        DensescoreError: `path` exists and may not be replaced.
    """
    if path is not None:
        given = [item for item in inputs if item is not None]
        check_replaceable(path, overwrite=overwrite, folder=folder, inputs=given)


def check_new_weights(path: Path, overwrite: bool, inputs: Iterable[str | Path | None] = ()) -> None:
    """Before the work: `check_new`, and refuse a name by which the file would not be read again.

    Raises:
        DensescoreError: `path` does not end in .safetensors, or exists and may not be replaced.
    """
    if path.suffix != ".safetensors":
        raise DensescoreError(f"--out: expected a name that ends in .safetensors, got {path}")
    check_new(path, overwrite, inputs)


def feature_cache(scorer: DenseScorer, folder: Path, gigabytes: float, context: str) -> FeatureCache:
    """The cache that the options ask for."""
    return FeatureCache(scorer, folder, max_bytes=int(gigabytes * 1e9), context=context)  # type: ignore[arg-type]


def progress_bar() -> Progress:
    """A bar on stderr that is gone when the work is done."""
    return Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=err, transient=True)


def tracked(progress: Progress, description: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """Wraps an iteration, for the bar."""
    return lambda items: progress.track(items, description=description)
