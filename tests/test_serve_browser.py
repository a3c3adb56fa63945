"""The search page in a real browser: everything that a visitor does, by mouse, by keyboard, and on a phone."""

import base64
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from page_server import PATIENCE, PageServer, distances_of, ids_of
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from stages.search import Searcher

WIDE = {"width": 1280, "height": 900}
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}


@pytest.fixture(scope="module")  # while it is there, no other test can have an event loop
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        reason = "chromium is not installed, in which the page is tested (Debian: apt-get install chromium)"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    with sync_playwright() as playwright:
        # Within a container there is no sandbox to be had; the pages are our own.
        with playwright.chromium.launch(executable_path=program, args=["--no-sandbox"]) as browser:
            yield browser


@pytest.fixture
def visit(browser: Browser, page: PageServer) -> Iterator[Callable[..., Page]]:
    """Opens the page in a window of its own; in the end no window may have asked anybody else, or met an error."""
    wrong, windows = [], []

    def open_page(address: str = "", **options) -> Page:
        window = browser.new_context(**{"viewport": WIDE} | options)
        windows.append(window)
        tab = window.new_page()
        tab.set_default_timeout(PATIENCE * 1000)
        tab.on("request", lambda request: request.url.startswith((page.url, "data:", "blob:" + page.url))
               or wrong.append(f"asks for {request.url}"))  # fmt: skip
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        # What the server refuses is in the console, too; nothing else may be.
        tab.on("console", lambda said: said.type in ("error", "warning") and "status of 4" not in said.text
               and wrong.append(said.text))  # fmt: skip
        tab.goto(page.url + address)
        tab.wait_for_selector(".cb-image")
        tab.wait_for_selector("canvas[data-drawn]")
        return tab

    yield open_page
    for window in windows:
        window.close()
    assert wrong == []


@pytest.fixture(scope="session")
def searcher(tiny_run) -> Searcher:
    return Searcher.open(tiny_run)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def shown(tab: Page) -> list[int]:
    """The images of the answer that is there once nothing is waited for."""
    tab.wait_for_function("!document.querySelector('#cb-results').hasAttribute('aria-busy')")
    return ids_of(tab.inner_html("#cb-results"))


def ask(tab: Page, text: str) -> None:
    tab.fill("#cb-text textarea", text)
    tab.press("#cb-text textarea", "Enter")
    tab.wait_for_selector(".cb-words")


def give(tab: Page, kind: str, data: bytes, zeros: int = 0) -> None:
    """Drop or paste a file, `zeros` bytes longer than `data`."""
    tab.evaluate("""([kind, data, zeros]) => {
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes, new Uint8Array(zeros)], "photo.png", { type: "image/png" }));
        const options = { bubbles: true, cancelable: true };
        document.querySelector("#cb-drop").dispatchEvent(kind === "paste"
            ? new ClipboardEvent(kind, { clipboardData: transfer, ...options })
            : new DragEvent(kind, { dataTransfer: transfer, ...options }));
    }""", [kind, base64.b64encode(data).decode(), zeros])  # fmt: skip


def upload(tab: Page, data: bytes, name: str = "photo.png") -> None:
    tab.set_input_files("#cb-file", {"name": name, "mimeType": "image/png", "buffer": data})


def test_a_text_finds_images_and_each_can_be_compared(visit, searcher):
    tab = visit()
    assert tab.title() == "conceptbits" and len(shown(tab)) == 24
    ask(tab, "a dog and a boat")
    hits = searcher.by_text("a dog and a boat")
    assert shown(tab) == hits.ids.tolist()
    assert distances_of(tab.inner_html("#cb-results")) == hits.distances.tolist()
    compared = tab.locator(".cb-compare")
    expect(compared).to_contain_text(f"Image {hits.ids[0]}:")
    expect(compared.locator(".cb-concepts tbody tr").first).to_be_visible()
    tab.locator(".cb-look").nth(9).click()
    expect(compared).to_contain_text(f"Image {hits.ids[9]}:")
    strips = compared.locator(".cb-strip")
    assert strips.count() == 2
    for strip in (strips.first, strips.last):
        assert strip.get_attribute("aria-label").count(f"{hits.distances[9]} of {searcher.index.bits} bits") == 1
    expect(tab.locator(".cb-look[aria-pressed=true]")).to_have_count(1)
    tab.locator(".cb-hit img").last.scroll_into_view_if_needed()
    tab.wait_for_function("[...document.querySelectorAll('.cb-hit img')].at(-1).naturalWidth > 0")


