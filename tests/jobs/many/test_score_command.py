"""``densescore score`` as a user types it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.runner import CliRunner, Result
from tests.jobs.many.conftest import rows_of

pytest.importorskip("pyarrow")
from densescore.cli.main import app
from densescore.jobs.many import rows, table

Command = Callable[..., Result]


def test_a_folder_with_the_default_model(tmp_path: Path, cat: np.ndarray, coffee: np.ndarray) -> None:
    folder, out = tmp_path / "photos", tmp_path / "results.parquet"
    folder.mkdir()
    Image.fromarray(cat).save(folder / "cat.png")
    Image.fromarray(coffee).save(folder / "coffee.png")
    (folder / "broken.jpg").write_bytes(b"not a picture")
    words = ["score", str(folder), "--out", str(out), "--scales", "1,1.6", "--json"]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 1, first.output  # a failed image
    assert json.loads(first.stdout).items() >= {"images": 3, "before": 0, "scored": 3, "failed": 1}.items()
    assert "broken.jpg: not an image" in first.stderr
    result = {Path(row["image"]).name: row for row in rows_of(out)}
    assert [result[name]["label"] for name in ("cat.png", "coffee.png")] == ["Egyptian cat", "espresso"]
    assert "not an image" in result["broken.jpg"]["error"]
    again = CliRunner().invoke(app, words)
    assert (again.exit_code, json.loads(again.stdout)["before"]) == (1, 3)


def test_ctrl_c_leaves_parts_and_the_same_command_resumes(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["pictures", "--out", "results.parquet", "--part-size", "2"]

    def interrupted(index: int, *rest: Any) -> rows.Row:
        if index == 6:
            raise KeyboardInterrupt  # as Python answers SIGINT; killing.py sends the signal itself
        return rows.make_row(index, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(table, "make_row", interrupted)
        stopped = command(*words)
    assert stopped.exit_code == 130
    assert "the same command resumes" in stopped.stderr
    assert not Path("results.parquet").exists()
    assert [row["index"] for row in rows_of(Path("results.parquet.parts"))] == [0, 1, 2, 3, 4, 5]
    finished = command(*words)
    assert finished.exit_code == 1
    assert "10 images, 6 of them scored before; 1 failed" in finished.stderr
    assert [row["index"] for row in rows_of(Path("results.parquet"))] == list(range(10))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classes", "a,d"], "no class 'd'"),
        (["--out", "results.csv"], "ends in .parquet"),
        (["--engine", "spark"], 'Invalid value "spark" for --engine'),
        (["--top", "0"], 'Invalid value "0" for --top'),
        (["--out", "pictures/00.png/results.parquet"], "cannot be written"),
    ],
)
def test_bad_options_are_one_line(command: Command, words: list[str], message: str) -> None:
    result = command("pictures", "--out", "results.parquet", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
