"""Inputs of a run: folders, patterns, lists, frames of videos; and names of files and classes, which are data."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
from PIL import Image

from densescore import DensescoreError, DenseScorer, DenseScores, read_image
from densescore.io.names import from_text
from densescore.io.video import write_video
from densescore.jobs.many import table
from densescore.jobs.many.rows import Outputs, array_key
from densescore.jobs.many.table import find_inputs, read_description, score_table
from tests.cli.runner import Result
from tests.conftest import Toy
from tests.jobs.many.conftest import rows_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.jpg", "deep/c.PNG", "x[1].png", "notes.md"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "photos"


def test_folders_patterns_and_lists(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for inputs, names in (
        (["", "b.png"], ["a.jpg", "b.png", "deep/c.PNG", "x[1].png"]),  # at any depth, each once
        (["**/*.[pP][nN][gG]"], ["b.png", "deep/c.PNG", "x[1].png"]),
        (["x[1].png"], ["x[1].png"]),  # a file before it is a pattern
    ):
        paths = find_inputs([os.path.join(folder, name) for name in inputs])
        assert [str(Path(path).relative_to(folder)) for path in paths] == names
    file = folder / "list.txt"
    file.write_text("gone.jpg\r\n\nwith space.jpg\ngone.jpg\n")
    assert find_inputs([file]) == ["gone.jpg", "with space.jpg"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one.jpg\n")))
    assert find_inputs(["-"]) == ["one.jpg"]
    file.write_text("\n")
    for name, message in (
        ("list.txt", r"list\.txt: the list names no images"),
        ("nowhere", "no such file or folder"),
        ("*.gif", "no file matches"),
    ):
        with pytest.raises(DensescoreError, match=message):
            find_inputs([folder / name])


# --- Videos ---


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of a picture, a video of three seconds, one that is cut off, and an empty one."""
    pytest.importorskip("av")
    folder = tmp_path / "mixed"
    folder.mkdir()
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / "a.png")
    for name in ("b.mp4", "c.mp4"):
        with write_video(folder / name, fps=10) as add:
            for _ in range(30):
                add(draw.integers(0, 256, (48, 64, 3), np.uint8))
    (folder / "c.mp4").write_bytes((folder / "c.mp4").read_bytes()[:-40_000])
    (folder / "d.webm").touch()
    return folder


def test_a_row_per_frame_with_its_time(mixed: Path, scorer: DenseScorer, tmp_path: Path) -> None:
    assert find_inputs([mixed]) == [str(mixed / "a.png")]  # without fps a folder gives its pictures
    assert find_inputs([mixed / "b.mp4"]) == [f"{mixed / 'b.mp4'}#t={second}" for second in range(3)]
    names = find_inputs([mixed], fps=2)
    failed = score_table(names, tmp_path / "all.parquet", scorer, Outputs(all_scores=True), part_size=3)
    result = rows_of(tmp_path / "all.parquet")
    assert [(Path(row["image"]).name, row["time"]) for row in result[:7]] == [
        ("a.png", None), *((f"b.mp4#t={seconds:g}", seconds) for seconds in (0, 0.5, 1, 1.5, 2, 2.5))
    ]  # fmt: skip
    cut = [row for row in result if "c.mp4" in row["image"]]
    assert [row["time"] for row in cut] == [*(index / 2 for index in range(len(cut) - 1)), None]
    assert 3 <= len(cut) <= 6
    errors = [row["error"] for row in result if row["error"]]
    *damaged, cut_off, empty = errors  # FFmpeg may read the frame at the cut, in part
    assert failed == len(errors)
    assert len(damaged) <= 1
    assert all("c.mp4: is damaged" in error for error in damaged)
    assert "c.mp4: is cut off" in cut_off
    assert "d.webm: cannot be read as a video: the file is empty" in empty
    expected = scorer.score(read_image(result[4]["image"])).image_scores()
    np.testing.assert_allclose(result[4]["image_scores"], expected, rtol=1e-5)
    assert len({tuple(row["image_scores"]) for row in result[1:7]}) == 6  # frames differ


