"""The files of `export_heatmaps`: raw maps, pictures, and a manifest with the scores' numbers."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from densescore import DensescoreError
from densescore.io.names import as_text, from_text
from densescore.results.heatmaps import SHEET, export_heatmaps
from densescore.results.regions import ClassMap
from tests.results.conftest import make

LABELS = ("a cat", "a/cat", "dog")
IMAGE = np.full((90, 130, 3), 128, np.uint8)


def test_maps_pictures_and_manifest(tmp_path: Path) -> None:
    scores, folder = make(LABELS), tmp_path / "out" / "photo"
    export_heatmaps(scores, IMAGE, ["a cat", "a/cat", "a cat"], folder, source="photo.jpg")
    assert sorted(file.name for file in folder.iterdir()) == [
        ".densescore", "a_cat-2.npz", "a_cat-2.png", "a_cat.npz", "a_cat.png", "manifest.json",
    ]  # fmt: skip
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["image"] == {"source": "photo.jpg", "height": 90, "width": 130}
    assert manifest["geometry"]["patches"] == len(scores.boxes)
    assert manifest["timings"] == {"trunk": 0.5}
    assert manifest["versions"]["torch"] == torch.__version__.split("+")[0]
    for entry, label in zip(manifest["classes"], ("a cat", "a/cat"), strict=True):
        with np.load(folder / entry["maps"]) as stored:
            values = stored["heatmap"]
            np.testing.assert_array_equal(stored["response_map"], scores.response_map([label])[0])
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, scores.heatmap([label])[0])
        assert entry["label"] == label
        assert entry["location"]["peak"] == entry["regions"][0]["peak"] == values.max()
        assert entry["regions"][0]["box"] == list(scores.boxes_from_map(label)[0].box)
        best = scores.patch_scores[:, scores.index(label)].max().item()
        assert entry["best_patches"][0]["score"] == pytest.approx(best)
        assert entry["image_score"] == pytest.approx(scores.image_scores()[scores.index(label)].item())
        assert entry["confidence"] == pytest.approx(entry["image_score"] ** (1 / 5))


def test_folders_are_written_whole_and_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, folder = make(LABELS), tmp_path / ("x" * 250)  # as long as names may be
    with monkeypatch.context() as patch:
        patch.setattr("densescore.results.heatmaps.plot_map", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_heatmaps(scores, IMAGE, ["dog"], folder)
    assert list(tmp_path.iterdir()) == []
    export_heatmaps(scores, IMAGE, ["dog"], folder)
    with pytest.raises(DensescoreError, match="x: exists already"):
        export_heatmaps(scores, IMAGE, ["a cat"], folder)
    export_heatmaps(scores, IMAGE, ["a cat"], folder, overwrite=True)
    assert sorted(file.name for file in folder.iterdir()) == [".densescore", "a_cat.npz", "a_cat.png", "manifest.json"]
    with pytest.raises(DensescoreError, match=r"expected the \(90, 130\) pixels"):
        export_heatmaps(scores, IMAGE[:50], ["dog"], tmp_path / "other")


def test_similar_labels_have_a_map_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plot_map(image: object, view: ClassMap, style: object) -> SimpleNamespace:
        """A picture whose file holds its label."""
        return SimpleNamespace(encode=lambda: as_text(view.label).encode())

    monkeypatch.setattr("densescore.results.heatmaps.plot_map", plot_map)
    labels = ("a_b", "a_b-3", "a/b", "A B", "crane", "crane", "con", "x" * 300, "é\ud800", "$x^2$", "a_b-2", "_sheet")
    scores = make(labels)
    assert scores.labels[4:6] == ("crane (4)", "crane (5)")
    with pytest.raises(DensescoreError, match=r"several have this name; choose one of crane \(4\), crane \(5\)"):
        scores.response_map("crane")
    assert len({ranked.label for ranked in scores.top(99)}) == len(labels)
    folder = tmp_path / "all"
    manifest = export_heatmaps(scores, IMAGE, scores.labels, folder, source="caf\udce9.png")
    json.dumps(manifest, ensure_ascii=False).encode()
    assert from_text(manifest["image"]["source"]) == "caf\udce9.png"
    files = [entry[key].lower() for entry in manifest["classes"] for key in ("maps", "overlay")]
    assert len(set(files)) == 2 * len(labels)
    for index, entry in enumerate(manifest["classes"]):
        assert from_text(entry["label"]) == scores.labels[index]
        with np.load(folder / entry["maps"]) as stored:
            np.testing.assert_array_equal(stored["heatmap"], scores.heatmap([scores.labels[index]])[0])
            assert str(stored["label"]) == scores.labels[index]
        assert (folder / entry["overlay"]).read_text() == entry["label"]
    assert SHEET.lower() not in files
    one = export_heatmaps(scores, IMAGE, ["a/b"], tmp_path / "one")  # named as among all
    assert one["classes"][0]["maps"] == manifest["classes"][2]["maps"]
