"""The Dockerfile agrees with pyproject.toml, the command line and the page."""

import json
import re
import shlex
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from densescore.cli.main import app

tomllib = pytest.importorskip("tomllib")  # from Python 3.11

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEXT = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
STEPS = [(kind, rest.strip()) for kind, rest in re.findall(r"^([A-Z]+) (.*)$", TEXT, re.MULTILINE)]


def steps(kind: str) -> list[str]:
    return [rest for found, rest in STEPS if found == kind]


def test_the_images_are_slim_and_of_a_python_that_the_project_takes() -> None:
    for image in steps("FROM"):
        version = re.match(r"python:(3\.\d+)-slim\b", image)
        assert version, image
        assert version[1] in SpecifierSet(PROJECT["requires-python"])


def test_what_is_installed_is_what_the_project_names() -> None:
    installed = [Requirement(text) for run in steps("RUN") if "pip install" in run
                 for text in re.findall(r"'([^']+)'", run) if not text.startswith(".")]  # fmt: skip
    own = {requirement.name: requirement for requirement in map(Requirement, PROJECT["dependencies"])}
    assert [one.name for one in installed] == ["torch", "torchvision"]  # of the index of CPU builds
    assert all(one.specifier == own[one.name].specifier for one in installed)
    extras = [re.search(r"'\.\[([\w,]+)\]'", run) for run in steps("RUN")]
    named = [name for found in extras if found for name in found[1].split(",")]
    assert named == ["demo"]
    assert set(named) <= set(PROJECT["optional-dependencies"])


def test_what_is_copied_is_there_and_is_what_the_wheel_needs() -> None:
    copied = {source for copy in steps("COPY") if "--from" not in copy for source in copy.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {package.split("/")[0] for package in needed["packages"]} < copied
    for file in (PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"):
        assert any(Path(file).is_relative_to(source) for source in copied), file
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == copied


def test_it_runs_the_page_without_rights() -> None:
    kinds = [kind for kind, _ in STEPS]
    assert kinds[-2:] == ["ENTRYPOINT", "CMD"]
    assert steps("USER") == ["densescore"]
    assert any(re.search(r"useradd .*\bdensescore$", run) for run in steps("RUN"))
    assert all(kind not in ("RUN", "COPY") for kind in kinds[kinds.index("USER") :])
    program, name, *arguments = json.loads(steps("ENTRYPOINT")[0]) + json.loads(steps("CMD")[0])
    assert program in PROJECT["scripts"]
    _, bound, _ = app.parse_args([name, *arguments], print_error=False, exit_on_error=False)
    bound.apply_defaults()
    options = bound.arguments
    assert options["host"] == "0.0.0.0"
    assert str(options["port"]) in steps("EXPOSE")
    health = shlex.split(steps("HEALTHCHECK")[0].partition("CMD ")[2].strip("[]"))
    assert f"127.0.0.1:{options['port']}/health" in health[-1]
    compile(health[-1], "HEALTHCHECK", "exec")
