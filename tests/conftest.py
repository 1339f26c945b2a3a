"""Photographs, networks and data that several tests share."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import settings
from numpy.typing import NDArray

from densescore import DenseScorer
from densescore.errors import MissingPackageError
from densescore.models.box_layer import ObjectBoxes
from densescore.models.registry import MODELS, ModelEntry
from densescore.network.cpu.openvino import import_openvino

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # the processes share the processors
    _threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    torch.set_num_threads(_threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(_threads))  # of programs that tests start

_CACHE = tempfile.TemporaryDirectory(prefix="densescore-tests-")  # of compiled forms and features
os.environ["XDG_CACHE_HOME"] = _CACHE.name

# Machines are shared: no time limits in tests. CI draws the same examples each time, developers new ones.
settings.register_profile("densescore", deadline=None, max_examples=50, derandomize="CI" in os.environ)
settings.load_profile("densescore")

# Nothing of the package may look up or reach another machine. Python reports each try, of forked processes as well.
_TRIES = tempfile.TemporaryFile()  # noqa: SIM115


def _refuse_the_network(event: str, args: tuple[Any, ...]) -> None:
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = args[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple):
        host = args[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in (None, "", "localhost", "::1", "0.0.0.0", "::") and not host.startswith("127."):
        os.write(_TRIES.fileno(), f"{event} {host}\n".encode())
        raise OSError(f"tests must not use the network: {event} of {host}")


sys.addaudithook(_refuse_the_network)


@pytest.fixture(autouse=True)
def no_network() -> Iterator[None]:
    """Fail each test in which something tried to look up or reach another machine, even if it hid the refusal."""
    start = os.lseek(_TRIES.fileno(), 0, os.SEEK_END)
    yield
    os.lseek(_TRIES.fileno(), start, os.SEEK_SET)
    tries = os.read(_TRIES.fileno(), 10_000).decode()
    assert not tries, tries


def need_openvino() -> Any:
    """OpenVINO without its usage data, or a skipped test."""
    try:
        return import_openvino()
    except MissingPackageError as error:
        pytest.skip(str(error))


DATA = Path(__file__).parents[1] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def cat() -> NDArray[np.uint8]:
    """A photograph of a cat's face, 300×451."""
    return skimage.data.chelsea()


@pytest.fixture(scope="session")
def coffee() -> NDArray[np.uint8]:
    """A photograph of a cup of espresso, 400×600."""
    return skimage.data.coffee()


@pytest.fixture(scope="session")
def lite0() -> DenseScorer:
    """The default model with its real weights, at its own scales."""
    return DenseScorer("lite0")


@pytest.fixture(scope="session")
def imagenet_samples() -> Path:
    folder = DATA / "imagenet-samples"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, which the repository does not ship")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium, driven by Playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the extra: pip install 'densescore[browser]'")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a Chromium on the path")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


def keep_picture(page: Any, name: str) -> None:
    """Put a picture of a page into the folder that DENSESCORE_SCREENSHOTS names, if it is set."""
    folder = os.environ.get("DENSESCORE_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(1000)  # images fade in
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


class Toy(torch.nn.Module):
    """A small network without padding: stride 4, 3×3 map on 20 pixels, so a crop gives its cell exactly."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 4, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 6, 5, stride=2), torch.nn.ReLU()
        )
        self.classifier = torch.nn.Sequential(
            torch.nn.Linear(6 * 9, 10), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(10, classes)
        )
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(pixels).flatten(1))


def build_toy(weights: dict[str, torch.Tensor] | None) -> Toy:
    """`Toy` with `weights`; with None, with random ones, other ones each time."""
    network = Toy()
    if weights is None:
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                layer.reset_parameters()
    else:
        network.load_state_dict(weights)
    return network


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of `Toy` among the models."""
    entry = ModelEntry("a toy", build_toy, lambda: dict(Toy().state_dict()), "none", "tests", patch_size=20)
    monkeypatch.setitem(MODELS, "toy", entry)
    return "toy"


@pytest.fixture
def toy_scorer() -> DenseScorer:
    return DenseScorer(Toy(), labels=("a", "b", "c"), patch_size=20, scales=(1, 1.5, 2.3))


def same_boxes(found: ObjectBoxes | None, expected: ObjectBoxes) -> None:
    """Patches of nearly the same score may change places."""
    assert found is not None
    order, other = found.patches.argsort(1), expected.patches.argsort(1)
    assert torch.equal(found.patches.gather(1, order), expected.patches.gather(1, other))
    boxes = [
        part.boxes.gather(1, rank[..., None].expand(-1, -1, 4)) for part, rank in ((found, order), (expected, other))
    ]
    torch.testing.assert_close(*boxes, rtol=1e-3, atol=0.05)
    torch.testing.assert_close(
        found.qualities.gather(1, order), expected.qualities.gather(1, other), rtol=1e-3, atol=1e-4
    )
