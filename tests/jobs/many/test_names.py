"""Names of files and classes are data: whatever is in them, the table holds them, and no run ends because of them."""

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("pyarrow")
pytest.importorskip("zarr")
import pyarrow.parquet as pq
import zarr

from densescore import DenseScorer, DenseScores
from densescore.cli.main import app
from densescore.io.names import from_text
from densescore.jobs.many.rows import Kept, array_key
from densescore.jobs.many.run import read_description
from densescore.jobs.many.table import score_table
from tests.conftest import Toy

NAMES = [
    b"..png", b"[bold]x[/].png", b'"quoted".png', b"$x^2$.png", b"a\nb.png", b"caf\xe9.png", b"caf\xc3\xa9.png",
    b"colour\x1b[31m.png", b"set[/one].png", b"\xff\xfe.png", b"x" * 246 + b".png", b"\xe2\x80\xae.png",
]  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_pictures_of_any_name(
    scorer: DenseScorer, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("densescore.scoring.scorer.DenseScorer", lambda **_: scorer)
    monkeypatch.setattr("densescore.cli.options.known_labels", lambda *_: None)
    folder = os.path.join(os.fsencode(tmp_path), b"odd")
    for inside in (b"", b"[bold]x[", b"set[", b"[", b"gone"):
        os.makedirs(os.path.join(folder, inside))
    broken = [b"broken \xe9.png", b"[/broken].jpg"]
    for name in NAMES:
        with open(os.path.join(folder, name), "wb") as file:
            Image.open(pictures[0]).save(file, "png")
    for name in broken:
        with open(os.path.join(folder, name), "wb") as file:
            file.write(b"not a picture")
    listed = tmp_path / "list.TXT"
    missing = [b"gone \xe9.png", b"gone/" + b"x" * 300]
    paths = [os.path.join(folder, name) for name in [*NAMES, *broken, *missing]]
    listed.write_bytes(b"".join(path + b"\n" for path in paths if b"\n" not in path))
    out = tmp_path / "results.parquet"
    result = CliRunner().invoke(app, ["score", os.fsdecode(folder), str(listed), "--maps", "--out", str(out)])
    assert result.exit_code == 1, result.output
    rows = pq.read_table(out).to_pylist()
    assert {os.fsencode(from_text(row["image"])) for row in rows} == set(paths)
    assert len(rows) == len(paths)
    failed = {os.path.relpath(os.fsencode(from_text(row["image"])), folder) for row in rows if row["error"] is not None}
    assert failed == {*broken, *missing}
    for row in rows:
        if row["error"] is None:
            assert zarr.open_group(out.with_suffix(".zarr"))[array_key(row["index"])].attrs["image"] == row["image"]
    assert f"{tmp_path}/odd/[bold]x[/].png" in {row["image"] for row in rows}  # as it is, where it is Unicode


def test_labels_that_are_not_unicode(pictures: list[str], tmp_path: Path) -> None:
    labels = ("a\ud800", '"b"', "[bold]c\x1b")
    scorer = DenseScorer(Toy(), labels=labels, patch_size=20, scales=(1,), runtime="torch")
    out = tmp_path / "results.parquet"
    score_table(pictures[:4], out, scorer, Kept(top=3, classes=labels, maps=True), part_size=2)
    rows: list[dict[str, Any]] = pq.read_table(out).to_pylist()
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
