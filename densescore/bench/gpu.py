"""``densescore-bench --all``: equality first, then contenders, batches and kernels, measured and predicted."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from densescore.bench.batches import Rows, batch_curve
from densescore.bench.case import ALL_CONTENDERS, Case
from densescore.bench.run import build_classifier, deviation, make_scorer, photograph, run, time_in_turn
from densescore.errors import DensescoreError
from densescore.geometry import PAPER_SCALES, Pyramid
from densescore.network.dense_network import find_device
from densescore.scoring.stream import score_many
from densescore_kernels import Grid, GridLevel, power_mean, response_map
from densescore_kernels.depthwise.op import depthwise_conv2d
from densescore_kernels.image_levels.op import PlacedLevel, image_levels, level_tiles

COUNTS = Path(__file__).parents[2] / "benchmarks" / "results" / "gpu_counts.json"
"""Predictions, in a checkout; see `benchmarks/gpu_counts.py`."""

COUNTED = {
    "lite0": "lite0",
    "alexnet": "AlexNet + FCa/FCb",
    "torchvision:resnet50": "ResNet-50",
    "torchvision:convnext_tiny": "ConvNeXt-T",
}
"""Names of the models there."""


class KernelCase(NamedTuple):
    """A kernel on one input: the bytes that it has to move, a call on a device, and the largest error."""

    name: str
    size: int
    call: Callable[[torch.device], Callable[[], Tensor]]
    tolerance: float


def run_all(case: Case, max_batch: int) -> dict[str, Any]:
    """Everything, for whoever has a GPU. Nothing is timed if a kernel or the scorer differs from the CPU's."""
    device = find_device(case.device)
    equality = [*_kernel_equality(device), *_stream_equality(case)]
    if wrong := [f"{row['check']} by {row['deviation']:.1e}" for row in equality if not row["equal"]]:
        raise DensescoreError(f"differs from the CPU: {', '.join(wrong)}; nothing is timed")
    result = run(replace(case, contenders=ALL_CONTENDERS))
    batches = batch_curve(make_scorer(case), max_batch, case.rounds)
    return {
        "equality": equality,
        **result,
        "batches": batches,
        "kernels": _kernel_times(device, case.rounds),
        "predicted": _predicted(case, batches),
    }


# Equality


def _kernel_equality(device: torch.device) -> Iterator[dict[str, Any]]:
    """Each kernel on the device, twice, against the torch version on a CPU."""
    for case in _kernel_cases():
        run_there, want = case.call(device), case.call(torch.device("cpu"))()
        got, again = run_there(), run_there()
        error = deviation(got.cpu().float(), want.float())
        equal = error <= case.tolerance and torch.equal(got, again)
        yield {"check": case.name, "deviation": error, "same bits again": torch.equal(got, again), "equal": equal}


def _stream_equality(case: Case) -> Iterator[dict[str, Any]]:
    """Batches of a stream on the device against single images on a CPU, in both dtypes."""
    images = [photograph(height, width) for height, width in ((150, 200), (200, 150), (120, 322), (66, 180))] * 2
    classifier = build_classifier(case)
    for dtype, tolerance in (("float32", 1e-3), ("bfloat16", 3e-2)):
        near, far = (
            make_scorer(replace(case, device=where, dtype=dtype, runtime="torch", scales=case.scales[:3]), classifier)
            for where in ("cpu", case.device)
        )
        expected = [near.score(image).patch_scores for image in images[:4]] * 2
        errors = []
        for item, scores in zip(score_many(images, far, batch=4), expected, strict=True):
            if item.scores is None:
                raise DensescoreError(f"a stream on {far.device}: {item.error}")
            errors.append(deviation(item.scores.patch_scores.cpu(), scores))
        yield {"check": f"stream, {dtype}", "deviation": max(errors), "equal": max(errors) <= tolerance}


# Kernels


def _kernel_cases() -> Iterator[KernelCase]:
    """The kernels at the sizes of a photograph at nine scales."""
    generator = torch.Generator().manual_seed(0)
    pyramid = Pyramid.of(375, 500, scales=PAPER_SCALES)
    levels = tuple(GridLevel(level.height, level.width, level.rows, level.cols) for level in pyramid.levels)
    grid = Grid(pyramid.height, pyramid.width, pyramid.patch, pyramid.stride, levels)
    for classes in (21, 200):
        scores = torch.rand(grid.cells, classes, generator=generator)
        size = 4 * scores.numel()
        yield KernelCase(f"power_mean, {classes} classes", size, _on(power_mean, scores), 2e-5)
        size += 4 * classes * 375 * 500
        yield KernelCase(f"response_map, {classes} classes", size, _on(response_map, scores, grid), 5e-6)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        x = torch.randn(2, 56, 75, 144, generator=generator).permute(0, 3, 1, 2).to(dtype)
        weight, bias = torch.randn(5, 5, 144, generator=generator), torch.randn(144, generator=generator)
        call = _on(depthwise_conv2d, x, weight, bias, padding=(2, 2, 2, 2), input_clamp=(0.0, 6.0))
        yield KernelCase(f"depthwise_conv2d, {dtype}", 2 * x.numel() * x.itemsize, call, tolerance)
        pixels = torch.from_numpy(photograph(375, 500)).view(-1, 3)
        place = PlacedLevel(0, 375, 500, 358, 478, 384, 480, 0, 480)
        rows = 384 * 480
        options = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "dtype": dtype}
        call = _on(image_levels, pixels, level_tiles([place]), rows, **options)
        yield KernelCase(f"image_levels, {dtype}", pixels.numel() + 3 * rows * dtype.itemsize, call, 0.01)


def _on(
    kernel: Callable[..., Tensor], *arguments: Any, **options: Any
) -> Callable[[torch.device], Callable[[], Tensor]]:
    """A kernel's call with its arguments on a device."""

    def there(device: torch.device) -> Callable[[], Tensor]:
        moved = [value.to(device) if hasattr(value, "to") else value for value in arguments]
        return lambda: kernel(*moved, **options)

    return there


def _kernel_times(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Seconds of each kernel over its floor: its bytes at the rate of a large copy on the same device."""
    source = torch.zeros(2**26 if device.type == "cuda" else 2**22, device=device)
    target = torch.empty_like(source)
    cases = [*_kernel_cases()]
    runs = {"copy": lambda: target.copy_(source), **{case.name: case.call(device) for case in cases}}
    seconds = {name: float(np.median(times)) for name, times in time_in_turn(runs, {}, rounds).items()}
    bandwidth = 2 * source.numel() * source.itemsize / seconds["copy"]
    return [
        {"kernel": case.name, "bytes": case.size, "seconds": seconds[case.name], "floor_seconds": case.size / bandwidth}
        for case in cases
    ]


# Predictions


def _predicted(case: Case, batches: Rows) -> list[dict[str, Any]]:
    """Seconds per photograph by batch: measured here, and predicted by counts for an H100; empty without counts."""
    counts = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
    rows = []
    for row in batches:
        key = f"{COUNTED.get(case.model)}/{case.dtype}/{len(case.scales)}/{row['batch']}"
        count = counts.get("after", {}).get(key)
        if count is not None:
            measured = 1 / row["images_per_second"]
            rows.append(
                {"batch": row["batch"], "measured_seconds": measured, "predicted_seconds": count["pass_seconds"]}
            )
    return rows
