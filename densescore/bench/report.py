"""A benchmark's result, told: tables on the terminal, JSON and CSV files."""

import csv
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def report(result: dict[str, Any]) -> None:
    """The contenders' table, what was left out, stages and shares."""
    out = Console()
    machine = result["machine"]
    out.print(
        f"{machine['processor']} ({machine['capability']}), {machine['threads']} threads; "
        f"torch {machine['versions']['torch']}; trunk by {result['runtime']}; {result['patches']} patches; "
        f"crops: {result['cropped_patches']} timed in batches of {result['crop_batch']}",
        highlight=False,
    )
    table = Table("contender", "s/image", "patches/s", "time ÷ densescore's", "spread", "deviation")
    for name, row in result["contenders"].items():
        low, high = row["times_densescore_spread"]
        cells = (f"{row['seconds']:.3f}", f"{row['patches_per_second']:.0f}", f"{row['times_densescore']:.2f}")
        table.add_row(name, *cells, f"{low:.2f} … {high:.2f}", f"{result['deviation'][name]:.1e}")
    out.print(table)
    for name, reason in result["left_out"].items():
        out.print(f"left out: {name}: {reason}", highlight=False)
    out.print(", ".join(f"{stage} {1000 * seconds:.0f} ms" for stage, seconds in result["stages"].items()))
    low, high = result["file_to_answer_over_engine"]["spread"]
    ratio = result["file_to_answer_over_engine"]["median"]
    out.print(f"from file to answer, over trunk and head alone: {ratio:.3f} ({low:.3f} … {high:.3f})", highlight=False)
    if "share_of_peak" in result:
        out.print(
            f"{result['direct_gflop']:.0f} Gflop by the direct algorithm: {100 * result['share_of_peak']:.0f} % of the "
            f"best matrix product seen here ({result['matmul_peak_gflops']:.0f} Gflop/s)",
            highlight=False,
        )
    out.print(f"peak memory of this process, all contenders loaded: {result['peak_memory_MB']} MB")


def report_growth(rows: list[dict[str, Any]]) -> None:
    """One line per image."""
    table = Table("way", "image", "patches", "seconds", "µs/patch", "peak MB so far")
    for row in rows:
        image = f"{row['image'][1]}×{row['image'][0]}"
        cells = (f"{row['seconds']:.2f}", f"{row['microseconds_per_patch']:.0f}", f"{row['peak_memory_MB']}")
        table.add_row(row["way"], image, f"{row['patches']}", *cells)
    Console().print(table)


def report_resolution(rows: list[dict[str, Any]]) -> None:
    """One line per image, a column per stage."""
    table = Table("megapixels", *(f"{stage}, ms" for stage in rows[0]["stages"]), "peak MB so far")
    for row in rows:
        stages = (f"{1000 * seconds:.0f}" for seconds in row["stages"].values())
        table.add_row(f"{row['megapixels']:g}", *stages, f"{row['peak_memory_MB']}")
    Console().print(table)


def write_json(result: dict[str, Any], path: Path) -> None:
    """All that was measured, every round."""
    path.write_text(json.dumps(result, indent=1) + "\n")


def write_csv(result: dict[str, Any], path: Path) -> None:
    """The contenders' table."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("contender", "seconds", "patches_per_second", "times_densescore", "lowest", "highest"))
        for name, row in result["contenders"].items():
            spread = row["times_densescore_spread"]
            writer.writerow((name, row["seconds"], row["patches_per_second"], row["times_densescore"], *spread))
