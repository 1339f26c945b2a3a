"""The page of a report, from images and from tables: numbers, strange names, broken files, constant memory."""

import base64
import hashlib
import io
import json
import re
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from densescore import DensescoreError, DenseScorer
from densescore.cli.main import app
from densescore.jobs.many.rows import Outputs
from densescore.jobs.many.table import score_table
from densescore.models.box_layer import ObjectBoxes
from densescore.models.labels import imagenet_labels
from densescore.report.page import ClassSummary, Entry, write_report
from densescore.report.sources import MAP_SIDE, ScoreTable, entry_of, find_again, scored_entries
from tests.cli.runner import CliRunner, Result
from tests.conftest import Toy

ABOUT = {"text": "Scored by a test."}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def blocks(page: Path, kind: str) -> list[Any]:
    """The values in a page's blocks of JSON."""
    pattern = rf'<script type="application/json" class="{kind}">(.*)</script>'
    return [json.loads(text) for text in re.findall(pattern, page.read_text("utf-8"))]


@pytest.fixture
def scorer() -> DenseScorer:
    return DenseScorer(Toy(), labels=("a", "b", "c"), patch_size=20, scales=(1, 1.5), runtime="torch")


@pytest.fixture
def photos(tmp_path: Path, cat: NDArray[np.uint8], coffee: NDArray[np.uint8]) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "broken.jpg").write_bytes(b"not a picture")
    for name, pixels in (("cat", cat), ("coffee", coffee)):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def toy(scorer: DenseScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small network in the place of a named one."""
    monkeypatch.setattr("densescore.scoring.scorer.DenseScorer", lambda **options: scorer)
    monkeypatch.setattr("densescore.cli.options.known_labels", lambda *_: None)


def decode(url: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))


def test_entries_have_the_numbers_of_the_scores(scorer: DenseScorer, coffee: NDArray[np.uint8]) -> None:
    scores = scorer.score(coffee).select(["c", "a"])
    entry = entry_of("coffee.png", coffee, scores)
    assert (entry.width, entry.height) == (600, 400)
    expected = cv2.resize(coffee, (600, 400), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(decode(entry.photo_url) - expected).mean() < 6
    for summary, best in zip(entry.classes, scores.top(), strict=True):
        assert (summary.label, summary.confidence) == (best.label, best.confidence)
        assert summary.title == f"{best.label}, confidence {best.confidence:.2g}"
        values = scores.heatmap(summary.label)[0].numpy()
        assert summary.place == scores.locate(summary.label)[0][:2]
        regions = scores.boxes_from_map(summary.label)[:10]
        assert [box[:4] for box in summary.boxes] == [region.box for region in regions]
        drawn = decode(summary.map_url)
        assert drawn.shape == (round(MAP_SIDE * 400 / 600), MAP_SIDE, 4)
        small = cv2.resize(values, drawn.shape[1::-1], interpolation=cv2.INTER_AREA)
        high, low = small > 0.9 * values.max(), small < 0.3 * values.max()
        assert drawn[high][:, 3].min(initial=255) > 150
        assert drawn[low][:, 3].max(initial=0) < 20


def test_nothing_is_drawn_of_absent_classes(scorer: DenseScorer, coffee: NDArray[np.uint8]) -> None:
    scores = scorer.score(coffee)
    for summary in entry_of("coffee.png", coffee, replace(scores, patch_scores=scores.patch_scores / 100)).classes:
        assert (summary.boxes, summary.place, summary.map_url) == ((), None, "")


def test_boxes_are_in_pixels_of_the_image(scorer: DenseScorer) -> None:
    """Boxes of maps, which are read from smaller ones, and those of a box layer."""
    pixels = np.zeros((600, 2500, 3), np.uint8)
    pixels[:, 2000:] = 255
    scores = scorer.score(pixels)
    scores = replace(scores, patch_scores=scores.patch_scores.clamp(min=0.06))  # no class is absent
    for summary in entry_of("wide.png", pixels, scores).classes:
        for box, expected in zip(summary.boxes, scores.boxes_from_map(summary.label), strict=False):
            np.testing.assert_allclose(box[:4], expected.box, atol=2.5 * 3)  # computed on a width of 1,000
        assert max(box[2] for box in summary.boxes) > 2300
    shape = (len(scores.labels), len(scores))
    boxes = torch.tensor([1500.0, 100, 2300, 500]).expand(*shape, 4)
    layer = ObjectBoxes(torch.arange(len(scores)).expand(shape), boxes, torch.ones(shape))
    for summary in entry_of("wide.png", pixels, replace(scores, object_boxes=layer)).classes:
        assert [box[:4] for box in summary.boxes] == [(1500, 100, 2300, 500)]


def test_a_folder_becomes_a_page(toy: None, scorer: DenseScorer, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    result = run("report", photos, "--classes", "B,a", "--out", out, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"out": str(out), "images": 3, "failed": 1, "bytes": out.stat().st_size}
    assert result.stderr.count("broken.jpg") == 1
    broken, cat, coffee = blocks(out, "facts")
    assert broken["name"] == str(photos / "broken.jpg")
    assert "not an image" in broken["error"]
    for facts in (cat, coffee):
        for shown, best in zip(facts["classes"], scorer.score(facts["name"]).select(["b", "a"]).top(), strict=True):
            assert shown["label"] == best.label
            assert shown["confidence"] == pytest.approx(best.confidence, rel=1e-3)
    assert [len(pictures["maps"]) for pictures in blocks(out, "pictures")] == [2, 2]
    before = out.read_bytes()
    assert "exists already" in run("report", photos, "--out", out).stderr
    assert out.read_bytes() == before
    assert run("report", photos, "--out", out, "--top", "1", "--overwrite").exit_code == 1
    assert [len(facts["classes"]) for facts in blocks(out, "facts")[1:]] == [1, 1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["photos", "report.html"]


@pytest.mark.parametrize("maps", [True, False])
def test_a_table_becomes_the_same_page(toy: None, photos: Path, tmp_path: Path, maps: bool) -> None:
    pytest.importorskip("pyarrow")
    table, scored, tabled = (tmp_path / name for name in ("scores.parquet", "scored.html", "tabled.html"))
    assert run("score", photos, "--out", table, "--classes", "b,a", *(["--maps"] if maps else [])).exit_code == 1
    assert run("report", photos, "--classes", "b,a", "--out", scored).exit_code == 1
    result = run("report", table, "--out", tabled)
    assert result.exit_code == 1, result.output
    for mine, theirs in zip(blocks(tabled, "facts"), blocks(scored, "facts"), strict=True):
        assert (mine["name"], mine.get("error")) == (theirs["name"], theirs.get("error"))
        for here, there in zip(mine.get("classes", []), theirs.get("classes", []), strict=True):
            assert here["label"] == there["label"]
            assert here["confidence"] == pytest.approx(there["confidence"], rel=1e-3)
            assert [box[:4] for box in here["boxes"]][:10] == [box[:4] for box in there["boxes"]]
            assert here["place"] == (there["place"] if maps else None)
    for mine, theirs in zip(blocks(tabled, "pictures"), blocks(scored, "pictures"), strict=True):
        assert mine["photo"] == theirs["photo"]
        assert [bool(url) for url in mine["maps"]] == [maps and bool(url) for url in theirs["maps"]]
        for here, there in zip(filter(None, mine["maps"]), filter(None, theirs["maps"]), strict=False):
            assert np.abs(decode(here).astype(float) - decode(there)).mean() < 4
    for option, value, status, message in (
        ("--classes", "B", 1, "broken.jpg"),
        ("--classes", "c", 2, "no class 'c'"),
        ("--top", "2", 2, "already scored: --top and model options apply to images only"),
        ("--scales", "1", 2, "already scored: --top and model options apply to images only"),
    ):
        again = run("report", table, "--out", tabled, option, value, "--overwrite")
        assert again.exit_code == status
        assert message in again.stderr
    assert [[found["label"] for found in facts["classes"]] for facts in blocks(tabled, "facts")[1:]] == [["b"], ["b"]]


def test_a_table_lists_the_classes_that_it_can_draw(toy: None, photos: Path, tmp_path: Path) -> None:
    """Without --classes, a table ranks more classes than it has boxes of."""
    pytest.importorskip("pyarrow")
    assert run("score", photos, "--out", tmp_path / "scores.parquet").exit_code == 1
    assert run("report", tmp_path / "scores.parquet", "--out", tmp_path / "report.html").exit_code == 1
    for facts in blocks(tmp_path / "report.html", "facts")[1:]:
        (shown,) = facts["classes"]
        assert shown["boxes"]


def test_images_of_a_table_are_found_in_another_folder(
    toy: None, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    assert run("score", "photos", "--out", "scores.parquet").exit_code == 1
    photos.rename(photos.with_name("moved"))

    def errors(*options: str) -> list[str]:
        assert run("report", "scores.parquet", "--out", "report.html", "--overwrite", *options).exit_code == 1
        return [facts.get("error", "") for facts in blocks(Path("report.html"), "facts")]

    assert all(errors())
    assert [bool(error) for error in errors("--images", "moved")] == [True, False, False]
    Image.new("RGB", (5, 5)).save("moved/cat.png")
    assert "5×5 pixels now, 451×300 then" in errors("--images", "moved")[1]


def test_a_file_is_found_by_the_end_of_its_path(tmp_path: Path) -> None:
    for name in ("b/c.png", "a/b/c.png", "d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_again("/x/a/b/c.png", tmp_path) == tmp_path / "a" / "b" / "c.png"
    assert find_again("/x/y/b/c.png", tmp_path) == tmp_path / "b" / "c.png"
    assert find_again("../d.png", tmp_path) == tmp_path / "d.png"
    assert find_again("d.png", None) == Path("d.png")
    for name in ("a/clip.mp4", "b/clip.mp4#t=1"):  # frames of a video, and a file of such a name
        (tmp_path / name).touch()
    assert find_again("/x/a/clip.mp4#t=2.50", tmp_path) == tmp_path / "a" / "clip.mp4#t=2.50"
    assert find_again("x/b/clip.mp4#t=1", tmp_path) == tmp_path / "b" / "clip.mp4#t=1"
    with pytest.raises(DensescoreError, match=r"/x/e\.png: no such file in"):
        find_again("/x/e.png", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos", "--out", "report.pdf"], "--output: expected a name that ends in .html"),
        (["photos", "--classes", "d"], "no class 'd'"),
        (["photos", "--images", "photos"], "--images: applies to a table"),
        (["no.parquet"], "no.parquet: cannot be read as a table"),
        (["broken.parquet"], "broken.parquet: cannot be read as a table"),
        (["other.parquet"], "other.parquet: not a table that densescore score has made"),
        (["nothing"], "nothing: no such file or folder"),
        (["photos", "--out", "photos/cat.png/report.html"], "cannot be written"),
    ],
)
def test_errors_in_one_line(
    toy: None, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    pq.write_table(pa.table({"image": ["a.png"]}), "other.parquet")
    before = sorted(tmp_path.rglob("*"))
    result = run("report", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert sorted(tmp_path.rglob("*")) == before


NAMES = (
    "</script><script>alert(1)</script>.png", "<!--<script>.png", "]]>&lt;&amp;.png", "' onerror='alert(1).png",
    '"quoted".png', "a\u2028b\u2029.png", "line\nbreak.png", "caf\udce9.png", "\u202egnp.exe.png",
    "{policy}{script}.png", "<!-- entries -->.png",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_and_labels_are_data(name: str, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    summary = ClassSummary(label=name, title=name, confidence=0.5)
    entries = [Entry(name=name, width=1, height=1, classes=[summary]), Entry(name=name, error=f"{name}: broken")]
    assert write_report(out, entries, {"text": name}) == 1
    first, second = blocks(out, "facts")
    assert (first["name"], first["classes"][0]["label"], second["error"]) == (name, name, f"{name}: broken")
    assert blocks(out, "about")[0]["text"] == name
    text = out.read_text("utf-8")
    assert text.count("<script") == text.count("</script>") == 5  # about, facts, pictures, facts and the page's own
    for part in re.findall(r">(.*)</script>\n", text):
        assert not re.search(r"[<>&\u2028\u2029]", part)


def test_the_policy_allows_only_the_pages_script(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", [], ABOUT)
    text = (tmp_path / "report.html").read_text("utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    for kind in ("script", "style"):
        (part,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'; img-src data:;" in policy
    assert "unsafe" not in policy
    assert not re.search(r"""(src|href)=|\bon\w+="|https?://(?!www\.w3\.org/2000/svg')""", text)


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    def entries(count: int) -> Iterator[Entry]:
        for number in range(count):
            summary = ClassSummary(label=f"class {number}", title="", confidence=0.5, map_url="m" * 2000)
            yield Entry(name=f"{number}.png", width=9, height=9, photo_url="p" * 50_000, classes=[summary])

    peaks = []
    for count in (20, 400):
        tracemalloc.start()
        write_report(tmp_path / f"{count}.html", entries(count), ABOUT)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (tmp_path / "400.html").stat().st_size > 400 * 50_000
    assert peaks[1] < peaks[0] + 500_000


def test_a_picture_that_changes_meanwhile_is_an_error(
    scorer: DenseScorer, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("densescore.report.sources.read_image", lambda _: np.zeros((9, 9, 3), np.uint8))
    (entry,) = scored_entries([photos / "cat.png"], scorer)
    assert entry.error is not None
    assert "changed while it was scored" in entry.error


def test_groups_that_a_table_lacks_raise(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    scorer = DenseScorer(Toy(1000), labels=imagenet_labels(), patch_size=20, scales=(1,), runtime="torch")
    image, plain, dogs = str(photos / "cat.png"), tmp_path / "plain.parquet", tmp_path / "dogs.parquet"
    score_table([image], plain, scorer)
    with pytest.raises(DensescoreError, match="has no scores of the group 'dog'; score with --classes 'dog'"):
        next(ScoreTable(plain).entries(["Dog"]))
    score_table([image], dogs, scorer, Outputs(classes=("dog", "tabby")))
    (entry,) = ScoreTable(dogs).entries(["Dog"])
    (summary,) = entry.classes
    assert summary.label == "dog"
    assert summary.confidence == pytest.approx(scorer.score(image).select("dog").confidence().item(), rel=1e-5)
