"""``kill -9`` (and Ctrl-C) at any moment, then the same again: no image lost, doubled or half-written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("zarr")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_at_every_change_of_the_disk_and_at_random(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-W", "ignore", "-m", "tests.jobs.many.killing", str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout)
    least = {
        "table, at each change": 30,  # every file made, renamed or deleted by a run of two parts
        "arrays, at the last changes": 16,  # from the last array on
        "table, at random": 16,
        "arrays, at random": 8,
        "interrupted": 4,  # by SIGINT, as Ctrl-C sends it
    }
    assert kills.keys() == least.keys()
    assert all(kills[name] >= count for name, count in least.items()), kills
