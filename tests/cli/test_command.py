"""Options in groups, errors in a line, interrupts, and what the help says by default."""

import ast
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from densescore.cli.actions import train_actions
from densescore.cli.command import Without, command, register
from densescore.cli.main import COMMANDS, app
from densescore.cli.options import ClassOptions, ScorerOptions
from densescore.cli.training_options import CacheOptions, RuleOptions
from densescore.errors import DensescoreError, DensescoreWarning
from densescore.transfer.patch_labels import LabelRule


@dataclass(frozen=True)
class Group:
    size: Annotated[int, typer.Option("--size", "-s", help="How many.")] = 3
    name: Annotated[str, typer.Option(help="Which.")] = "x"
    hidden: Annotated[str, typer.Option(help="What.")] = "h"


GOT: list[Any] = []


@command("program --size 4")
def small(group: Annotated[Group, Without("hidden")] = Group(size=5, hidden="kept"), fail: str = "") -> None:
    """A program."""
    GOT.append(group)
    if fail == "error":
        raise DensescoreError("[/x] is wrong")
    if fail == "interrupt":
        raise KeyboardInterrupt
    if fail == "warning":
        warnings.warn("photos: 1 picture left out", DensescoreWarning, stacklevel=2)
        warnings.warn("of another library", UserWarning, stacklevel=2)


small_app = typer.Typer()
register(small_app, small)


def test_a_warning_is_one_plain_line() -> None:
    with pytest.warns(UserWarning, match="of another library") as others:
        result = CliRunner().invoke(small_app, ["--fail", "warning"])
    assert result.exit_code == 0
    assert result.stderr == "note: photos: 1 picture left out\n"
    assert len(others) == 1
    assert CliRunner().invoke(small_app, ["--fail", "warning", "--quiet"]).stderr.count("picture left out") == 0


def test_every_warning_of_densescore_is_one_that_commands_print_in_a_line() -> None:
    """Each ``warnings.warn`` in the package has the category, so none comes out with a path of the package."""
    calls = [
        (path, node)
        for path in (Path(__file__).parents[2] / "densescore").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn"
    ]
    assert len(calls) >= 7
    assert [path for path, node in calls if "DensescoreWarning" not in map(ast.unparse, node.args)] == []


def test_help_names_no_option_that_the_command_lacks() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, found in commands.items():
        own = {option for parameter in found.params for option in parameter.opts}
        help_texts = " ".join(getattr(parameter, "help", None) or "" for parameter in found.params)
        named = set(re.findall(r"--[a-z][a-z-]+", re.sub("`[^`]*`", "", help_texts)))  # not in `other commands`
        assert named <= own, f"{name}: {sorted(named - own)}"


@pytest.mark.parametrize(
    ("arguments", "group"),
    [
        ([], Group(5, "x", "kept")),
        (["-s", "7"], Group(7, "x", "kept")),
        (["--name", "[y]", "--size", "8"], Group(8, "[y]", "kept")),
    ],
)
def test_a_group_of_options_is_one_object(arguments: list[str], group: Group) -> None:
    GOT.clear()
    assert CliRunner().invoke(small_app, arguments).exit_code == 0
    assert [group] == GOT


def test_help_has_the_groups_options_and_the_examples() -> None:
    text = CliRunner().invoke(small_app, ["--help"]).stdout
    for said in ("--size", "default: 5", "--quiet", "--verbose", "program --size 4"):
        assert said in text
    assert "--hidden" not in text
    assert "--group" not in text


@pytest.mark.parametrize(
    ("fail", "status", "line"), [("error", 2, "error: [/x] is wrong\n"), ("interrupt", 130, "stopped\n"), ("", 0, "")]
)
def test_how_a_command_ends(fail: str, status: int, line: str) -> None:
    result = CliRunner().invoke(small_app, ["--fail", fail])
    assert (result.exit_code, result.stderr) == (status, line)


