"""``densescore score`` as a user types it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

pytest.importorskip("pyarrow")
import pyarrow.parquet as pq

from densescore import DenseScorer
from densescore.cli.main import app
from densescore.jobs.many import rows, table


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def toy(scorer: DenseScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small network in the place of a named one."""
    monkeypatch.setattr("densescore.scoring.scorer.DenseScorer", lambda **options: scorer)
    monkeypatch.setattr("densescore.cli.options.known_labels", lambda *_: None)


def test_a_folder_with_the_default_model(tmp_path: Path, cat: np.ndarray, coffee: np.ndarray) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(cat).save(tmp_path / "photos" / "cat.png")
    Image.fromarray(coffee).save(tmp_path / "photos" / "coffee.png")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"not a picture")
    arguments: list[str | Path] = [
        "score",
        tmp_path / "photos",
        "--out",
        tmp_path / "results.parquet",
        "--scales",
        "1,1.6",
        "--json",
    ]
    first = run(*arguments)
    assert first.exit_code == 1, first.output
    summary = json.loads(first.stdout)
    assert {name: summary[name] for name in ("images", "before", "scored", "failed")} == {
        "images": 3, "before": 0, "scored": 3, "failed": 1,
    }  # fmt: skip
    assert "broken.jpg: not an image" in first.stderr
    found = {Path(row["image"]).name: row for row in pq.read_table(tmp_path / "results.parquet").to_pylist()}
    assert found["cat.png"]["label"] == "Egyptian cat"
    assert found["coffee.png"]["label"] == "espresso"
    assert "not an image" in found["broken.jpg"]["error"]
    again = run(*arguments)
    assert again.exit_code == 1  # a failed image is not forgotten
    assert json.loads(again.stdout)["before"] == 3


def test_ctrl_c_leaves_what_is_done_and_the_same_command_goes_on(
    toy: None, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results.parquet"
    arguments: list[str | Path] = ["score", tmp_path / "pictures", "--out", out, "--part-size", "2"]
    with monkeypatch.context() as patch:
        real = rows.keep

        def interrupted(index: int, *rest: object) -> rows.Row:
            if index == 6:
                raise KeyboardInterrupt  # as Python answers SIGINT; the signal itself is sent in killing.py
            return real(index, *rest)  # type: ignore[arg-type]

        patch.setattr(table, "keep", interrupted)
        stopped = run(*arguments)
    assert stopped.exit_code == 130
    assert "the same command goes on" in stopped.stderr
    assert not out.exists()
    assert pq.read_table(f"{out}.parts")["index"].to_pylist() == [0, 1, 2, 3, 4, 5]
    finished = run(*arguments)
    assert finished.exit_code == 1
    assert "10 images, 6 of them scored before; 1 failed" in finished.stderr
    assert pq.read_table(out)["index"].to_pylist() == list(range(10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "a,d"], "no class 'd'"),
        (["--out", "results.csv"], "ends in .parquet"),
        (["--engine", "spark"], "--engine: expected local or ray, got 'spark'"),
        (["--top", "0"], "Invalid value for '--top'"),
        (["--out", "pictures/00.png/results.parquet"], "cannot be written"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    toy: None, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("score", "pictures", "--out", "results.parquet", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_another_run_is_not_overwritten_unasked(toy: None, pictures: list[str], tmp_path: Path) -> None:
    out = tmp_path / "results.parquet"
    arguments: list[str | Path] = ["score", pictures[0], "--out", out]
    assert run(*arguments).exit_code == 0
    refused = run(*arguments, "--top", "1")
    assert refused.exit_code == 2
    assert "exists already, with another top: 5 then, 1 now" in refused.stderr
    assert run(*arguments, "--top", "1", "--overwrite").exit_code == 0
    assert len(pq.read_table(out)["labels"][0]) == 1
