"""The page in a real browser: upload, layers, keyboard, errors, a narrow window. Needs Playwright and Chromium."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.serving.live import changed, live
from tests.serving.test_web import RULE

from sonobreast.serving.bundle import SELF_TEST_IMAGE, Bundle
from sonobreast.serving.keys import Key, new_key, read_keys
from sonobreast.serving.predictor import Predictor, load_predictor

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
SHOWN = ".body:not([hidden])"


@pytest.fixture(scope="module")
def predictor(ensemble: Bundle) -> Predictor:
    return load_predictor(ensemble, threads=1)


@pytest.fixture(scope="module")
def address(predictor: Predictor) -> Iterator[str]:
    with live(changed(predictor, decision_rule=RULE, mask_threshold=0.3)) as client:
        yield str(client.base_url)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, and a watch over what it asks for and what goes wrong."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    found = context.new_page()
    elsewhere: list[str] = []
    broken: list[str] = []
    found.on("request", lambda r: None if r.url.startswith((address, "blob:")) else elsewhere.append(r.url))
    found.on("pageerror", lambda e: broken.append(str(e)))
    found.on("console", lambda m: broken.append(m.text) if "Content Security Policy" in m.text else None)
    found.goto(address)
    yield found
    assert elsewhere == []
    assert broken == []
    context.close()


def scan(predictor: Predictor) -> Path:
    return predictor.bundle.folder / SELF_TEST_IMAGE


def add(page: Any, *files: Path, shown: int) -> None:
    page.set_input_files("#files", [str(f) for f in files])
    page.locator(SHOWN).nth(shown - 1).wait_for(timeout=20_000)


def pixels(page: Any, card: int = 0) -> np.ndarray:
    """What the canvas of a card shows."""
    canvas = page.locator("article canvas").nth(card)
    data = canvas.evaluate("c => new Promise(d => setTimeout(() => d(c.toDataURL()), 150))")
    import base64

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB"), np.int16)


def fade(page: Any, which: str, value: int) -> None:
    page.locator(f"article .layer.{which} input").first.evaluate(
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", value
    )


def test_an_image_is_shown_with_bars_words_and_layers_that_fade(page: Any, predictor: Predictor) -> None:
    add(page, scan(predictor), shown=1)
    text = page.locator("article").inner_text()
    assert "Calibrated probability" in text
    assert "The model abstains" in text
    assert "are in the prediction set" in text
    assert "(not in the prediction set)" in text
    assert "the pixel spacing is not known" in text
    assert page.locator("article .classes li").count() == 3
    widths = page.locator("article .fill").evaluate_all("es => es.map(e => e.style.width)")
    values = [float(w.rstrip("%")) for w in widths]
    assert sum(values) == pytest.approx(100.0, abs=0.1)
    assert page.locator("article .tick").count() == 1
    picture = np.asarray(Image.open(scan(predictor)).convert("RGB"), np.int16)
    fade(page, "map", 0)
    fade(page, "mask", 0)
    np.testing.assert_array_equal(pixels(page), picture)
    fade(page, "mask", 100)
    marked = np.abs(pixels(page) - picture).max(axis=2) > 0
    assert marked.sum() > 0
    fade(page, "mask", 0)
    fade(page, "map", 100)
    strong = np.abs(pixels(page) - picture).sum()
    fade(page, "map", 30)
    weak = np.abs(pixels(page) - picture).sum()
    assert 0 < weak < strong
    page.select_option("article select", "normal")
    assert np.abs(pixels(page) - picture).sum() != weak


def test_the_page_says_what_the_model_is(page: Any, predictor: Predictor) -> None:
    page.locator("#about summary").click()
    page.locator("#about dl").wait_for()
    terms, texts = (page.locator(f"#about {tag}").all_inner_texts() for tag in ("dt", "dd"))
    said = dict(zip(terms, texts, strict=True))
    assert said["Fingerprint"] == predictor.bundle.fingerprint
    assert said["Training domain"].lower().startswith(predictor.bundle.about.domain_in_words.lower())


def test_sizes_need_a_spacing_that_makes_sense(page: Any, predictor: Predictor) -> None:
    page.fill("#spacing", "55")
    page.set_input_files("#files", str(scan(predictor)))
    assert "between" in page.locator("#spacing-error").inner_text()
    assert page.locator("article").count() == 0
    page.fill("#spacing", "0.2")
    add(page, scan(predictor), shown=1)
    assert " mm (" in page.locator(".size").inner_text()


def test_errors_stand_beside_their_image(page: Any, predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no image")
    (tmp_path / "<img src=x onerror=alert(1)>.png").write_bytes(scan(predictor).read_bytes()[:500])
    frames = [Image.fromarray(np.full((60, 80), 90 * k + 20, np.uint8)) for k in range(2)]
    frames[0].save(tmp_path / "film.tif", save_all=True, append_images=frames[1:])
    files = [scan(predictor), *sorted(tmp_path.glob("*.png")), tmp_path / "film.tif"]
    add(page, *files, shown=3)
    page.locator(".fault").nth(1).wait_for()
    assert "Not an image of a known format" in page.locator("article", has_text="notes.png").inner_text()
    assert "could not be predicted" in page.locator("#summary").inner_text()
    assert page.locator("article img").count() == 0
    assert page.locator("article", has_text="picture 2 of 2").count() == 1
    film = page.locator("article", has_text="picture 2 of 2")
    film.scroll_into_view_if_needed()
    assert pixels(page, page.locator("article").count() - 1)[0, 0].max() > 60  # a browser cannot show TIFF by itself


def test_everything_is_reached_by_keyboard(page: Any, predictor: Predictor) -> None:
    def focus() -> str:
        script = "e => e.id || e.className"
        return str(page.locator(":focus").evaluate(script))

    # Listened to from the beginning: one that is asked for just before the key is pressed may come too late
    choosers: list[Any] = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    page.keyboard.press("Tab")
    assert focus() == "skip"
    page.keyboard.press("Tab")
    assert focus() == "files"
    outline = page.locator("label[for=files]").evaluate("e => getComputedStyle(e).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    for _ in range(100):
        if choosers:
            break
        page.wait_for_timeout(100)
    choosers[0].set_files(str(scan(predictor)))
    page.locator(SHOWN).first.wait_for()
    order = []
    for _ in range(11):
        page.keyboard.press("Tab")
        order.append(page.locator(":focus").evaluate("e => (e.id || e.className || e.tagName).toLowerCase()"))
    entering, card = (
        ["spacing", "frames", "region"],
        ["plain remove", "save-png", "save-json", "select", "input", "input"],
    )
    assert order == [*entering, "clear", *card, "summary"]
    page.locator("article .map input").focus()
    before = pixels(page)
    page.keyboard.press("Home")
    assert page.locator("article .map input").get_attribute("aria-valuetext") == "0 percent"
    assert (pixels(page) != before).any()
    page.locator("article .remove").focus()
    page.keyboard.press("Enter")
    assert page.locator("article").count() == 0
    assert page.locator(":focus").get_attribute("id") == "files"
    assert page.locator("#summary").get_attribute("aria-live") == "polite"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_is_wide_enough(browser: Any, address: str, predictor: Predictor, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 800}, is_mobile=True, color_scheme=scheme)
    page = context.new_page()
    page.goto(address)
    add(page, scan(predictor), shown=1)
    width = page.locator("html").evaluate("e => e.scrollWidth")
    assert width <= 390
    for selector in ("button:visible", ".button"):
        for box in page.locator(selector).all():
            assert box.bounding_box()["height"] >= 40.0
    page.locator(".save-json").scroll_into_view_if_needed()
    banner = page.locator("#use").bounding_box()
    assert banner["y"] == pytest.approx(0.0, abs=1.0)  # always in view
    assert "Research use only" in page.locator("#use").inner_text()
    context.close()


def test_results_are_downloaded(page: Any, predictor: Predictor) -> None:
    add(page, scan(predictor), scan(predictor), shown=2)
    with page.expect_download() as got:
        page.locator(".save-json").first.click()
    content = json.loads(Path(got.value.path()).read_text())
    assert content["intended_use"] == "research use only, not a medical device"
    assert content["name"] == "image.png"
    assert "layers" not in content["result"]
    assert content["result"]["abstains"] is True
    assert got.value.suggested_filename == "image-sonobreast.json"
    with page.expect_download() as got:
        page.locator(".save-png").first.click()
    sheet = Image.open(got.value.path())
    picture = Image.open(scan(predictor)).convert("RGB")
    np.testing.assert_array_equal(
        np.asarray(sheet.convert("RGB"))[: picture.height, : picture.width], np.asarray(picture)
    )
    assert sheet.height > picture.height + 100
    with page.expect_download() as got:
        page.locator("#save-all").click()
    assert len(json.loads(Path(got.value.path()).read_text())) == 2


def test_the_page_asks_for_a_key_and_keeps_it_in_the_tab(browser: Any, predictor: Predictor, tmp_path: Path) -> None:
    key, line = new_key("test")
    (tmp_path / "keys").write_text(line)
    (tmp_path / "keys").chmod(0o600)
    keys: tuple[Key, ...] = read_keys(tmp_path / "keys")
    with live(predictor, keys=keys) as client:
        page = browser.new_page()
        page.goto(str(client.base_url))
        page.locator("#key-dialog[open]").wait_for()
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        page.get_by_text("not known here").wait_for()
        page.fill("#key", key)
        page.keyboard.press("Enter")
        page.locator("#model", has_text="fingerprint").wait_for()
        add(page, scan(predictor), shown=1)
        page.reload()
        page.locator("#model", has_text="fingerprint").wait_for()
        assert page.locator("#key-dialog[open]").count() == 0
        assert key not in page.url
        page.close()


def test_a_service_that_stops_is_said_in_words(browser: Any, predictor: Predictor) -> None:
    with live(replace(predictor)) as client:
        page = browser.new_page()
        page.goto(str(client.base_url))
        page.locator("#model", has_text="fingerprint").wait_for()
        page.wait_for_timeout(200)
    page.set_input_files("#files", str(scan(predictor)))
    page.get_by_text("The service does not answer").wait_for()
    page.close()
