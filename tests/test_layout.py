"""Imports go one way, from the command line down to the errors, and heavy packages are loaded when they are needed."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = (
    "errors", "geometry", "io", "data", "models", "network", "results", "scoring", "evaluation", "transfer", "jobs",
    "report", "paper", "demo", "bench", "cli",
)  # fmt: skip
"""From the bottom to the top: each may import itself and those before it."""
HEAVY = (
    "av",
    "torch", "torchvision", "timm", "triton", "openvino", "onnx", "onnxruntime", "matplotlib", "gradio", "fastapi",
    "uvicorn", "ray", "zarr", "tifffile", "pyarrow", "pandas", "supervision", "pycocotools", "sklearn", "skimage",
)  # fmt: skip


class Answer(NamedTuple):
    """Of a program to a line of arguments: what it printed, its status, the heavy packages that it loaded."""

    text: str
    status: int
    loaded: list[str]


def module_of(path: Path, top: Path = ROOT) -> str:
    parts = path.relative_to(top).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path.read_text() for path in sorted((ROOT / "densescore").rglob("*.py"))}


def imports(source: str, *, for_types: bool = True) -> Iterator[str]:
    """What a source imports, wherever in it: modules, and ``module.name`` where a name is imported from one.

    With `for_types` off, not what stands below ``if TYPE_CHECKING``.
    """

    def walk(node: ast.AST) -> Iterator[str]:
        children: list[ast.AST] = [*ast.iter_child_nodes(node)]
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not for_types:
            children = [*node.orelse]
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        for child in children:
            yield from walk(child)

    return walk(ast.parse(source))


def own_imports(source: str, modules: object, *, for_types: bool = True) -> set[str]:
    """The modules of densescore that a source imports; ``densescore`` stands for the public names."""
    found = set()
    for name in imports(source, for_types=for_types):
        parts = name.split(".")
        if parts[0] == "densescore":
            known = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
            found.add(next(name for name in known if name in modules))  # type: ignore[operator]
    return found


def room_of(module: str) -> int:
    """Height of a module's room; the public names, ``densescore``, are above all rooms but the command line."""
    parts = module.split(".")
    return ROOMS.index(parts[1]) if len(parts) > 1 and parts[1] != "__main__" else ROOMS.index("cli")


def wrong_imports(modules: dict[str, str]) -> list[str]:
    return [
        f"{module} imports {imported}"
        for module, source in modules.items()
        for imported in sorted(own_imports(source, modules))
        if room_of(imported) > room_of(module)
    ]


