"""A benchmark: equal scores first, then time in turn."""

import copy
import csv
import platform
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from densescore.bench.case import Case
from densescore.bench.contenders import CROP_SIZES, Subject, UnavailableError, build, crops_by, probabilities
from densescore.errors import DensescoreError
from densescore.io.images import Pixels, read_image
from densescore.io.names import to_json
from densescore.models.head import AdaptationHead
from densescore.models.registry import Classifier, load_classifier
from densescore.network.dense_network import to_channels_last, whole_float32
from densescore.network.export import convolutional_form
from densescore.network.surgery import to_dense
from densescore.results.scores import DenseScores
from densescore.scoring.reference import head_reference
from densescore.scoring.scorer import DenseScorer

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest `deviation` with which a contender is timed, by dtype."""

PAUSE = 0.25
"""Seconds between two timed runs, in which the threads of the runtime before stop spinning."""

_PACKAGES = ("densescore", "torch", "torchvision", "timm", "numpy", "opencv-python-headless", "onnxruntime", "openvino")


@whole_float32
def run(case: Case) -> dict[str, Any]:
    """Check the scores of densescore and its contenders, then time them; the result as plain JSON values."""
    # Load the network and the image
    classifier = build_classifier(case)
    file = _read_file(case.image)
    pixels = read_image(file)
    scorer = _scorer(case, classifier)
    subject = _subject(classifier, scorer, pixels, case.crop_cells)
    patches = len(subject.pyramid)
    batch = tune_batch(subject) if any(name.startswith("crops") for name in case.contenders) else 0

    # Check scores: dense ones against the reference, crops against the first that crops
    cells, expected = dense_reference(subject)
    deviations, left_out, runs, scale = _check_contenders(case, subject, batch, cells, expected)
    deviations["densescore"] = deviation(scorer.score(pixels).patch_scores[cells], expected)
    if deviations["densescore"] > TOLERANCE[subject.dtype]:
        raise DensescoreError(
            f"densescore's own scores differ from the reference by {deviations['densescore']:.1e}; nothing is timed"
        )

    # Time all in turn, densescore also from the file to the image scores
    stages: list[dict[str, float]] = []
    overheads: list[float] = []

    def score_file() -> None:
        start = time.perf_counter()
        scores = scorer.score(file)
        scores.image_scores()
        overheads.append((time.perf_counter() - start) / (scores.timings["trunk"] + scores.timings["head"]))

    runs["densescore"] = lambda: stages.append(_timed_stages(scorer.score(pixels)))
    seconds = time_in_turn({**runs, "file": score_file}, scale, case.rounds)
    del seconds["file"]  # measured as a ratio
    overheads, stages = overheads[1:], stages[1:]  # without the warm-up

    # Gather the result
    result: dict[str, Any] = {
        "command": case.command,
        "image": [*pixels.shape[:2]],
        "patches": patches,
        "cropped_patches": len(subject.cells),
        "runtime": scorer.runtime,
        "machine": describe_machine(scorer.device),
        "left_out": left_out,
        "deviation": deviations,
        "crop_batch": batch,
        "file_to_answer_over_engine": {
            "median": float(np.median(overheads)),
            "spread": [min(overheads), max(overheads)],
        },
        "contenders": {name: _row(times, seconds["densescore"], patches) for name, times in seconds.items()},
        "stages": {name: float(np.median([stage[name] for stage in stages])) for name in stages[0]},
        "peak_memory_MB": peak_memory(),
    }
    if scorer.device.type == "cpu":
        result["direct_gflop"] = direct_flop(subject) / 1e9
        result["matmul_peak_gflops"] = matmul_peak(subject.dtype) / 1e9
        engine = result["stages"]["trunk"] + result["stages"]["head"]
        result["share_of_peak"] = result["direct_gflop"] / engine / result["matmul_peak_gflops"]
    return result


def write_json(result: dict[str, Any], path: Path) -> None:
    """Write all that was measured."""
    path.write_text(to_json(result, indent=1) + "\n")


def write_csv(result: dict[str, Any], path: Path) -> None:
    """Write the contenders' table."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("contender", "seconds", "patches_per_second", "times_densescore", "lowest", "highest"))
        for name, row in result["contenders"].items():
            spread = row["times_densescore_spread"]
            writer.writerow((name, row["seconds"], row["patches_per_second"], row["times_densescore"], *spread))


