"""Photographs, networks and data that several tests share."""

import os
import shutil
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
from densescore.models.box_layer import ObjectBoxes

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # the processes share the processors
    _threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    torch.set_num_threads(_threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(_threads))  # of programs that tests start

# Machines are shared: no time limits in tests. CI draws the same examples each time, developers new ones.
settings.register_profile("densescore", deadline=None, max_examples=50, derandomize="CI" in os.environ)
settings.load_profile("densescore")

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
