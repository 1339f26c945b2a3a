"""The program ``densescore-bench``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from densescore.bench.case import CONTENDERS, Case
from densescore.cli.command import Without, command, register, start
from densescore.cli.console import note, say, show_table
from densescore.cli.options import Overwrite, ScorerOptions, check_new, numbers
from densescore.errors import DensescoreError
from densescore.geometry import PAPER_SCALES

_FILES = "Files and curves"


@command(
    "densescore-bench --model alexnet --weights random --classes 21 --json speed.json",
    "densescore-bench --growth 30000 --plot growth.png",
    "densescore-bench --contenders '' --batch 32",
)
def bench(
    classes: Annotated[int, typer.Option(help="Replace FC8 by a random FCa, FCb of so many classes.", min=0)] = 0,
    image: Annotated[
        Path | None, typer.Option(help="By default, a smooth random picture of 500×375 pixels.", show_default=False)
    ] = None,
    contenders: Annotated[str, typer.Option(help=f"With commas between, of {', '.join(CONTENDERS)}.")] = ",".join(
        Case.contenders
    ),
    crop_cells: Annotated[
        int, typer.Option(help="Patches that are cropped, evenly drawn, and scaled up; 0: all.", min=0)
    ] = Case.crop_cells,
    rounds: Annotated[int, typer.Option(help="Timed runs of each contender, in turn.", min=1)] = Case.rounds,
    growth: Annotated[
        int, typer.Option(help="Growth curve: up to so many patches of an image.", min=0, rich_help_panel=_FILES)
    ] = 0,
    resolutions: Annotated[
        str,
        typer.Option(
            help="Stages by resolution: megapixels, with commas between.", show_default=False, rich_help_panel=_FILES
        ),
    ] = "",
    batch: Annotated[
        int,
        typer.Option(help="Images per second for 1, 2, 4, … up to so many in one pass.", min=0, rich_help_panel=_FILES),
    ] = 0,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the result to this file.", show_default=False, rich_help_panel=_FILES),
    ] = None,
    csv_file: Annotated[
        Path | None,
        typer.Option("--csv", help="Write the table to this file.", show_default=False, rich_help_panel=_FILES),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Write a picture of the curves to this file.", show_default=False, rich_help_panel=_FILES),
    ] = None,
    overwrite: Overwrite = False,
    options: Annotated[ScorerOptions, Without("patch_sizes stride k")] = ScorerOptions(dtype="float32"),
) -> None:
    """Time dense scoring against cropping and against other runtimes: equal scores first, then in turn.

    densescore is timed from decoded pixels to probabilities. The others are given the pyramid ready made.
    """
    case = Case(
        model=options.model,
        weights=options.weights,
        classes=classes,
        image=image,
        scales=numbers(options.scales, "--scales") if options.scales else PAPER_SCALES,
        dtype=options.dtype,
        device=options.device,
        runtime=options.runtime,
        contenders=tuple(name.strip() for name in contenders.split(",") if name.strip()),
        crop_cells=crop_cells,
        rounds=rounds,
    )
    inputs = [image, *options.files]
    files = [path for path in (json_file, csv_file, plot) if path is not None]
    for file in files:
        check_new(file, overwrite, inputs)
    if len({path.resolve() for path in files}) < len(files):
        raise DensescoreError("--json, --csv and --plot: two of them name the same file")
    megapixels = numbers(resolutions, "--resolutions") if resolutions else ()
    from densescore.bench.growth import batch_curve, growth_curve, plot_growth, resolution_curve
    from densescore.bench.report import write_csv, write_json
    from densescore.bench.run import run as run_case
    from densescore.bench.run import scorer_maker
    from densescore.io.files import atomic_write

    result = run_case(case)
    _report(result)
    make = scorer_maker(case)
    if growth:
        result["growth"] = growth_curve(make, growth)
        _report_growth(result["growth"])
    if megapixels:
        result["resolution"] = resolution_curve(make(scales=case.scales), [*megapixels])
        _report_resolution(result["resolution"])
    if batch:
        result["batches"] = batch_curve(make(scales=case.scales), batch, rounds)
        _report_batches(result["batches"])
    for path, write in ((json_file, write_json), (csv_file, write_csv), (plot, plot_growth)):
        if path is not None:
            with atomic_write(
                path, overwrite=overwrite, inputs=[item for item in inputs if item is not None]
            ) as temporary:
                write(result, temporary)


def _report(result: dict[str, Any]) -> None:
    """The contenders' table, what was left out, stages and shares."""
    machine = result["machine"]
    say(
        f"{machine['processor']} ({machine['capability']}), {machine['threads']} threads; "
        f"torch {machine['versions']['torch']}; trunk by {result['runtime']}; {result['patches']} patches; "
        f"crops: {result['cropped_patches']} timed in batches of {result['crop_batch']}"
    )
    rows = []
    for name, row in result["contenders"].items():
        low, high = row["times_densescore_spread"]
        cells = (f"{row['seconds']:.3f}", f"{row['patches_per_second']:.0f}", f"{row['times_densescore']:.2f}")
        rows.append((name, *cells, f"{low:.2f} … {high:.2f}", f"{result['deviation'][name]:.1e}"))
    show_table(("contender", "s/image", "patches/s", "time ÷ densescore's", "spread", "deviation"), rows)
    for name, reason in result["left_out"].items():
        note(f"left out: {name}: {reason}")
    say(", ".join(f"{stage} {1000 * seconds:.0f} ms" for stage, seconds in result["stages"].items()))
    ratio = result["file_to_answer_over_engine"]
    low, high = ratio["spread"]
    say(f"from file to answer, over trunk and head alone: {ratio['median']:.3f} ({low:.3f} … {high:.3f})")
    if "share_of_peak" in result:
        say(
            f"{result['direct_gflop']:.0f} Gflop by the direct algorithm: {100 * result['share_of_peak']:.0f} % of the "
            f"best matrix product seen here ({result['matmul_peak_gflops']:.0f} Gflop/s)"
        )
    say(f"peak memory of this process, all contenders loaded: {result['peak_memory_MB']} MB")


def _report_growth(rows: list[dict[str, Any]]) -> None:
    """One line per image."""
    show_table(
        ("way", "image", "patches", "seconds", "µs/patch", "peak MB so far"),
        [
            (
                row["way"],
                f"{row['image'][1]}×{row['image'][0]}",
                row["patches"],
                f"{row['seconds']:.2f}",
                f"{row['microseconds_per_patch']:.0f}",
                row["peak_memory_MB"],
            )
            for row in rows
        ],
    )


def _report_resolution(rows: list[dict[str, Any]]) -> None:
    """One line per image, a column per stage."""
    show_table(
        ("megapixels", *(f"{stage}, ms" for stage in rows[0]["stages"]), "peak MB so far"),
        [
            (
                f"{row['megapixels']:g}",
                *(f"{1000 * seconds:.0f}" for seconds in row["stages"].values()),
                row["peak_memory_MB"],
            )
            for row in rows
        ],
    )


def _report_batches(rows: list[dict[str, Any]]) -> None:
    """One line per number of images."""
    show_table(
        ("images in one pass", "images/s", "times one by one", "spread"),
        [
            (
                row["batch"],
                f"{row['images_per_second']:.2f}",
                f"{row['times_one']:.2f}",
                " … ".join(f"{end:.2f}" for end in row["times_one_spread"]),
            )
            for row in rows
        ],
    )


app = typer.Typer(pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})
register(app, bench)


def run() -> None:
    """The program ``densescore-bench``."""
    start(app, "densescore-bench")
