"""What the command line's parts share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

from densescore.engine import DenseScorer
from densescore_kernels.errors import DensescoreError

err = Console(stderr=True)

Scales = Annotated[str, typer.Option(help="Short side of the image over side of a patch, with commas: 1,2,4.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Model = Annotated[str, typer.Option(help="A name that `densescore models` lists, or a trained head (.safetensors).")]
Weights = Annotated[str, typer.Option(help="A weights file for the model, 'default', or 'random'.")]
PatchSizes = Annotated[str, typer.Option(help="Sides of the patches in image pixels, instead of --scales.")]
K = Annotated[float | None, typer.Option("--k", help="Exponent of the image score, eq. (1); 5 by default.")]
DType = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
RuntimeOption = Annotated[str, typer.Option("--runtime", help="On a CPU: auto, torch or openvino.")]
Context = Annotated[str, typer.Option(help="image: one dense pass. patch: the paper's crops (slow).")]


def make_scorer(
    model: str, weights: str, scales: str, patch_sizes: str, k: float | None, device: str, dtype: str, runtime: str
) -> DenseScorer:
    """The scorer that the options of a command ask for."""
    return DenseScorer(**scorer_options(model, weights, scales, patch_sizes, k, device, dtype, runtime))


def scorer_options(
    model: str, weights: str, scales: str, patch_sizes: str, k: float | None, device: str, dtype: str, runtime: str
) -> dict[str, Any]:
    """Arguments of `DenseScorer` that the options of a command stand for."""
    options: dict[str, Any] = {"model": model, "weights": None if weights == "random" else weights}
    if scales:
        options["scales"] = numbers(scales, "--scales")
    if patch_sizes:
        options["patch_sizes"] = numbers(patch_sizes, "--patch-sizes")
    return {**options, "k": k, "device": device, "dtype": dtype, "runtime": runtime}


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