def circle(modules: dict[str, str]) -> list[str] | None:
    """A circle of imports; the package itself, which imports what it is asked for, is no part of one."""
    graph = {
        module: own_imports(source, modules, for_types=False) - {module, "densescore"}
        for module, source in modules.items()
        if module != "densescore"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return None


def test_every_module_is_in_a_room() -> None:
    assert {module.split(".")[1] for module in MODULES if "." in module} == {*ROOMS, "__main__"}


def test_rooms_import_only_those_below() -> None:
    assert wrong_imports(MODULES) == []


def test_no_modules_import_each_other() -> None:
    assert circle(MODULES) is None


def test_kernels_know_nothing_of_densescore() -> None:
    folder = ROOT / "kernels"
    found = {
        module_of(path, folder): name
        for path in (folder / "densescore_kernels").rglob("*.py")
        for name in imports(path.read_text())
    }
    assert len(found) > 10
    assert [(module, name) for module, name in found.items() if name.split(".")[0] == "densescore"] == []


@pytest.mark.parametrize(
    "source",
    [
        "import densescore.scoring.scorer",
        "from densescore.scoring.scorer import DenseScorer",
        "from densescore.scoring import scorer",
        "def late():\n    from densescore.scoring.scorer import DenseScorer",
        "if TYPE_CHECKING:\n    from densescore.scoring.scorer import DenseScorer",
        "from densescore import DenseScorer",
    ],
)
def test_an_import_upward_is_found(source: str) -> None:
    modules = {
        "densescore": "",
        "densescore.scoring": "",
        "densescore.scoring.scorer": "",
        "densescore.io.files": source,
    }
    assert len(wrong_imports(modules)) == 1
    modules["densescore.cli.main"] = modules.pop("densescore.io.files")
    assert wrong_imports(modules) == []


def test_a_circle_is_found() -> None:
    late = "def late():\n    import densescore.io.b"
    assert circle({"densescore.io.a": late, "densescore.io.b": "from densescore.io.a import x"}) is not None
    assert circle({"densescore.io.a": late, "densescore.io.b": "if TYPE_CHECKING:\n    import densescore.io.a"}) is None


ANSWERS = [
    ("--help", 0, "Reproducing the paper"),
    ("--version", 0, "densescore "),
    ("clasify photo.jpg", 2, "No such command"),
    ("classify photo.jpg --scale 1", 2, "No such option"),
    ("classify photo.jpg --scales 1,x", 2, "--scales: expected numbers"),
    ("heatmap photo.jpg --classes tabbi", 2, "did you mean tabby"),
    ("heatmap photo.jpg --class 'tabby,'", 2, "no class 'tabby,'"),
    ("score photos -o scores.parquet --classes tabby,tabbi", 2, "did you mean tabby"),
    ("score photos -o scores.parquet --engine spark", 2, "--engine: expected local or ray"),
    ("huge slide.tif -o scores --classes tabbi", 2, "did you mean tabby"),
    ("train --data x -o head.safetensors --recipe best", 2, "--recipe: expected default or paper"),
    ("train --data x -o head.pt", 2, "--out: expected a name that ends in .safetensors"),
    ("reproduce --table 4", 2, "--table: expected 1, 2 or 3"),
]


def commands() -> list[str]:
    from densescore.cli.main import COMMANDS

    return [command.__name__.replace("_", "-") for panel in COMMANDS.values() for command in panel]


@pytest.fixture(scope="module")
def answers() -> dict[str, Answer]:
    return run_and_list([*(arguments for arguments, _, _ in ANSWERS), *(f"{name} --help" for name in commands())])


@pytest.mark.parametrize(("arguments", "status", "said"), ANSWERS)
def test_an_answer_without_work_loads_nothing_heavy(
    answers: dict[str, Answer], arguments: str, status: int, said: str
) -> None:
    answer = answers[arguments]
    assert said in answer.text
    assert (answer.status, answer.loaded) == (status, [])


@pytest.mark.parametrize("command", commands())
def test_help_of_a_command_loads_nothing_heavy(answers: dict[str, Answer], command: str) -> None:
    answer = answers[f"{command} --help"]
    assert "Usage: densescore " + command in answer.text
    assert "Examples:" in answer.text
    assert (answer.status, answer.loaded) == (0, [])


def test_the_benchmarks_answers_load_nothing_heavy() -> None:
    answers = run_and_list(["--help", "--contenders magic"], "bench")
    assert "dense-openvino" in answers["--help"].text
    assert "unknown magic" in answers["--contenders magic"].text
    assert [(answer.status, answer.loaded) for answer in answers.values()] == [(0, []), (2, [])]


def test_what_a_command_loads_is_found() -> None:
    answers = run_and_list(["--version", "models", "--help"])
    assert [bool(answer.loaded) for answer in answers.values()] == [False, True, False]


def run_and_list(lines: list[str], program: str = "main") -> dict[str, Answer]:
    """What a program prints for each line of arguments, its status, and which heavy packages it loads for it."""
    code = (
        "import contextlib, io, json, shlex, sys\n"
        f"from densescore.__main__ import {program}\n"
        f"heavy, lines, answers = {{*{HEAVY!r}}}, {lines!r}, {{}}\n"
        "for line in lines:\n"
        "    sys.argv, text, before = ['densescore', *shlex.split(line)], io.StringIO(), {*sys.modules}\n"
        "    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):\n"
        f"        try:\n            {program}()\n"
        "        except SystemExit as end:\n            status = end.code or 0\n"
        "    answers[line] = (text.getvalue(), status, sorted(({*sys.modules} - before) & heavy))\n"
        "print(json.dumps([sorted({*sys.modules} & heavy), answers]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, found = json.loads(done.stdout)
    answers = {line: Answer(*answer) for line, answer in found.items()}
    assert {*loaded} == {name for answer in answers.values() for name in answer.loaded}, "loaded with the program"
    return answers


def test_import_densescore_loads_nothing_heavy() -> None:
    heavy = {*HEAVY, "numpy", "cv2", "PIL", "typer", "rich", "densescore_kernels"}
    code = f"import sys, densescore; print(*sorted({{*sys.modules}} & {heavy!r}), dir(densescore) != [])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]


def test_public_names() -> None:
    import densescore

    assert {*densescore.__all__} == {*densescore._MODULES, "__version__"}
    for name in densescore.__all__:
        assert getattr(densescore, name) is not None
        assert name in dir(densescore)
    with pytest.raises(AttributeError, match="no attribute 'classfy'"):
        densescore.classfy  # noqa: B018


def test_what_a_caller_would_tell_apart_has_an_exception_of_its_own(tmp_path: Path) -> None:
    import densescore
    from densescore.io.files import atomic_write

    kinds = (
        densescore.MissingPackageError, densescore.NotConvolutionalError, densescore.OutOfMemoryError,
        densescore.WriteError,
    )  # fmt: skip
    assert all(issubclass(kind, densescore.DensescoreError) for kind in kinds)
    (tmp_path / "file").touch()
    with pytest.raises(densescore.WriteError), atomic_write(tmp_path / "file" / "below"):
        pass
