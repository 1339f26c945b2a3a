"""The README's table of speeds: lite0 and AlexNet against cropping, ONNX Runtime and OpenVINO.

    python benchmarks/speed.py

Each column is one run of densescore-bench, in a process of its own; the last one is `benchmarks/int8.py`'s. It takes a
quarter of an hour, on a machine that should be idle.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from int8 import speed

from densescore.bench.growth import photograph

RESULTS = Path(__file__).parent / "results"
COLUMNS = {
    "lite0, float32": ("lite0-float32", "--model lite0"),
    "AlexNet + FCa/FCb, float32": ("alexnet-float32", "--model alexnet --weights random --classes 21"),
    "the same, bfloat16": ("alexnet-bfloat16", "--model alexnet --weights random --classes 21 --dtype bfloat16"),
}
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


def table(columns: dict[str, dict[str, Any]], int8: dict[str, Any]) -> str:
    """Other's time over densescore's, median (lowest … highest), as Markdown."""

    def show(result: dict[str, Any], name: str) -> str:
        row = result["contenders"].get(name)
        if row is None:
            return "–"
        low, high = row["times_densescore_spread"]
        digits = 0 if row["times_densescore"] >= 20 else 1 if row["times_densescore"] >= 5 else 2
        return f"**{row['times_densescore']:.{digits}f}** ({low:.{digits}f} … {high:.{digits}f})"

    lines = [f"| | {' | '.join(columns)} |", "| --- " * (1 + len(columns)) + "|"]
    for name, title in CONTENDERS.items():
        lines.append(f"| {title} | " + " | ".join(show(result, name) for result in columns.values()) + " |")
    own = {
        "densescore": lambda result: f"{result['contenders']['densescore']['seconds']:.2f} s",
        "its arithmetic, counted by the definition, over the best matrix product's rate": lambda result: (
            f"{100 * result['share_of_peak']:.0f} %"
        ),
        "from JPEG to answer, over trunk and head alone": lambda result: (
            f"{result['file_to_answer_over_engine']['median']:.2f}"
        ),
    }
    for title, value in own.items():
        lines.append(f"| {title} | " + " | ".join(value(result) for result in columns.values()) + " |")
    gain = int8["bfloat16_over_int8"]
    lines += [
        "",
        f"AlexNet + FCa/FCb in int8: {int8['seconds']['int8']:.2f} s; bfloat16 takes {gain['median']:.2f} "
        f"({gain['lowest']:.2f} … {gain['highest']:.2f}) times as long.",
    ]
    return "\n".join(lines) + "\n"


def main(
    rounds: int = 7,
    results: Annotated[Path, typer.Option(help="Folder to write to.")] = RESULTS,
) -> None:
    columns = {}
    for title, (name, options) in COLUMNS.items():
        file = results / f"bench-{name}.json"
        arguments = [*options.split(), "--rounds", str(rounds), "--contenders", ",".join(CONTENDERS)]
        bench = [sys.executable, "-c", "from densescore.__main__ import bench; bench()"]
        command = [*bench, *arguments, "--json", str(file), "--overwrite"]
        subprocess.run(command, check=True)
        columns[title] = json.loads(file.read_text())
    int8 = speed([photograph(375, 500)], rounds)
    (results / "bench-alexnet-int8.json").write_text(json.dumps(int8, indent=1) + "\n")
    title = f"Made by `python benchmarks/speed.py`: time over densescore's, median (extremes) of {rounds} rounds."
    (results / "speed.md").write_text(f"# Speed\n\n{title}\n\n{table(columns, int8)}")


if __name__ == "__main__":
    typer.run(main)
