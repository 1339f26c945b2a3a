"""The page in a real browser: upload, choose, download; a bad file; light, dark and on a phone.

Pictures of it go to the folder that DENSESCORE_SCREENSHOTS names.
"""

import base64
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra: pip install 'densescore[demo]'")
pytest.importorskip("playwright", reason="needs the extra: pip install 'densescore[browser]'")
from playwright.sync_api import expect

from densescore import DenseScorer, PatchIndex
from densescore.demo.decoder import Decoder
from densescore.demo.limits import Limits
from densescore.demo.service import Service
from densescore.results.draw import Style, paint
from tests.conftest import keep_picture
from tests.screens import SCREENS, check_screen

WAIT = 60_000  # milliseconds: a shared machine may be slow
UPLOAD = "#upload input[type=file]"
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def scorer() -> DenseScorer:
    return DenseScorer("lite0", scales=(1, 1.6, 2.4), runtime="torch")


@pytest.fixture(scope="module")
def photograph(cat: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("examples") / "cat.png"
    Image.fromarray(cat).save(path)
    return path


@pytest.fixture(scope="module")
def url(serve: Callable[..., str], decoder: Decoder, scorer: DenseScorer, photograph: Path) -> str:
    coarse = DenseScorer("lite0", scales=(1,), runtime="torch")
    models = {"lite0": lambda: scorer, "one scale": lambda: coarse}
    return serve(Service(models, Limits(upload=1_000_000), decoder), [str(photograph)])


@pytest.fixture
def open_page(browser: Any, url: str) -> Iterator[Open]:
    contexts = []

    def start(**options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.goto(url)
        page.wait_for_selector(UPLOAD, state="attached")
        return page

    yield start
    for context in contexts:
        context.close()


def test_upload_choose_point_and_download(
    open_page: Open, photograph: Path, cat: NDArray[np.uint8], scorer: DenseScorer, url: str, tmp_path: Path
) -> None:
    page = open_page()
    requests: list[str] = []
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.set_input_files(UPLOAD, photograph)
    expect(page.locator("#classes label").first).to_contain_text("Egyptian cat", timeout=WAIT)
    title, map_ = page.locator("#stage .title"), page.locator("#stage .map")
    expect(title).to_have_text(re.compile(r"Egyptian cat, confidence 0\.\d\d"), timeout=WAIT)
    expect(page.locator("#patches img").first).to_be_visible(timeout=WAIT)
    keep_picture(page, "demo_light")

    page.locator("#classes label", has_text="tabby").click()
    scores = scorer.score(photograph)
    view = scores.class_map("tabby", 1000)
    expect(title).to_have_text(view.title, timeout=WAIT)
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(map_.get_attribute("src").split(",")[1]))))
    expected = paint(cat, view, Style(), (cat.shape[1], cat.shape[0]))
    assert np.abs(drawn.astype(int) - expected).mean() < 4  # JPEG
    page.locator("#stage .opacity").fill("0.2")
    expect(map_).to_have_css("opacity", "0.2")

    page.locator("#classes label.absent").last.click()
    expect(title).to_have_text(re.compile("^no "))
    expect(page.locator("#patches")).to_be_hidden()
    assert map_.get_attribute("src") == page.locator("#stage .photo").get_attribute("src")

    with page.expect_download() as waiting:
        page.locator("#maps").click()
    waiting.value.save_as(tmp_path / "maps.npz")
    with np.load(tmp_path / "maps.npz") as saved:
        assert saved["labels"][:2].tolist() == ["Egyptian cat", "tabby"]
        np.testing.assert_allclose(saved["heatmaps"][1], scores.heatmap("tabby")[0], rtol=1e-4, atol=1e-7)
    assert [address for address in requests if not address.startswith((url, "data:", "blob:"))] == []
    assert complaints == []


def test_drag_and_drop(open_page: Open, photograph: Path) -> None:
    page = open_page()
    data = base64.b64encode(photograph.read_bytes()).decode()
    script = """data => {
        const transfer = new DataTransfer();
        const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
        transfer.items.add(new File([bytes], '<img src=x>.png', {type: 'image/png'}));
        return transfer;
    }"""
    dropped = page.evaluate_handle(script, data)
    page.dispatch_event("#upload", "drop", {"dataTransfer": dropped})
    expect(page.locator("#stage .title")).to_contain_text("Egyptian cat", timeout=WAIT)
    expect(page.locator("#upload .name")).to_have_text("<img src=x>.png")  # a name is text


def test_a_bad_file_gets_a_message_and_the_next_works(open_page: Open, photograph: Path, tmp_path: Path) -> None:
    page = open_page()
    bad = tmp_path / "holiday.jpg"
    bad.write_bytes(b"not a picture")
    page.set_input_files(UPLOAD, bad)
    message = page.locator("#message")
    expect(message).to_contain_text("This could not be scored: holiday.jpg: not an image", timeout=WAIT)
    keep_picture(page, "demo_bad_file")
    page.locator("#upload button[aria-label='Clear']").click()
    expect(message).to_be_hidden(timeout=WAIT)
    page.set_input_files(UPLOAD, photograph)
    expect(page.locator("#classes label").first).to_contain_text("Egyptian cat", timeout=WAIT)
    expect(message).to_be_hidden()


