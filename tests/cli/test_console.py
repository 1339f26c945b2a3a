"""Names of files and labels are printed literally."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from densescore import DenseScorer
from densescore.cli import console
from densescore.cli.console import Progress, error, info, print_json, print_table, printable
from densescore.io.names import as_text, from_text
from densescore.models.head import AdaptationHead, HeadFile, save_head
from tests.cli.runner import refuse, run, succeed

NAMES = [
    "[v1]", "[/x]", "[bold red]", "[link=http://x.org]y[/link]", ":smile:", "{task.description}", "two  spaces",
    "\\[a]", "100 %", "名前",
]  # fmt: skip
"""Names that are printed as they are."""

ESCAPED = {
    "\x1b[31mred": r"\x1b[31mred",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "a\nerror: b": r"a\nerror: b",
    "a\rb": r"a\rb",
    "\x9b31m": r"\x9b31m",
    "tab\tkey\x00": r"tab\tkey\x00",
    "back\x08\x7f": r"back\x08\x7f",
    "\u202egnp.exe": r"\u202egnp.exe",
    "line\u2028end": r"line\u2028end",
    "byte\udcff": r"byte\xff",
    "half\ud83d": r"half\ud83d",
}
"""Text that a terminal executes or cannot encode, and its escaped form."""


@pytest.mark.parametrize("name", NAMES)
def test_names_are_not_markup(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(name) == name
    info(f"see {name}")
    error(f"{name}: broken")
    print_table((name, "score"), [(name, 1)], title=name, last=(name, ""))
    captured = capsys.readouterr()
    assert captured.out.count(name) == 5
    assert captured.err == f"error: {name}: broken\n"


@pytest.mark.parametrize("width", [60, 80])
def test_tables_break_no_word(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "out", Console(width=width, markup=False))
    headings = ("class", "average precision of boxes", "positives", "labeled patches", "pointing", "AP, IoU 0.5")
    names = ("potted plant", "black-and-tan coonhound")
    print_table(
        headings, [(name, "0.812 ± 0.01", "12,345", 120, 0.5, 0.88) for name in names], last=("mean",) + ("1",) * 5
    )
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    print_table(("class", "answer"), [("cat", "yes")], title="photographs/of/cats.jpg")  # wider than its table
    assert capsys.readouterr().out.startswith("photographs/of/cats.jpg\n")
    words = {word for line in lines for word in line.split()}
    assert words >= {word for text in (*headings, *names, "0.812", "12,345") for word in text.split()}


@pytest.mark.parametrize(("name", "shown"), ESCAPED.items())
def test_control_characters_are_escaped(name: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    info(name)
    error(name)
    print_table((name, "score"), [(name, 1)], title=name)
    captured = capsys.readouterr()
    assert captured.out.count(shown) == 4
    assert captured.err == f"error: {shown}\n"
    assert name not in captured.out


@given(st.text(st.characters(codec=None)))
def test_any_text_becomes_one_printable_line(text: str) -> None:
    shown = printable(text)
    assert "\x1b" not in shown
    assert len(shown.splitlines()) <= 1
    shown.encode()
    if text.isascii() and text.isprintable():
        assert shown == text


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """A head on lite0 with labels that hold markup and control characters."""
    path = tmp_path / "[head].safetensors"
    labels = ("[/dog]", "\x1b[31mcat, wild")
    save_head(path, HeadFile(AdaptationHead(1280, 2, 4), labels, "lite0", (0.5,) * 3, (0.5,) * 3, 224, scales=(1.0,)))
    return path


def test_paths_and_labels_through_the_commands(head: Path, tmp_path: Path) -> None:
    picture = tmp_path / "[v1] \x1b[2J.png"
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(picture)
    plain: list[str | Path] = [picture, "--model", head, "--runtime", "torch"]
    table = succeed("classify", *plain).stdout.replace("\n", "")
    assert r"[v1] \x1b[2J.png" in table
    assert "[/dog]" in table
    assert r"\x1b[31mcat, wild" in table
    found = json.loads(run("classify", *plain, "--json").stdout)
    assert {ranked["label"] for ranked in found["top"]} == {"[/dog]", "\x1b[31mcat, wild"}
    heatmap: list[str | Path] = ["heatmap", *plain, "-o", tmp_path / "[/maps]"]
    mapped = succeed(*heatmap, "--class", "\x1b[31mcat, wild", "--classes", "[/dog]")
    assert [line.split("  ")[1].split(": confidence")[0] for line in mapped.stdout.splitlines()] == [
        "[/dog]", r"\x1b[31mcat, wild",
    ]  # fmt: skip
    assert "[/maps]" in mapped.stdout
    refuse(*heatmap, "--class", "[/dog", message="error: no class '[/dog': did you mean [/dog]?\n")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_are_not_utf8(tmp_path: Path, encoding: str) -> None:
    name = os.fsencode(tmp_path) + b"/pictur\xe9 \xe5\x90\x8d.png"
    Path(os.fsdecode(name)).write_bytes(b"no picture")
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "densescore", "classify", os.fsdecode(name), "--json", "--runtime", "torch"]
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 1, done.stderr
    assert b"pictur\\xe9 " in done.stderr
    assert b"Traceback" not in done.stderr
    assert os.fsencode(from_text(json.loads(done.stdout)["image"])) == name


@pytest.fixture
def verbosity() -> Iterator[console.Verbosity]:
    yield console.verbosity
    console.verbosity.quiet = console.verbosity.verbose = False


def test_json_is_valid_unicode(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"image": "caf\udce9.png", "by\udcff": [{"label": "\ud83d"}, "plain", '"quoted"'], "k": 5.0})
    record = json.loads(capsys.readouterr().out)
    str(record).encode()
    assert record == {
        "image": as_text("caf\udce9.png"),
        as_text("by\udcff"): [{"label": as_text("\ud83d")}, "plain", '"quoted"'],
        "k": 5.0,
    }


def test_without_a_terminal_a_line_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verbosity: console.Verbosity
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Progress("tiles") as progress:
        task = progress.add("[/x]", 1200)
        for done in range(1, 26):
            now[0] += 1
            progress.update(task, done, failed=done // 8)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["[/x]: 10 of 1", "[/x]: 20 of 1"]
    assert lines[0] == "[/x]: 10 of 1,200, 1 tiles/s, 0:19:50 left, 1 failed"
    assert lines[1].endswith("left, 2 failed")


def test_quiet_and_verbose(verbosity: console.Verbosity, capsys: pytest.CaptureFixture[str]) -> None:
    printed = {}
    for quiet, verbose in ((False, False), (True, False), (False, True)):
        verbosity.quiet, verbosity.verbose = quiet, verbose
        console.notice("a note")
        console.detail("a detail")
        console.error("a failure")
        printed[quiet, verbose] = capsys.readouterr().err.splitlines()
    assert printed == {
        (False, False): ["a note", "error: a failure"],
        (True, False): ["error: a failure"],
        (False, True): ["a note", "a detail", "error: a failure"],
    }


def test_verbose_names_the_scorer(tmp_path: Path, toy_scorer: DenseScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densescore.scoring.scorer.DenseScorer", lambda **_: toy_scorer)
    picture = tmp_path / "a.png"
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(picture)
    assert run("classify", picture, "-q").stderr == ""
    stderr = run("classify", picture, "-v").stderr
    assert stderr.startswith(f"{toy_scorer.name!r}, {len(toy_scorer.labels)} classes; scales ")
    assert f"float32 on cpu by {toy_scorer.runtime}" in stderr


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are of Unix")
@pytest.mark.parametrize("to_file", [True, False])
def test_results_and_a_bar_on_a_terminal(to_file: bool, tmp_path: Path) -> None:
    """Results in a file hold nothing of the bar; on the terminal each begins its own line."""
    import pty

    code = (
        "from densescore.cli.console import Progress, info, print_json, print_table\n"
        "with Progress() as progress:\n"
        "    for item in progress.track([1, 2], 'images'):\n"
        "        print_json({'label': '[/x]', 'long': 'y' * 200})\n"
        "        info(f'[v{item}]')\n"
        "        print_table(['[a]', 'b'], [('c', item)])\n"
    )
    terminal, inner = pty.openpty()
    results = tmp_path / "results.txt"
    with results.open("w") as file:
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "60"}
        command = [sys.executable, "-c", code]
        subprocess.run(command, stdout=file if to_file else inner, stderr=inner, env=environment, check=True)
    os.close(inner)
    shown = b""
    while chunk := _read(terminal):
        shown += chunk
    assert b"images" in shown
    if to_file:
        text = results.read_text()
        assert b"[v1]" not in shown
        assert "images" not in text
    else:
        erased = re.sub(r"[^\n]*\r\x1b\[2K", "", shown.decode().replace("\r\n", "\n"))
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", erased)
    lines = text.splitlines()
    assert [json.loads(line)["label"] for line in lines if line.startswith("{")] == ["[/x]"] * 2
    assert "[v1]" in lines
    assert "[v2]" in lines
    assert sum(line.startswith("┏") for line in lines) == 2


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other end is closed
        return b""
