"""Ray's workers make the same table as one process, and may be lost on the way."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs the extra: pip install 'densescore[ray]'")
from ray.cluster_utils import Cluster

from densescore import DensescoreError, DenseScorer
from densescore.io.images import read_image
from densescore.jobs.many.ray_engine import RayPool, ray_engine
from densescore.jobs.many.rows import Outputs, Row, array_key
from densescore.jobs.many.table import Engine, score_table
from densescore.scoring import stream
from tests.conftest import Toy
from tests.jobs.many.conftest import rows_of


class Signing(Toy):
    """The small network. When a worker's scorer copies it, its process leaves a file, and dies of deadly pictures."""

    def __init__(self, folder: str, parent: int) -> None:
        super().__init__()
        self.folder, self.parent = folder, parent

    def __deepcopy__(self, memo: dict[int, Any]) -> Toy:
        Path(self.folder, str(os.getpid())).touch()
        if os.getpid() != self.parent:
            stream.read_image = _read_or_die  # type: ignore[attr-defined]
        copy = Toy()
        copy.load_state_dict(self.state_dict())
        return copy


def _read_or_die(source: Any) -> Any:
    if Path(str(source)).name == "deadly.png":  # folders are named after tests
        os.kill(os.getpid(), signal.SIGKILL)
    return read_image(source)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A cluster of its own processes; its address."""
    head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "workers").mkdir()
    module = Signing(str(tmp_path / "workers"), os.getpid())
    return {"model": module, "labels": ("a", "b", "c"), "patch_size": 20, "scales": (1, 1.5), "runtime": "torch"}


@pytest.fixture
def scorer(options: dict[str, Any]) -> DenseScorer:
    """This process's copy of the model."""
    return DenseScorer(**options)


@pytest.fixture
def engine(cluster: str, options: dict[str, Any]) -> Callable[..., Engine]:
    """Number of workers and options of their model → an engine on the cluster."""
    return lambda workers, **changed: ray_engine(RayPool({**options, **changed}, cluster, workers))


def test_the_same_table_as_one_process(engine: Any, scorer: DenseScorer, pictures: list[str], tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    outputs = Outputs(all_scores=True, maps=True)
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    score_table(pictures, here, scorer, outputs, part_size=2)
    names: list[str] = []

    def callback(before: int, rows: Sequence[Row]) -> None:
        names.extend(row["image"] for row in rows)

    assert score_table(pictures, there, scorer, outputs, part_size=2, engine=engine(2), callback=callback) == 2
    assert sorted(names) == sorted(pictures)
    assert rows_of(there) == rows_of(here)
    ours, theirs = (zarr.open_group(path.with_suffix(".zarr"), mode="r") for path in (here, there))
    assert sorted(ours.group_keys()) == sorted(theirs.group_keys())
    for key in ours.group_keys():
        assert (ours[f"{key}/heatmaps"][:] == theirs[f"{key}/heatmaps"][:]).all()
    assert array_key(3) not in theirs
    assert len(list((tmp_path / "workers").iterdir())) == 3  # this process and two workers: one model each


def test_a_lost_part_is_done_again(engine: Any, scorer: DenseScorer, pictures: list[str], tmp_path: Path) -> None:
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    links = [tmp_path / f"{index}.png" for index in range(60)]
    for link in links:
        link.symlink_to(pictures[0])
    images = list(map(str, links))
    score_table(images, here, scorer, part_size=1)
    killed: list[int] = []

    def callback(before: int, rows: Sequence[Row]) -> None:
        workers = {int(file.name) for file in (tmp_path / "workers").iterdir()} - {os.getpid()}
        if rows and not killed:
            killed.append(min(workers))
            os.kill(killed[0], signal.SIGKILL)

    score_table(images, there, scorer, part_size=1, engine=engine(2), callback=callback)
    assert len(killed) == 1
    assert rows_of(there) == rows_of(here)


def test_a_run_may_change_its_engine(engine: Any, scorer: DenseScorer, pictures: list[str], tmp_path: Path) -> None:
    out, whole = tmp_path / "results.parquet", tmp_path / "whole.parquet"
    score_table(pictures, whole, scorer, part_size=2)

    def stop(before: int, rows: Sequence[Row]) -> None:
        if rows:
            raise KeyboardInterrupt

    for resumed in (engine(1), None):
        with pytest.raises(KeyboardInterrupt):
            score_table(pictures, out, scorer, part_size=2, engine=resumed, callback=stop)
    score_table(pictures, out, scorer, part_size=2, engine=engine(1))
    assert rows_of(out) == rows_of(whole)


def test_bad_workers_are_refused(engine: Any, scorer: DenseScorer, pictures: list[str], tmp_path: Path) -> None:
    with pytest.raises(DensescoreError, match=r"a worker has another scales: \[1, 2\], not \[1, 1.5\]"):
        score_table(pictures, tmp_path / "r.parquet", scorer, engine=engine(None, scales=(1, 2)))
    assert not (tmp_path / "r.parquet").exists()
    with pytest.raises(DensescoreError, match="workers must be at least 1"):
        engine(0)


def test_a_deadly_image_is_given_up(engine: Any, scorer: DenseScorer, pictures: list[str], tmp_path: Path) -> None:
    deadly = tmp_path / "deadly.png"
    deadly.symlink_to(pictures[0])
    images = [*pictures[:2], str(deadly), pictures[4]]
    failed = score_table(images, tmp_path / "r.parquet", scorer, engine=engine(1))
    rows = rows_of(tmp_path / "r.parquet")
    assert failed == 1
    assert [row["error"] for row in rows] == [None, None, f"{deadly}: 3 workers died while they scored it", None]
    assert len(list((tmp_path / "workers").iterdir())) == 1 + 5  # this process; one worker in haste, three warned, one
