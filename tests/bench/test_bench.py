"""The benchmark: contenders with other scores are not timed, missing runtimes are named, and the numbers add up."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from densescore.bench import contenders, gpu
from densescore.bench.case import CONTENDERS, Case
from densescore.bench.run import deviation, direct_flop, time_ratios
from densescore.cli.bench import app
from densescore.geometry import Pyramid
from densescore.models.registry import MODELS, ModelEntry
from densescore.network.surgery import to_dense
from tests.cli.runner import CliRunner
from tests.conftest import Toy

SMALL = ["--model", "lite0", "--scales", "1,1.2", "--rounds", "2", "--crop-cells", "3", "--runtime", "torch"]


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    out = tmp_path / "result.json"
    done = CliRunner().invoke(app, [*SMALL, "--output", str(out), "--overwrite", *arguments])
    assert done.exit_code == 0, done.output
    result: dict[str, Any] = json.loads(out.read_text())
    return result


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--csv", "there.csv"], "there.csv: exists already"),
        (["--output", "there.csv", "--image", "there.csv", "--overwrite"], "this run needs there.csv"),
        (["--output", "same", "--csv", "./same"], "name the same file"),
    ],
)
def test_output_files_are_checked_before_timing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.csv").write_text("mine")
    monkeypatch.setattr("densescore.bench.run.run", lambda _: pytest.fail("timed"))
    done = CliRunner().invoke(app, [*SMALL, *arguments])
    assert done.exit_code == 2
    assert message in done.stderr
    assert Path("there.csv").read_text() == "mine"


def test_contenders_are_equal_then_timed_in_turn(tmp_path: Path) -> None:
    result = run(tmp_path, "--contenders", "crops,dense-modules,dense-timm")
    rows = result["contenders"]
    assert set(rows) == {"crops", "dense-modules", "dense-timm", "densescore"}
    assert all(len(row["seconds_all"]) == 2 and min(row["seconds_all"]) > 0 for row in rows.values())
    assert rows["densescore"]["times_densescore"] == 1
    stages = result["stages"]
    assert {"pyramid", "trunk", "head", "image scores"} <= set(stages)
    assert result["left_out"] == {}
    overhead, share = result["file_to_answer_over_engine"], result["share_of_peak"]
    assert overhead["spread"][0] > 1
    assert share > 0


def test_a_contender_with_other_scores_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lying(subject: contenders.Subject, dense: bool) -> contenders.Run:
        return lambda pixels: subject.form(dense)(pixels).roll(1, dims=1)

    monkeypatch.setitem(contenders.RUNTIMES, "dense-openvino", lying)
    result = run(tmp_path, "--contenders", "crops,dense-openvino")
    assert "its scores differ by" in result["left_out"]["dense-openvino"]
    assert "dense-openvino" not in result["contenders"]


def test_contenders_that_cannot_run_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = run(tmp_path, "--classes", "5", "--contenders", "dense-onnxruntime,dense-timm")
    assert "not installed" in result["left_out"]["dense-onnxruntime"]
    assert "timm's networks" in result["left_out"]["dense-timm"]


def test_all_for_a_gpu_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "toy", ModelEntry("a toy", lambda _: Toy(), lambda: {}, "none", "tests", patch_size=20))
    monkeypatch.setattr(gpu, "ALL_CONTENDERS", ("crops", "dense-modules"))  # a compiler takes minutes
    monkeypatch.setattr("densescore.bench.run.matmul_peak", lambda dtype: 1e9)  # bfloat16 is slow on old processors
    monkeypatch.setattr(gpu, "COUNTS", tmp_path / "counts.json")
    monkeypatch.setitem(gpu.COUNTED, "toy", "Toy")
    gpu.COUNTS.write_text(json.dumps({"after": {"Toy/bfloat16/2/4": {"pass_seconds": 0.25}}}))
    options = ["--model", "toy", "--device", "cpu", "--all", "--batch", "4"]
    result: Any = run(tmp_path, *options)
    assert len(result["equality"]) > 8
    assert all(row["equal"] and row["deviation"] < 0.03 for row in result["equality"])
    assert {"crops", "dense-modules", "densescore"} == set(result["contenders"])
    assert [row["batch"] for row in result["batches"]] == [1, 2, 4]
    assert all(row["seconds"] > 0 and row["floor_seconds"] > 0 for row in result["kernels"])
    (predicted,) = result["predicted"]
    assert predicted["predicted_seconds"] == 0.25
    assert predicted["measured_seconds"] == pytest.approx(1 / result["batches"][2]["images_per_second"])

    monkeypatch.setattr(gpu, "image_levels", lambda *arguments, **options: torch.rand(1))
    done = CliRunner().invoke(app, [*SMALL, *options, "--overwrite"])
    assert done.exit_code == 2
    assert "differs from the CPU: image_levels" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_all_without_a_gpu_is_refused() -> None:
    done = CliRunner().invoke(app, [*SMALL, "--device", "cuda", "--all"])
    assert done.exit_code == 2
    assert "device 'cuda' cannot be used" in done.stderr


def test_ratios_are_round_by_round() -> None:
    assert time_ratios([2.0, 9.0], [2.0, 3.0]) == [1.0, 3.0]
    assert time_ratios([9.0, 2.0], [3.0, 1.0]) == [2.0, 3.0]
    assert deviation(torch.tensor([0.5, 0.0]), torch.tensor([0.4, 0.1])) == pytest.approx(0.25)


def test_flop_are_counted_by_the_definition() -> None:
    """Toy's stride, kernel and width are small enough to count by hand: one patch, one window."""
    network = to_dense(Toy(), 20)
    pyramid = Pyramid.of(20, 20, scales=(1.0,), patch=20, stride=network.stride)
    subject = contenders.Subject(Toy(), network, [torch.zeros(1, 3, 20, 20)], pyramid, torch.arange(1))
    with FlopCounterMode(display=False) as counter:
        Toy()(torch.zeros(1, 3, 20, 20))
    assert direct_flop(subject) == counter.get_total_flops() > 0