# The network and the image


def make_scorer(case: Case, classifier: Classifier | None = None) -> DenseScorer:
    """A scorer of the case's network, or of `classifier`, at its scales."""
    return _scorer(case, classifier or build_classifier(case))


def build_classifier(case: Case) -> Classifier:
    """The model with its own weights, or random ones that tell classes apart; with a random FCa, FCb if asked for."""
    torch.manual_seed(0)
    classifier = load_classifier(case.model, weights=case.weights)
    linear = [(name, layer) for name, layer in classifier.module.named_modules() if isinstance(layer, nn.Linear)]
    if case.weights is None:  # by He's rule; with torch's default, all classes score alike
        for layer in classifier.module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
    if case.classes:
        name, last = linear[-1]
        classifier.module.set_submodule(name, AdaptationHead(last.in_features, case.classes).eval())
    return classifier


def _scorer(case: Case, classifier: Classifier) -> DenseScorer:
    options: dict[str, Any] = {name: getattr(case, name) for name in ("scales", "dtype", "device", "runtime")}
    options |= {name: getattr(classifier, name) for name in ("mean", "std", "patch_size")}
    return DenseScorer(classifier.module, **options)


def _subject(classifier: Classifier, scorer: DenseScorer, pixels: Pixels, crop_cells: int) -> Subject:
    module = to_channels_last(classifier.module.to(scorer.device, scorer.dtype))
    pyramid = scorer.pyramid(*pixels.shape[:2])
    with torch.inference_mode():
        levels = [scorer.level(pixels, pyramid, level).clone() for level in pyramid.levels]
    count = min(crop_cells or len(pyramid), len(pyramid))
    cells = torch.linspace(0, len(pyramid) - 1, count).long()
    return Subject(module, to_dense(module, classifier.patch_size), levels, pyramid, cells)


def _read_file(image: Path | None) -> bytes:
    """The image's file, or a JPEG of 500×375 pixels."""
    if image is None:
        return cv2.imencode(".jpg", photograph(375, 500))[1].tobytes()
    try:
        return image.read_bytes()
    except OSError as error:
        raise DensescoreError(f"{image}: cannot be read: {error.strerror}") from error


def photograph(height: int, width: int) -> Pixels:
    """A smooth random picture, which takes a codec about as long as a photograph."""
    coarse = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


# Scores


@torch.inference_mode()
def _check_contenders(
    case: Case, subject: Subject, batch: int, cells: Tensor, expected: Tensor
) -> tuple[dict[str, float], dict[str, str], dict[str, Callable[[], object]], dict[str, float]]:
    """Deviations, why contenders are left out, the others' runs, and by how much to scale their seconds."""
    deviations: dict[str, float] = {}
    left_out: dict[str, str] = {}
    runs: dict[str, Callable[[], object]] = {}
    scale: dict[str, float] = {}
    first_crops: Tensor | None = None
    for name in case.contenders:
        crops = name.startswith("crops")
        try:
            contender = build(name, subject, batch)
            scores = contender()
        except UnavailableError as reason:
            left_out[name] = str(reason)
            continue
        if crops:
            first_crops = scores if first_crops is None else first_crops
            error = deviation(scores, first_crops)
        else:
            error = deviation(scores[cells], expected)
        if error > TOLERANCE[subject.dtype]:
            left_out[name] = f"its scores differ by {error:.1e}"
            continue
        deviations[name], runs[name] = error, contender
        scale[name] = len(subject.pyramid) / len(subject.cells) if crops else 1.0
    return deviations, left_out, runs, scale


