"""The table: its rows and arrays, resuming after a stop or a kill, and refusals."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow")
from densescore import DensescoreError, DenseScorer
from densescore.jobs.many.rows import Outputs, Row, array_key, schema
from densescore.jobs.many.table import Run, local_engine, read_description, score_table
from densescore.models.labels import imagenet_labels
from densescore.results.formats import SIDES
from tests.conftest import Toy
from tests.jobs.many.conftest import rows_of


def test_one_row_per_image_with_the_scorers_numbers(scorer: DenseScorer, pictures: list[str], tmp_path: Path) -> None:
    out = tmp_path / "results.parquet"
    failed = score_table(pictures, out, scorer, Outputs(top=2, all_scores=True, mapped=2), part_size=4)
    rows, made = rows_of(out), read_description(out) or {}
    assert failed == 2
    assert (made["labels"], made["scales"], made["runtime"]) == (["a", "b", "c"], [1, 1.5], "torch")
    assert [row["image"] for row in rows] == pictures
    assert [row["index"] for row in rows] == list(range(11))
    for row in rows:
        if row["index"] in (3, 7):
            assert row["error"].startswith(pictures[row["index"]])
            assert {value for name, value in row.items() if name not in ("index", "image", "error")} == {None}
            continue
        scores = scorer.score(row["image"])
        assert row["error"] is None
        pyramid = scores.pyramid
        assert (row["height"], row["width"], row["patches"]) == (pyramid.height, pyramid.width, len(pyramid))
        assert row["image_scores"] == scores.image_scores().tolist()
        assert list(zip(row["labels"], row["scores"], strict=True)) == [best[:2] for best in scores.top(2)]
        assert (row["label"], row["score"], row["confidence"], row["best_patch"]["score"]) == scores.top(1)[0][:4]
        assert row["best_patch_scores"] == [best.best_patch for best in scores.top(2)]
        box = torch.tensor([row["best_patch"][side] for side in SIDES])
        here = (scores.boxes == box).all(1)
        assert row["best_patch"]["score"] in scores.patch_scores[here, scores.index(row["label"])]
        regions = [(label, region) for label in row["labels"] for region in scores.boxes_from_map(label)]
        boxes = [(item["label"], tuple(item[side] for side in SIDES)) for item in row["regions"]]
        assert boxes == [(label, region.box) for label, region in regions]
        np.testing.assert_array_equal([item["peak"] for item in row["regions"]], [r.peak for _, r in regions])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pictures", "results.parquet"]


def test_chosen_classes_and_groups_have_their_scores_in_the_table(pictures: list[str], tmp_path: Path) -> None:
    labels = imagenet_labels()
    scorer = DenseScorer(Toy(1000), labels=labels, patch_size=20, scales=(1, 1.5), runtime="torch")
    out = tmp_path / "results.parquet"
    score_table(pictures[:4], out, scorer, Outputs(top=1, classes=("Dog", "tabby", "insect", "dog"), all_scores=True))
    rows = rows_of(out)
    assert rows[3]["classes"] is None
    for row in rows[:3]:
        scores = scorer.score(row["image"])
        assert row["classes"] == [best._asdict() for best in scores.select(["dog", "tabby", "insect"]).top()]
        assert row["classes"][0]["score"] > row["classes"][2]["score"] > 0  # a breed has less than all dogs
        assert row["label"] == scores.top(1)[0].label
        assert {region["label"] for region in row["regions"]} == {"dog", "tabby", "insect"}
        dogs = [tuple(region[side] for side in SIDES) for region in row["regions"] if region["label"] == "dog"]
        assert dogs == [region.box for region in scores.boxes_from_map("dog")]


def test_scores_of_a_picture_do_not_depend_on_its_part_its_neighbors_or_the_threads(
    scorer: DenseScorer, pictures: list[str], tmp_path: Path
) -> None:
    sound = [picture for index, picture in enumerate(pictures) if index not in (3, 7)]
    expected = {picture: scorer.score(picture).image_scores().tolist() for picture in sound}
    for part_size, decoders in ((1, 1), (4, 3), (64, 2)):
        images = np.random.default_rng(part_size).choice(sound, 25).tolist()
        out, engine = tmp_path / f"{part_size}.parquet", local_engine(scorer, decoders)
        score_table(images, out, scorer, Outputs(all_scores=True), part_size=part_size, engine=engine)
        assert [(row["image"], row["image_scores"]) for row in rows_of(out)] == [(i, expected[i]) for i in images]


def test_arrays_go_beside_the_table(scorer: DenseScorer, pictures: list[str], tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    out = tmp_path / "results.parquet"
    score_table(pictures, out, scorer, Outputs(classes=("c", "a"), maps=True, patch_scores=True), part_size=3)
    store = zarr.open_group(tmp_path / "results.zarr", mode="r")
    rows = rows_of(out)
    assert sorted(store.group_keys()) == [array_key(row["index"]) for row in rows if row["error"] is None]
    for row in rows:
        if row["error"] is None:
            scores, group = scorer.score(row["image"]), store[array_key(row["index"])]
            assert dict(group.attrs) == {"image": row["image"], "mapped": ["c", "a"]}
            np.testing.assert_array_equal(group["heatmaps"][:], scores.heatmap(["c", "a"]).numpy())
            np.testing.assert_array_equal(group["patch_scores"][:], scores.patch_scores.numpy())
            np.testing.assert_array_equal(group["boxes"][:], scores.boxes.numpy())
    assert not (tmp_path / "results.parquet.parts").exists()


def stop_after(count: int, *arguments: Any, **options: Any) -> None:
    """Run, and stop when `count` images are scored, as Ctrl-C does."""
    scored = 0

    def callback(before: int, rows: Sequence[Row]) -> None:
        nonlocal scored
        scored += len(rows)
        if scored >= count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_table(*arguments, callback=callback, **options)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_stopped_run_resumes(scorer: DenseScorer, pictures: list[str], tmp_path: Path, damaged: bool) -> None:
    whole, out = tmp_path / "whole.parquet", tmp_path / "results.parquet"
    score_table(pictures, whole, scorer, part_size=2)
    stop_after(7, pictures, out, scorer, part_size=2)
    assert not out.exists()
    assert rows_of(Path(f"{out}.parts")) == rows_of(whole)[:6]
    if damaged:
        part = Path(f"{out}.parts", "part-000000000002.parquet")
        part.write_bytes(part.read_bytes()[:100])
    calls: list[tuple[int, list[str]]] = []
    score_table(
        pictures, out, scorer, part_size=2,
        callback=lambda before, rows: calls.append((before, [row["image"] for row in rows])),
    )  # fmt: skip
    assert calls[0] == (4 if damaged else 6, [])
    assert [image for _, images in calls for image in images] == [*(pictures[2:4] if damaged else []), *pictures[6:]]
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_at_every_change_of_the_disk_and_at_random(tmp_path: Path) -> None:
    """``kill -9`` (and Ctrl-C), then the same again: no image lost, doubled or half-written."""
    pytest.importorskip("zarr")
    command = [sys.executable, "-W", "ignore", "-m", "tests.jobs.many.killing", str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, env=env)
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


def test_a_finished_table_is_not_made_again(scorer: DenseScorer, pictures: list[str], tmp_path: Path) -> None:
    out = tmp_path / "results.parquet"
    score_table(pictures, out, scorer)
    before = out.stat()
    calls: list[tuple[int, int]] = []
    assert score_table(pictures, out, scorer, callback=lambda found, rows: calls.append((found, len(rows)))) == 2
    assert calls == [(11, 0)]
    assert (out.stat().st_mtime_ns, out.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    score_table(pictures, out, scorer, overwrite=True)
    assert out.stat().st_ino != before.st_ino


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"outputs": Outputs(top=1)}, "with another top: 5 then, 1 now"),
        ({"part_size": 3}, "with another part-size: 2 then, 3 now"),
        ({"images": 10}, r"with another images: 11 paths \(\w+\) then, 10 paths \(\w+\) now"),
        ({"k": 3.0}, r"with another k: 5\.0 then, 3\.0 now"),
        ({"classifier_digest": "another head"}, "with another classifier: "),
    ],
)
def test_other_options_are_refused_by_name_and_touch_nothing(
    scorer: DenseScorer, pictures: list[str], tmp_path: Path, changed: dict[str, Any], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out, finished = tmp_path / "results.parquet", tmp_path / "finished.parquet"
    stop_after(5, pictures, out, scorer, part_size=2)
    score_table(pictures, finished, scorer, part_size=2)

    def times() -> dict[Path, int]:
        files = (file for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".lock")
        return {file: file.stat().st_mtime_ns for file in files}

    before = times()
    images = pictures[: int(str(changed.pop("images", 11)))]
    for name in {"k", "classifier_digest"} & changed.keys():
        monkeypatch.setattr(scorer, name, changed.pop(name))
    options = {"part_size": 2, **changed}
    for place in (out, finished):
        with pytest.raises(DensescoreError, match=message):
            score_table(images, place, scorer, **options)
    assert times() == before
    score_table(images, out, scorer, overwrite=True, **options)
    assert len(rows_of(out)) == len(images)


def test_a_strangers_files_are_left_alone(scorer: DenseScorer, pictures: list[str], tmp_path: Path) -> None:
    out = tmp_path / "results.parquet"
    out.write_bytes(b"mine")
    with pytest.raises(DensescoreError, match=r"results\.parquet: exists already, not by a run of densescore"):
        score_table(pictures, out, scorer)
    assert out.read_bytes() == b"mine"
    parts = tmp_path / "other.parquet.parts"
    parts.mkdir()
    (parts / "part-x.parquet").write_bytes(b"mine")
    with pytest.raises(DensescoreError, match=r"other\.parquet\.parts: exists already, and densescore did not make it"):
        score_table(pictures, tmp_path / "other.parquet", scorer, overwrite=True)
    (tmp_path / "third.zarr").mkdir()
    with pytest.raises(DensescoreError, match=r"third\.zarr: exists already"):
        score_table(pictures, tmp_path / "third.parquet", scorer, Outputs(patch_scores=True))


def test_two_runs_at_once(scorer: DenseScorer, pictures: list[str], tmp_path: Path) -> None:
    out = tmp_path / "results.parquet"

    def callback(before: int, rows: Sequence[Row]) -> None:
        with pytest.raises(DensescoreError, match="another run is writing it"):
            score_table(pictures, out, scorer)

    score_table(pictures, out, scorer, callback=callback)
    assert len(rows_of(out)) == 11


@pytest.mark.parametrize("outputs", [Outputs(), Outputs(patch_scores=True)])
def test_a_full_disk_is_an_error(scorer: DenseScorer, pictures: list[str], tmp_path: Path, outputs: Outputs) -> None:
    """The kernel refuses to let a file grow past a limit in the middle of a write, as a full disk would."""
    pictures = pictures[:3]
    out, whole = tmp_path / "results.parquet", tmp_path / "whole.parquet"
    score_table(pictures, whole, scorer, outputs, part_size=1)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole.stat().st_size - 100, old[1]))
    try:
        with pytest.raises(DensescoreError, match=r"results\.parquet.*: cannot be written: File too large"):
            score_table(pictures, out, scorer, outputs, part_size=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert not out.exists()
    assert all(len(rows_of(part)) == 1 for part in Path(f"{out}.parts").glob("*.parquet"))
    score_table(pictures, out, scorer, outputs, part_size=1)
    assert rows_of(out) == rows_of(whole)


@pytest.mark.parametrize(
    ("name", "outputs", "part_size", "message"),
    [
        ("r.parquet", Outputs(maps=True, mapped=0), 64, "mapped is 0"),
        ("r.parquet", Outputs(top=0), 64, "top must be at least 1"),
        ("r.parquet", Outputs(mapped=-1), 64, "mapped must be at least 0"),
        ("r.parquet", Outputs(), 0, "part_size must be at least 1"),
        ("r.csv", Outputs(), 64, r"ends in \.parquet"),
    ],
)
def test_bad_arguments(
    scorer: DenseScorer, pictures: list[str], tmp_path: Path, name: str, outputs: Outputs, part_size: int, message: str
) -> None:
    with pytest.raises(DensescoreError, match=message):
        score_table(pictures, tmp_path / name, scorer, outputs, part_size=part_size)
    assert [file.name for file in tmp_path.iterdir()] == ["pictures"]


def test_a_run_cannot_finish_with_a_part_missing(scorer: DenseScorer, tmp_path: Path) -> None:
    with (
        Run(tmp_path / "r.parquet", ["a", "b"], {}, schema(Outputs()), part_size=1) as run,
        pytest.raises(DensescoreError, match="images 0 to 0 are missing"),
    ):
        run.finish()
    assert not (tmp_path / "r.parquet").exists()
