"""Runs a small job again and again, each time killed at another moment, until it is done; a process of its own.

It loads the library once and forks, so a run costs milliseconds. Prints the numbers of killed runs as JSON.
"""

import itertools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import zarr
from PIL import Image

from densescore import DenseScorer
from densescore.jobs.many.rows import Outputs, array_key
from densescore.jobs.many.table import score_table
from tests.conftest import Toy

_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "tempfile.mkdtemp")


def kill_at_change(number: int) -> None:
    """From now on, SIGKILL this process in front of its `number`-th change of the file system."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in _CHANGES:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


class Job:
    def __init__(self, folder: Path, count: int, outputs: Outputs) -> None:
        self.folder, self.outputs = folder, outputs
        folder.mkdir()
        self.scorer = DenseScorer(Toy(), patch_size=20, scales=(1,), runtime="torch")
        self.paths = [str(folder / f"{index:03d}.png") for index in range(count)]
        draw = np.random.default_rng(0)
        for index, path in enumerate(self.paths):
            if index % 7 == 3:
                Path(path).write_bytes(b"broken")
            else:
                Image.fromarray(draw.integers(0, 256, (20, 22 + index % 3, 3), np.uint8)).save(path)

    def forked(
        self, out: Path, change: int | None = None, seconds: float | None = None, number: int = signal.SIGKILL
    ) -> bool:
        """Run in a child, killed at a change of the file system or sent a signal after a time; was it done first?"""
        child = os.fork()
        if child == 0:
            if change is not None:
                kill_at_change(change)
            code = 1
            try:
                score_table(self.paths, out, self.scorer, self.outputs, part_size=2)
                code = 0
            except KeyboardInterrupt:
                code = 130
            finally:
                os._exit(code)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, number)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return False
        code = os.WEXITSTATUS(status)
        assert code in ((0, 130) if number == signal.SIGINT else (0,)), "a run failed after a kill"
        return code == 0

    def check(self, out: Path, whole: Path) -> None:
        """At any moment: what is there is right, nothing twice, and of a finished table nothing is left over."""
        expected = pq.read_table(whole).to_pylist()
        parts = out.with_name(f"{out.name}.parts")
        if out.exists():
            assert pq.read_table(out).to_pylist() == expected
        if parts.is_dir() and any(parts.glob("part-*.parquet")):
            rows = pq.read_table(parts).to_pylist()
            assert len({row["index"] for row in rows}) == len(rows)
            assert all(row == expected[row["index"]] for row in rows)

    def check_finished(self, out: Path, whole: Path) -> None:
        assert out.read_bytes() == whole.read_bytes()
        left = {file.name for file in out.parent.iterdir()}
        assert left == {out.name, *([out.with_suffix(".zarr").name] if self.outputs.arrays else [])}, left
        if self.outputs.arrays:
            ours, theirs = (zarr.open_group(path.with_suffix(".zarr"), mode="r") for path in (out, whole))
            keys = [array_key(row["index"]) for row in pq.read_table(out).to_pylist() if row["error"] is None]
            assert sorted(ours.group_keys()) == keys
            for key in keys:
                ours_here, theirs_here = (np.asarray(store[f"{key}/patch_scores"]) for store in (ours, theirs))
                np.testing.assert_array_equal(ours_here, theirs_here)


def at_each_change(folder: Path, outputs: Outputs, count: int, first: int = 1) -> int:
    """Kill a run in front of its first change, another in front of the next, …; an unhindered run takes each up."""
    job = Job(folder, count, outputs)
    whole = folder / "whole" / "results.parquet"
    job.forked(whole)
    for change in itertools.count(first):
        out = folder / f"change-{change}" / "results.parquet"
        if job.forked(out, change=change):
            return change - first
        job.check(out, whole)
        job.forked(out)
        job.check_finished(out, whole)
    raise AssertionError


def at_random(folder: Path, outputs: Outputs, kills: int, number: int = signal.SIGKILL) -> int:
    """Kill after random times, again and again in one place, until so many were killed."""
    draw = random.Random(0)
    job = Job(folder, 40, outputs)
    whole = folder / "whole" / "results.parquet"
    job.forked(whole)
    # Killed late enough that a run gets somewhere, early enough that most do not finish.
    start = time.perf_counter()
    job.forked(folder / "timing" / "results.parquet")
    usual = 0.5 * (time.perf_counter() - start)
    killed = 0
    while killed < kills:
        seconds = usual
        out = folder / f"from-{killed}-{draw.random()}" / "results.parquet"
        while not job.forked(out, seconds=draw.uniform(0, seconds), number=number):
            killed += 1
            seconds *= 1.05  # the machine may have become slower
            job.check(out, whole)
        job.check_finished(out, whole)
    return killed


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.fsync = lambda file: None  # type: ignore[assignment]  # slow, and a killed process loses nothing that it wrote
    root = Path(sys.argv[1])
    table, arrays = Outputs(), Outputs(patch_scores=True)
    counts = {
        "table, at each change": at_each_change(root / "1", table, count=4),
        "arrays, at the last changes": at_each_change(root / "2", arrays, count=1, first=40),
        "table, at random": at_random(root / "3", table, 16),
        "arrays, at random": at_random(root / "4", arrays, 8),
        "interrupted": at_random(root / "5", table, 4, signal.SIGINT),
    }
    print(json.dumps(counts))
