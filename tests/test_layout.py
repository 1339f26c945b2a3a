"""Imports go one way, from the command line down to the errors, and heavy packages are loaded when they are needed."""

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Container, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.runner import command_names

ROOT = Path(__file__).parents[1]
ROOMS = (
    "version", "errors", "geometry", "io", "data", "models", "network", "results", "scoring", "evaluation", "transfer",
    "jobs", "report", "search", "paper", "demo", "bench", "cli",
)  # fmt: skip
"""From the bottom to the top: each may import itself and those before it."""
HEAVY = (
    "av",
    "torch", "torchvision", "timm", "triton", "openvino", "onnx", "onnxruntime", "matplotlib", "fastapi",
    "uvicorn", "ray", "zarr", "tifffile", "pyarrow", "pandas", "supervision", "pycocotools", "sklearn", "skimage",
)  # fmt: skip


class Answer(NamedTuple):
    """Of a program to a line of arguments: what it printed, its status, the heavy packages that it loaded."""

    text: str
    status: int
    loaded: list[str]


def module_of(path: Path, top: Path) -> str:
    parts = path.relative_to(top).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES, KERNELS = (
    {module_of(path, ROOT / top): path.read_text() for path in sorted((ROOT / top / package).rglob("*.py"))}
    for top, package in ((".", "densescore"), ("kernels", "densescore_kernels"))
)


def imports(source: str) -> Iterator[str]:
    """All imports of a source, late ones and those for types included: modules, and ``module.name``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(source: str, modules: Container[str]) -> set[str]:
    """The modules of densescore that a source imports; ``densescore`` stands for the public names."""
    imported = set()
    for parts in (name.split(".") for name in imports(source)):
        if parts[0] == "densescore":
            prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
            imported.add(next(name for name in prefixes if name in modules))
    return imported


def room_of(module: str) -> int:
    """Height of a module's room; the public names, ``densescore``, are above all rooms but the command line."""
    parts = module.split(".")
    return ROOMS.index(parts[1]) if len(parts) > 1 and parts[1] != "__main__" else ROOMS.index("cli")


def wrong_imports(modules: dict[str, str]) -> list[str]:
    return [
        f"{module} imports {imported}"
        for module, source in modules.items()
        for imported in sorted(imported_modules(source, modules))
        if room_of(imported) > room_of(module)
    ]


