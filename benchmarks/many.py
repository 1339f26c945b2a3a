"""Many images on one machine: gains by decoding ahead and by grouping by size, and growth of memory.

    python benchmarks/many.py --data DIR [--images 60] [--rounds 3] [--out benchmarks/results/many.json]

Ways are timed in turn within each round. Memory is read while 1,000 small pictures are scored into a table.
"""

import json
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import parser, write_record
from PIL import Image

from densescore import DenseScorer, score_many
from densescore.jobs.many.rows import Row
from densescore.jobs.many.table import find_inputs, score_table


def rate(paths: Sequence[str], scorer: DenseScorer, ahead: int) -> float:
    """Images a second."""
    start = time.perf_counter()
    failed = sum(item.scores is None for item in score_many(paths, scorer, ahead=ahead))
    assert failed == 0, f"{failed} images of {len(paths)} could not be scored"
    return len(paths) / (time.perf_counter() - start)


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def memory(scorer: DenseScorer, count: int) -> dict[str, Any]:
    """Resident megabytes after every tenth of `count` small pictures, scored into a table."""
    draw = np.random.default_rng(0)
    seen: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for index in range(count):
            path = Path(folder) / f"{index:04d}.jpg"
            size = (96 + 8 * (index % 5), 96 + 8 * (index % 7), 3)
            Image.fromarray(draw.integers(0, 256, size, np.uint8)).save(path)
            paths.append(str(path))

        done = 0

        def callback(before: int, rows: Sequence[Row]) -> None:
            nonlocal done
            done += len(rows)
            if rows and done % (count // 10) == 0:
                seen.append(resident())

        start = time.perf_counter()
        score_table(paths, Path(folder) / "results.parquet", scorer, callback=callback)
        seconds = time.perf_counter() - start
    return {"images": count, "seconds": round(seconds, 1), "resident_mb": [round(value / 1e6, 1) for value in seen]}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data", required=True, help="folder of photographs")
    options.add_argument("--images", type=int, default=60)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--small", type=int, default=1000, help="small pictures whose memory is watched")
    options.add_argument("--out", type=Path)
    arguments = options.parse_args()

    shuffled = find_inputs([arguments.data])
    random.Random(0).shuffle(shuffled)
    shuffled = shuffled[: arguments.images]
    by_size = sorted(shuffled, key=lambda path: Image.open(path).size)
    scorer = DenseScorer("lite0")
    ways: dict[str, tuple[Sequence[str], int]] = {
        "one after another": (shuffled, 1),
        "decoding ahead": (shuffled, 4),
        "decoding ahead, grouped by size": (by_size, 4),
    }
    rate(shuffled[:5], scorer, 1)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, (paths, ahead) in ways.items():
            rates[name].append(round(rate(paths, scorer, ahead), 3))
    first = rates["one after another"]
    ratios = {
        name: round(statistics.median(b / a for a, b in zip(first, values, strict=True)), 3)
        for name, values in rates.items()
    }
    result = {
        "data": Path(arguments.data).name,
        "images": len(shuffled),
        "sizes": len({Image.open(path).size for path in shuffled}),
        "runtime": scorer.runtime,
        "images_per_second": rates,
        "median_ratio_to_one_after_another": ratios,
        "memory_at_one_scale": memory(DenseScorer("lite0", scales=(1,)), arguments.small),
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_record(arguments.out, **result)


if __name__ == "__main__":
    main()
