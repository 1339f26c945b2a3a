"""Videos with response maps drawn over them."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.cli.runner import CliRunner

pytest.importorskip("av")

from densescore import DensescoreError, DenseScorer, annotate_video, read_image
from densescore.cli.main import app
from densescore.io.video import write_video


@pytest.fixture(scope="session")
def scorer(lite0: DenseScorer) -> DenseScorer:
    return lite0.with_scales((1, 1.6))


@pytest.fixture
def clip(tmp_path: Path, cat: np.ndarray, coffee: np.ndarray) -> Path:
    """Two seconds: the cup moves to the left; then the cat."""
    path = tmp_path / "in" / "clip.mp4"
    path.parent.mkdir()
    with write_video(path, fps=4) as add:
        for index in range(4):
            add(np.ascontiguousarray(coffee[:400, 40 * index : 40 * index + 450]))
        for _ in range(4):
            add(cat[np.arange(400) * 3 // 4, :450])
    return path


def test_it_is_as_long_and_shows_where(clip: Path, tmp_path: Path, scorer: DenseScorer) -> None:
    seen = []
    manifest = annotate_video(
        clip, scorer, tmp_path / "out", ["espresso"], fps=4, callback=lambda *step: seen.append(step)
    )
    assert seen == [(done, 8) for done in range(1, 9)]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    assert manifest["video"] == {"fps": 4, "frames": 8, "seconds": 2}
    with (tmp_path / "out" / "espresso.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert [row["time"] for row in rows] == [index / 4 for index in range(8)]
    assert rows[0]["x"] > rows[3]["x"] + 60  # 120 pixels, by steps of the grid
    assert min(row["peak"] for row in rows[:4]) > 20 * max(row["peak"] for row in rows[4:])
    film = tmp_path / "out" / "espresso.mp4"
    for seconds, drawn in ((0.5, True), (1.5, False)):
        source, shown = read_image(f"{clip}#t={seconds}"), read_image(f"{film}#t={seconds}")
        height, width = shown.shape[0] - 28, shown.shape[1]
        changed = np.abs(cv2.resize(source, (width, height)).astype(int) - shown[:height]).max(2) > 60  # [H, W]
        assert changed.mean() > 0.05 if drawn else changed.mean() < 0.01
        assert shown[height:].max() > 200  # the words
    with pytest.raises(DensescoreError, match="exists already"):
        annotate_video(clip, scorer, tmp_path / "out", ["espresso"])


def test_without_classes_the_best_of_the_video_is_drawn(clip: Path, tmp_path: Path, scorer: DenseScorer) -> None:
    manifest = annotate_video(clip, scorer, tmp_path / "out", top=2, fps=2)
    assert {entry["label"] for entry in manifest["classes"]} == {"espresso", "Egyptian cat"}
    assert (tmp_path / "out" / "Egyptian_cat.mp4").stat().st_size > 1000


@pytest.mark.parametrize("fault", ["cut off", "interrupt"])
def test_a_failed_run_leaves_nothing(fault: str, clip: Path, tmp_path: Path, scorer: DenseScorer) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    if fault == "cut off":
        clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    expected = {"cut off": DensescoreError, "interrupt": KeyboardInterrupt}[fault]
    with pytest.raises(expected, match=r"clip\.mp4: is (cut off|damaged)" if fault == "cut off" else None):
        annotate_video(clip, scorer, tmp_path / "out", ["espresso"], fps=1, callback=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_heatmap_command(clip: Path, tmp_path: Path, scorer: DenseScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2.imwrite(str(clip.with_name("dark.png")), np.zeros((80, 90, 3), np.uint8))
    empty = clip.with_name("empty.mov")
    empty.touch()
    monkeypatch.setattr("densescore.scoring.scorer.DenseScorer", lambda **_: scorer)
    arguments = ["heatmap", str(clip.parent), "--classes", "espresso", "--json", "-o", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments[:-1], str(tmp_path / "out"), "--fps", "1"])
    assert result.exit_code == 1
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line.get("video", {}).get("frames") for line in lines] == [2, None, None]
    assert lines[2] == {"image": str(empty), "error": f"{empty}: cannot be read as a video: the file is empty"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip", "dark"]
    assert (tmp_path / "out" / "clip" / "espresso.mp4").is_file()
    photographs = CliRunner().invoke(app, [*arguments[:-1], str(tmp_path / "pictures")])
    assert len(photographs.stdout.splitlines()) == 1  # without --fps a folder gives its photographs alone