def test_a_case_names_its_command_and_every_contender_has_a_runtime() -> None:
    assert tuple(contenders.RUNTIMES) == CONTENDERS
    words = Case("alexnet", None, 21, contenders=("crops", "dense-timm")).command.split()
    assert words[:7] == ["densescore-bench", "--model", "alexnet", "--weights", "random", "--classes", "21"]
    assert words[-1] == "crops,dense-timm"


def test_the_table_of_speeds_is_made_by_valid_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    speed: Any = importlib.import_module("speed")
    row = {"seconds": 2.5, "times_densescore": 3.25, "times_densescore_spread": [3, 4]}
    result = {
        "contenders": {"densescore": row, "crops": row},
        "share_of_peak": 0.5,
        "file_to_answer_over_engine": {"median": 1.5},
        "batches": [{"batch": 1, "images_per_second": 8, "times_one": 1, "times_one_spread": [1, 1]}],
    }

    def run(command: list[str], check: bool) -> None:
        _, bound, _ = app.parse_args(command[3:], exit_on_error=False, print_error=False)
        bound.arguments["json_file"].write_text(json.dumps(result))

    monkeypatch.setattr(speed.subprocess, "run", run)
    speed.main(rounds=2, results=tmp_path)
    assert len([*tmp_path.glob("bench-*.json")]) == len(speed.COLUMNS) + len(speed.BATCHES)
    text = (tmp_path / "speed.md").read_text()
    assert text.count("**3.25** (3.00 … 4.00)") == len(speed.COLUMNS)
    assert text.count("8.0 (×1.00, 1.00 … 1.00)") == len(speed.BATCHES)


def test_batches_are_timed_against_single_images(tmp_path: Path) -> None:
    result = run(tmp_path, "--contenders", "", "--batch", "3", "--scales", "1", "--rounds", "1")
    rows = result["batches"]
    assert [row["batch"] for row in rows] == [1, 2, 3]
    assert rows[0]["times_one"] == 1
    assert all(
        row["times_one"] == pytest.approx(row["images_per_second"] / rows[0]["images_per_second"]) for row in rows
    )
