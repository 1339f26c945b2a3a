"""The benchmark: what differs is not timed, what is not installed is said, and the numbers add up."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from densescore.bench import contenders
from densescore.bench.command import app
from densescore.bench.measure import Timing, deviation

SMALL = ["--model", "lite0", "--scales", "1,1.2", "--rounds", "2", "--crop-cells", "3", "--runtime", "torch"]


def run(tmp_path: Path, *arguments: str) -> dict[str, object]:
    out = tmp_path / "result.json"
    done = CliRunner().invoke(app, [*SMALL, "--json", str(out), "--overwrite", *arguments])
    assert done.exit_code == 0, done.output
    result: dict[str, object] = json.loads(out.read_text())
    return result


def test_contenders_are_equal_then_timed_in_turn(tmp_path: Path) -> None:
    result = run(tmp_path, "--contenders", "crops,dense-modules")
    rows = result["contenders"]
    assert isinstance(rows, dict)
    assert set(rows) == {"crops", "dense-modules", "densescore"}
    assert all(len(row["seconds_all"]) == 2 and min(row["seconds_all"]) > 0 for row in rows.values())
    assert rows["densescore"]["times_densescore"] == 1
    stages = result["stages"]
    assert isinstance(stages, dict)
    assert {"pyramid", "trunk", "head", "image scores"} <= set(stages)
    assert result["left_out"] == {}


def test_a_contender_that_gives_other_scores_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lying(module: nn.Module, _: Tensor) -> contenders.Run:
        return lambda pixels: module(pixels).roll(1, dims=1)

    monkeypatch.setitem(contenders.RUNTIMES, "dense-openvino", lying)
    result = run(tmp_path, "--contenders", "crops,dense-openvino")
    assert isinstance(result["left_out"], dict)
    assert "its scores differ by" in result["left_out"]["dense-openvino"]
    assert isinstance(result["contenders"], dict)
    assert "dense-openvino" not in result["contenders"]


def test_what_cannot_run_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    result = run(tmp_path, "--contenders", "crops,dense-onnxruntime")
    assert isinstance(result["left_out"], dict)
    assert "not installed" in result["left_out"]["dense-onnxruntime"]


def test_unknown_contenders_are_refused() -> None:
    done = CliRunner().invoke(app, ["--contenders", "magic"])
    assert done.exit_code == 2
    assert "unknown magic" in done.stderr


def test_ratios_are_round_by_round() -> None:
    assert Timing((2.0, 9.0)).ratios_to(Timing((1.0, 3.0))) == [2.0, 3.0]
    assert deviation(torch.tensor([0.5, 0.0]), torch.tensor([0.4, 0.1])) == pytest.approx(0.25)
