"""Measure the kernels: ``python benchmarks/kernels.py check | cpu | gpu | floors``.

Nothing is timed before its answer was compared. ``cpu`` writes ``benchmarks/results/kernels-cpu.csv`` and ``gpu``
writes ``benchmarks/results/kernels-gpu.csv``, each with the machine and the versions; ``floors`` prints the roofline.
"""

from __future__ import annotations

import csv
import itertools
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common import RESULTS, parser

from densescore.bench.run import describe_machine
from densescore.geometry import PAPER_SCALES
from densescore_kernels import Grid, GridLevel, power_mean, response_map
from densescore_kernels.power_mean import reference as power_reference
from densescore_kernels.response_map import reference as map_reference

BANDWIDTH = 3.0e12  # bytes a second: measured on an H100 SXM, of 3.35e12 on paper
L2 = 64 << 20  # bytes: buffers rotate through more than this
Call = Callable[[], torch.Tensor]


class Case(NamedTuple):
    """One operation on one size, the bytes it must move, and its rivals."""

    name: str
    bytes: int
    contenders: dict[str, Call]  # the first is the reference


def paper_grid(height: int, width: int, P: int = 224, S: int = 32) -> Grid:
    """The cells of the paper's nine scales."""
    levels = []
    for scale in PAPER_SCALES:
        ratio = P * scale / min(height, width)
        h, w = round(height * ratio), round(width * ratio)
        levels.append(GridLevel(h, w, math.ceil(max(h - P, 0) / S) + 1, math.ceil(max(w - P, 0) / S) + 1))
    return Grid(height, width, P, S, tuple(levels))


def boxes_in_a_loop(scores: torch.Tensor, grid: Grid) -> torch.Tensor:
    """What one writes first: add each patch to its box, in numpy."""
    values = scores.numpy()
    total = np.zeros((scores.shape[1], grid.height, grid.width), dtype=np.float32)
    count = np.zeros((grid.height, grid.width), dtype=np.float32)
    cell = 0
    for level in grid.levels:
        tops, bottoms = _edges(grid.height, level.height, level.rows, grid)
        lefts, rights = _edges(grid.width, level.width, level.cols, grid)
        for i, j in itertools.product(range(level.rows), range(level.cols)):
            box = (slice(tops[i], bottoms[i]), slice(lefts[j], rights[j]))
            total[(slice(None), *box)] += values[cell, :, None, None]
            count[box] += 1
            cell += 1
    return torch.from_numpy(total / count)


def _edges(pixels: int, length: int, cells: int, grid: Grid) -> tuple[list[int], list[int]]:
    """First pixel that each cell holds, and the first after it that it does not."""
    center = (2 * np.arange(pixels) + 1) * length
    starts = 2 * pixels * grid.stride * np.arange(cells)
    return (
        np.searchsorted(center, starts).tolist(),
        np.searchsorted(center, starts + 2 * pixels * grid.patch).tolist(),
    )


def banded_products(grid: Grid) -> Callable[[torch.Tensor], torch.Tensor]:
    """Two matrix products for each level with 0/1 bands, in BLAS; bands and counts are made beforehand."""

    def bands(pixels: int, length: int, cells: int) -> torch.Tensor:
        band = torch.zeros(pixels, cells)
        for cell, (start, stop) in enumerate(zip(*_edges(pixels, length, cells, grid), strict=True)):
            band[start:stop, cell] = 1
        return band

    down = [bands(grid.height, level.height, level.rows) for level in grid.levels]  # [H, rows]
    across = [bands(grid.width, level.width, level.cols).T.contiguous() for level in grid.levels]  # [cols, W]
    pairs = list(zip(grid.levels, down, across, strict=True))
    count = sum(y.sum(1)[:, None] * x.sum(0) for _, y, x in pairs)  # [H, W]

    def run(scores: torch.Tensor) -> torch.Tensor:
        C, cell = scores.shape[1], 0
        total = scores.new_zeros(C * grid.height, grid.width)
        for level, y, x in pairs:
            cells = scores[cell : cell + level.rows * level.cols].view(level.rows, level.cols, C)
            total.addmm_((y @ cells.permute(2, 0, 1)).view(-1, level.cols), x)
            cell += level.rows * level.cols
        return total.view(C, grid.height, grid.width).div_(count)

    return run


