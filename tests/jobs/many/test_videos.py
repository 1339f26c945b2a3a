"""Videos among the images of a table: a row per frame, and a run that goes on."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("av")
import pyarrow.parquet as pq
from PIL import Image

from densescore import DensescoreError, DenseScorer, read_image
from densescore.io.video_writer import write_video
from densescore.jobs.many import rows, table
from densescore.jobs.many.inputs import find_inputs
from densescore.jobs.many.rows import Kept
from densescore.jobs.many.table import score_table


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of a picture, a video of three seconds, one that is cut off, and an empty one."""
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
    names = find_inputs([mixed], fps=2)
    assert score_table(names, tmp_path / "all.parquet", scorer, Kept(all_scores=True), part_size=3) == 2
    found = pq.read_table(tmp_path / "all.parquet").to_pylist()
    assert [(Path(row["image"]).name, row["time"]) for row in found[:7]] == [
        ("a.png", None), *((f"b.mp4#t={seconds:g}", seconds) for seconds in (0, 0.5, 1, 1.5, 2, 2.5))
    ]  # fmt: skip
    cut = [row for row in found if "c.mp4" in row["image"]]
    assert [row["time"] for row in cut] == [*(index / 2 for index in range(len(cut) - 1)), None]
    assert 3 <= len(cut) <= 6
    errors = [row["error"] for row in found if row["error"]]
    assert len(errors) == 2
    assert "c.mp4: is cut off" in errors[0]
    assert "d.webm: cannot be read as a video: the file is empty" in errors[1]
    own = scorer.score(read_image(found[4]["image"])).image_scores()
    np.testing.assert_allclose(found[4]["image_scores"], own, rtol=1e-5)
    assert len({tuple(row["image_scores"]) for row in found[1:7]}) == 6  # each its own


def test_a_stopped_run_goes_on_in_the_middle_of_a_video(
    mixed: Path, scorer: DenseScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = find_inputs([mixed / "b.mp4"], fps=4)
    score_table(names, tmp_path / "whole.parquet", scorer, part_size=2)

    def stopped(index: int, *rest: object) -> rows.Row:
        if index == 5:
            raise KeyboardInterrupt
        return rows.keep(index, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(table, "keep", stopped)
        score_table(names, tmp_path / "parts.parquet", scorer, part_size=2)
    before: list[int] = []
    score_table(
        names, tmp_path / "parts.parquet", scorer, part_size=2, callback=lambda count, _: before.append(count)
    )  # fmt: skip
    assert before[0] == 4
    assert pq.read_table(tmp_path / "parts.parquet").equals(pq.read_table(tmp_path / "whole.parquet"))


def test_several_decoders_give_the_same_rows(mixed: Path, scorer: DenseScorer, tmp_path: Path) -> None:
    names = find_inputs([mixed / "b.mp4"], fps=10)
    for decoders in (1, 3):
        score_table(
            names, tmp_path / f"{decoders}.parquet", scorer, engine=table.local_engine(scorer, decoders)
        )  # fmt: skip
    assert pq.read_table(tmp_path / "1.parquet").equals(pq.read_table(tmp_path / "3.parquet"))


def test_without_fps_a_folder_gives_its_pictures(mixed: Path) -> None:
    assert find_inputs([mixed]) == [str(mixed / "a.png")]
    assert find_inputs([mixed / "b.mp4"]) == [f"{mixed / 'b.mp4'}#t={second}" for second in range(3)]


def test_a_video_is_not_overwritten_by_its_own_table(mixed: Path, scorer: DenseScorer) -> None:
    video = (mixed / "b.mp4").rename(mixed / "b.parquet")
    (mixed / "e.mp4").symlink_to(video)
    names = find_inputs([mixed / "e.mp4"])
    with pytest.raises(DensescoreError, match="this run needs"):
        score_table(names, video, scorer, overwrite=True)
    assert video.stat().st_size > 40_000
