"""The README's table of speeds: lite0 and AlexNet against cropping, ONNX Runtime and OpenVINO.

    python benchmarks/speed.py

Each column, and each row of batches, is one run of densescore-bench in its own process. It takes about ten
minutes, on a machine that should be idle.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

from common import RESULTS, markdown, write_text
from cyclopts import Parameter, run

ALEXNET = "--model alexnet --weights random --classes 21"
COLUMNS = {
    "lite0, float32": ("lite0-float32", "--model lite0"),
    "lite0, bfloat16": ("lite0-bfloat16", "--model lite0 --dtype bfloat16"),
    "AlexNet + FCa/FCb, float32": ("alexnet-float32", ALEXNET),
    "AlexNet + FCa/FCb, bfloat16": ("alexnet-bfloat16", f"{ALEXNET} --dtype bfloat16"),
}
BATCHES = {
    "AlexNet + FCa/FCb, float32, one scale": ("batches-alexnet-float32", f"{ALEXNET} --scales 1"),
    "AlexNet + FCa/FCb, bfloat16, one scale": ("batches-alexnet-bfloat16", f"{ALEXNET} --scales 1 --dtype bfloat16"),
    "AlexNet + FCa/FCb, float32, 1 and 1.3": ("batches-alexnet-two-scales", f"{ALEXNET} --scales 1,1.3"),
    "lite0, float32, one scale": ("batches-lite0-float32", "--model lite0 --scales 1"),
}
MAX_BATCH = 8
CONTENDERS = {
    "crops": "crops: torch",
    "crops-compile": "crops: `torch.compile`",
    "crops-onnxruntime": "crops: ONNX Runtime",
    "crops-openvino": "crops: OpenVINO",
    "dense-modules": "dense: torch, layer by layer",
    "dense-timm": "dense: timm's test-time pooling",
    "dense-onnxruntime": "dense: ONNX Runtime",
    "dense-openvino": "dense: OpenVINO",
}


def table(columns: dict[str, dict[str, Any]]) -> str:
    """Other's time over densescore's, median (lowest … highest), as Markdown."""

    def show(result: dict[str, Any], name: str) -> str:
        row = result["contenders"].get(name)
        if row is None:
            return "–"
        low, high = row["times_densescore_spread"]
        digits = 0 if row["times_densescore"] >= 20 else 1 if row["times_densescore"] >= 5 else 2
        return f"**{row['times_densescore']:.{digits}f}** ({low:.{digits}f} … {high:.{digits}f})"

    rows = [(title, *(show(result, name) for result in columns.values())) for name, title in CONTENDERS.items()]
    more = {
        "densescore": lambda result: f"{result['contenders']['densescore']['seconds']:.2f} s",
        "its arithmetic, counted by the definition, over the best matrix product's rate": lambda result: (
            f"{100 * result['share_of_peak']:.0f} %"
        ),
        "from JPEG to answer, over trunk and head alone": lambda result: (
            f"{result['file_to_answer_over_engine']['median']:.2f}"
        ),
    }
    rows += [(title, *map(value, columns.values())) for title, value in more.items()]
    return markdown(("", *columns), rows)


def batch_table(rows: dict[str, dict[str, Any]]) -> str:
    """Images per second by the images in one pass, and the gain over one at a time, as Markdown."""
    sizes = [row["batch"] for row in next(iter(rows.values()))["batches"]]
    lines = []
    for title, result in rows.items():
        cells = []
        for row in result["batches"]:
            low, high = row["times_one_spread"]
            cells.append(f"{row['images_per_second']:.1f} (×{row['times_one']:.2f}, {low:.2f} … {high:.2f})")
        lines.append((title, *cells))
    return markdown(("images in one pass", *map(str, sizes)), lines)


def bench(name: str, arguments: list[str], results: Path) -> dict[str, Any]:
    """The result of one run of densescore-bench, which stays in `results`."""
    file = results / f"bench-{name}.json"
    program = [sys.executable, "-c", "from densescore.__main__ import bench; bench()"]
    subprocess.run([*program, *arguments, "--output", str(file), "--overwrite"], check=True)
    result: dict[str, Any] = json.loads(file.read_text())
    return result


def main(*, rounds: int = 5, results: Annotated[Path, Parameter(help="Folder to write to.")] = RESULTS) -> None:
    shared = ["--rounds", str(rounds), "--crop-cells", "256"]
    columns = {
        title: bench(name, [*options.split(), *shared, "--contenders", ",".join(CONTENDERS)], results)
        for title, (name, options) in COLUMNS.items()
    }
    batches = {}
    for title, (name, options) in BATCHES.items():
        arguments = [*options.split(), *shared, "--contenders", "", "--batch", str(MAX_BATCH)]
        batches[title] = bench(name, arguments, results)
    title = f"Made by `python benchmarks/speed.py`: time over densescore's, median (extremes) of {rounds} rounds."
    more = "Photographs of mixed sizes: images per second (times one at a time, its extremes)."
    write_text(
        results / "speed.md",
        f"# Speed\n\n{title}\n\n{table(columns)}\n## Several images in one pass\n\n{more}\n\n{batch_table(batches)}",
    )


if __name__ == "__main__":
    run(main)
