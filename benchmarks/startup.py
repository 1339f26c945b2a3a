"""Processor seconds of a program's first answers, each in a new process, beside those of another checkout.

    python benchmarks/startup.py --before ../densescore-before

Programs run in one thread, with a cache folder of their own: empty in the first run ("new cache"), filled in the last.
``import torch`` is measured next to them: on a busy machine, compare ratios.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import cv2
from common import RESULTS, noise_image, parser, write_record

COMMANDS = {
    "import torch": "import torch",
    "densescore --help": "--help",
    "densescore classify photo.png": "classify photo.png",
    "densescore classify photo.png --runtime openvino": "classify photo.png --runtime openvino",
    "densescore heatmap photo.png": "heatmap photo.png --overwrite",
}


def seconds(command: str, checkout: Path, folder: str) -> float:
    """Processor seconds of a Python statement, or of a command of densescore."""
    run = f"import sys; sys.argv[1:] = {command.split()!r}; from densescore.__main__ import main; main()"
    places = {"PYTHONPATH": f"{checkout}:{checkout / 'kernels'}", "XDG_CACHE_HOME": f"{folder}/{checkout.name}"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", command if command.startswith("import") else run],
        env={**os.environ, **places, "OMP_NUM_THREADS": "1"}, cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(checkout: Path, rounds: int) -> dict[str, Any]:
    """Seconds per command with a new cache, and the median of later rounds."""
    with tempfile.TemporaryDirectory() as folder:
        cv2.imwrite(f"{folder}/photo.png", noise_image())
        times = {name: [seconds(line, checkout, folder) for _ in range(1 + rounds)] for name, line in COMMANDS.items()}
    return {
        name: {"new cache": round(first, 2), "later": round(median(rest), 2)} for name, (first, *rest) in times.items()
    }


def main() -> None:
    """Measure, print, and write ``benchmarks/results/startup.json``."""
    program = parser(__doc__)
    program.add_argument("--before", type=Path, help="another checkout to compare with")
    program.add_argument("--rounds", type=int, default=3)
    options = program.parse_args()
    checkouts = {"before": options.before, "now": Path(__file__).parents[1]}
    times = {name: measure(path.resolve(), options.rounds) for name, path in checkouts.items() if path}
    for command in COMMANDS:
        print(command, *(f"{name}: {runs[command]}" for name, runs in times.items()), sep="\n    ")
    write_record(RESULTS / "startup.json", rounds=options.rounds, processor_seconds=times)


if __name__ == "__main__":
    main()
