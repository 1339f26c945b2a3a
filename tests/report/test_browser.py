"""A report in a real browser, from the disk: ranks, filters, maps, boxes; light, dark and on a phone.

Pictures of it go to the folder that DENSESCORE_SCREENSHOTS names.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import skimage.data
from PIL import Image

pytest.importorskip("playwright", reason="needs the extra: pip install 'densescore[browser]'")
from playwright.sync_api import expect

from densescore import DenseScorer
from densescore.report.page import Entry, write_report
from densescore.report.sources import scored_entries
from tests.conftest import keep_picture
from tests.screens import SCREENS, check_screen

WAIT = 60_000  # milliseconds: a shared machine may be slow
INJECTION = "<img src=x onerror=alert(1)></script><script>alert(2)</script>.png"
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    """Four photographs, for a few groups, and a broken file."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("chelsea", "coffee", "rocket", "astronaut"):
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    scorer = DenseScorer("lite0", runtime="torch")
    classes = ["cat", "dog", "beverage", "missile"]
    scored = scored_entries(sorted(map(str, folder.iterdir())), scorer, classes)
    return [replace(entry, name=f"photos/{Path(entry.name).name}") for entry in scored]


@pytest.fixture(scope="module")
def report(entries: list[Entry], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, entries, {"text": "Scored by lite0, k = 5."})
    return path


@pytest.fixture
def open_page(browser: Any, report: Path) -> Iterator[Open]:
    contexts, problems, requests = [], list[str](), list[str]()

    def on_dialog(dialog: Any) -> None:
        problems.append(dialog.message)
        dialog.dismiss()

    def start(path: Path = report, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", on_dialog)
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        expect(page.locator("#images img").first).to_be_visible(timeout=WAIT)
        return page

    yield start
    for context in contexts:
        context.close()
    assert problems == []  # nothing is refused, or run that came from a name
    assert all(url.startswith(("file:", "data:")) for url in requests)


def names(page: Any) -> list[str]:
    return [text.split("/")[-1] for text in page.locator("#images .name").all_inner_texts()]


def test_images_are_ranked_filtered_and_their_maps_drawn(open_page: Open, entries: list[Entry]) -> None:
    page = open_page()
    best = [(entry.name.split("/")[1], {each.label: each.confidence for each in entry.classes}) for entry in entries]
    best = [(name, confidences) for name, confidences in best if confidences]
    assert names(page) == [name for name, _ in sorted(best, key=lambda each: -max(each[1].values()))]
    page.get_by_label("Class").select_option(label="cat (4)")
    assert names(page) == [name for name, _ in sorted(best, key=lambda each: -each[1]["cat"])]
    card = page.locator("#images li").first
    expect(card.locator("img:not(.map)")).to_have_attribute("alt", re.compile(r"chelsea\.png: cat \d\d %"))
    expect(card.get_by_role("button", name="cat")).to_have_attribute("aria-pressed", "true")
    assert card.locator(".map").evaluate("image => image.naturalWidth") == 128
    page.get_by_label("Map").fill("0.2")
    expect(card.locator(".map")).to_have_css("opacity", "0.2")

    page.get_by_label("Minimum probability").fill("0.3")
    assert names(page) == ["chelsea.png"]
    expect(page.locator("#count")).to_have_text("1 image of 4, best first")
    page.get_by_label("Class").select_option(label="dog (4)")
    expect(page.locator("#count")).to_contain_text("No image is left")
    page.get_by_label("Class").select_option(index=0)
    page.get_by_label("Minimum probability").fill("0")
    page.get_by_label("Name contains").fill("COFF")
    assert names(page) == ["coffee.png"]


def test_another_class_of_a_card_by_the_keyboard_and_boxes_by_their_probability(
    open_page: Open, entries: list[Entry]
) -> None:
    page = open_page()
    page.get_by_label("Class").select_option(label="cat (4)")
    cat = next(entry for entry in entries if entry.name.endswith("chelsea.png"))
    boxes = next(each.boxes for each in cat.classes if each.label == "cat")
    card = page.locator("#images li").first
    likely = [box for box in boxes if (box[4] or 0) >= 0.25]
    assert likely
    expect(card.locator("rect")).to_have_count(len(likely))
    width = float(card.locator("rect").first.get_attribute("width"))
    assert width == pytest.approx(boxes[0][2] - boxes[0][0], abs=0.2)
    page.get_by_label("Least probability of a box").fill("1")
    expect(card.locator("rect")).to_have_count(0)
    page.get_by_label("Least probability of a box").fill("0")
    expect(card.locator("rect")).to_have_count(len(boxes))
    card.locator(".picture").click()
    page.wait_for_timeout(100)
    assert card.locator(".picture").bounding_box()["width"] > 600  # enlarged
    card.locator(".picture").click()
    missile = card.get_by_role("button", name="missile")
    missile.focus()
    page.keyboard.press("Enter")
    expect(missile).to_have_attribute("aria-pressed", "true")
    expect(missile).to_be_focused()
    expect(card.locator("img:not(.map)")).to_have_attribute("alt", "photos/chelsea.png: no missile")
    expect(missile).to_have_text(re.compile("^no missile"))
    expect(card.locator(".map")).to_be_hidden()
    expect(card.locator("rect, path")).to_have_count(0)


def test_names_and_labels_are_text(open_page: Open, entries: list[Entry], tmp_path: Path) -> None:
    summary = replace(entries[0].classes[0], label=INJECTION, title=INJECTION)
    odd = [
        replace(entries[0], name=INJECTION, classes=[summary]),
        replace(entries[0], name="photos/a.png", classes=[]),
        Entry(name=INJECTION, error=f"{INJECTION}: broken"),
        Entry(name="b.png", error=INJECTION),
    ]
    write_report(tmp_path / "odd.html", odd, {"text": INJECTION})
    page = open_page(tmp_path / "odd.html")
    expect(page.locator("#about")).to_have_text(INJECTION)
    expect(page.locator("#images .name").first).to_have_text(INJECTION)
    expect(page.locator("#images .labels button").first).to_contain_text(INJECTION)
    expect(page.locator("#class option").last).to_have_text(f"{INJECTION} (1)")
    page.locator("#errors summary").click()
    assert page.locator("#errors li").all_inner_texts() == [f"{INJECTION}: broken", f"b.png: {INJECTION}"]
    assert page.locator("img:not(.map)").count() == 2
    assert page.locator("script:not([type])").count() == 1


@pytest.mark.parametrize("name", SCREENS)
def test_in_the_light_in_the_dark_and_on_a_phone(open_page: Open, name: str) -> None:
    page = open_page(**SCREENS[name])
    expect(page.locator("#images .labels button").first).to_be_visible(timeout=WAIT)
    keep_picture(page, f"report_{name}")
    check_screen(page, name, "body *")


def test_every_control_has_a_name_and_can_be_reached(open_page: Open) -> None:
    page = open_page()
    controls = "[...document.querySelectorAll('input, select, button')]"
    assert (
        page.evaluate(f"{controls}.filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).length") == 0
    )
    assert page.evaluate(f"{controls}.length") > 20
    reached = []
    for _ in range(7):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert reached[:5] == ["class", "confidence", "certain", "opacity", "name"]
    assert "BUTTON" in reached[5:]
    assert all(picture.get_attribute("alt") for picture in page.locator("#images img:not(.map)").all())
