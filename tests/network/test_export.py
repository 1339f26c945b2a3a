"""A dense model as a file for other runtimes gives the engine's scores, at any size."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from densescore import DensescoreError, DenseScorer
from densescore.cli.main import app
from densescore.io.images import level_pixels
from densescore.models.head import AdaptationHead, HeadFile, save_head
from densescore.network import export
from densescore.network.export import export_model
from tests.cli.runner import CliRunner
from tests.conftest import Toy, need_openvino

OPTIONS: dict[str, Any] = {"labels": ("a", "b", "c"), "patch_size": 20, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}


def levels_by(run: Any, scorer: DenseScorer, image: NDArray[np.uint8]) -> torch.Tensor:
    """Scores of an image by an exported graph, fed as the docs say."""
    pyramid = scorer.pyramid(*image.shape[:2])
    parts = []
    for level in pyramid.levels:
        pixels = level_pixels(image, pyramid, level).transpose(2, 0, 1)[None].astype(np.float32) / 255
        parts.append(torch.from_numpy(np.asarray(run(pixels)))[0].flatten(1).T)  # [rows·cols, C]
    return torch.cat(parts)


def test_onnx_gives_the_engines_scores_at_any_size(tmp_path: Path, cat: NDArray[np.uint8]) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    described = export_model(Toy(), tmp_path / "toy.onnx", **OPTIONS)
    assert described["largest_difference"] < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "toy.onnx")
    carried = json.loads(session.get_modelmeta().custom_metadata_map["densescore"])
    assert (carried["labels"], carried["patch"], carried["stride"]) == (["a", "b", "c"], 20, 4)
    scorer = DenseScorer(Toy(), scales=(1, 2.3, 4.1), **OPTIONS)
    expected = scorer.score(cat[:151, :187]).patch_scores
    assert expected.std() > 1e-3
    actual = levels_by(lambda pixels: session.run(None, {"pixels": pixels})[0], scorer, cat[:151, :187])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_lite0_with_a_trained_head(suffix: str, tmp_path: Path, cat: NDArray[np.uint8]) -> None:
    """The default network reckons its padding from its input's size; a head brings labels and sigmoids of its own."""
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    head = HeadFile(
        AdaptationHead(1280, 3, width=16), ("x", "y", "z"), "lite0", (0.5,) * 3, (0.5,) * 3, 224, "sigmoid", (1.0, 1.3)
    )
    save_head(tmp_path / "head.safetensors", head)
    path = tmp_path / f"model{suffix}"
    result = CliRunner().invoke(app, ["export", str(tmp_path / "head.safetensors"), "--output", str(path)])
    assert result.exit_code == 0, result.output
    assert "pixels [1, 3, 224 + 32n, 224 + 32m] → probabilities [1, 3, n + 1, m + 1]" in result.stdout
    run = export._onnx_runner(path) if suffix == ".onnx" else export._torch_runner(path)
    scorer = DenseScorer(tmp_path / "head.safetensors", runtime="torch")
    expected = scorer.score(cat[:230, :401]).patch_scores
    assert expected.std() > 1e-3
    torch.testing.assert_close(levels_by(run, scorer, cat[:230, :401]), expected, rtol=1e-3, atol=1e-5)


def test_openvino_takes_the_onnx_file(tmp_path: Path, cat: NDArray[np.uint8]) -> None:
    """docs/models.md's way to OpenVINO."""
    pytest.importorskip("onnxscript")
    openvino = need_openvino()
    export_model(Toy(), tmp_path / "toy.onnx", **OPTIONS)
    compiled = openvino.compile_model(tmp_path / "toy.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    scorer = DenseScorer(Toy(), scales=(1, 2.3), **OPTIONS)
    actual = levels_by(lambda pixels: compiled(pixels)[0].copy(), scorer, cat[:151, :187])
    torch.testing.assert_close(actual, scorer.score(cat[:151, :187]).patch_scores, rtol=1e-3, atol=1e-5)


def test_export_errors_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DensescoreError, match=r"expected a name that ends in \.onnx or \.pt2"):
        export_model(Toy(), tmp_path / "toy.engine", **OPTIONS)
    (tmp_path / "mine.pt2").touch()
    with pytest.raises(DensescoreError, match="exists already"):
        export_model(Toy(), tmp_path / "mine.pt2", **OPTIONS)
    with pytest.raises(DensescoreError, match="only linear layers may take the flattened map"):
        export_model(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 2)),
            tmp_path / "norm.pt2", patch_size=4,
        )  # fmt: skip
    monkeypatch.setattr(export, "_torch_runner", lambda path: lambda pixels: np.zeros((1, 3, 1, 1), np.float32))
    with pytest.raises(DensescoreError, match="gives other scores than torch"):
        export_model(Toy(), tmp_path / "toy.pt2", **OPTIONS)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.pt2"]
