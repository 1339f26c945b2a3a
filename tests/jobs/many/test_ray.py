"""Ray's workers make the very table that one process makes, and may be lost on the way."""

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs the extra: pip install 'densescore[ray]'")
import pyarrow.parquet as pq
from ray.cluster_utils import Cluster

from densescore import DensescoreError, DenseScorer
from densescore.io.images import read_image
from densescore.jobs.many.ray_engine import ray_engine
from densescore.jobs.many.rows import Kept, Row, array_key
from densescore.jobs.many.table import score_table
from densescore.scoring import stream
from tests.conftest import Toy


class Signing(Toy):
    """The small network; a scorer copies its module, so the copying is where a worker first runs what is here.

    Each process leaves a file, and dies of a picture that is called deadly.
    """

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
    if "deadly" in str(source):
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


def test_the_same_table_as_one_process(
    cluster: str, options: dict[str, Any], pictures: list[str], tmp_path: Path
) -> None:
    zarr = pytest.importorskip("zarr")
    scorer = DenseScorer(**options)
    kept = Kept(all_scores=True, maps=True)
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    score_table(pictures, here, scorer, kept, part_size=2)
    names: list[str] = []

    def callback(before: int, rows: Sequence[Row]) -> None:
        names.extend(row["image"] for row in rows)

    failed = score_table(
        pictures,
        there,
        scorer,
        kept,
        part_size=2,
        engine=ray_engine(options, address=cluster, workers=2),
        callback=callback,
    )
    assert failed == 2
    assert sorted(names) == sorted(pictures)
    assert pq.read_table(there).equals(pq.read_table(here))
    ours, theirs = (zarr.open_group(path.with_suffix(".zarr"), mode="r") for path in (here, there))
    assert sorted(ours.group_keys()) == sorted(theirs.group_keys())
    for key in ours.group_keys():
        assert (ours[f"{key}/maps"][:] == theirs[f"{key}/maps"][:]).all()
    assert array_key(3) not in theirs
    assert len(list((tmp_path / "workers").iterdir())) == 3  # this process and two workers: one model each


def test_a_lost_workers_part_is_done_by_another(
    cluster: str, options: dict[str, Any], pictures: list[str], tmp_path: Path
) -> None:
    scorer = DenseScorer(**options)
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    images = [str(link) for link in many_links(pictures[0], tmp_path / "links", 60)]
    score_table(images, here, scorer, part_size=1)
    killed: list[int] = []

    def callback(before: int, rows: Sequence[Row]) -> None:
        workers = {int(file.name) for file in (tmp_path / "workers").iterdir()} - {os.getpid()}
        if rows and not killed:
            killed.append(min(workers))
            os.kill(killed[0], signal.SIGKILL)

    score_table(
        images, there, scorer, part_size=1, engine=ray_engine(options, address=cluster, workers=2), callback=callback
    )
    assert len(killed) == 1
    assert pq.read_table(there).equals(pq.read_table(here))


def test_a_stopped_run_goes_on_with_the_other_engine(
    cluster: str, options: dict[str, Any], pictures: list[str], tmp_path: Path
) -> None:
    scorer = DenseScorer(**options)
    out, whole = tmp_path / "results.parquet", tmp_path / "whole.parquet"
    score_table(pictures, whole, scorer, part_size=2)

    def stop(before: int, rows: Sequence[Row]) -> None:
        if rows:
            raise KeyboardInterrupt

    for engine in (ray_engine(options, address=cluster, workers=1), None):
        with pytest.raises(KeyboardInterrupt):
            score_table(pictures, out, scorer, part_size=2, engine=engine, callback=stop)
    score_table(pictures, out, scorer, part_size=2, engine=ray_engine(options, address=cluster, workers=1))
    assert pq.read_table(out).equals(pq.read_table(whole))


def test_a_worker_with_another_model_is_refused(
    cluster: str, options: dict[str, Any], pictures: list[str], tmp_path: Path
) -> None:
    scorer = DenseScorer(**options)
    with pytest.raises(DensescoreError, match=r"a worker has another scales: \[1, 2\], not \[1, 1.5\]"):
        score_table(
            pictures, tmp_path / "r.parquet", scorer, engine=ray_engine({**options, "scales": (1, 2)}, address=cluster)
        )
    assert not (tmp_path / "r.parquet").exists()


def test_an_image_that_kills_its_workers_is_given_up(
    cluster: str, options: dict[str, Any], pictures: list[str], tmp_path: Path
) -> None:
    scorer = DenseScorer(**options)
    deadly = tmp_path / "deadly.png"
    deadly.symlink_to(pictures[0])
    images = [*pictures[:2], str(deadly), pictures[4]]
    failed = score_table(images, tmp_path / "r.parquet", scorer, engine=ray_engine(options, address=cluster, workers=1))
    rows = pq.read_table(tmp_path / "r.parquet").to_pylist()
    assert failed == 1
    assert [row["error"] for row in rows] == [None, None, f"{deadly}: 3 workers died while they scored it", None]
    assert len(list((tmp_path / "workers").iterdir())) == 1 + 5  # this process; one worker in haste, three warned, one


def many_links(picture: str, folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    links = [folder / f"{index}.png" for index in range(count)]
    for link in links:
        link.symlink_to(picture)
    return links


def test_arguments_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(DensescoreError, match="workers must be at least 1"):
        ray_engine(options, workers=0)