def test_several_decoders_give_the_same_rows(mixed: Path, scorer: DenseScorer, tmp_path: Path) -> None:
    names = find_inputs([mixed / "b.mp4"], fps=10)
    for decoders in (1, 3):
        score_table(names, tmp_path / f"{decoders}.parquet", scorer, engine=table.local_engine(scorer, decoders))
    assert rows_of(tmp_path / "1.parquet") == rows_of(tmp_path / "3.parquet")


def test_a_video_is_not_overwritten_by_its_own_table(mixed: Path, scorer: DenseScorer) -> None:
    video = (mixed / "b.mp4").rename(mixed / "b.parquet")
    (mixed / "e.mp4").symlink_to(video)
    names = find_inputs([mixed / "e.mp4"])
    with pytest.raises(DensescoreError, match="this run needs"):
        score_table(names, video, scorer, overwrite=True)
    assert video.stat().st_size > 40_000


# --- Names ---

NAMES = [
    b"..png", b"[bold]x[/].png", b'"quoted".png', b"$x^2$.png", b"a\nb.png", b"caf\xe9.png", b"caf\xc3\xa9.png",
    b"colour\x1b[31m.png", b"set[/one].png", b"\xff\xfe.png", b"x" * 246 + b".png", b"\xe2\x80\xae.png",
]  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_pictures_of_any_name(command: Callable[..., Result], pictures: list[str], tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    folder = os.path.join(os.fsencode(tmp_path), b"odd")
    for inside in (b"", b"[bold]x[", b"set[", b"[", b"gone"):
        os.makedirs(os.path.join(folder, inside))
    picture = Path(pictures[0]).read_bytes()
    contents = dict.fromkeys(NAMES, picture) | dict.fromkeys([b"broken \xe9.png", b"[/broken].jpg"], b"not a picture")
    for name, content in contents.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)
    missing = [b"gone \xe9.png", b"gone/" + b"x" * 300]
    paths = [os.path.join(folder, name) for name in [*contents, *missing]]
    (tmp_path / "list.TXT").write_bytes(b"".join(path + b"\n" for path in paths if b"\n" not in path))
    out = tmp_path / "results.parquet"
    result = command(os.fsdecode(folder), tmp_path / "list.TXT", "--maps", "--out", out)
    assert result.exit_code == 1, result.output
    rows = rows_of(out)
    assert {os.fsencode(from_text(row["image"])) for row in rows} == set(paths)
    assert len(rows) == len(paths)
    failed = {os.path.relpath(os.fsencode(from_text(row["image"])), folder) for row in rows if row["error"] is not None}
    assert failed == {b"broken \xe9.png", b"[/broken].jpg", *missing}
    for row in rows:
        if row["error"] is None:
            assert zarr.open_group(out.with_suffix(".zarr"))[array_key(row["index"])].attrs["image"] == row["image"]
    assert f"{tmp_path}/odd/[bold]x[/].png" in {row["image"] for row in rows}  # Unicode names stand as they are


def test_labels_that_are_not_unicode(pictures: list[str], tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    labels = ("a\ud800", '"b"', "[bold]c\x1b")
    scorer = DenseScorer(Toy(), labels=labels, patch_size=20, scales=(1,), runtime="torch")
    out = tmp_path / "results.parquet"
    score_table(pictures[:4], out, scorer, Outputs(top=3, classes=labels, maps=True), part_size=2)
    rows = rows_of(out)
    assert rows[3]["error"].startswith(pictures[3])
    for row in rows[:3]:
        scores = scorer.score(row["image"])
        assert [from_text(label) for label in row["labels"]] == [ranked.label for ranked in scores.top(3)]
        assert from_text(row["label"]) == scores.top(1)[0].label
        assert {from_text(region["label"]) for region in row["regions"]} == set(labels)
        mapped: Any = zarr.open_group(out.with_suffix(".zarr"))[array_key(row["index"])].attrs["mapped"]
        assert [from_text(label) for label in mapped] == list(labels)
    assert (read_description(out) or {})["labels"] == list(labels)
    scores = scorer.score(pictures[0])
    scores.save(tmp_path / "scores.safetensors")
    assert DenseScores.load(tmp_path / "scores.safetensors").labels == labels
