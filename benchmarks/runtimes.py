"""What ``runtime="auto"`` follows from: OpenVINO's time over torch's, for networks of different kinds.

python benchmarks/runtimes.py                   # writes benchmarks/results/runtimes.json and runtimes.md
"""

import copy
import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
import torchvision
import typer
from torch import nn

from densescore.bench.machine import describe_machine
from densescore.network.cpu.accelerate import preferred_runtime
from densescore.network.cpu.fusion import fuse, traced
from densescore.network.cpu.openvino import OpenVINOTrunk
from densescore.network.surgery import to_dense

RESULTS = Path(__file__).parent / "results"
NETWORKS = (
    "alexnet", "mobilenet_v2", "resnet18", "timm/tf_efficientnet_lite0", "regnet_x_400mf", "mobilenet_v3_large",
    "vgg11", "mnasnet1_0", "densenet121", "efficientnet_b0", "resnext50_32x4d", "timm/convnext_atto", "resnet50",
    "timm/repvgg_a0",
)  # fmt: skip


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


def measure(module: nn.Module, dtype: torch.dtype, rounds: int, side: int) -> dict[str, Any]:
    """Each runtime's trunk on a level of `side` × 4/3 `side` pixels, in turn; the first round warms up."""
    network = to_dense(copy.deepcopy(module).to(dtype), 224)
    chosen = preferred_runtime(network)
    trunks = [OpenVINOTrunk(network.level_trunk, 224, dtype), fuse(traced(network.level_trunk))]
    level = torch.randn(1, 3, side, side * 4 // 3, dtype=dtype).to(memory_format=torch.channels_last)
    seconds: list[list[float]] = [[], []]
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for trunk, times in zip(trunks, seconds, strict=True):
                start = time.perf_counter()
                trunk(level)
                times.append(time.perf_counter() - start)
    ratios = [ours / torchs for ours, torchs in zip(seconds[0][1:], seconds[1][1:], strict=True)]
    return {
        "auto": chosen,
        "openvino_over_torch": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def table(rows: list[dict[str, Any]], rounds: int, side: int) -> str:
    """The rows in Markdown."""
    lines = [
        "# OpenVINO's time over torch's",
        "",
        f"The trunk on a level of {side}×{side * 4 // 3} pixels, one thread, random weights: median (lowest … highest)",
        f"of {rounds} ratios, each of two passes one after the other. Below 1, OpenVINO is faster; `auto` takes what",
        "the last column says. The machine was shared and noisy: only medians count, and no difference below a fifth.",
        "Made by `python benchmarks/runtimes.py`.",
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
    side: Annotated[int, typer.Option(help="Short side of the level, in pixels.")] = 288,
    out: Annotated[Path, typer.Option(help="The JSON; the table lies beside it.")] = RESULTS / "runtimes.json",
) -> None:
    """Measure each network in each dtype, in one thread."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in networks.split(",") if networks else NETWORKS:
        module = build(name)
        row: dict[str, Any] = {"network": name.removeprefix("timm/"), "kind": kind_of(module)}
        for dtype in ("float32", "bfloat16"):
            try:
                row[dtype] = measure(module, getattr(torch, dtype), rounds, side)
            except ValueError as error:  # a network that is not convolutional or cannot be converted is a row, too
                row[dtype] = {"error": str(error)}
        rows.append(row)
        print(json.dumps(row), flush=True)
        record = {
            "command": "python benchmarks/runtimes.py",
            "rounds": rounds,
            "side": side,
            "machine": describe_machine(),
        }
        out.write_text(json.dumps({**record, "rows": rows}, indent=2) + "\n")
        out.with_suffix(".md").write_text(table(rows, rounds, side))


if __name__ == "__main__":
    typer.run(main)
