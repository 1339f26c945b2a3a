import json
from pathlib import Path

import numpy as np
import pytest

from densescore.models.registry import load_classifier
from densescore.paper.pretrain.images import find_images, ten_views
from densescore.paper.pretrain.source_classes import ilsvrc
from densescore.paper.pretrain.training import measure, normalizer
from tests.cli.runner import refuse, succeed
from tests.paper.pretrain.source_training import CPU, FLOAT32, write_tree


def test_source_classes_are_counted_and_written(tmp_path: Path) -> None:
    out = tmp_path / "classes.txt"
    result = succeed("source-classes", "--classes", "ilsvrc,n02834778", "--out", out, "--json")
    assert json.loads(result.stdout) == {
        "classes": 1001,
        "added": [{"term": "ilsvrc", "classes": 1000}, {"term": "n02834778", "classes": 1}],
        "unlike_paper": [],
    }
    assert out.read_text().split() == sorted([*ilsvrc(), "n02834778"])
    refuse("source-classes", "--classes", "ilsvrc", "--out", out, message="exists already")
    refuse("source-classes", "--classes", "subtree:furniture", "--wordnet", tmp_path, message="data.noun: no such file")


def test_pretrain_writes_a_network_that_loads(tmp_path: Path) -> None:
    data, out = write_tree(tmp_path / "images", count=6), tmp_path / "source.safetensors"
    command = ["pretrain", "--data", str(data), "--classes", "random:2:0", "--width", "16", "--batch", "5"]
    command += ["--epochs", "1", "--readers", "0", "--device", "cpu", "--out", str(out), "--json"]
    result = succeed(*command)
    measured = json.loads(result.stdout)
    assert measured["classes"] == 2
    assert measured["images"] == 2
    assert measured["top5"] == 1
    assert "2 classes, 10 + 2 images" in result.stderr
    assert "images/s" in result.stderr
    assert not list(tmp_path.glob("*.checkpoint"))
    classifier = load_classifier("krizhevsky", weights=out)
    assert len(set(classifier.labels) & {"n00000001", "n00000002", "n00000003"}) == 2
    # The file's weights, with the model's own preprocessing, are the network that was measured.
    val = find_images(data, classifier.labels).val
    normalize = normalizer(classifier.mean, classifier.std)
    again = measure(classifier.module, val, ten_views(256, 224), normalize, CPU, precision=FLOAT32)
    assert again.loss == pytest.approx(measured["loss"], rel=1e-4)
    assert abs(again.loss - np.log(2)) > 1e-3 * np.log(2)  # which is no network that gives the same for every picture
    refuse(*command, message="exists already")
    refuse(
        *command[:4],
        "n00000001,n00000009",
        "--out",
        tmp_path / "x.safetensors",
        message="1 of 2 classes have no folder: n00000009",
    )
