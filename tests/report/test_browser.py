"""A report in a real browser, from the disk: ranks, filters, maps, boxes; light, dark and on a phone.

Pictures of it go to the folder that DENSESCORE_SCREENSHOTS names.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

pytest.importorskip("playwright", reason="needs the extra: pip install 'densescore[browser]'")
from playwright.sync_api import expect

from densescore import DenseScorer
from densescore.report.entries import Entry
from densescore.report.page import write_report
from densescore.report.sources import scored_entries
from tests.conftest import keep_picture

WAIT = 60_000  # milliseconds: a shared machine may be slow
INJECTION = "<img src=x onerror=alert(1)></script><script>alert(2)</script>.png"
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    """Four photographs, for a few groups, and a broken file."""
    folder = tmp_path_factory.mktemp("photos")
    for name, pixels in {
        "cat.png": skimage.data.chelsea(),
        "coffee.png": skimage.data.coffee(),
        "rocket.png": skimage.data.rocket(),
        "astronaut.png": skimage.data.astronaut(),
    }.items():
        Image.fromarray(pixels).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no picture")
    scorer = DenseScorer("lite0", scales=(1, 1.6, 2.4), runtime="torch")
    classes = ["cat", "dog", "beverage", "missile"]
    found = [*scored_entries(sorted(map(str, folder.iterdir())), scorer, classes)]
    return [replace(entry, name=f"photos/{Path(entry.name).name}") for entry in found]


@pytest.fixture(scope="module")
def report(entries: list[Entry], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, entries, {"text": "Scored by lite0, k = 5."})
    return path


@pytest.fixture
def open_page(browser: Any, report: Path) -> Iterator[Open]:
    contexts = []
    complaints: list[str] = []

    def complain_of_dialog(dialog: Any) -> None:
        complaints.append(dialog.message)
        dialog.dismiss()

    def complain_of_request(request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            complaints.append(request.url)

    def start(path: Path = report, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", complain_of_dialog)
        page.on("request", complain_of_request)
        page.goto(path.as_uri())
        expect(page.locator("#images img").first).to_be_visible(timeout=WAIT)
        return page

    yield start
    for context in contexts:
        context.close()
    assert complaints == []  # nothing is refused, asked for elsewhere, or run that came from a name


def names(page: Any) -> list[str]:
    return [text.split("/")[-1] for text in page.locator("#images .name").all_inner_texts()]


def colors(card: Any) -> Any:
    """The pixels of a card's map: ``[n, 4]``."""
    canvas = card.locator("canvas")
    data = canvas.evaluate("c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)")
    return np.array(data).reshape(-1, 4)


def test_images_are_ranked_filtered_and_their_maps_drawn(open_page: Open, entries: list[Entry]) -> None:
    page = open_page()
    best = [entry for entry in entries if entry.findings]
    best.sort(key=lambda entry: -entry.findings[0].confidence)
    assert names(page) == [Path(entry.name).name for entry in best]
    page.get_by_label("Class").select_option(label="cat (4)")
    ranked = sorted(best, key=lambda entry: -next(f.confidence for f in entry.findings if f.label == "cat"))
    assert names(page) == [Path(entry.name).name for entry in ranked]
    card = page.locator("#images li").first
    expect(card.locator("img")).to_have_attribute("alt", re.compile(r"cat\.png: cat, confidence 0\.\d\d"))
    expect(card.get_by_role("button", name="cat")).to_have_attribute("aria-pressed", "true")
    page.wait_for_function("document.querySelector('#images canvas').width > 90")
    drawn = colors(card)
    assert drawn[:, 3].min() == 0  # the photograph stays bare somewhere
    assert drawn[:, 3].max() > 240
    strongest = drawn[drawn[:, 3] > 235].mean(0)
    assert strongest[0] > strongest[2] + 60  # turbo's upper end is red

    page.get_by_label("Confidence from").fill("0.3")
    assert names(page) == ["cat.png"]
    expect(page.locator("#count")).to_have_text("1 image of 4, best first")
    page.get_by_label("Confidence from").fill("0.99")
    expect(page.locator("#count")).to_contain_text("No image is left")
    page.get_by_label("Confidence from").fill("0")
    page.get_by_label("Name has").fill("COFF")
    assert names(page) == ["coffee.png"]


