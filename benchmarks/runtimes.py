"""What ``runtime="auto"`` follows from: OpenVINO's time over torch's, for networks of different kinds.

python benchmarks/runtimes.py                   # writes benchmarks/results/runtimes.json and runtimes.md
"""

import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import timm
import torch
import torchvision
import typer
from torch import nn

from densescore import DenseScorer
from densescore.bench.machine import describe_machine

RESULTS = Path(__file__).parent / "results"
NETWORKS = (
    "alexnet", "vgg11", "squeezenet1_1", "resnet18", "resnet50", "resnext50_32x4d", "densenet121", "regnet_x_400mf",
    "timm/repvgg_a0", "timm/hgnetv2_b0", "mobilenet_v2", "mobilenet_v3_large", "mnasnet1_0", "shufflenet_v2_x1_0",
    "efficientnet_b0", "timm/tf_efficientnet_lite0", "timm/convnext_atto",
)  # fmt: skip
RUNTIMES = ("torch", "openvino")


def build(name: str) -> nn.Module:
    """A network with random weights; batch norms have the statistics of noise, so that activations keep their size."""
    torch.manual_seed(0)
    timms = name.startswith("timm/")
    module: Any = timm.create_model(name[5:]) if timms else torchvision.models.get_model(name, weights=None)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        module.train()(torch.randn(4, 3, 224, 224))
    return module.eval()


def kind_of(module: nn.Module) -> str:
    """By its convolutions."""
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    if any(layer.groups == layer.in_channels > 1 for layer in convolutions):
        return "depthwise"
    return "grouped" if any(layer.groups > 1 for layer in convolutions) else "plain"


def measure(module: nn.Module, dtype: str, rounds: int) -> dict[str, Any]:
    """Seconds of each runtime on one 400×300 image at two scales, in turn; the first round warms up."""
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    scorers = [DenseScorer(module, scales=(1, 1.6), dtype=dtype, runtime=runtime) for runtime in RUNTIMES]  # type: ignore[arg-type]
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for scorer, times in zip(scorers, seconds, strict=True):
            start = time.perf_counter()
            scorer.score(image)
            times.append(time.perf_counter() - start)
    ratios = [openvino / torch_ for torch_, openvino in zip(seconds[0][1:], seconds[1][1:], strict=True)]
    return {
        "auto": DenseScorer(module, scales=(1,), dtype=dtype).runtime,
        "openvino_over_torch": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def table(rows: list[dict[str, Any]], rounds: int) -> str:
    """The rows in Markdown."""
    lines = [
        "# OpenVINO's time over torch's",
        "",
        f"One 400×300 image at two scales, random weights. Each cell: median (lowest … highest) of {rounds} ratios,",
        "each of two passes one after the other, on a machine that others used too. Below 1, OpenVINO is faster;",
        "`auto` takes what the last column says. Made by `python benchmarks/runtimes.py`.",
        "",
        "| network | convolutions | float32 | bfloat16 | `auto` |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [
            f"{row[dtype]['openvino_over_torch']:.2f} ({row[dtype]['lowest']:.2f} … {row[dtype]['highest']:.2f})"
            if "openvino_over_torch" in row[dtype]
            else row[dtype]["error"]
            for dtype in ("float32", "bfloat16")
        ]
        chosen = dict.fromkeys(row[dtype].get("auto", "–") for dtype in ("float32", "bfloat16"))
        lines.append(f"| {row['network']} | {row['kind']} | {cells[0]} | {cells[1]} | {', '.join(chosen)} |")
    return "\n".join(lines) + "\n"


def main(
    networks: Annotated[str, typer.Option(help="torchvision's names, or timm/NAME, with commas between.")] = "",
    rounds: Annotated[int, typer.Option(help="Passes per runtime, after one to warm up.")] = 5,
    out: Annotated[Path, typer.Option(help="The JSON; the table lies beside it.")] = RESULTS / "runtimes.json",
) -> None:
    """Measure each network in each dtype."""
    rows: list[dict[str, Any]] = []
    for name in networks.split(",") if networks else NETWORKS:
        module = build(name)
        row: dict[str, Any] = {"network": name.removeprefix("timm/"), "kind": kind_of(module)}
        for dtype in ("float32", "bfloat16"):
            try:
                row[dtype] = measure(module, dtype, rounds)
            except ValueError as error:  # a network that cannot slide or be converted is a row, too
                row[dtype] = {"error": str(error)}
        rows.append(row)
        print(json.dumps(row), flush=True)
        record = {"command": "python benchmarks/runtimes.py", "rounds": rounds, "machine": describe_machine()}
        out.write_text(json.dumps({**record, "rows": rows}, indent=2) + "\n")
        out.with_suffix(".md").write_text(table(rows, rounds))


if __name__ == "__main__":
    typer.run(main)
