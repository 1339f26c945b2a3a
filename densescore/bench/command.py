"""The command ``densescore-bench``."""

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from torch import Tensor, nn

from densescore import PAPER_SCALES, DenseScorer, DenseScores
from densescore.bench.contenders import RUNTIMES, Subject, UnavailableError, build
from densescore.bench.growth import MakeScorer, growth_curve, photograph, plot_growth, resolution_curve
from densescore.bench.machine import describe_machine, peak_memory
from densescore.bench.measure import (
    TOLERANCE,
    Timing,
    dense_reference,
    deviation,
    direct_flop,
    matmul_peak,
    time_in_turn,
    tune_batch,
)
from densescore.bench.report import report, report_growth, report_resolution, write_csv, write_json
from densescore.cli.options import numbers, readable_errors
from densescore.errors import DensescoreError
from densescore.io.files import atomic_write
from densescore.io.images import Pixels, read_image
from densescore.models import AdaptationHead, Classifier, load_classifier
from densescore.network.surgery import to_dense

app = typer.Typer(pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})


@app.command()
def bench(
    model: Annotated[str, typer.Option(help="A name that `densescore models` lists.")] = "lite0",
    weights: Annotated[str, typer.Option(help="'default', 'random' or a file.")] = "default",
    classes: Annotated[int, typer.Option(help="Put a random FCa, FCb of so many classes in the place of FC8.")] = 0,
    image: Annotated[Path | None, typer.Option(help="By default, a smooth random picture of 500×375 pixels.")] = None,
    scales: Annotated[str, typer.Option(help="With commas between; the paper's by default.")] = "",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    runtime: Annotated[str, typer.Option(help="Of densescore's trunk on a CPU: auto, torch or openvino.")] = "auto",
    contenders: Annotated[str, typer.Option(help=f"With commas between, of {', '.join(RUNTIMES)}.")] = (
        "crops,dense-modules,dense-onnxruntime,dense-openvino"
    ),
    crop_cells: Annotated[
        int, typer.Option(help="Patches that are cropped, evenly drawn, and scaled up; 0: all.")
    ] = 512,
    rounds: Annotated[int, typer.Option(help="Timed runs of each contender, in turn.", min=1)] = 5,
    growth: Annotated[int, typer.Option(help="Growth curve: up to so many patches of an image.", min=0)] = 0,
    resolutions: Annotated[str, typer.Option(help="Stages by resolution: megapixels, with commas between.")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result to this file.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the table to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture of the curves to this file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Time dense scoring against cropping and against other runtimes: equal scores first, then in turn.

    densescore is timed from decoded pixels to probabilities. The others are given the pyramid ready made.
    """
    with readable_errors():
        wanted = [name.strip() for name in contenders.split(",") if name.strip()]
        unknown = [name for name in wanted if name not in RUNTIMES]
        if unknown:
            raise DensescoreError(f"--contenders: unknown {', '.join(unknown)}; expected {', '.join(RUNTIMES)}")
        scale_list = numbers(scales, "--scales") if scales else PAPER_SCALES
        result = run(model, weights, classes, image, scale_list, dtype, device, runtime, wanted, crop_cells, rounds)
        report(result)
        if growth or resolutions:
            make = _maker(model, weights, classes, dtype, device, runtime)
            if growth:
                result["growth"] = growth_curve(make, growth)
                report_growth(result["growth"])
            if resolutions:
                result["resolution"] = resolution_curve(
                    make(scales=scale_list), [*numbers(resolutions, "--resolutions")]
                )
                report_resolution(result["resolution"])
        for path, write in ((json_file, write_json), (csv_file, write_csv), (plot, plot_growth)):
            if path is not None:
                with atomic_write(path, overwrite=overwrite, inputs=[] if image is None else [image]) as temporary:
                    write(result, temporary)


def run(
    model: str,
    weights: str,
    classes: int,
    image: Path | None,
    scales: tuple[float, ...],
    dtype: str,
    device: str,
    runtime: str,
    wanted: list[str],
    crop_cells: int,
    rounds: int,
) -> dict[str, Any]:
    """Check and time; the result as plain JSON values."""
    classifier = adapted_classifier(model, weights, classes)
    module = classifier.module
    file = cv2.imencode(".jpg", photograph(375, 500))[1].tobytes() if image is None else image.read_bytes()
    pixels = read_image(file)
    scorer = _scorer(module, classifier, scales, dtype, device, runtime)
    subject = _subject(module, classifier, scorer, pixels, crop_cells)
    outcome: dict[str, Any] = {
        "command": f"densescore-bench --model {model} --weights {weights} --classes {classes} --dtype {dtype} "
        f"--runtime {runtime} --rounds {rounds} --crop-cells {crop_cells} --contenders {','.join(wanted)}",
        "image": [*pixels.shape[:2]],
        "patches": len(subject.pyramid),
        "cropped_patches": len(subject.cells),
        "runtime": scorer.runtime,
        "machine": describe_machine(scorer.device),
        "left_out": {},
        "deviation": {},
    }
    batch = tune_batch(subject) if any(name.startswith("crops") for name in wanted) else 0
    outcome["crop_batch"] = batch
    runs: dict[str, Callable[[], Any]] = {}
    scale: dict[str, float] = {}
    with torch.inference_mode():
        cells, expected = dense_reference(subject)
        expected_crops: Tensor | None = None
        for name in wanted:
            try:
                candidate = build(name, subject, batch)
                scores = candidate()
            except UnavailableError as reason:
                outcome["left_out"][name] = str(reason)
                continue
            if name.startswith("crops"):
                expected_crops = scores if expected_crops is None else expected_crops
                error = deviation(scores, expected_crops)
            else:
                error = deviation(scores[cells], expected)
            if error > TOLERANCE[subject.dtype]:
                outcome["left_out"][name] = f"its scores differ by {error:.1e}"
                continue
            outcome["deviation"][name] = error
            runs[name] = candidate
            scale[name] = len(subject.pyramid) / len(subject.cells) if name.startswith("crops") else 1.0
    own = deviation(scorer.score(pixels).patch_scores[cells], expected)
    if own > TOLERANCE[subject.dtype]:
        raise DensescoreError(f"densescore's own scores differ from the reference by {own:.1e}; nothing is timed")
    outcome["deviation"]["densescore"] = own

    stages: list[dict[str, float]] = []

    def densescore() -> None:
        stages.append(_stages(scorer.score(pixels)))

    runs["densescore"], scale["densescore"] = densescore, 1.0
    totals: list[float] = []

    def whole() -> None:
        start = time.perf_counter()
        scores = scorer.score(file)
        scores.image_scores()
        totals.append((time.perf_counter() - start) / (scores.timings["trunk"] + scores.timings["head"]))

    runs["whole"], scale["whole"] = whole, 1.0
    timings = time_in_turn(runs, scale, rounds)
    del timings["whole"]  # a ratio of its own, not a contender
    outcome["file_to_answer_over_engine"] = {"median": float(np.median(totals[1:])), "spread": _ends(totals[1:])}
    outcome["contenders"] = {name: _row(timing, timings, outcome["patches"]) for name, timing in timings.items()}
    outcome["stages"] = {name: float(np.median([stage[name] for stage in stages[1:]])) for name in stages[0]}
    outcome["peak_memory_MB"] = peak_memory()
    if scorer.device.type == "cpu":
        outcome["direct_gflop"] = direct_flop(subject) / 1e9
        outcome["matmul_peak_gflops"] = matmul_peak(subject.dtype) / 1e9
        engine = outcome["stages"]["trunk"] + outcome["stages"]["head"]
        outcome["share_of_peak"] = outcome["direct_gflop"] / engine / outcome["matmul_peak_gflops"]
    return outcome


def adapted_classifier(model: str, weights: str, classes: int) -> Classifier:
    """A model with random weights that tell classes apart, or its own; with a random FCa and FCb if `classes`."""
    torch.manual_seed(0)
    classifier = load_classifier(model, weights=None if weights == "random" else weights)
    if weights == "random":
        _enliven(classifier.module)
    if classes:
        _adapt(classifier.module, classes)
    return classifier


def _maker(model: str, weights: str, classes: int, dtype: str, device: str, runtime: str) -> MakeScorer:
    """Scorers of one network; the last one is kept for as long as the options stay the same."""

    @lru_cache(maxsize=1)
    def make(scales: tuple[float, ...] = PAPER_SCALES, **options: Any) -> DenseScorer:
        classifier = adapted_classifier(model, weights, classes)
        return _scorer(classifier.module, classifier, scales, dtype, device, runtime, **options)

    return make


def _scorer(
    module: nn.Module,
    classifier: Classifier,
    scales: tuple[float, ...],
    dtype: str,
    device: str,
    runtime: str,
    **options: Any,
) -> DenseScorer:
    return DenseScorer(
        module,
        mean=classifier.mean,
        std=classifier.std,
        patch_size=classifier.patch_size,
        scales=scales,
        dtype=dtype,
        device=device,
        runtime=runtime,  # type: ignore[arg-type]
        **options,
    )


def _subject(
    module: nn.Module, classifier: Classifier, scorer: DenseScorer, pixels: Pixels, crop_cells: int
) -> Subject:
    module = module.to(scorer.device, scorer.dtype).to(memory_format=torch.channels_last)
    pyramid = scorer.pyramid(*pixels.shape[:2])
    with torch.inference_mode():
        levels = [scorer.level(pixels, pyramid, level).clone() for level in pyramid.levels]
    count = min(crop_cells or len(pyramid), len(pyramid))
    cells = torch.linspace(0, len(pyramid) - 1, count).long()
    return Subject(module, to_dense(module, classifier.patch_size), levels, pyramid, cells)


def _stages(scores: DenseScores) -> dict[str, float]:
    start = time.perf_counter()
    scores.image_scores()
    aggregated = time.perf_counter()
    scores.response_map(scores.labels[:20])
    mapped = time.perf_counter()
    return {**scores.timings, "image scores": aggregated - start, "20 maps": mapped - aggregated}


def _row(timing: Timing, timings: dict[str, Timing], patches: int) -> dict[str, Any]:
    ratios = timing.ratios_to(timings["densescore"])
    return {
        "seconds": timing.median,
        "seconds_all": timing.seconds,
        "patches_per_second": patches / timing.median,
        "times_densescore": float(np.median(ratios)),
        "times_densescore_spread": [ratios[0], ratios[-1]],
    }


def _ends(values: list[float]) -> list[float]:
    return [min(values), max(values)]


def _enliven(module: nn.Module) -> None:
    """Random weights by He's rule: with torch's own, all classes score alike, and equality would prove little."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)


def _adapt(module: nn.Module, classes: int) -> None:
    name, last = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)][-1]
    module.set_submodule(name, AdaptationHead(last.in_features, classes).eval())