def test_an_interrupt_while_the_program_is_imported(tmp_path: Path) -> None:
    """A module that stands for torch is slow to import, and is interrupted."""
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    (tmp_path / "a.png").write_bytes(b"")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    program = subprocess.Popen(
        [sys.executable, "-m", "densescore", "classify", str(tmp_path / "a.png")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "importing\n"
    time.sleep(0.1)
    program.send_signal(signal.SIGINT)
    _, stderr = program.communicate(timeout=60)
    assert (program.returncode, stderr) == (130, "stopped\n")


def test_scorer_options_are_the_scorers_arguments(tmp_path: Path) -> None:
    options = ScorerOptions("alexnet", None, "1,2", "", 16, 3.0, "cpu", "bfloat16", "torch")
    assert options.arguments() == {
        "model": "alexnet", "weights": None, "scales": (1.0, 2.0), "stride": 16, "k": 3.0, "device": "cpu",
        "dtype": "bfloat16", "runtime": "torch", "labels": None, "context": None,
    }  # fmt: skip
    assert ScorerOptions(patch_sizes="224").arguments()["patch_sizes"] == (224.0,)


def test_random_weights_are_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def scorer(**arguments: Any) -> None:
        asked.append(arguments)
        raise DensescoreError("enough")

    monkeypatch.setattr("densescore.scoring.scorer.DenseScorer", scorer)
    for words in (["--weights", "random"], ["--weights", "random.pt"], []):
        assert CliRunner().invoke(app, ["classify", __file__, *words]).exit_code == 2
    assert [arguments["weights"] for arguments in asked] == [None, "random.pt", "default"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (ClassOptions(), ()),
        (ClassOptions("a, b"), ("a", "b")),
        (ClassOptions("", ["goldfish, Carassius auratus"]), ("goldfish, Carassius auratus",)),
        (ClassOptions("a,b", ["b", "c, d", " e"]), ("a", "b", "c, d", " e")),
    ],
)
def test_classes(options: ClassOptions, names: tuple[str, ...]) -> None:
    assert options.names == names


def test_a_rule_changes_where_it_is_asked_to() -> None:
    base = LabelRule(patch_share=0.3, overlap="touch")
    assert RuleOptions().change(base) == base
    assert RuleOptions(object_share=0.5, overlap="rule").change(base) == LabelRule(0.3, 0.5, "rule")


def test_defaults_that_the_help_names_are_the_librarys() -> None:
    """Options whose defaults belong to modules that are slow to import."""
    from densescore.paper.actions.training import ActionRecipe
    from densescore.paper.caffe import CAFFE_MEAN
    from densescore.transfer.feature_cache import DEFAULT_BYTES
    from densescore.transfer.from_scratch import CROPS

    assert _shown("train", "crops") == str(CROPS)
    assert _shown("train", "cache_size") == f"{DEFAULT_BYTES / 1e9:g}"
    assert _shown("train-actions", "epochs") == str(ActionRecipe.epochs)
    assert _shown("convert-caffe", "mean") == ",".join(map(str, CAFFE_MEAN))


def _shown(name: str, option: str) -> str:
    group: Any = typer.main.get_command(app)
    (found,) = (parameter for parameter in group.commands[name].params if parameter.name == option)
    return str(found.show_default)


def test_an_option_of_several_commands_is_one_option() -> None:
    """The same help wherever a shared option appears, and the same short forms."""
    group: Any = typer.main.get_command(app)
    seen: dict[str, set[str]] = {}
    for found in group.commands.values():
        names = {option for parameter in found.params for option in parameter.opts}
        assert {"--quiet", "-q", "--verbose", "-v"} <= names
        assert ("-o" in names) == ("--out" in names)
        for parameter in found.params:
            if parameter.name in ("weights", "device", "dtype", "runtime", "stride", "scales", "k",
                                  "context", "split", "seed", "cache", "cache_size", "classes", "class_"):  # fmt: skip
                if found.name in ("pretrain", "source-classes") and parameter.name == "classes":
                    continue  # ImageNet's classes to train on, not classes of a model
                if found.name == "reproduce" and parameter.name == "cache_size":
                    continue
                seen.setdefault(parameter.name, set()).add(parameter.help)
    assert len(seen) == 14
    assert {name for name, helps in seen.items() if len(helps) > 1} == set()


def test_training_and_measuring_choose_how_the_network_runs() -> None:
    group: Any = typer.main.get_command(app)
    for name in ("train", "evaluate", "tune-k"):
        options = {option for parameter in group.commands[name].params for option in parameter.opts}
        assert {"--dtype", "--runtime", "--stride", "--device"} <= options


def test_the_papers_commands_come_last() -> None:
    assert [*COMMANDS][-1] == "Reproducing the paper"
    assert train_actions in COMMANDS["Reproducing the paper"]
    assert COMMANDS["Score images"][0].__name__ == "classify"
    assert CacheOptions().cache is None
