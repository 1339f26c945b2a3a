"""What a GPU would do for a photograph, counted without one, and the time that it would take on an H100.

The CUDA path runs on fake tensors (`tests.cuda.fake`): operators, the bytes that each reads and writes (its inputs
once, its outputs once), flops, bytes over the bus and the host's waits are exact counts; the host's milliseconds are
processor time of `prefetch` on this machine, for sizes of images that it has not met: geometry, packing, tables, and
the copy into one buffer.

The predicted pass is the longest of memory, arithmetic and launches, plus the host. Nothing here was timed on a GPU.

    python benchmarks/gpu_counts.py             # this version's column of the result; ``before`` fills the other
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import parser

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from densescore.bench.case import Case  # noqa: E402
from densescore.bench.run import make_scorer, photograph  # noqa: E402
from densescore.geometry import PAPER_SCALES  # noqa: E402
from densescore.io.images import Pixels  # noqa: E402
from densescore.scoring.batching import batch_slices, lay_out, prefetch  # noqa: E402
from densescore.scoring.scorer import DenseScorer  # noqa: E402
from tests.cuda.fake import FakeCuda, fake_cuda  # noqa: E402

MODELS = {
    "lite0": {"model": "lite0"},
    "AlexNet + FCa/FCb": {"model": "alexnet", "weights": None, "classes": 21},
    "ResNet-50": {"model": "torchvision:resnet50", "weights": None},
    "ConvNeXt-T": {"model": "torchvision:convnext_tiny", "weights": None},
}
SCALES = {6: PAPER_SCALES[:6], 9: PAPER_SCALES}
BATCHES = (1, 8, 32)

# An H100 SXM
BANDWIDTH = 3.0e12  # bytes/s
PEAK = {"bfloat16": 790e12, "float32": 60e12}  # flop/s; float32 without TF32, torch's default for products
LAUNCH = 3e-6  # s

GROUPS = {
    "convolutions": ("convolution", "depthwise", "addmm", "mm", "bmm", "addbmm"),
    "batch norm": ("batch_norm",),
    "activations": ("relu", "relu6", "hardtanh", "clamp", "gelu", "silu", "sigmoid"),
    "gaps of canvases": ("masked_fill", "index_fill", "index_put"),
    "padding": ("constant_pad",),
    "pyramid": ("image_levels", "_to_copy", "sub", "div"),
    "windows": ("index", "cat", "avg_pool2d", "im2col", "clone"),
    "scores": ("power_mean", "_softmax", "aminmax"),
}


def group_of(operator: str) -> str:
    """The group of an operator's name, ``aten.relu`` or ``densescore::power_mean``."""
    name = operator.replace("::", ".").split(".")[1].rstrip("_")
    exact = [group for group, names in GROUPS.items() if name in names]
    return (
        exact
        or [group for group, names in GROUPS.items() if any(part in name for part in names if len(part) > 5)]
        or ["other"]
    )[0]


def count_model(name: str, dtype: str) -> dict[str, dict[str, Any]]:
    """Counts of a model at six and nine scales and in all batches, by ``model/dtype/scales/batch``."""
    rows = {}
    images = [photograph(375, 500) for _ in range(max(BATCHES))]
    with fake_cuda() as device:
        scorer = make_scorer(Case(**MODELS[name], dtype=dtype, device="cuda"))  # type: ignore[arg-type]
        _ = scorer.dense.mosaic  # tried out with real numbers
        device.values = False  # the weights are real, what follows is not computed
        for scales, numbers in SCALES.items():
            for batch in BATCHES:
                row = count(device, scorer.with_scales(numbers), images[:batch], dtype)
                rows[f"{name}/{dtype}/{scales}/{batch}"] = row
    for scales, numbers in SCALES.items():  # by real tensors: fake ones take longer than what they stand for
        for batch in BATCHES:
            row = rows[f"{name}/{dtype}/{scales}/{batch}"]
            row["host_seconds"] = host_seconds(scorer.with_scales(numbers), images[:batch])
            row.update(predict(row))
    return rows


def host_seconds(scorer: DenseScorer, images: list[Pixels]) -> float:
    """Median processor time per photograph to lay a batch out and write it where the copy to the device starts."""
    seconds = []
    for _ in range(11):
        start = time.process_time()
        pyramids = [scorer.pyramid(*image.shape[:2]) for image in images]
        for part in batch_slices(images, pyramids):
            prefetch(lay_out(scorer.dense, tuple(pyramids[part])), images[part], torch.device("cpu"))
        seconds.append((time.process_time() - start) / len(images))
    return statistics.median(seconds)


