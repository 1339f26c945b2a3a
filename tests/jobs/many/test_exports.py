"""A table's other forms, read back by their own libraries, for files of any name; and after a kill."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.runner import Result

pytest.importorskip("pyarrow")
from densescore import DensescoreError, DenseScorer, load_boxed
from densescore.io.names import from_text
from densescore.jobs.many import exports
from densescore.jobs.many.exports import Exports, label_file
from densescore.jobs.many.rows import Outputs, Row
from densescore.jobs.many.table import Run, score_table
from densescore.models.labels import imagenet_labels
from tests.conftest import Toy
from tests.jobs.many.conftest import rows_of

Command = Callable[..., Result]
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


def write(
    scorer: DenseScorer, images: list[str], table: Path, outputs: Outputs | None = None, **places: Any
) -> list[Row]:
    score_table(images, table, scorer, outputs or Outputs(mapped=3))
    Exports(**places).write(table)
    return rows_of(table)


def test_csv_says_what_the_table_says(scorer: DenseScorer, odd: list[str], tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    rows = write(scorer, odd, tmp_path / "scores.parquet", Outputs(all_scores=True), csv=path)
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
    categories = [{"id": number, "name": name} for number, name in enumerate(scorer.labels)]
    truth.dataset = {"images": [{"id": row["index"]} for row in rows], "categories": categories, "annotations": []}
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
    write(scorer, list(map(str, images)), tmp_path / "scores.parquet", Outputs(), coco=tmp_path / "results.json")
    found = [record["image_id"] for record in json.loads((tmp_path / "results.json").read_text())]
    assert list(dict.fromkeys(found)) == ids


def test_broken_images_have_no_results(scorer: DenseScorer, pictures: list[str], tmp_path: Path) -> None:
    write(scorer, [pictures[3]], tmp_path / "scores.parquet", coco=tmp_path / "a.json", yolo=tmp_path / "labels")
    assert json.loads((tmp_path / "a.json").read_text()) == []
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == [".densescore", "data.yaml"]
    # A sound image of the same stem gets the label file
    images = [str(tmp_path / name) for name in ("x.jpg", "x.png")]
    shutil.copy(pictures[3], images[0])
    shutil.copy(pictures[0], images[1])
    write(scorer, images, tmp_path / "s.parquet", yolo=tmp_path / "set")
    assert [path.name for path in (tmp_path / "set" / "labels").iterdir()] == ["x.txt"]


def test_yolos_labels_are_read_back_with_their_images(scorer: DenseScorer, odd: list[str], tmp_path: Path) -> None:
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
    # The confidence is a sixth column
    Exports(yolo=tmp_path / "sure", yolo_confidence=True).write(tmp_path / "scores.parquet")
    for image in readable:
        file = Path("labels", Path(image).relative_to(base).with_suffix(".txt"))
        plain, sure = ((at / file).read_text().splitlines() for at in (folder, tmp_path / "sure"))
        assert [line.rsplit(" ", 1)[0] for line in sure] == plain != []
        scores = [float(line.rsplit(" ", 1)[1]) for line in sure]
        np.testing.assert_allclose(scores, [region["score"] for region in by_path[image]["regions"]], atol=1e-6)
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


WORDS = ("pictures", "-o", "scores.parquet", "--csv", "scores.csv", "--coco", "r.json", "--yolo", "labels")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if "pictures" not in path.parts}


def remove_results() -> None:
    for file in ("scores.parquet", "scores.csv", "r.json"):
        Path(file).unlink(missing_ok=True)
    shutil.rmtree("labels", ignore_errors=True)


@pytest.mark.parametrize(("files", "name"), [(1, "_csv_lines"), (2, "_coco_lines"), (3, "_write_yolo")])
def test_a_command_killed_between_two_forms_writes_all_when_it_resumes(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, name: str
) -> None:
    real = getattr(exports, name)

    def stop(*arguments: Any) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exports, name, stop)
        assert command(*WORDS).exit_code == 130
    before = contents(tmp_path)
    assert len([file for file in before if "labels" not in file]) == files
    resumed = command(*WORDS, "--json")
    assert resumed.exit_code == 1  # of a broken image
    assert json.loads(resumed.stdout)["beside"] == ["scores.csv", "r.json", "labels"]
    after = contents(tmp_path)
    assert before.items() < after.items()
    assert {"scores.parquet", "scores.csv", "r.json", "labels/data.yaml", "labels/labels/00.txt"} <= after.keys()
    assert "labels/labels/03.txt" not in after  # the broken one
    remove_results()
    assert command(*WORDS).exit_code == 1
    assert contents(tmp_path) == after  # as of an uninterrupted run


def refused(command: Command, *words: str) -> str:
    """Message of a command that is refused."""
    result = command(*WORDS, *words)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    return result.stderr


def test_foreign_files_stay(command: Command, tmp_path: Path) -> None:
    for path, option in (("scores.csv", "scores.csv"), ("r.json", "r.json"), ("labels/mine.txt", "labels")):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("mine")
        assert f"{option}: exists already" in refused(command)
        assert not (tmp_path / "scores.parquet").exists()  # refused before the work
        (tmp_path / path).unlink()
    (tmp_path / "labels").rmdir()
    assert command(*WORDS).exit_code == 1
    made = contents(tmp_path)
    for name in ("scores.csv", "r.json"):  # beside a finished table too
        for foreign in (b"mine", b"[]\n", b"", b"\xff", made[name][:40] + b"!"):
            (tmp_path / name).write_bytes(foreign)
            assert f"{name}: exists already" in refused(command)
            assert (tmp_path / name).read_bytes() == foreign
        assert command(*WORDS, "--overwrite").exit_code == 1
        assert contents(tmp_path) == made
    (tmp_path / "labels" / "mine.txt").write_text("mine")
    for options in ([], ["--overwrite"]):
        assert "densescore did not make mine.txt in it" in refused(command, *options)
    assert (tmp_path / "labels" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--csv", "scores.parquet"], "--csv: scores.parquet is also where another result of this run goes"),
        (["--yolo", "./r.json"], "--yolo: r.json is also where"),
        (["--yolo", "scores.parquet.parts"], "--yolo: scores.parquet.parts is also where"),
        (["--mapped", "0"], "--coco and --yolo write the regions of mapped classes, of which there are none"),
        (["--yolo", "pictures"], "pictures: exists already"),
        (["--csv", "pictures/00.png", "--overwrite"], "00.png: is not replaced, because this run needs"),
    ],
)
def test_bad_paths_are_refused_at_once(command: Command, tmp_path: Path, words: list[str], message: str) -> None:
    before = contents(tmp_path)
    assert message in refused(command, *words)
    assert contents(tmp_path) == before


def test_what_a_run_reads_is_never_replaced(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("av")
    from densescore.io.video import write_video

    with write_video(tmp_path / "clip.mp4", fps=2) as add:
        for shade in (0, 99):
            add(np.full((48, 64, 3), shade, np.uint8))
    (tmp_path / "list.txt").write_text("pictures/00.png\nclip.mp4#t=0.5\n")
    before = contents(tmp_path)
    for place, option in product(("list.txt", "pictures/00.png", "clip.mp4"), ("--csv", "--coco")):
        result = command("list.txt", "--out", "new.parquet", option, place, "--overwrite")
        assert (result.exit_code, "because this run needs" in result.stderr) == (2, True), result.output
        assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["scores.csv", "r.json", "labels"])
def test_exports_that_appear_during_the_run_stay(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert command(*WORDS).exit_code == 1
    aside = Path(name).rename("aside")
    remove_results()
    finish = Run.finish
    monkeypatch.setattr(Run, "finish", lambda run: (finish(run), aside.rename(name)))
    assert f"{name}: exists already" in refused(command)


def test_an_export_that_cannot_be_written(scorer: DenseScorer, pictures: list[str], tmp_path: Path) -> None:
    table = tmp_path / "scores.parquet"
    score_table(pictures, table, scorer)
    Exports().write(table)
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "scores.parquet"}
    (tmp_path / "sub").touch()
    with pytest.raises(DensescoreError, match=r"sub/a\.csv: cannot be written"):
        Exports(csv=tmp_path / "sub" / "a.csv").write(table)


def test_groups_of_classes_are_numbered_after_the_classes(pictures: list[str], tmp_path: Path) -> None:
    labels = imagenet_labels()
    scorer = DenseScorer(Toy(1000), labels=labels, patch_size=20, scales=(1, 1.5), runtime="torch")
    table = tmp_path / "results.parquet"
    score_table(pictures[:2], table, scorer, Outputs(classes=("Dog", "tabby", "insect")))
    exports = Exports(coco=tmp_path / "results.json", yolo=tmp_path / "yolo")
    exports.write(table)
    records = json.loads((tmp_path / "results.json").read_text())
    assert {(record["category_name"], record["category_id"]) for record in records} == {
        ("dog", 1000),
        ("tabby", 281),
        ("insect", 1001),
    }
    lines = [line for file in (tmp_path / "yolo" / "labels").rglob("*.txt") for line in file.read_text().splitlines()]
    assert {line.split()[0] for line in lines} == {"1000", "281", "1001"}
    assert '  1001: "insect"' in (tmp_path / "yolo" / "data.yaml").read_text().splitlines()