def test_only_the_classes_and_groups_that_are_asked_for(open_page: Open, photograph: Path, scorer: DenseScorer) -> None:
    page = open_page()
    page.set_input_files(UPLOAD, photograph)
    expect(page.locator("#classes label")).to_have_count(8, timeout=WAIT)
    page.get_by_label("Only").fill("dog, cat")
    page.keyboard.press("Enter")
    expect(page.locator("#classes label")).to_have_count(2, timeout=WAIT)
    best = scorer.score(photograph).select(["dog", "cat"]).top(1)[0]
    assert page.locator("#classes label").first.inner_text().strip() == f"cat, confidence {best.confidence:.2g}"
    page.get_by_label("Only").fill("dogs")
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_contain_text("no class 'dogs': did you mean dog", timeout=WAIT)


def test_an_example_and_another_model(open_page: Open) -> None:
    page = open_page()
    picture = page.locator("#examples img[alt='cat.png']")
    expect(picture).to_be_visible(timeout=WAIT)
    assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [160, 106]  # a thumbnail
    page.locator("button.gallery-item[title='cat.png']").click()
    title = page.locator("#stage .title")
    expect(title).to_contain_text("Egyptian cat", timeout=WAIT)
    before = title.inner_text()
    page.locator("#model select").select_option("one scale")
    expect(title).not_to_have_text(before, timeout=WAIT)
    expect(title).to_contain_text("Egyptian cat", timeout=WAIT)


@pytest.mark.parametrize("name", ["dark", "phone"])
def test_in_the_dark_and_on_a_phone(open_page: Open, photograph: Path, name: str) -> None:
    page = open_page(**SCREENS[name])
    page.set_input_files(UPLOAD, photograph)
    expect(page.locator("#patches img").first).to_be_visible(timeout=WAIT)
    keep_picture(page, f"demo_{name}")
    check_screen(page, name, "#stage *")


@pytest.fixture(scope="module")
def searching(
    serve: Callable[..., str], decoder: Decoder, scorer: DenseScorer, photograph: Path, tmp_path_factory: Any
) -> str:
    """A page with an index of the cat, its mirror image, and two patterns."""
    pytest.importorskip("faiss", reason="needs the extra: pip install 'densescore[search]'")
    folder = tmp_path_factory.mktemp("indexed")
    cat = Image.open(photograph)
    cat.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(noise).resize((400, 300)).save(folder / f"pattern-{number}.png")
    index = PatchIndex(folder / "photos.index", DenseScorer("lite0", scales=(1, 1.6, 2.4), runtime="torch"))
    index.add([photograph, *sorted(folder.glob("*.png"))])
    return serve(Service({"lite0": lambda: scorer}, Limits(upload=1_000_000), decoder, index))


@pytest.mark.parametrize("by", ["mouse", "touch"])
def test_a_drawn_box_is_found_in_the_index(open_page: Open, searching: str, photograph: Path, by: str) -> None:
    page = open_page(has_touch=by == "touch", viewport={"width": 800, "height": 900})
    page.goto(searching)
    page.set_input_files(UPLOAD, photograph)
    expect(page.locator("#stage .hint")).to_be_visible(timeout=WAIT)
    expect(page.locator("#progress")).to_be_hidden(timeout=WAIT)
    page.locator(".picture").scroll_into_view_if_needed()
    frame = page.locator(".picture").bounding_box()
    corners = [(frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]) for x, y in ((0.3, 0.2), (0.7, 0.8))]
    if by == "mouse":
        page.mouse.move(*corners[0])
        page.mouse.down()
        page.mouse.move(*corners[1], steps=4)
        page.mouse.up()
    else:
        session = page.context.new_cdp_session(page)
        for kind, points in (("touchStart", corners[:1]), ("touchMove", corners[1:]), ("touchEnd", [])):
            touches = [{"x": x, "y": y} for x, y in points]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
    captions = page.locator("#found figcaption")
    expect(captions).to_have_count(4, timeout=WAIT)
    names = [text.split(maxsplit=1) for text in captions.all_inner_texts()]
    assert {name for _, name in names[:2]} == {"cat.png", "mirrored.png"}
    assert float(names[1][0]) > float(names[2][0]) + 0.2
    expect(page.locator(".box")).to_be_visible()
    keep_picture(page, f"demo_find_{by}")


def test_without_an_index_nothing_is_drawn(open_page: Open, photograph: Path) -> None:
    page = open_page()
    page.set_input_files(UPLOAD, photograph)
    expect(page.locator("#classes label").first).to_be_visible(timeout=WAIT)
    expect(page.locator("#stage .hint")).to_be_hidden()