def test_another_class_of_a_card_by_the_keyboard_and_boxes_by_their_peak(open_page: Open, entries: list[Entry]) -> None:
    page = open_page()
    page.get_by_label("Class").select_option(label="cat (4)")
    cat = next(entry for entry in entries if entry.name.endswith("cat.png"))
    finding = next(found for found in cat.findings if found.label == "cat")
    card = page.locator("#images li").first
    expect(card.locator("rect")).to_have_count(len(finding.boxes))
    first = card.locator("rect").first
    assert float(first.get_attribute("width")) == pytest.approx(finding.boxes[0][2] - finding.boxes[0][0], abs=0.2)
    page.get_by_label("Boxes from peak").fill("1")
    expect(card.locator("rect")).to_have_count(0)
    page.get_by_label("Boxes from peak").fill("0")
    page.wait_for_function("document.querySelector('#images canvas').width > 90")
    before = colors(card)
    card.get_by_role("button", name="dog").focus()
    page.keyboard.press("Enter")
    dog = card.get_by_role("button", name="dog")
    expect(dog).to_have_attribute("aria-pressed", "true")
    expect(dog).to_be_focused()
    expect(card.locator("img")).to_have_attribute("alt", re.compile("cat.png: dog, confidence"))
    page.wait_for_timeout(300)
    assert np.abs(colors(card).astype(int) - before).mean() > 1


def test_errors_are_listed(open_page: Open) -> None:
    page = open_page()
    page.locator("#errors summary").click()
    listed = page.locator("#errors li").all_inner_texts()
    assert len(listed) == 1
    assert "broken.jpg: not an image" in listed[0]


def test_names_and_labels_are_text(open_page: Open, entries: list[Entry], tmp_path: Path) -> None:
    found = [replace(entries[0].findings[0], label=INJECTION)]
    odd = [
        replace(entries[0], name=INJECTION, findings=found),
        replace(entries[0], name="photos/a.png", findings=[]),
        Entry(name=INJECTION, error=f"{INJECTION}: broken"),
        Entry(name="b.png", error=INJECTION),
    ]
    write_report(tmp_path / "odd.html", odd, {"text": INJECTION})
    page = open_page(tmp_path / "odd.html")
    expect(page.locator("#about")).to_have_text(INJECTION)
    expect(page.locator("#images .name").first).to_have_text(INJECTION)
    expect(page.locator("#images button").first).to_contain_text(INJECTION)
    expect(page.locator("#class option").last).to_have_text(f"{INJECTION} (1)")
    page.locator("#errors summary").click()
    assert page.locator("#errors li").all_inner_texts() == [f"{INJECTION}: broken", f"b.png: {INJECTION}"]
    assert page.locator("img").count() == 2
    assert page.locator("script:not([type])").count() == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("light", {}),
        ("dark", {"color_scheme": "dark"}),
        ("phone", {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True}),
    ],
)
def test_in_the_light_in_the_dark_and_on_a_phone(open_page: Open, name: str, options: dict[str, Any]) -> None:
    page = open_page(**options)
    expect(page.locator("#images .labels button").first).to_be_visible(timeout=WAIT)
    keep_picture(page, f"report_{name}")
    edges = page.evaluate("[...document.querySelectorAll('body *')].map(e => e.getBoundingClientRect().right)")
    edges.append(page.evaluate("document.documentElement.scrollWidth"))
    assert max(edges) <= page.viewport_size["width"]  # nothing is cut off, or to scroll sideways for
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = sum(map(int, re.findall(r"\d+", background)[:3])) > 3 * 128
    assert bright == (name != "dark")


def test_every_control_has_a_name_and_can_be_reached(open_page: Open) -> None:
    page = open_page()
    controls = "[...document.querySelectorAll('input, select, button')]"
    assert page.evaluate(f"{controls}.filter(e => !(e.labels?.length || e.textContent.trim())).length") == 0
    assert page.evaluate(f"{controls}.length") > 20
    reached = []
    for _ in range(7):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert reached[:5] == ["class", "confidence", "peak", "opacity", "name"]
    assert "BUTTON" in reached[5:]
    pictures = page.locator("#images img")
    assert all(pictures.nth(index).get_attribute("alt") for index in range(pictures.count()))
