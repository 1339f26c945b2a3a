"""Check that every contender gives the same scores, then time them in turn."""

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from densescore.bench.contenders import CROP_SIZES, Subject, crops_by, probabilities
from densescore.network.conv_graph import convolutional_form
from densescore.scoring.sliding_window import head_reference


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender over the rounds, for all patches of the image."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.seconds)

    def ratios_to(self, other: "Timing") -> list[float]:
        """This one's time over the other's, round by round, sorted."""
        return sorted(own / theirs for own, theirs in zip(self.seconds, other.seconds, strict=True))


@torch.inference_mode()
def tune_batch(subject: Subject, budget: int = 256) -> int:
    """The batch size at which torch crops fastest, by timing each on `budget` crops twice."""
    few = Subject(subject.module, subject.network, subject.levels, subject.pyramid, subject.cells[:budget])
    best: dict[int, float] = {}
    for _ in range(2):
        for batch in CROP_SIZES:
            start = time.perf_counter()
            crops_by(subject.module, few, batch)
            best[batch] = min(best.get(batch, float("inf")), time.perf_counter() - start)
    return min(best, key=best.__getitem__)


@torch.inference_mode()
def dense_reference(subject: Subject, samples: int = 32) -> tuple[Tensor, Tensor]:
    """Indices and probabilities of some cells by the slow reference: the head on one window of the map at a time."""
    network = subject.network
    indices, scores = [], []
    per_level = max(1, samples // len(subject.levels))
    for pixels, level in zip(subject.levels, subject.pyramid.levels, strict=True):
        cells = torch.linspace(0, level.rows * level.cols - 1, per_level).long().unique()
        rows = head_reference(
            network.trunk,
            lambda window: network.classifier(network.embed(network.project([window]))),
            pixels,
            subject.pyramid,
            level,
            cells=cells.tolist(),
        )
        indices.append(level.start + cells)
        scores.append(probabilities(rows))
    return torch.cat(indices), torch.cat(scores)


def deviation(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, over the largest expected probability."""
    return float((actual - expected).abs().max() / expected.abs().max())


TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest `deviation` with which a contender is timed, by dtype."""

PAUSE = 0.25
"""Seconds between two timed runs."""


@torch.inference_mode()
def time_in_turn(
    contenders: Mapping[str, Callable[[], object]], scale: Mapping[str, float], rounds: int
) -> dict[str, Timing]:
    """Run all contenders once to warm up, then in turn, `rounds` times; seconds are multiplied by `scale`.

    Each run begins after a pause, because the threads of the runtime before it keep spinning for a while.
    """
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            _synchronize()
            time.sleep(PAUSE)
            start = time.perf_counter()
            run()
            _synchronize()
            seconds[name].append((time.perf_counter() - start) * scale[name])
    return {name: Timing(tuple(times)) for name, times in seconds.items()}


def matmul_peak(dtype: torch.dtype, rounds: int = 20) -> float:
    """The best of torch's and oneDNN's products of 2048×2048 matrices seen here, in flop/s."""
    from densescore.network.cpu import onednn
    from densescore.network.cpu.onednn import PackedLinear

    a, b = torch.randn(2, 2048, 2048).to(dtype)
    runs: list[Callable[[], Tensor]] = [lambda: a @ b]
    if onednn.available():
        packed = PackedLinear(b)
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


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