def count(device: FakeCuda, scorer: DenseScorer, images: list[Pixels], dtype: str) -> dict[str, Any]:
    """Counts per photograph of 500×375 pixels; the first batch brings constants and tables to the device."""
    batch = len(images)
    for _ in range(2):
        device.reset()
        results = scorer.score_batch(images)
    row: dict[str, Any] = {
        "dtype": dtype,
        "batch": batch,
        "operators": device.operators / batch,
        "bytes": sum(traffic.read + traffic.written for traffic in device.traffic.values()) / batch,
        "flops": sum(traffic.flops for traffic in device.traffic.values()) / batch,
        "bytes_to_device": device.to_device / batch,
        "waits_in_a_batch": len(device.waits),
        "groups": {},
        "waits": dict(device.counted_waits()),
    }
    for operator, traffic in device.traffic.items():
        group = group_of(operator)
        row["groups"][group] = row["groups"].get(group, 0) + (traffic.read + traffic.written) / batch
    device.reset()
    for scores in results:
        scores.image_scores().tolist()
    return row | {"waits_to_read": len(device.waits)}


def predict(row: dict[str, Any]) -> dict[str, float]:
    """Seconds per photograph on an H100: of memory, arithmetic and launches, and of the pass."""
    times = {
        "memory_seconds": row["bytes"] / BANDWIDTH,
        "arithmetic_seconds": row["flops"] / PEAK[row["dtype"]],
        "launch_seconds": row["operators"] * LAUNCH,
    }
    return times | {"pass_seconds": max(times.values()) + row["host_seconds"]}


def table(result: dict[str, Any]) -> str:
    """Markdown: a row for each model, dtype, scales and batch; before → after where there are both."""
    columns = {
        "operators": ("operators", 1, "{:.0f}"),
        "GB read + written": ("bytes", 1e-9, "{:.2f}"),
        "Gflop": ("flops", 1e-9, "{:.0f}"),
        "MB to the device": ("bytes_to_device", 1e-6, "{:.2f}"),
        "waits a batch": ("waits_in_a_batch", 1, "{:.0f}"),
        "host ms": ("host_seconds", 1e3, "{:.2f}"),
        "memory ms": ("memory_seconds", 1e3, "{:.2f}"),
        "arithmetic ms": ("arithmetic_seconds", 1e3, "{:.2f}"),
        "launches ms": ("launch_seconds", 1e3, "{:.2f}"),
        "pass ms": ("pass_seconds", 1e3, "{:.2f}"),
    }
    lines = ["| model | dtype | scales | batch | " + " | ".join(columns) + " |", "|" + " --- |" * (4 + len(columns))]
    versions = [rows for rows in (result.get("before"), result.get("after")) if rows]
    for key in versions[-1]:
        model, dtype, scales, batch = key.rsplit("/", 3)
        cells = [
            " → ".join(form.format(rows[key][field] * unit) for rows in versions if key in rows)
            for field, unit, form in columns.values()
        ]
        lines.append("| " + " | ".join([model, dtype, scales, batch, *cells]) + " |")
    return "\n".join(lines)


def groups_table(result: dict[str, Any]) -> str:
    """Markdown: GB by group of operators, in bfloat16 at nine scales in batches of 8."""
    lines = ["| model | " + " | ".join([*GROUPS, "other"]) + " |", "|" + " --- |" * (2 + len(GROUPS))]
    versions = [rows for rows in (result.get("before"), result.get("after")) if rows]
    for model in MODELS:
        key = f"{model}/bfloat16/9/8"
        cells = [
            " → ".join(f"{rows[key]['groups'].get(group, 0) * 1e-9:.2f}" for rows in versions if rows[key]["groups"])
            for group in [*GROUPS, "other"]
        ]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(result: dict[str, Any]) -> str:
    """The whole Markdown file."""
    arrow = " Before → after the GPU engine." if "before" in result else ""
    return (
        f"Counted on fake tensors, per photograph of 500×375 pixels; nothing was timed on a GPU.{arrow}\n"
        f"Times are what an H100 SXM needs at least: {BANDWIDTH / 1e12:g} TB/s, {PEAK['bfloat16'] / 1e12:g} TFLOP/s in "
        f"bfloat16 ({PEAK['float32'] / 1e12:g} in float32: TF32 off), {LAUNCH * 1e6:g} µs a launch. "
        "The predicted pass is the longest of the three plus the host (processor time here to lay a batch out, "
        f"decoding left out).\n\n{table(result)}\n\n"
        f"GB by operator, bfloat16, nine scales, batch of 8:\n\n{groups_table(result)}\n"
    )


def main() -> None:
    """Count all, print the table, and write it next to the other version's."""
    program = parser(__doc__)
    program.add_argument("version", nargs="?", choices=("before", "after"), default="after")
    version = program.parse_args().version
    path = ROOT / "benchmarks" / "results" / "gpu_counts.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    rows = result[version] = {}
    for name in MODELS:
        for dtype in PEAK:
            for key, row in count_model(name, dtype).items():
                rows[key] = row
                print(key, {field: value for field, value in row.items() if field != "groups"}, file=sys.stderr)
    order = ("before", "after")
    path.write_text(json.dumps({key: result[key] for key in order if key in result}, indent=1) + "\n")
    path.with_suffix(".md").write_text(page(result))
    print(page(result))


if __name__ == "__main__":
    main()