def test_a_photo_is_chosen_dropped_and_pasted(visit, page, pictures):
    tab = visit()
    upload(tab, pictures[0])
    tab.wait_for_selector('.cb-compare img[src^="blob:"]')
    expected = ids_of(page.search(pictures[0])[1])
    assert shown(tab) == expected
    tab.wait_for_function("document.querySelector('.cb-compare img[src^=\"blob:\"]').naturalWidth > 0")
    for kind, photo in (("drop", pictures[1]), ("paste", pictures[2])):
        with tab.expect_response(lambda answer: "/search" in answer.url):
            give(tab, kind, photo)
        tab.wait_for_selector('.cb-compare img[src^="blob:"]')
        assert shown(tab) == ids_of(page.search(photo)[1])


def test_what_cannot_be_searched_with_is_said_and_the_page_goes_on(visit, pictures):
    tab = visit()
    noise = Image.effect_noise((100, 100), 50)
    for data, zeros, words in (
        (b"no image at all", 0, "no image of a known kind"),
        (png(noise)[:3000], 0, "cannot be decoded"),
        (png(Image.new("1", (10_000, 10_000))), 0, "10000x10000 pixels, more than 50,000,000"),  # 100 megapixels
        (b"", 17 * 2**20, "17.0 MiB, more than 16.0 MiB"),
    ):
        give(tab, "drop", data, zeros)
        expect(tab.get_by_role("alert")).to_contain_text(words)
        assert shown(tab) == []
        upload(tab, pictures[0])
        tab.wait_for_selector('.cb-compare img[src^="blob:"]')
        assert len(shown(tab)) == 20


def test_sliders_choose_how_many_and_rerank(visit, searcher):
    tab = visit()
    ask(tab, "a dog and a boat")
    images, rerank = (tab.locator(f"#cb-{name} input[type=range]") for name in ("top", "rerank"))
    images.press("ArrowRight")
    expect(tab.locator(".cb-look")).to_have_count(21)
    images.press("Home")
    expect(tab.locator(".cb-look")).to_have_count(1)
    tab.fill("#cb-top input[type=number]", "7")
    tab.press("#cb-top input[type=number]", "Tab")
    expect(tab.locator(".cb-look")).to_have_count(7)
    expect(tab.locator(".cb-line span")).to_have_count(0)
    rerank.press("ArrowRight")
    expect(tab.locator(".cb-line span")).to_have_count(7)
    assert shown(tab) == searcher.by_text("a dog and a boat", top=7, rerank=50).ids.tolist()


def test_wandering_by_clicks_and_back(visit, searcher):
    tab = visit()
    first = shown(tab)[3]
    tab.locator(".cb-image").nth(3).click()
    expect(tab.locator(".cb-compare .cb-title").first).to_have_text(f"Image {first}")
    found = shown(tab)
    assert found == searcher.by_id(first).ids.tolist()
    tab.locator(".cb-image").nth(1).click()
    expect(tab.locator(".cb-compare .cb-title").first).to_have_text(f"Image {found[1]}")
    tab.go_back()
    expect(tab.locator(".cb-compare .cb-title").first).to_have_text(f"Image {first}")
    assert shown(tab) == found
    linked = visit(f"/#id={first}")
    assert shown(linked) == found