def circle(modules: dict[str, str]) -> list[str]:
    """A circle of imports, if there is one; the package itself, which imports what it is asked for, is in none."""
    graph = {
        module: imported_modules(source, modules) - {module, "densescore"}
        for module, source in modules.items()
        if module != "densescore"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def long_docstrings(module: str, source: str, public: Container[str]) -> list[str]:
    """Classes and functions whose docstring has more than three lines before its example, except public ones."""

    def walk(node: ast.AST, name: str, in_public: bool) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield from walk(child, name, in_public)
                continue
            full = f"{name}.{child.name}"
            exempt = full in public or (in_public and not child.name.startswith("_"))
            text = re.split("Example:|>>>", ast.get_docstring(child) or "")[0]
            if not exempt and len(text.strip().splitlines()) > 3:
                yield full
            yield from walk(child, full, exempt and isinstance(child, ast.ClassDef))

    return [*walk(ast.parse(source), module, False)]


def test_every_module_is_in_a_room() -> None:
    assert {module.split(".")[1] for module in MODULES if "." in module} == {*ROOMS, "__main__"}


def test_rooms_import_only_those_below() -> None:
    assert wrong_imports(MODULES) == []


def test_no_modules_import_each_other() -> None:
    assert circle(MODULES) == []


def test_kernels_know_nothing_of_densescore() -> None:
    imported = {(module, name.split(".")[0]) for module, source in KERNELS.items() for name in imports(source)}
    assert ("densescore_kernels.grid", "numpy") in imported
    assert [module for module, package in imported if package == "densescore"] == []


def test_no_folder_holds_more_than_twelve_files() -> None:
    counts = Counter(path.parent for top in ("densescore", "kernels") for path in (ROOT / top).rglob("*.py"))
    assert {str(folder): count for folder, count in counts.items() if count > 12} == {}


def test_docstrings_of_private_code_are_short() -> None:
    import densescore_kernels
    from densescore.cli.program import EXAMPLES

    stub = ast.parse((ROOT / "densescore" / "__init__.pyi").read_text())
    public = {
        f"densescore.{node.module}.{alias.name}"
        for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }  # fmt: skip
    assert len(public) > 40
    public |= {f"densescore_kernels.{module}.{name}" for name, module in densescore_kernels._MODULES.items()}
    public |= {f"{command.__module__}.{command.__name__}" for command in EXAMPLES}
    modules = {**MODULES, **KERNELS}
    assert [name for module, source in modules.items() for name in long_docstrings(module, source, public)] == []


def test_a_long_docstring_is_named() -> None:
    text = '"""One\n\n    two\n    {}\n    """'
    source = f"class A:\n    {text}\n    def f(self):\n        {text}\n    def _g(self):\n        {text}\n"
    assert long_docstrings("m", source.format(*["three"] * 3), {"m.A"}) == ["m.A._g"]
    assert long_docstrings("m", source.format(*["three"] * 3), ()) == ["m.A", "m.A.f", "m.A._g"]
    assert long_docstrings("m", source.format(*[">>> f()"] * 3), ()) == []


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
def test_an_import_upward_is_named(source: str) -> None:
    modules = {"densescore": "", "densescore.scoring": "", "densescore.scoring.scorer": ""}
    assert len(wrong_imports({**modules, "densescore.io.files": source})) == 1
    assert wrong_imports({**modules, "densescore.cli.main": source}) == []


@pytest.mark.parametrize("way", ["import densescore.io.a", "if TYPE_CHECKING:\n    from densescore.io.a import x"])
def test_a_circle_is_named(way: str) -> None:
    late = "def late():\n    import densescore.io.b"
    assert circle({"densescore.io.a": late, "densescore.io.b": way}) != []
    assert (
        circle({"densescore.io.a": late, "densescore.io.b": "import densescore.errors", "densescore.errors": ""}) == []
    )


ANSWERS = [
    ("--help", 0, "Reproducing the paper"),
    ("--version", 0, "densescore "),
    ("clasify photo.jpg", 2, 'Unknown command "clasify". Did you mean "classify"?'),
    ("classify photo.jpg --scale 1", 2, "Unknown option: --scale"),
    ("classify photo.jpg --scales 1,x", 2, "--scales: expected numbers"),
    ("heatmap photo.jpg --classes tabbi", 2, "did you mean tabby"),
    ("heatmap photo.jpg --class 'tabby,'", 2, "no class 'tabby,'"),
    ("score photos -o scores.parquet --classes tabby,tabbi", 2, "did you mean tabby"),
    ("score photos -o scores.parquet --engine spark", 2, 'Invalid value "spark" for --engine'),
    ("huge slide.tif -o scores --classes tabbi", 2, "did you mean tabby"),
    ("train --data x -o head.safetensors --recipe best", 2, 'Invalid value "best" for --recipe'),
    ("train --data x -o head.pt", 2, "--output: expected a name that ends in .safetensors"),
    ("reproduce --table 4", 2, "--table: expected 1, 2 or 3"),
]


def commands() -> list[str]:
    from densescore.cli.main import app

    return command_names(app)


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
    heavy = {*HEAVY, "numpy", "cv2", "PIL", "cyclopts", "rich", "densescore_kernels"}
    code = f"import sys, densescore; print(*sorted({{*sys.modules}} & {heavy!r}), dir(densescore) != [])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]


def test_public_names() -> None:
    import densescore

    names = vars(densescore)["__all__"]
    assert len(names) > 40
    for name in names:
        assert getattr(densescore, name) is not None
        assert name in dir(densescore)
    with pytest.raises(AttributeError, match="attribute classfy"):
        getattr(densescore, "classfy")  # noqa: B009


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


def test_json_is_written_at_one_place() -> None:
    """`to_json` refuses NaN and infinity."""
    places = {module for module, source in MODULES.items() if re.search(r"\bjson\.dumps?\(", source)}
    assert places == {"densescore.io.names"}