@torch.inference_mode()
def dense_reference(subject: Subject, samples: int = 32) -> tuple[Tensor, Tensor]:
    """Indices ``[n]`` and probabilities ``[n, C]`` of some cells: the head on one window of the map at a time."""
    network = subject.network
    indices, scores = [], []
    per_level = max(1, samples // len(subject.levels))
    for pixels, level in zip(subject.levels, subject.pyramid.levels, strict=True):
        cells = torch.linspace(0, level.rows * level.cols - 1, per_level).long().unique()

        def head(window: Tensor) -> Tensor:
            return network.classifier(network.embed(network.project([window])))

        rows = head_reference(network.trunk, head, pixels, subject.pyramid, level, cells=cells.tolist())
        indices.append(level.start + cells)
        scores.append(probabilities(rows))
    return torch.cat(indices), torch.cat(scores)


def deviation(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, over the largest expected probability."""
    return float((actual - expected).abs().max() / expected.abs().max())


# Time


@torch.inference_mode()
def tune_batch(subject: Subject) -> int:
    """The batch size at which torch crops fastest, by timing each twice."""
    sizes = CROP_SIZES[subject.levels[0].device.type]
    few = Subject(subject.module, subject.network, subject.levels, subject.pyramid, subject.cells[: 2 * sizes[-1]])
    best: dict[int, float] = {}
    for _ in range(2):
        for batch in sizes:
            start = time.perf_counter()
            crops_by(subject.module, few, batch)
            synchronize()
            best[batch] = min(best.get(batch, float("inf")), time.perf_counter() - start)
    return min(best, key=best.__getitem__)


@torch.inference_mode()
def time_in_turn(
    runs: Mapping[str, Callable[[], object]], scale: Mapping[str, float], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each run over the rounds, times its scale (1 by default); all warm up once, then take turns."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            synchronize()
            time.sleep(PAUSE)
            start = time.perf_counter()
            run()
            synchronize()
            seconds[name].append((time.perf_counter() - start) * scale.get(name, 1.0))
    return seconds


def synchronize() -> None:
    """Wait for the device, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _timed_stages(scores: DenseScores) -> dict[str, float]:
    start = time.perf_counter()
    scores.image_scores()
    aggregated = time.perf_counter()
    scores.response_map(scores.labels[:20])
    return {**scores.timings, "image scores": aggregated - start, "20 maps": time.perf_counter() - aggregated}


def _row(seconds: list[float], base: list[float], patches: int) -> dict[str, Any]:
    ratios = time_ratios(seconds, base)
    return {
        "seconds": float(np.median(seconds)),
        "seconds_all": seconds,
        "patches_per_second": patches / float(np.median(seconds)),
        "times_densescore": float(np.median(ratios)),
        "times_densescore_spread": [ratios[0], ratios[-1]],
    }


def time_ratios(seconds: list[float], base: list[float]) -> list[float]:
    """Time over the base's, round by round, sorted."""
    return sorted(one / other for one, other in zip(seconds, base, strict=True))


# Machine


def matmul_peak(dtype: torch.dtype, rounds: int = 20) -> float:
    """The best of torch's and oneDNN's products of 2048×2048 matrices seen here, in flop/s."""
    from densescore.network.cpu import onednn

    a, b = torch.randn(2, 2048, 2048).to(dtype)
    runs: list[Callable[[], Tensor]] = [lambda: a @ b]
    if onednn.available(dtype):
        packed = onednn.PackedLinear(b)
        runs.append(lambda: packed(a))
    best = float("inf")
    with torch.inference_mode():
        for _ in range(rounds):
            for run in runs:
                start = time.perf_counter()
                run()
                best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best


def direct_flop(subject: Subject) -> float:
    """Floating-point operations of the dense graph by the definitions of its layers, two to a multiplication."""
    form = copy.deepcopy(convolutional_form(subject.network)).to("meta")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        for level in subject.levels:
            form(level.to("meta"))
    return counter.get_total_flops()


def describe_machine(device: torch.device | None = None) -> dict[str, Any]:
    """Processor, threads, device and versions, as plain JSON values."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    machine: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "processor": _proc_value("cpuinfo", "model name") or platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
    }
    if device is not None and device.type == "cuda":
        machine |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return machine


def peak_memory() -> int | None:
    """Largest resident memory of this process so far, in MB (10⁶ bytes); None without Linux's /proc."""
    value = _proc_value("self/status", "VmHWM")
    return None if value is None else int(value.split()[0]) * 1024 // 10**6


def _proc_value(file: str, key: str) -> str | None:
    """The first value of a key in a file of Linux's /proc."""
    path = Path("/proc") / file
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)
