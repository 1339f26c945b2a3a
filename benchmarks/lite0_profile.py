"""Where the time of lite0's dense pass goes, and what stands between it and sixty times the speed of crops.

    python benchmarks/lite0_profile.py

Counts each kind of layer of the trunk, over the nine levels of a 500×375 image: time as OpenVINO's own counters give
it, arithmetic and bytes by definition. Beside them, what the machine can do: the fastest product of matrices and the
fastest copy seen here. Writes ``results/lite0_profile.json`` and prints the table.
"""

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from densescore import PAPER_SCALES, DenseScorer
from densescore.bench.growth import photograph
from densescore.bench.machine import describe_machine
from densescore.bench.measure import matmul_peak
from densescore.io.files import atomic_write
from densescore.models import load_classifier
from densescore.network.cpu.openvino import OpenVINOTrunk
from densescore.network.surgery import to_dense

RESULTS = Path(__file__).parent / "results"


def kind_of(layer: nn.Conv2d) -> str:
    """Pointwise (1×1), depthwise (a channel each), or the stem."""
    if layer.kernel_size == (1, 1):
        return "pointwise"
    return "depthwise" if layer.groups == layer.in_channels else "stem"


@torch.inference_mode()
def work(trunk: nn.Module, levels: list[Tensor]) -> dict[str, tuple[float, float]]:
    """Per kind of layer: flop, two to a multiplication, and bytes taken and given, over all levels."""
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        total = totals[kind_of(layer)]
        total[0] += 2 * output.numel() * layer.weight[0].numel()
        total[1] += 4 * (inputs[0].numel() + output.numel())

    hooks = [layer.register_forward_hook(count) for layer in trunk.modules() if isinstance(layer, nn.Conv2d)]
    for level in levels:
        trunk(level)
    for hook in hooks:
        hook.remove()
    return {kind: (flop, moved) for kind, (flop, moved) in totals.items()}


def times(trunk: nn.Module, patch: int, levels: list[Tensor], rounds: int) -> dict[str, float]:
    """Seconds per kind of layer over all levels, the mean of the rounds; "other": layout and copies."""
    seconds: dict[str, float] = defaultdict(float)
    for level in levels:
        runs = OpenVINOTrunk(trunk, patch, torch.float32, profile=True)  # its counters are means over all sizes
        for _ in range(rounds):
            runs(level)
        for node in runs.idle[0].get_profiling_info():
            kind = {"GroupConvolution": "depthwise", "Convolution": "pointwise"}.get(node.node_type, "other")
            if kind == "pointwise" and "1x1" not in node.exec_type:
                kind = "stem"
            seconds[kind] += node.real_time.total_seconds()
    return seconds


def copy_rate(megabytes: int = 256, rounds: int = 10) -> float:
    """Bytes read and written per second by the fastest copy of a large tensor."""
    source = torch.ones(megabytes * 2**18)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def main(rounds: Annotated[int, typer.Option(min=1)] = 10, results: Annotated[Path, typer.Option()] = RESULTS) -> None:
    classifier = load_classifier("lite0")
    network = to_dense(classifier.module, classifier.patch_size)
    scorer = DenseScorer("lite0", scales=PAPER_SCALES, runtime="openvino")
    pixels = photograph(375, 500)
    pyramid = scorer.pyramid(*pixels.shape[:2])
    levels = [scorer.level(pixels, pyramid, level) for level in pyramid.levels]
    per_kind, seconds = work(network.trunk, levels), times(network.trunk, network.patch, levels, rounds)
    crop_flop = len(pyramid) * sum(flop for flop, _ in work(network.trunk, [levels[0][..., :224, :224]]).values())
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "patches": len(pyramid),
        "matmul_peak_gflops": matmul_peak(torch.float32) / 1e9,
        "copy_gb_per_second": copy_rate() / 1e9,
        "crops_gflop": crop_flop / 1e9,
        "kinds": {
            kind: {"seconds": spent}
            | ({"gflop": per_kind[kind][0] / 1e9, "gb": per_kind[kind][1] / 1e9} if kind in per_kind else {})
            for kind, spent in seconds.items()
        },
    }
    with atomic_write(results / "lite0_profile.json", overwrite=True) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    report(result)


def report(result: dict[str, Any]) -> None:
    """Print the table, and how fast the pass would be if its products ran at the peak."""
    peak, copying = result["matmul_peak_gflops"], result["copy_gb_per_second"]
    print(f"best matrix product {peak:.0f} Gflop/s, best copy {copying:.0f} GB/s\n")
    print("| layers | ms | share | Gflop | Gflop/s | GB | GB/s |\n| --- | --- | --- | --- | --- | --- | --- |")
    whole = sum(row["seconds"] for row in result["kinds"].values())
    for kind, row in sorted(result["kinds"].items(), key=lambda item: -item[1]["seconds"]):
        spent = row["seconds"]
        cells = [f"{1e3 * spent:.0f}", f"{100 * spent / whole:.0f} %"]
        for key, digits in (("gflop", 1), ("gb", 2)):
            cells += [f"{row[key]:.{digits}f}", f"{row[key] / spent:.0f}"] if key in row else ["–", "–"]
        print(f"| {kind} | " + " | ".join(cells) + " |")
    flop = sum(row.get("gflop", 0) for row in result["kinds"].values())
    print(
        f"\n{result['patches']} crops: {result['crops_gflop']:.0f} Gflop, {result['crops_gflop'] / flop:.1f} times the "
        f"dense trunk's {flop:.0f}; at the matrix product's rate the dense trunk would take {1e3 * flop / peak:.0f} ms "
        f"instead of {1e3 * whole:.0f}"
    )


if __name__ == "__main__":
    typer.run(main)
