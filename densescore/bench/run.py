"""A benchmark: equal scores first, then time in turn."""

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from densescore.bench.case import Case
from densescore.bench.contenders import Subject, UnavailableError, build
from densescore.bench.growth import MakeScorer, photograph
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
from densescore.errors import DensescoreError
from densescore.geometry import PAPER_SCALES
from densescore.io.images import Pixels, read_image
from densescore.models.adaptation import AdaptationHead
from densescore.models.registry import Classifier, load_classifier
from densescore.network.devices import to_channels_last
from densescore.network.surgery import to_dense
from densescore.results.scores import DenseScores
from densescore.scoring.scorer import DenseScorer


def run(case: Case) -> dict[str, Any]:
    """Check and time; the result as plain JSON values."""
    classifier = adapted_classifier(case.model, case.weights, case.classes)
    file = cv2.imencode(".jpg", photograph(375, 500))[1].tobytes() if case.image is None else _read(case)
    pixels = read_image(file)
    scorer = _scorer(case, classifier)
    subject = _subject(classifier, scorer, pixels, case.crop_cells)
    outcome: dict[str, Any] = {
        "command": case.command,
        "image": [*pixels.shape[:2]],
        "patches": len(subject.pyramid),
        "cropped_patches": len(subject.cells),
        "runtime": scorer.runtime,
        "machine": describe_machine(scorer.device),
        "left_out": {},
        "deviation": {},
    }
    batch = tune_batch(subject) if any(name.startswith("crops") for name in case.contenders) else 0
    outcome["crop_batch"] = batch
    runs: dict[str, Callable[[], Any]] = {}
    scale: dict[str, float] = {}
    with torch.inference_mode():
        cells, expected = dense_reference(subject)
        expected_crops: Tensor | None = None
        for name in case.contenders:
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
    timings = time_in_turn(runs, scale, case.rounds)
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


def adapted_classifier(model: str, weights: str | None, classes: int) -> Classifier:
    """A model with its own weights, or random ones that tell classes apart; with a random FCa and FCb if `classes`."""
    torch.manual_seed(0)
    classifier = load_classifier(model, weights=weights)
    if weights is None:
        _enliven(classifier.module)
    if classes:
        _adapt(classifier.module, classes)
    return classifier


def scorer_maker(case: Case) -> MakeScorer:
    """Makes scorers of the case's network; the last one is kept for as long as the options stay the same."""

    @lru_cache(maxsize=1)
    def make(scales: tuple[float, ...] = PAPER_SCALES, **options: Any) -> DenseScorer:
        classifier = adapted_classifier(case.model, case.weights, case.classes)
        return _scorer(case, classifier, scales=scales, **options)

    return make


def _scorer(case: Case, classifier: Classifier, **options: Any) -> DenseScorer:
    chosen: dict[str, Any] = {name: getattr(case, name) for name in ("scales", "dtype", "device", "runtime")}
    chosen |= {"mean": classifier.mean, "std": classifier.std, "patch_size": classifier.patch_size}
    return DenseScorer(classifier.module, **{**chosen, **options})


def _read(case: Case) -> bytes:
    assert case.image is not None
    try:
        return case.image.read_bytes()
    except OSError as error:
        raise DensescoreError(f"{case.image}: cannot be read: {error.strerror}") from error


def _subject(classifier: Classifier, scorer: DenseScorer, pixels: Pixels, crop_cells: int) -> Subject:
    module = to_channels_last(classifier.module.to(scorer.device, scorer.dtype))
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
