"""A table's other forms, read back by what reads them, for files of any name; and after a kill."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

pytest.importorskip("pyarrow")
import pyarrow.parquet as pq

from densescore import DensescoreError, DenseScorer, load_boxed
from densescore.cli.main import app
from densescore.io.names import from_text
from densescore.jobs.many import exports
from densescore.jobs.many.exports import Exports, label_file
from densescore.jobs.many.rows import Kept, Row
from densescore.jobs.many.table import score_table
from densescore.models.labels import imagenet_labels
from tests.conftest import Toy

NAMES = [b"a,b.png", b'"quoted".png', b"a\nb.png", b"caf\xe9.png", b"=1+1.png", b"@x.png", b"-deep/+x.png", b"x.png",
         b"x.bmp", b"deep/x.png", b"\xe2\x80\xae \xf0\x9f\x98\x80.png"]  # fmt: skip


@pytest.fixture
def odd(tmp_path: Path, pictures: list[str]) -> list[str]:
    """Pictures of odd names, one of which is broken."""
    paths = [os.path.join(os.fsencode(tmp_path), b"odd", name) for name in NAMES]
    for path in paths:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            Image.open(pictures[0]).save(file, "bmp" if path.endswith(b"bmp") else "png")
    with open(paths[5], "wb") as file:
        file.write(b"not a picture")
    return [os.fsdecode(path) for path in paths]


def rows_of(table: Path) -> list[Row]:
    rows: list[Row] = pq.read_table(table).to_pylist()
    return rows


def write(scorer: DenseScorer, images: list[str], table: Path, kept: Kept | None = None, **places: Path) -> list[Row]:
    score_table(images, table, scorer, kept or Kept(mapped=3))
    Exports(**places).write(table)
    return rows_of(table)


def test_csv_says_what_the_table_says(scorer: DenseScorer, odd: list[str], tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    rows = write(scorer, odd, tmp_path / "scores.parquet", Kept(all_scores=True), csv=path)
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [from_text(line["image"]) for line in lines] == odd
    assert not [cell for line in lines for cell in line.values() if cell[:1] in "=+-@" and cell]
    for line, row in zip(lines, rows, strict=True):
        assert bool(line["error"]) == (row["error"] is not None)
        if row["error"] is None:
            for name in ("score", "confidence"):
                assert np.float32(line[name]) == row[name]
            for side, value in row["best_patch"].items():
                assert np.float32(line[f"best_patch_{side}"]) == np.float32(value)
            for name in ("scores", "confidences", "image_scores"):
                np.testing.assert_array_equal(np.array(json.loads(line[name]), np.float32), np.float32(row[name]))
            assert json.loads(line["labels"]) == row["labels"]
            assert [region["x1"] for region in json.loads(line["regions"])] == [r["x1"] for r in row["regions"]]
        else:
            assert {name for name, cell in line.items() if cell} == {"index", "image", "error"}
    pandas = pytest.importorskip("pandas")
    assert pandas.read_csv(path)["image"].tolist() == [line["image"] for line in lines]


def test_pycocotools_reads_the_regions(scorer: DenseScorer, odd: list[str], tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    path = tmp_path / "results.json"
    rows = write(scorer, odd, tmp_path / "scores.parquet", coco=path)
    truth = coco.COCO()
    truth.dataset = {
        "images": [{"id": row["index"]} for row in rows],
        "categories": [{"id": number, "name": name} for number, name in enumerate(scorer.labels)],
        "annotations": [],
    }
    truth.createIndex()
    loaded = truth.loadRes(str(path))
    assert len(loaded.anns) == sum(len(row["regions"] or ()) for row in rows) > len(rows)
    for row in rows:
        found = loaded.loadAnns(loaded.getAnnIds(imgIds=[row["index"]]))
        assert len(found) == len(row["regions"] or ())
        for record, region in zip(found, row["regions"] or (), strict=True):
            x, y, width, height = record["bbox"]
            assert (x, y, x + width, y + height) == tuple(region[side] for side in ("x0", "y0", "x1", "y1"))
            assert scorer.labels[record["category_id"]] == region["label"]
            assert record["score"] == pytest.approx(region["score"])
            assert (record["file_name"], record["category_name"]) == (row["image"], region["label"])


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["000000000139.png", "7.png"], [139, 7]),
        (["1.png", "001.png"], [0, 1]),  # alike
        (["1.png", "x.png"], [0, 1]),
        (["\u0661.png", "2.png"], [0, 1]),  # a digit, but not of a file of COCO
        (["99999999999999999999.png", "2.png"], [0, 1]),
    ],
)
def test_ids_are_cocos_own_where_the_names_are_numbers(
    scorer: DenseScorer, pictures: list[str], tmp_path: Path, names: list[str], ids: list[int]
) -> None:
    images = [shutil.copy(pictures[0], tmp_path / name) for name in names]
    write(scorer, list(map(str, images)), tmp_path / "scores.parquet", Kept(), coco=tmp_path / "results.json")
    found = [record["image_id"] for record in json.loads((tmp_path / "results.json").read_text())]
    assert list(dict.fromkeys(found)) == ids


def test_results_without_a_region_are_an_empty_list(scorer: DenseScorer, pictures: list[str], tmp_path: Path) -> None:
    write(scorer, [pictures[3]], tmp_path / "scores.parquet", coco=tmp_path / "a.json", yolo=tmp_path / "labels")
    assert json.loads((tmp_path / "a.json").read_text()) == []
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == [".densescore", "data.yaml"]


def test_yolos_labels_are_read_back_with_the_images_beside_them(
    scorer: DenseScorer, odd: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    rows = write(scorer, odd, tmp_path / "scores.parquet", yolo=folder)
    files = {path.relative_to(folder / "labels") for path in (folder / "labels").rglob("*.txt")}
    assert len(files) == len(rows) - 1  # none of the broken one
    base = Path(os.path.commonpath(odd))
    assert {Path("x.txt"), Path("x-2.txt"), Path("deep/x.txt"), Path("-deep/+x.txt")} <= files
    readable = [image for image in odd if image.endswith(".png") and "\n" not in image and image != odd[5]]
    for image in readable:
        inside = folder / "images" / Path(image).relative_to(base)
        inside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, inside)
    for unpaired in (folder / "labels" / "x-2.txt", folder / "labels" / "a\nb.txt"):
        unpaired.unlink()
    read = load_boxed(folder, "train")
    assert read.classes == scorer.labels
    by_path = {from_text(row["image"]): row for row in rows}
    assert len(read.images) == len(readable)
    for found in read.images:
        row = by_path[str(base / found.path.relative_to(folder / "images"))]
        expected = sorted(tuple(region[side] for side in ("x0", "y0", "x1", "y1")) for region in row["regions"])
        np.testing.assert_allclose(sorted(map(tuple, found.boxes.tolist())), expected, atol=1e-3)
        assert sorted(scorer.labels[label] for label in found.classes) == sorted(r["label"] for r in row["regions"])


def test_a_label_file_is_called_as_its_image() -> None:
    names = ["Cat.png", "cat.png", "con.jpg", "dots...png", "end .png", "a/con/x.y.webp", "x" * 251 + ".png", ".jpg"]
    taken: set[str] = set()
    assert [label_file(name, taken) for name in names] == [str(Path(name).with_suffix(".txt")) for name in names]
    long = label_file("deep/" + "x" * 255, taken)
    assert len(Path(long).name) <= 255
    assert long.startswith("deep/xxx")
    assert [label_file(name, taken) for name in ("cat.jpg", "cat.bmp")] == ["cat-2.txt", "cat-3.txt"]


def test_a_broken_image_takes_no_other_ones_label_file(
    scorer: DenseScorer, pictures: list[str], tmp_path: Path
) -> None:
    (tmp_path / "x.jpg").write_bytes(b"not a picture")
    shutil.copy(pictures[0], tmp_path / "x.png")
    folder = tmp_path / "labels"
    write(scorer, [str(tmp_path / "x.jpg"), str(tmp_path / "x.png")], tmp_path / "s.parquet", yolo=folder)
    assert [path.name for path in (folder / "labels").iterdir()] == ["x.txt"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def command(
    scorer: DenseScorer, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str | Path]:
    monkeypatch.setattr("densescore.scoring.scorer.DenseScorer", lambda **_: scorer)
    monkeypatch.setattr("densescore.cli.options.known_labels", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return ["score", "pictures", "-o", "scores.parquet", "--csv", "scores.csv", "--coco", "r.json", "--yolo", "labels"]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if "pictures" not in path.parts}


def test_a_command_killed_between_two_forms_makes_the_rest_when_it_goes_on(
    command: list[str | Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(*command, "--json")
    assert whole.exit_code == 1  # of a broken image
    assert json.loads(whole.stdout)["beside"] == ["scores.csv", "r.json", "labels"]
    expected = contents(tmp_path)
    assert {"scores.parquet", "scores.csv", "r.json", "labels/data.yaml", "labels/labels/00.txt"} <= expected.keys()
    assert "labels/labels/03.txt" not in expected  # the broken one

    for name in ("_fill_csv", "_fill_coco", "_fill_yolo"):
        for path in ("scores.parquet", "scores.csv", "r.json"):
            Path(path).unlink(missing_ok=True)
        shutil.rmtree("labels", ignore_errors=True)
        with monkeypatch.context() as patch:
            real = getattr(exports, name)

            def killed(table: Path, path: Path, real: Any = real) -> None:
                real(table, path)
                raise KeyboardInterrupt

            patch.setattr(exports, name, killed)
            stopped = run(*command)
        assert stopped.exit_code == 130
        before = contents(tmp_path)
        assert before.items() < expected.items()
        times = {path: Path(path).stat().st_mtime_ns for path in before}
        assert run(*command).exit_code == 1
        assert contents(tmp_path) == expected
        assert {path: Path(path).stat().st_mtime_ns for path in before} == times  # what was there is not made again


def test_what_somebody_else_put_there_stays(command: list[str | Path], tmp_path: Path) -> None:
    for path, option in (("scores.csv", "scores.csv"), ("r.json", "r.json"), ("labels/mine.txt", "labels")):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("mine")
        refused = run(*command)
        assert refused.exit_code == 2
        assert f"{option}: exists already" in refused.stderr
        assert not (tmp_path / "scores.parquet").exists()  # said before the work
        (tmp_path / path).unlink()
    (tmp_path / "labels").rmdir()
    assert run(*command).exit_code == 1
    made = contents(tmp_path)
    (tmp_path / "scores.csv").write_text("mine")
    refused = run(*command)
    assert refused.exit_code == 2
    assert "scores.csv: exists already" in refused.stderr
    assert (tmp_path / "scores.csv").read_text() == "mine"
    assert run(*command, "--overwrite").exit_code == 1
    assert contents(tmp_path) == made
    (tmp_path / "labels" / "mine.txt").write_text("mine")
    kept = run(*command, "--overwrite")
    assert kept.exit_code == 2
    assert "densescore did not make mine.txt in it" in kept.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--csv", "scores.parquet"], "--csv: scores.parquet is also where another result of this run goes"),
        (["--yolo", "./r.json"], "--yolo: r.json is also where"),
        (["--yolo", "scores.parquet.parts"], "--yolo: scores.parquet.parts is also where"),
        (["--mapped", "0"], "--coco and --yolo write the regions of mapped classes, of which there are none"),
        (["--yolo", "pictures"], "pictures: exists already"),
        (["--csv", "pictures/00.png", "--overwrite"], "00.png: is not replaced, because this run needs"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(
    command: list[str | Path], tmp_path: Path, arguments: list[str], message: str
) -> None:
    before = contents(tmp_path)
    result = run(*command, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert contents(tmp_path) == before


def test_forms_need_no_other_forms(scorer: DenseScorer, pictures: list[str], tmp_path: Path) -> None:
    table = tmp_path / "scores.parquet"
    score_table(pictures, table, scorer)
    Exports().write(table)
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "scores.parquet"}
    with pytest.raises(DensescoreError, match=r"sub/a\.csv: cannot be written"):
        (tmp_path / "sub").touch()
        Exports(csv=tmp_path / "sub" / "a.csv").write(table)


def test_groups_of_classes_are_numbered_after_the_classes(pictures: list[str], tmp_path: Path) -> None:
    labels = imagenet_labels()
    scorer = DenseScorer(Toy(1000), labels=labels, patch_size=20, scales=(1, 1.5), runtime="torch")
    table = tmp_path / "results.parquet"
    score_table(pictures[:2], table, scorer, Kept(classes=("Dog", "tabby", "insect")))
    exports = Exports(coco=tmp_path / "results.json", yolo=tmp_path / "yolo")
    exports.write(table)
    records = json.loads((tmp_path / "results.json").read_text())
    found = {(record["category_name"], record["category_id"]) for record in records}
    assert found == {("dog", 1000), ("tabby", 281), ("insect", 1001)}
    lines = [line for file in (tmp_path / "yolo" / "labels").rglob("*.txt") for line in file.read_text().splitlines()]
    assert {line.split()[0] for line in lines} == {"1000", "281", "1001"}
    assert '  1001: "insect"' in (tmp_path / "yolo" / "data.yaml").read_text().splitlines()
