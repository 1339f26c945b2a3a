"""No dependency sends or stores usage data, and the tests themselves stay on this machine."""

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import _TRIES

# Each look-up and connection of a process, and of those that it forks, is written to a file and refused.
_RECORDER = """
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def record(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        os.write(file, f"{event} {args}\\n".encode())
        raise OSError("recorded")
sys.addaudithook(record)
"""
_SCORE = """
import numpy, time, torch
from densescore import DenseScorer
from tests.conftest import Toy
scorer = DenseScorer(Toy(), labels=("a", "b", "c"), patch_size=20, scales=(1,), runtime="openvino")
assert scorer.runtime == "openvino"
scorer.score(numpy.zeros((40, 40, 3), numpy.uint8))
time.sleep(1)
"""


def _run(code: str, folder: Path) -> tuple[str, list[str]]:
    """What a process looked up, and the files that it left in its user's home."""
    home, lookups = folder / "home", folder / "lookups"
    home.mkdir()
    lookups.touch()
    places = {name: str(home) for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    environment = {**os.environ, **places, "PYTHONPATH": os.pathsep.join(sys.path)}
    for name in ("CI", "TF_BUILD", "JENKINS_URL"):  # where OpenVINO is silent by itself
        environment.pop(name, None)
    command = [sys.executable, "-c", _RECORDER + code, str(lookups)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return lookups.read_text(), sorted(str(path.relative_to(home)) for path in home.rglob("*"))


@pytest.mark.parametrize("imported", [False, True], ids=["by densescore", "before"])
def test_scoring_by_openvino_reports_nothing(imported: bool, tmp_path: Path) -> None:
    if not find_spec("openvino"):
        pytest.skip("needs the extra: pip install 'densescore[openvino]'")
    before = "import openvino_telemetry" if imported and find_spec("openvino_telemetry") else ""
    assert _run(f"{before}\n{_SCORE}", tmp_path) == ("", [])


def test_the_recorder_sees_what_openvino_would_report(tmp_path: Path) -> None:
    if not find_spec("openvino_telemetry"):
        pytest.skip("needs openvino-telemetry, which comes with OpenVINO")
    lookups, files = _run("import openvino, time\nopenvino.convert_model\ntime.sleep(1)", tmp_path)
    assert lookups or files


@pytest.mark.parametrize("host", ["example.com", "192.0.2.1"])
def test_the_network_is_refused_in_tests(host: str) -> None:
    with pytest.raises(OSError, match=f"tests must not use the network: .* {host}"):
        socket.create_connection((host, 80), timeout=1)
    os.ftruncate(_TRIES.fileno(), 0)  # this one was meant