def cpu_cases() -> list[Case]:
    """What a CPU is timed on."""
    generator = torch.Generator().manual_seed(0)
    grid = paper_grid(375, 500)
    cases = []
    for C in (21, 200):
        scores = torch.rand(grid.cells, C, generator=generator)
        products = banded_products(grid)
        contenders: dict[str, Call] = {
            "densescore": lambda scores=scores: response_map(scores, grid),  # type: ignore[misc]
            "banded BLAS": lambda scores=scores, run=products: run(scores),  # type: ignore[misc]
            "numpy boxes": lambda scores=scores: boxes_in_a_loop(scores, grid),  # type: ignore[misc]
        }
        cases.append(Case(f"response_map 500×375 C={C}", 4 * C * (375 * 500 + grid.cells), contenders))
    for M, C in ((2343, 21), (2343, 1000), (1_000_000, 21)):
        y = torch.rand(M, C, generator=generator)
        contenders = {
            "densescore": lambda y=y: power_mean(y),  # type: ignore[misc]
            "y.pow(5).mean(0)": lambda y=y: y.pow(5).mean(0, keepdim=True),  # type: ignore[misc]
        }
        cases.append(Case(f"power_mean M={M} C={C}", 4 * M * C, contenders))
    return cases


def gpu_cases() -> list[Case]:
    """What a GPU is timed on: Triton against the torch version, and against torch.compile of plain torch."""
    cases = []
    for M, C in ((2343, 21), (2343, 1000), (1_000_000, 21), (100_000, 1000), (10_000, 21_841)):
        size = 4 * M * C
        pool = [torch.rand(M, C, device="cuda") for _ in range(2 + L2 // size)]
        fused: Callable[[torch.Tensor], torch.Tensor] = torch.compile(lambda y: y.pow(5).mean(0, keepdim=True))
        cases.append(Case(f"power_mean M={M} C={C}", size, gpu_contenders(power_mean, fused, pool)))
    for height, width, C in ((375, 500, 21), (375, 500, 1000), (4000, 4000, 21)):
        grid = paper_grid(height, width)
        pool = [torch.rand(grid.cells, C, device="cuda") for _ in range(2 + L2 // (4 * grid.cells * C))]
        with torch.device("cuda"):
            fused = torch.compile(banded_products(grid))
        contenders = gpu_contenders(response_map, fused, pool, grid=grid)
        cases.append(Case(f"response_map {width}×{height} C={C}", 4 * C * (height * width + grid.cells), contenders))
    return cases


def gpu_contenders(
    operation: Callable[..., torch.Tensor],
    fused: Callable[..., torch.Tensor],
    pool: Sequence[torch.Tensor],
    **options: object,
) -> dict[str, Call]:
    """Triton, the torch version, and plain torch under torch.compile; each rotates through the inputs of the pool."""

    def rotating(run: Callable[..., torch.Tensor], **options: object) -> Call:
        inputs = itertools.cycle(pool)
        return lambda: run(next(inputs), **options)

    return {
        "triton": rotating(operation, **options, backend="triton"),
        "torch": rotating(operation, **options, backend="torch"),
        "torch.compile": rotating(fused),
    }


def equal(case: Case) -> bool:
    """Whether all contenders agree; each is asked once, and each starts its rotation at the same input."""
    answers = {name: run().double().cpu() for name, run in case.contenders.items()}
    want = next(iter(answers.values()))
    for name, got in answers.items():
        worst = float(((got - want).abs() / want.abs().clamp_min(1e-30)).max())
        if got.shape != want.shape or not worst < 1e-3:
            print(f"{case.name}: {name} is off by {worst:.1e}: not timed", file=sys.stderr)
            return False
    return True


def median_seconds(runs: Sequence[Call], rounds: int) -> list[tuple[float, float, float]]:
    """20th, 50th and 80th percentile of each; in turn, as a busy machine slows all alike."""
    taken: list[list[float]] = [[] for _ in runs]
    on_gpu = torch.cuda.is_available()
    for turn in range(rounds + 2):
        for run, times in zip(runs, taken, strict=True):
            if on_gpu:
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                run()
                stop.record()
                stop.synchronize()
                seconds = start.elapsed_time(stop) / 1000
            else:
                began = time.perf_counter()
                run()
                seconds = time.perf_counter() - began
            if turn >= 2:
                times.append(seconds)
    return [(p[0], p[1], p[2]) for p in (np.percentile(times, [20, 50, 80]).tolist() for times in taken)]


def measure(cases: Sequence[Case], rounds: int, path: Path, machine: str) -> int:
    """Time, print and write the cases whose contenders agree; 1 if any disagree."""
    rows, unequal = [], 0
    for case in cases:
        if not equal(case):
            unequal += 1
            continue
        names = list(case.contenders)
        slow = max(_once(case.contenders[name]) for name in names)
        timed = median_seconds(list(case.contenders.values()), max(3, min(rounds, int(20 / slow))))
        for name, (p20, p50, p80) in zip(names, timed, strict=True):
            ratio, share = p50 / timed[0][1], case.bytes / BANDWIDTH / p50
            floor = f"{share:6.1%} of the floor" if torch.cuda.is_available() else ""
            print(f"{case.name:32} {name:20} {p50 * 1e3:10.3f} ms  {ratio:8.2f}×  {floor}")
            seconds = [f"{value:.6e}" for value in (p20, p50, p80)]
            rows.append([case.name, name, *seconds, f"{ratio:.2f}", machine, torch.__version__, np.__version__])
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        header = ["case", "version", "p20_s", "p50_s", "p80_s", "times_the_first", "machine", "torch", "numpy"]
        csv.writer(file).writerows([header, *rows])
    print(f"wrote {path}")
    return 1 if unequal else 0


def _once(run: Call) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def check() -> int:
    """Compare every version that runs here with the float64 definitions, on sizes that a plain loop can do."""
    grid = paper_grid(30, 44)
    scores = torch.rand(grid.cells, 3, generator=torch.Generator().manual_seed(0))
    wanted = map_reference.response_map(scores, grid)
    bounds = [0, 5, grid.cells]
    pairs = {
        "response_map": (response_map(scores, grid), wanted),
        "banded BLAS": (banded_products(grid)(scores), wanted),
        "numpy boxes": (boxes_in_a_loop(scores, grid), wanted),
        "power_mean": (power_mean(scores, torch.tensor(bounds)), power_reference.power_mean(scores, bounds, 5.0)),
    }
    off = {name: float(((got - want).abs() / want).max()) for name, (got, want) in pairs.items()}
    for name, worst in off.items():
        print(f"{name:20} relative error {worst:.1e}")
    return 0 if max(off.values()) < 1e-5 else 1


def floors() -> int:
    """Print bytes, flops and the time that the bytes take at 3.0 TB/s."""
    print("| operation | read | written | flops | floor on an H100 |\n| --- | --- | --- | --- | --- |")
    for height, width, C in ((375, 500, 21), (375, 500, 1000), (4000, 4000, 21), (4000, 4000, 1000)):
        grid = paper_grid(height, width)
        windows = sum(grid.down(at).first.size * grid.across(at).first.size for at in range(len(PAPER_SCALES)))
        read, written, runs = 4 * C * grid.cells, 4 * C * height * width, C * height * width * 10
        _floor(f"response_map {width}×{height}, C = {C}", read, written, windows * 49 * C + runs)
        if height == 375:
            for way, read_bytes, written_bytes in (("forward", read, 4 * C), ("backward", read + 4 * C, read)):
                _floor(f"power_mean {way}, M = {grid.cells}, C = {C}", read_bytes, written_bytes, read // 4 * 6)
    for M, C in ((1_000_000, 21), (100_000, 1000), (10_000, 21_841)):
        _floor(f"power_mean forward, M = {M:,}, C = {C:,}", 4 * M * C, 4 * C, 6 * M * C)
    return 0


def _floor(name: str, read: int, written: int, flops: int) -> None:
    micros = (read + written) / BANDWIDTH * 1e6
    print(f"| {name} | {read / 1e6:,.2f} MB | {written / 1e6:,.2f} MB | {flops / 1e9:,.3f} G | {micros:,.2f} µs |")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one part; the status is 1 when something is not equal."""
    flags = parser(__doc__)
    flags.add_argument("part", choices=("check", "cpu", "gpu", "floors"))
    flags.add_argument("--rounds", type=int, default=51, help="timed turns of each version")
    flags.add_argument("--only", default="", help="time the cases whose name holds this text")
    flags.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, on a CPU")
    flags.add_argument("--out", type=Path, help="where the numbers go, instead of benchmarks/results")
    options = flags.parse_args(arguments)
    if options.part in ("check", "floors"):
        return check() if options.part == "check" else floors()
    if options.part == "cpu":
        torch.set_num_threads(options.threads)
        cases = cpu_cases()
        machine = f"{platform.machine()} {describe_machine()['processor']}, {torch.get_num_threads()} threads"
    elif torch.cuda.is_available():
        cases, machine = gpu_cases(), torch.cuda.get_device_name()
    else:
        print("no CUDA device: unrun", file=sys.stderr)
        return 2
    path = options.out or RESULTS / f"kernels-{options.part}.csv"
    return measure([case for case in cases if options.only in case.name], options.rounds, path, machine)


if __name__ == "__main__":
    sys.exit(main())
