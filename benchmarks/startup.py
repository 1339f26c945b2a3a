"""Processor time of answers that need no network: help, the version, a mistyped option, a mistyped class.

    python benchmarks/startup.py --before ../densescore-0.1

Each command is run in a process of its own, in turn, and the medians of user and system time are written to
``results/startup.json``; with ``--before``, beside those of another checkout.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from densescore.bench.machine import describe_machine

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "import densescore": ["-c", "import densescore"],
    "densescore --help": ["-m", "densescore", "--help"],
    "densescore --version": ["-m", "densescore", "--version"],
    "densescore classify --help": ["-m", "densescore", "classify", "--help"],
    "densescore train --help": ["-m", "densescore", "train", "--help"],
    "densescore classify photo.png --scale 1": ["-m", "densescore", "classify", "photo.png", "--scale", "1"],
    "densescore heatmap photo.png --classes tabbi": ["-m", "densescore", "heatmap", "photo.png", "--classes", "tabbi"],
    "densescore score photo.png --out scores.parquet --classes tabbi": [
        "-m", "densescore", "score", "photo.png", "--out", "scores.parquet", "--classes", "tabbi",
    ],
    "densescore huge photo.tif --out scores --classes tabbi": [
        "-m", "densescore", "huge", "photo.tif", "--out", "scores", "--classes", "tabbi",
    ],
}  # fmt: skip


def processor_seconds(arguments: list[str], checkout: Path, folder: Path) -> float:
    """User and system time of one run of Python on a checkout, in a folder with the pictures."""
    path = os.pathsep.join(map(str, (checkout, checkout / "kernels")))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 2) or "Traceback" in done.stderr:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(
    before: Annotated[Path | None, typer.Option(help="Another checkout, to compare with.")] = None,
    rounds: Annotated[int, typer.Option(help="Runs of each command.", min=1)] = 5,
    out: Annotated[Path, typer.Option(help="The result.")] = ROOT / "benchmarks" / "results" / "startup.json",
) -> None:
    """Time the commands of this checkout, and of another."""
    checkouts = {"after": ROOT} if before is None else {"before": before.resolve(), "after": ROOT}
    seconds: dict[str, dict[str, list[float]]] = {name: {key: [] for key in checkouts} for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("photo.png", "photo.tif"):
            Image.new("RGB", (64, 48)).save(Path(folder) / name)
        for _ in range(rounds):  # the first may compile bytecode; the median is not of it
            for name, arguments in COMMANDS.items():
                for key, checkout in checkouts.items():
                    seconds[name][key].append(processor_seconds(arguments, checkout, Path(folder)))
    medians = {name: {key: statistics.median(spent) for key, spent in runs.items()} for name, runs in seconds.items()}
    for name, row in medians.items():
        print(f"{name}: {' → '.join(f'{value:.2f} s' for value in row.values())}")
    record = {"machine": describe_machine(), "rounds": rounds, "processor_seconds": medians}
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