def test_a_point_of_the_map_is_searched_with(visit, page, searcher):
    tab = visit()
    points = json.loads(page.ask("GET", "/map")[2])
    canvas = tab.locator("#cb-map canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    width, height = max(points["x"]), max(points["y"])
    fit = min((box["width"] - 22) / width, (box["height"] - 22) / height)  # a margin of ten, and a border
    row = 25
    place = {"x": box["width"] / 2 + (points["x"][row] - width / 2) * fit,
             "y": box["height"] / 2 + (points["y"][row] - height / 2) * fit}  # fmt: skip
    canvas.hover(position=place)
    expect(tab.locator(".cb-tip")).to_contain_text(f"image {points['ids'][row]}")
    canvas.click(position=place)
    expect(tab.locator(".cb-compare .cb-title").first).to_have_text(f"Image {points['ids'][row]}")
    canvas.focus()
    canvas.press("ArrowRight")  # from the query
    expect(tab.locator(".cb-tip")).to_contain_text(f"image {points['ids'][row + 1]}")
    canvas.press("ArrowDown")
    expect(tab.locator(".cb-tip")).to_contain_text(f"image {points['ids'][row + 21]}")
    canvas.press("Enter")
    expect(tab.locator(".cb-compare .cb-title").first).to_have_text(f"Image {points['ids'][row + 21]}")
    legend = tab.locator(".cb-legend button")
    assert legend.count() == len(points["names"]) == 3
    legend.first.click()
    expect(legend.first).to_have_attribute("aria-pressed", "true")


def test_the_keyboard_is_enough(visit):
    """From the field for the text by tabulator and arrows to an image, to a comparison, and to another search."""
    tab = visit()
    focused = "document.activeElement.className + ' ' + document.activeElement.id"
    tab.keyboard.press("Tab")
    for _ in range(6):
        if "cb-file" in tab.evaluate(focused):
            break
        tab.keyboard.press("Tab")
    assert "cb-file" in tab.evaluate(focused)
    tab.keyboard.press("Tab")
    tab.keyboard.type("a dog")
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".cb-words")
    found = shown(tab)
    for _ in range(60):
        if "cb-image" in tab.evaluate(focused):
            break
        tab.keyboard.press("Tab")
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "Tab", "Enter"):
        tab.keyboard.press(key)
    expect(tab.locator(".cb-compare")).to_contain_text(f"Image {found[1]}:")
    tab.keyboard.press("Shift+Tab")
    tab.keyboard.press("Enter")
    expect(tab.locator(".cb-compare .cb-title").first).to_have_text(f"Image {found[1]}")
    assert "cb-results" in tab.evaluate(focused)


def test_on_a_phone_nothing_is_wider_than_the_screen(visit, pictures):
    tab = visit(**PHONE)
    upload(tab, pictures[0])
    tab.wait_for_selector(".cb-compare .cb-pair")
    assert tab.evaluate("document.scrollingElement.scrollWidth") <= 360
    below = [tab.locator(one).bounding_box()["y"] for one in ("#cb-ask", "#cb-results", "#cb-map")]
    assert below == sorted(below)  # what was found comes before the map
    for name in (".cb-look", ".cb-image", "#cb-text button"):
        assert tab.locator(name).first.bounding_box()["height"] >= 28, name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_are_readable_in_both_colour_schemes(visit, scheme):
    tab = visit(color_scheme=scheme)
    ask(tab, "a dog")
    colours = """(name) => {
        let element = document.querySelector(name), behind = element;
        const ground = (one) => getComputedStyle(one).backgroundColor;
        const clear = /rgba\\(.*, 0\\)|transparent/;
        while (behind.parentElement && clear.test(ground(behind))) behind = behind.parentElement;
        return [getComputedStyle(element).color, ground(behind)];
    }"""
    names = (
        ".cb-note", ".cb-title", ".cb-line", ".cb-look", ".cb-concepts th", ".cb-concepts td", "#cb-head p", "#cb-drop",
        "#cb-text textarea", "#cb-text button", "#cb-rerank .info-text", ".cb-legend button",
    )  # fmt: skip
    for name in names:
        text, ground = (luminance(found) for found in tab.evaluate(colours, name))
        assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) >= 4.5, name  # WCAG 2, level AA
        assert (text > ground) == (scheme == "dark") or name == "#cb-text button", name


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)`` (WCAG 2.2)."""
    parts = np.array([float(part) for part in re.findall(r"[\d.]+", colour)[:3]]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
