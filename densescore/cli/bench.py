"""The program ``densescore-bench``."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts.types import NonNegativeInt, PositiveInt

from densescore.bench.case import CONTENDERS, Case
from densescore.cli import options as cli
from densescore.cli.console import info, notice, print_table
from densescore.cli.program import EXAMPLES, examples, make_app, start
from densescore.errors import DensescoreError
from densescore.geometry import PAPER_SCALES

ALL = ",".join(Case.contenders)
file_option = cli.panel("Files and batches")


@dataclass(frozen=True)
class BenchOptions(cli.ScorerOptions):
    """The scorer to time; the benchmark sets patches and k."""

    patch_sizes: Annotated[str, cli.NOT_AN_OPTION] = ""
    stride: Annotated[int | None, cli.NOT_AN_OPTION] = None
    k: Annotated[float | None, cli.NOT_AN_OPTION] = None
    dtype: Annotated[str, cli.network_option("auto, float32, bfloat16 or float16.")] = "float32"


@examples(
    "densescore-bench --model alexnet --weights random --classes 21 -o speed.json",
    "densescore-bench --contenders '' --batch 32",
    "densescore-bench --device cuda --all -o gpu.json",
)
def bench(
    *,
    classes: Annotated[NonNegativeInt, cli.option("Number of classes of a random FCa and FCb instead of FC8.")] = 0,
    image: Annotated[Path | None, cli.option("By default, a smooth random image of 500×375 pixels.")] = None,
    contenders: Annotated[str, cli.option(f"Separated by commas, from {', '.join(CONTENDERS)}.")] = ALL,
    crop_cells: Annotated[NonNegativeInt, cli.option("Patches to crop, drawn evenly; 0 for all.")] = Case.crop_cells,
    rounds: Annotated[PositiveInt, cli.option("Timed runs per contender, in turn.")] = Case.rounds,
    batch: Annotated[NonNegativeInt, file_option("Images per second for batches of 1, 2, 4, … up to this size.")] = 0,
    everything: Annotated[
        bool, file_option("For a GPU, in bfloat16: equality, contenders, batches, kernels.", "--all")
    ] = False,
    json_file: Annotated[Path | None, file_option("File for the result (.json).", "--output", "-o", "--out")] = None,
    csv_file: Annotated[Path | None, file_option("File for the table.", "--csv")] = None,
    overwrite: cli.Overwrite = False,
    options: BenchOptions = BenchOptions(),
) -> None:
    """Time dense scoring against crops and other runtimes, after checking that all scores are equal.

    densescore is timed from decoded pixels to probabilities; the others get the image pyramid ready-made.
    """
    # Check all arguments
    case = Case(
        model=options.model, weights=options.weights, classes=classes, image=image,
        scales=cli.numbers(options.scales, "--scales") or PAPER_SCALES, dtype=options.dtype, device=options.device,
        runtime=options.runtime, contenders=tuple(name.strip() for name in contenders.split(",") if name.strip()),
        crop_cells=crop_cells, rounds=rounds,
    )  # fmt: skip
    inputs = [item for item in (image, *options.files) if item is not None]
    files = [path for path in (json_file, csv_file) if path is not None]
    for file in files:
        cli.check_new(file, overwrite, inputs)
    if len({path.resolve() for path in files}) < len(files):
        raise DensescoreError("--output and --csv name the same file")
    from densescore.bench import run
    from densescore.io.files import atomic_write

    # Time the contenders, then batches
    if everything:
        from densescore.bench import gpu

        result = gpu.run_all(replace(case, dtype="bfloat16"), batch or 64)
        _report_equality(result["equality"])
    else:
        result = run.run(case)
    _report(result)
    if everything:
        _report_batches(result["batches"])
        _report_kernels(result)
    elif batch:
        from densescore.bench.batches import batch_curve

        result["batches"] = batch_curve(run.make_scorer(case), batch, rounds)
        _report_batches(result["batches"])

    # Write the files
    for path, write in ((json_file, run.write_json), (csv_file, run.write_csv)):
        if path is not None:
            with atomic_write(path, overwrite=overwrite, inputs=inputs) as temporary:
                write(result, temporary)


def _report(result: dict[str, Any]) -> None:
    """Print the contenders, stages and ratios."""
    machine = result["machine"]
    info(
        f"{machine['processor']} ({machine['capability']}), {machine['threads']} threads; "
        f"torch {machine['versions']['torch']}; trunk by {result['runtime']}; {result['patches']} patches; "
        f"crops: {result['cropped_patches']} timed in batches of {result['crop_batch']}"
    )
    rows = []
    for name, row in result["contenders"].items():
        low, high = row["times_densescore_spread"]
        cells = (f"{row['seconds']:.3f}", f"{row['patches_per_second']:.0f}", f"{row['times_densescore']:.2f}")
        rows.append((name, *cells, f"{low:.2f} … {high:.2f}", f"{result['deviation'][name]:.1e}"))
    print_table(("contender", "s/image", "patches/s", "time ÷ densescore's", "spread", "deviation"), rows)
    for name, reason in result["left_out"].items():
        notice(f"left out: {name}: {reason}")
    info(", ".join(f"{stage} {1000 * seconds:.0f} ms" for stage, seconds in result["stages"].items()))
    ratio = result["file_to_answer_over_engine"]
    low, high = ratio["spread"]
    info(f"end to end, relative to trunk and head alone: {ratio['median']:.3f} ({low:.3f} … {high:.3f})")
    if "share_of_peak" in result:
        info(
            f"{result['direct_gflop']:.0f} Gflop by direct convolution: {100 * result['share_of_peak']:.0f} % of the "
            f"fastest matrix product measured here ({result['matmul_peak_gflops']:.0f} Gflop/s)"
        )
    info(f"peak memory of this process, all contenders loaded: {result['peak_memory_MB']} MB")


def _report_batches(rows: list[dict[str, Any]]) -> None:
    cells = []
    for row in rows:
        low, high = row["times_one_spread"]
        cells.append(
            (row["batch"], f"{row['images_per_second']:.2f}", f"{row['times_one']:.2f}", f"{low:.2f} … {high:.2f}")
        )
    print_table(("batch", "images/s", "speedup over one by one", "spread"), cells)


def _report_equality(rows: list[dict[str, Any]]) -> None:
    print_table(("equal to the CPU", "deviation"), [(row["check"], f"{row['deviation']:.1e}") for row in rows])


def _report_kernels(result: dict[str, Any]) -> None:
    """Print kernels relative to their floors, and measured and predicted passes."""
    kernels = [
        (
            row["kernel"],
            f"{1e6 * row['seconds']:.0f}",
            f"{1e6 * row['floor_seconds']:.0f}",
            f"{row['seconds'] / row['floor_seconds']:.2f}",
        )
        for row in result["kernels"]
    ]
    print_table(("kernel", "µs", "floor, µs", "times the floor"), kernels)
    passes = [
        (row["batch"], f"{1e3 * row['measured_seconds']:.2f}", f"{1e3 * row['predicted_seconds']:.2f}")
        for row in result["predicted"]
    ]
    if passes:
        print_table(("batch", "measured, ms/image", "predicted for an H100"), passes)
    else:
        notice("no predictions: benchmarks/results/gpu_counts.json has no counts of this model at these scales")


app = make_app("densescore-bench")
app.default(bench)
app.help_epilogue = EXAMPLES[bench]


def run() -> None:
    """Run ``densescore-bench``."""
    start(app)
